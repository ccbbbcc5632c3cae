"""`export`: a trained model as files that need no Crayon, each compared with the model it was written from."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from crayon import __version__, data
from crayon.config.names import identity as settings_of
from crayon.errors import BadInput, RunFailed
from crayon.report.events import Emit, Message, Progress
from crayon.tasks.base import Export
from crayon.use.card import card, check_text, last_name, portable
from crayon.use.model import Model, load
from crayon.use.output import Output, identity
from crayon.use.settings import Context, ExportConfig

AS_USED = {"classifier": "classify", "encoder": "encode"}
"""By exported function, what predict and encode call of a model."""
CHECKED = 1024
"""Images at a time that a file is checked on."""
BATCHES = (1, 2, 17)
"""Batch sizes at which a file is compared."""
TOLERANCE = 1e-3
"""Outputs that differ by more are no rounding; all of ours are of the size of 1."""
Written = tuple[bytes, Callable[[Tensor], Tensor]]
"""A file's content, and what computes by it."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def run(settings: ExportConfig, context: Context) -> None:
    """Leaves in `--out`:

        README.md                        the model card
        model.safetensors, config.json   averaged weights by network and name; settings, classes, sizes, functions
        FUNCTION.onnx, FUNCTION.pt2      what the task says can be used elsewhere, for any batch size, in float32
        result.json                      the largest difference of each file's output from PyTorch's, on random inputs,
                                         and with `check` what it makes of the run's own images

    None of them has a path of this machine: the folder is made to be passed on.

    Raises CrayonError: BadInput where a package is missing, RunFailed where a file computes something else.
    """
    formats = list(dict.fromkeys(settings.formats))
    if "onnx" in formats and (missing := [p for p in _PACKAGES if importlib.util.find_spec(p) is None]):
        raise BadInput(
            f"ONNX needs {', '.join(missing)}; install crayon-ray[export] (uv sync --extra export), or say --formats "
            "safetensors pt2."
        )
    model = load(settings.run, settings.checkpoint, "cpu")
    networks = copy.deepcopy(model.networks).to(memory_format=torch.contiguous_format)
    exports = model.task.exports(networks)
    about = identity(settings, model, formats=formats, run=last_name(model.uri))
    shown = _shown(model, context.emit) if settings.check else None
    checks: dict[str, dict[str, Any]] = {}
    output = Output(settings.out, about)
    differences: dict[str, float] = {}

    def tell(text: str) -> None:
        context.emit(Message(text))

    with output.locked():
        if "safetensors" in formats:
            tell("writing model.safetensors")
            weights = {name: t.clone().contiguous() for name, t in networks.state_dict().items()}
            output.write("model.safetensors", save(weights))
            output.write("config.json", (json.dumps(description(model, exports), indent=1) + "\n").encode())
        if not exports and set(formats) & set(WRITERS):
            tell(f"{model.job} names no function to export (Task.exports), so there is no ONNX or pt2 file.")
        for ending in (f for f in formats if f in WRITERS):
            for name, exported in exports.items():
                file = f"{name}.{ending}"
                tell(f"writing {file}")
                content, evaluated = WRITERS[ending](exported)
                differences[file] = difference(exported, evaluated)
                if not differences[file] <= TOLERANCE:
                    raise RunFailed(
                        f"{file} gives other results than PyTorch (by up to {differences[file]:.2g})."
                    )
                output.write(file, content)
                if shown and (used := AS_USED.get(name)):
                    checks[file] = _check(file, getattr(model, used), evaluated, *shown, context.emit)
                    checks[file]["precision"] = model.precision
        output.write("README.md", card(model, exports, formats, differences, checks, context).encode())
        results = {
            "largest_difference": differences,
            "check": checks,
            "command_line": portable(context.command),
        }
        output.finish(about | results)
    for file, largest in differences.items():
        tell(f"{file}: largest difference from PyTorch {largest:.2g}, at batches of 1, 2 and 17")
    for file, found in checks.items():
        tell(f"{file}: {check_text(found)}")
    if shown and not checks:
        tell("Nothing was checked on the run's images: no file that was written takes images.")
    tell(f"{output.path}")


def description(model: Model, exports: dict[str, Export]) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "crayon": __version__,
        "job": model.job,
        "step": model.step,
        "classes": model.classes,
        "image_size": model.image_size,
        "channels": model.channels,
        "functions": {
            n: {"takes": f.input_name, "gives": f.output_name, "about": f.description}
            for n, f in exports.items()
        },
        "name": model.config.name,
        "settings": {name: _portable(value) for name, value in settings_of(model.config).items()},
    }


def _portable(value: Any) -> Any:
    """A setting without the folders of this machine."""
    local = isinstance(value, str) and (os.path.isabs(value) or value.startswith("~") or "://" in value)
    return last_name(value) if local else value


def _shown(model: Model, emit: Emit) -> tuple[data.ImageSet, str]:
    """The run's own test images, or its validation images where it has none, and which they are. Raises BadInput."""
    splits = data.load(model.config.data, labels=False, emit=emit)
    for images, split in ((splits.test, "test"), (splits.val, "validation")):
        if images is not None:
            return images, split
    raise BadInput("--check: the run has neither test nor validation images; leave it out.")


@torch.no_grad()
def _check(
    file: str,
    used: Callable[[Tensor], Tensor],
    evaluated: Callable[[Tensor], Tensor],
    images: data.ImageSet,
    split: str,
    emit: Emit,
) -> dict[str, Any]:
    """What a file makes of images, beside what the model in use makes of them."""
    largest, same = 0.0, 0
    for places in torch.arange(len(images)).split(CHECKED):
        pixels = images.gather(places)
        ours, theirs = used(pixels), evaluated(pixels.float() / 255)
        largest = max(largest, float((ours - theirs).abs().max()))
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        emit(Progress(f"checking {file}", int(places[-1]) + 1, len(images), "images"))
    found = {"split": split, "images": len(images), "largest_difference": largest}
    return found | ({"same_class": same / len(images)} if file.startswith("classifier.") else {})


@torch.no_grad()
def difference(exported: Export, evaluated: Callable[[Tensor], Tensor]) -> float:
    """The largest absolute difference of any output between the module and the file made from it."""
    largest = 0.0
    for size in BATCHES:
        some = exported.example[torch.arange(size) % len(exported.example)]
        # Every row another one.
        some = some.roll(1, -1) * torch.linspace(0.5, 1, size).view(-1, *[1] * (some.dim() - 1))
        ours, theirs = exported.module(some), evaluated(some)
        if ours.shape != theirs.shape:
            return float("inf")
        largest = max(largest, float((ours - theirs).abs().max()))
    return largest


def _onnx(exported: Export) -> Written:
    import onnxruntime

    file = io.BytesIO()
    with _quiet():
        program = torch.onnx.export(
            _traced(exported),
            dynamo=True,
            verbose=False,
            input_names=[exported.input_name],
            output_names=[exported.output_name],
            dynamic_shapes=_any_batch(),
        )
        assert program is not None
        program.save(file)  # type: ignore[arg-type]
    content = file.getvalue()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def evaluated(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run([exported.output_name], {exported.input_name: inputs.numpy()})[0])

    return content, evaluated


def _pt2(exported: Export) -> Written:
    file = io.BytesIO()
    with _quiet():
        torch.export.save(_traced(exported), file)
        content = file.getvalue()
        loaded = torch.export.load(io.BytesIO(content)).module()
    return content, loaded


def _any_batch() -> Any:
    return ({0: torch.export.Dim("batch")},)


def _traced(exported: Export) -> torch.export.ExportedProgram:
    """The module's graph, without where on this machine the lines lie that made it."""
    program = torch.export.export(exported.module, (exported.example,), dynamic_shapes=_any_batch())
    for graph in (m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)
    return program


WRITERS: dict[str, Callable[[Export], Written]] = {"onnx": _onnx, "pt2": _pt2}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell what they do on standard output and in warnings."""
    logger, before = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)

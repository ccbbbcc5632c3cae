"""A model card in Markdown (Mitchell et al. 2019): what a person who is handed the files has to know."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from crayon import __version__
from crayon.config.settings import DataConfig
from crayon.errors import BadInput
from crayon.report.words import metric_text
from crayon.system.host import environment
from crayon.system.runfolder import RunFolder
from crayon.tasks.base import Export
from crayon.tasks.jobs import find
from crayon.training import checkpoint, data_history
from crayon.use.model import Model
from crayon.use.settings import Context

DATA: dict[str, tuple[str, str]] = {
    "mnist": (
        "MNIST (LeCun, Cortes & Burges)",
        "The data's authors hold its copyright and make it available under CC BY-SA 3.0.",
    ),
    "cifar10": (
        "CIFAR-10 (Krizhevsky 2009)",
        "The data's page states no licence; its images were collected from the web. It asks to be cited.",
    ),
    "celeba": (
        "CelebA (Liu et al. 2015)",
        "The data may be used for non-commercial research only, and shows real people.",
    ),
    "digits": (
        "Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998), as scikit-learn has it",
        "The data is under CC BY 4.0.",
    ),
    "shapes": ("procedural shapes that Crayon draws", "The data was computed: no one else has rights in it."),
    "faces": (
        "procedural faces that Crayon draws",
        "The data was computed: no one else has rights in it, and no real person is shown.",
    ),
    "folder": (
        "a folder of images",
        "**The terms of these images aren't known to Crayon. Fill them in before you pass the model on.**",
    ),
}
"""By data source: what it is, and its terms."""
_UNKNOWN = DATA["folder"][1]
_CARD = """# {name}

{about}

{facts}

## Use

{use}

## Data

Trained on {what}. {held_out}

## Figures

{figures}

## Versions

{versions}

## Licence

{terms} Crayon adds no terms of its own to the weights: state yours here.
"""
_FILES = "; the ONNX and torch.export files compute in float32"
_SNIPPETS = {
    "onnx": """```python
import numpy, onnxruntime
session = onnxruntime.InferenceSession("{name}.onnx")
{gives} = session.run(None, {{"{takes}": numpy.zeros({shape}, numpy.float32)}})[0]
```""",
    "pt2": """```python
import torch
{name} = torch.export.load("{name}.pt2").module()
{gives} = {name}(torch.zeros{shape})
```""",
    "safetensors": """```python
from safetensors.torch import load_file
weights = load_file("model.safetensors")   # by network and parameter; config.json has the settings
```""",
}


def card(
    model: Model,
    exports: dict[str, Export],
    formats: Sequence[str],
    differences: dict[str, float],
    checks: dict[str, dict[str, Any]],
    context: Context,
) -> str:
    """The card's text. Figures are those of the run's end where that was measured with this checkpoint, and is on this
    machine; else the checkpoint's own."""
    config, classes = model.config, model.classes or []
    what, terms = _data(config.data)
    result = _result(model)
    count = sum(p.numel() for p in model.networks.parameters())
    more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
    facts = {
        "Job": f"{model.job}, preset {config.preset}, step {model.step:,}",
        "Networks": f"{' and '.join(model.networks)}, {count:,} parameters",
        "Images": f"{model.form.height} x {model.form.width}, {'RGB' if model.channels == 3 else 'grey'}",
        "Classes": ", ".join(f"`{c}`" for c in classes[:20]) + more,
        "Precision": f"trained and measured in {config.precision}{_FILES if len(formats) > 1 else ''}",
        "Trained by": f"`{portable(result['command'])}`" if result.get("command") else "",
        "Exported by": f"`{portable(context.command)}`",
    }
    use = []
    for name, exported in exports.items():
        shape = (1, *exported.example.shape[1:])
        words = {"name": name, "takes": exported.input_name, "gives": exported.output_name, "shape": shape}
        use.append(f"`{name}`: {exported.description}.")
        use += [_SNIPPETS[f].format(**words) for f in formats if f != "safetensors"]
    if "safetensors" in formats:
        use.append(_SNIPPETS["safetensors"])
    if differences:
        largest = "\n".join(f"- {file}: {value:.2g}" for file, value in differences.items())
        use += ["Largest difference of an output from PyTorch's, both in float32, on random inputs:", largest]
    if checks:
        found = "\n".join(f"- {file}: {check_text(check)}" for file, check in checks.items())
        use += ["On the run's own images, beside what Crayon's commands make of them:", found]
    return _CARD.format(
        name=config.name or model.job,
        about=_about(model, what),
        facts="\n".join(f"- {name}: {value}" for name, value in facts.items() if value),
        use="\n\n".join(use),
        what=what,
        held_out=(f"{config.data.size:,} images of it. " if config.data.size else "") + _selected_by(model),
        figures=_figures(result or model.metrics),
        versions="\n".join(_versions(result)),
        terms=terms,
    )


def check_text(found: Mapping[str, Any]) -> str:
    """What `export --check` found of a file."""
    same = f"{100 * found['same_class']:.2f} % the same class, " if "same_class" in found else ""
    text = f"on {found['images']:,} {found['split']} images {same}largest difference {found['largest_difference']:.2g}"
    return f"{text} (the file in float32, Crayon in {found['precision'].replace('fp32', 'float32')})"


def portable(command: str) -> str:
    """A command without the folders of this machine: of each path and address its last name.

    >>> portable("jobs/mnist.py --data.root=/home/me/kmnist --storage 's3://bucket/my runs'")
    "jobs/mnist.py --data.root=kmnist --storage 'my runs'"
    """
    program, _, rest = command.partition(" ")
    try:
        words = shlex.split(rest)
    except ValueError:
        words = rest.split()
    if program.startswith(("/", "..", "~")):
        program = last_name(program)
    return " ".join([program, *(shlex.quote(_without_folders(word)) for word in words)])


def _without_folders(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{last_name(value)}"


def last_name(path: str) -> str:
    """Of a path on any system, or of an address."""
    bare = path.partition("?")[0] if "://" in path else path
    return bare.replace("\\", "/").rstrip("/").rpartition("/")[2] or path


def _data(config: DataConfig) -> tuple[str, str]:
    """What a model was trained on, and its terms."""
    if config.source not in DATA or config.own is not None:
        return f"the source {config.source}", _UNKNOWN
    what, terms = DATA[config.source]
    if config.root is None:
        return what, terms
    folder = f"`{last_name(config.root)}`"
    if config.source == "folder":
        return f"the folder of images {folder}", _UNKNOWN
    if_it_is = (
        f"If that is the set itself, and no other one in files of the same names: {terms} Else: {_UNKNOWN}"
    )
    return f"what the folder {folder} has in the files of {what}", if_it_is


def _selected_by(model: Model) -> str:
    given = data_history.of(checkpoint.load(model.entry, groups=[]))[-1]["splits"].get("val")
    if given:
        return (
            f"Its own {given['images']:,} validation images were there to select by, and weren't trained on."
        )
    share = model.config.data.val_fraction
    return f"{100 * share:g} % of its training images were held out to select by." if share else ""


def _about(model: Model, what: str) -> str:
    """What it does: as the job says where that brings its own images, else by what it was trained on."""
    job, able = find(model.job), model.config.abilities
    if model.config.data.own is not None or not able:
        return job.about
    kind = (
        f"{'RGB' if model.channels == 3 else 'grey'} images of {model.image_size} x {model.image_size} pixels"
    )
    does = {
        "classify": f"Classifies {kind} into {len(model.classes or ())} classes",
        "reconstruct": f"Compresses {kind} and restores them",
        "generate": f"Makes {kind}",
    }
    first = next((does[ability] for ability in able if ability in does), job.about.rstrip("."))
    return f"{first}, trained on {what}."


def _figures(metrics: Mapping[str, Any]) -> str:
    """A table of the test split's figures, or else the validation split's; one class's own are left out."""
    splits = {
        "test": "the test split, which nothing was selected on",
        "val": "the validation split, which it was selected by",
    }
    for split, of in splits.items():
        names = [n for n in metrics if n.startswith(f"{split}/") and n.count("/") == 1]
        rows = {n.partition("/")[2]: metrics[n] for n in names if metrics[n] is not None}
        if rows:
            lines = [f"| {name} | {metric_text(name, value)} |" for name, value in rows.items()]
            return "\n".join([f"On {of}:", "", "| | |", "|---|---|", *lines])
    return "None were measured."


def _versions(result: dict[str, Any]) -> list[str]:
    keys = ("crayon", "python", "torch", "torchvision", "platform", "cpu", "gpus")

    def line(what: str, found: dict[str, Any]) -> str:
        texts = {k: ", ".join(v) if isinstance(v, list) else v for k in keys if (v := found.get(k))}
        return f"- {what}: {'; '.join(f'{k} {text}' for k, text in texts.items())}"

    lines = [line("Exported with", environment() | {"crayon": __version__})]
    return [line("Trained with", result["environment"]), *lines] if "environment" in result else lines


def _result(model: Model) -> dict[str, Any]:
    """What the run's end left on this machine, if that was measured with this checkpoint."""
    try:
        found = RunFolder.at(model.entry.path.parent.parent).read_json("result.json") or {}
    except BadInput:
        return {}
    return found if found.get("step") == model.step else {}

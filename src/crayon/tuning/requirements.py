"""What every trial must keep to before it is trained: parameters<=500_000, memory<=200MB, ms_per_image<=2.

Figures are of untrained networks with the trial's settings. They are kept with the trial: a time that is measured again
is another one, and a sweep that goes on decides nothing anew.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crayon.config.names import override
from crayon.config.settings import Experiment, Scalar
from crayon.errors import BadInput
from crayon.tuning.space import SIGNS

if TYPE_CHECKING:
    from crayon.data.types import DataInfo
    from crayon.tasks.base import Task

_WRITTEN = re.compile(r"\s*([\w.-]+)\s*(<=|>=|<|>)\s*([\d_.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*")
UNITS = {
    "memory": {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "ms_per_image": {"": 1, "ms": 1},
}
FEW = 4
"""Images of the step by which memory is told, and twice as many: what it keeps grows evenly with them."""
SECONDS, LEAST, MOST = 0.2, 5, 50
"""How long, and how often, the time for one image is measured."""


@dataclass(frozen=True)
class Requirement:
    """One comparison of a figure with a number."""

    text: str
    name: str
    sign: str
    limit: float

    def holds(self, value: float) -> bool:
        return SIGNS[self.sign](value, self.limit)


def parse(text: str) -> Requirement:
    """Raises BadInput for what is no comparison, or of nothing that is known.

    >>> parse("parameters<=500_000").limit, parse("memory < 2MB").limit
    (500000.0, 2000000.0)
    """
    found = _WRITTEN.fullmatch(text)
    try:
        name, sign, number, unit = found.groups() if found else ("", "", "", "")
        name, limit = name.replace("-", "_"), float(number)
        if math.isinf(limit):
            raise ValueError
    except ValueError:
        raise BadInput(
            f'--require {text!r} is no comparison; write it as in "parameters<=500_000".'
        ) from None
    if name not in FIGURES:
        raise BadInput(
            f"--require {text!r}: {name!r} isn't known before training; there are {', '.join(FIGURES)}."
        )
    units = UNITS.get(name, {"": 1})
    if unit not in units:
        known = f"write {', '.join(filter(None, units))}" if len(units) > 1 else "leave it out"
        raise BadInput(f"--require {text!r}: {unit!r} is no unit of {name}; {known}.")
    return Requirement(text, name, sign, limit * units[unit])


def figure_text(name: str, value: float) -> str:
    """A figure as people read it.

    >>> figure_text("memory", 61_440_000.0), figure_text("ms_per_image", 0.51234)
    ('61.4 MB', '0.512')
    """
    if name == "parameters":
        return f"{value:,.0f}"
    return f"{value / 1e6:.3g} MB" if name == "memory" else f"{value:.3g}"


class Requirements:
    """All that the trials of a sweep keep to. info: of the images."""

    def __init__(self, texts: Iterable[str], config: Experiment | None = None, info: DataInfo | None = None):
        self._wanted, self._config, self._info = [*map(parse, texts)], config, info
        self._known: dict[tuple[Any, ...], dict[str, float]] = {}

    def know(self, params: Mapping[str, Scalar], figures: Mapping[str, float]) -> None:
        """These settings were found to have these figures."""
        self._known[_key(params)] = dict(figures)

    def figures(self, params: Mapping[str, Scalar]) -> dict[str, float]:
        """By name, what something is required of, of networks with these settings. Raises BadInput."""
        from crayon import tasks

        known = self._known.setdefault(_key(params), {})
        if lacking := [wanted.name for wanted in self._wanted if wanted.name not in known]:
            assert self._config is not None and self._info is not None
            config = override(self._config, params)
            for name in lacking:  # each leaves its networks elsewhere, or in another mode
                known[name] = float(FIGURES[name](tasks.build(config, self._info), config))
        return {wanted.name: known[wanted.name] for wanted in self._wanted}

    def objection(self, params: Mapping[str, Scalar]) -> str:
        """Why these settings can't be trained; "" where they can."""
        figures = self.figures(params)
        broken = [wanted for wanted in self._wanted if not wanted.holds(figures[wanted.name])]
        found = ", ".join(_told(name, figures[name]) for name in dict.fromkeys(w.name for w in broken))
        return f"it has {found}, against --require {' '.join(w.text for w in broken)}" if broken else ""


def _key(params: Mapping[str, Scalar]) -> tuple[Any, ...]:
    return tuple(sorted(params.items()))


def _told(name: str, value: float) -> str:
    words = {"parameters": "parameters", "memory": "of memory in a step", "ms_per_image": "ms per image"}
    return f"{figure_text(name, value)} {words[name]}"


def parameters(task: Task, config: Experiment) -> float:
    """Of all networks."""
    return sum(parameter.numel() for parameter in task.networks.parameters())


def memory(task: Task, config: Experiment) -> float:
    """Bytes of the tensors that a worker's training step keeps: weights and their averages, gradients, Adam's moments,
    and what backward needs of the batch. What lives for a moment, and libraries' own, isn't among them."""
    tensors = task.networks.state_dict().values()
    weights = sum(t.nbytes for t in tensors) * (2 if config.optim.ema_images > 0 else 1)
    trained = {
        phase: [p for p in network.parameters() if p.requires_grad]
        for phase, network in task.networks.items()
    }
    learned = 3 * sum(p.nbytes for found in trained.values() for p in found)
    batch = math.ceil(config.global_batch_size / max(config.max_workers, 1))
    steps = []
    for phase in trained:
        for name, found in trained.items():
            for parameter in found:
                parameter.requires_grad_(name == phase)
        few, more = (_kept(task, config, phase, images) for images in (FEW, 2 * FEW))
        steps.append(few + (more - few) * (batch / FEW - 1))
    return weights + learned + max(steps)


def _kept(task: Task, config: Experiment, phase: str, images: int) -> float:
    """Bytes that autograd keeps between the two passes of a step with so many images, beside the weights."""
    import torch

    from crayon.data.types import Batch
    from crayon.rng import Randomness
    from crayon.system import devices
    from crayon.system.host import computes_bf16

    positions, rng = torch.arange(images), Randomness(config.seed, "memory")
    pixels = rng.uniform(positions, math.prod(task.info.shape)).view(images, *task.info.shape)
    labels = positions % max(len(task.info.classes), 1)
    own = {t.untyped_storage().data_ptr() for t in task.networks.state_dict().values()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that its place stays its own
        return tensor

    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and computes_bf16(devices.chosen(config.device))
    )
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        loss, _ = task.loss(phase, dict(task.networks.items()), Batch(pixels, labels, positions), rng)
    del loss
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)


def ms_per_image(task: Task, config: Experiment) -> float:
    """Milliseconds that what is exported of the model, in float32, takes for one image by itself, on one core of this
    machine or on its GPU: the least of some, as trials run beside it."""
    import torch

    from crayon.system import devices

    device = devices.chosen(config.device)
    functions = [
        (e.module.to(device), e.example[:1].to(device))
        for e in task.exports(task.networks.eval().to(device)).values()
    ]
    if not functions:
        raise BadInput(f"--require: the job {config.job} names no function to time (Task.exports).")
    threads = torch.get_num_threads()
    times: list[float] = []
    torch.set_num_threads(1)
    try:
        until = time.perf_counter() + SECONDS
        while len(times) < LEAST or (time.perf_counter() < until and len(times) < MOST):
            begun = time.perf_counter()
            with torch.inference_mode():
                outputs = [module(example) for module, example in functions]
            for output in outputs:
                output.flatten()[0].item()  # waits for a GPU
            times.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return 1000 * min(times)


FIGURES = {"parameters": parameters, "memory": memory, "ms_per_image": ms_per_image}

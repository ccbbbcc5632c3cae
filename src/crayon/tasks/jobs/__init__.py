"""The jobs: what has a name, presets and a space that sweeps search. Each module here is one; others are registered.

`quick` ends in minutes on two CPU cores, and its settings were chosen on the validation split. `instant` is a first
look and trains for a second (MNIST) to half a minute there; the classifiers' was chosen on the validation split, too.
`full` is for one modern GPU or several. CIFAR-10's was chosen on the validation split as well (benchmarks/LOG.md); for
MNIST and the autoencoder it is `quick` with a larger network and more epochs, not tuned.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from crayon.config import fields
from crayon.config.names import did_you_mean, flatten, override
from crayon.config.settings import Experiment
from crayon.data.own import Source
from crayon.errors import BadInput, CrayonError

ENTRY_POINTS = "crayon.jobs"
"""Group of the entry points by which an installed package brings jobs: name = "module:attribute"."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained under a name, and its defaults.

    Torch-free, so that `--help` and mistakes answer at once. Mistakes in it are told when it is used, by `crayon.main`
    in one sentence.
    """

    name: str
    """Letters, digits, "-" and "_"."""
    about: str
    """One line for help."""
    presets: Mapping[str, Experiment | Mapping[str, Any]]
    """By name. The first is whole, an Experiment of the kind of task, and the default; another one may say only what it
    changes, by dotted name."""
    space: Mapping[str, str] = field(default_factory=dict)
    """What a sweep searches by default beside `epochs`, `lr` and `beta1`, as on the command line, by dotted name."""
    task: Any = None
    """The subclass of crayon.Task, where the presets' class doesn't say it, or says another one."""
    network: Callable[[Any, Any], Any] | None = None
    """Makes the network of a job that doesn't use its task's own: (`config.model`, DataInfo) to nn.Module."""
    source: Source | None = None
    """Images of its own, which `--data.source` knows by their name."""
    images: int | None = None
    """How many training images the presets are for. Where a user's own are fewer, epochs, batch and so on follow
    (crayon.tasks.recipe). None = the presets are taken as they are."""
    scales_to: int = 1
    """Up to how many workers the preset `full` gives each as many images a step as one has, with `lr` in proportion;
    more share what so many have. 1 = all share the preset's batch."""

    def check(self) -> None:
        """Raise BadInput where there can't be such a job."""
        if not (isinstance(self.name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", self.name)):
            raise BadInput(f"A job can't be called {self.name!r}; use letters, digits, '-' and '_'.")
        first = next(iter(self.presets.values()), None) if isinstance(self.presets, Mapping) else None
        if not isinstance(first, Experiment):
            raise BadInput(
                f"The job {self.name} needs a preset, the first of them a whole crayon.Experiment: "
                "presets={'quick': crayon.ClassificationExperiment(...)}."
            )
        if self.task is None and not hasattr(first, "task_class"):
            raise BadInput(
                f"The job {self.name} needs a task: name it as Job(task=...), or in its presets' class."
            )
        if self.images is not None and not (isinstance(self.images, int) and self.images > 0):
            raise BadInput(
                f"The job {self.name} has images={self.images!r}; give how many its presets are for."
            )
        if self.source is not None:
            self.source.check()
        for preset in self.presets:
            self.experiment(preset)

    def experiment(self, preset: str | None = None) -> Experiment:
        """The settings of a preset, of the first by default. Raises BadInput for one that doesn't exist."""
        preset = preset or next(iter(self.presets))
        if preset not in self.presets:
            near = did_you_mean(preset, self.presets, otherwise="")
            raise BadInput(
                f"There is no preset {preset!r} for {self.name}{near or ';'} "
                f"{'C' if near else 'c'}hoose --preset {' or '.join(self.presets)}."
            )
        changes = self.presets[preset]
        first: Any = next(iter(self.presets.values()))
        try:
            config = changes if isinstance(changes, Experiment) else override(first, changes)
        except KeyError as error:
            raise BadInput(
                f"The preset {preset} of {self.name} changes {error.args[0]!r}, which is no setting of it"
                f"{did_you_mean(error.args[0], flatten(first))}"
            ) from None
        data = replace(config.data, own=self.source)
        own = {"own_task": self.task, "network": self.network, "data": data}
        config = replace(config, job=self.name, preset=preset, given=frozenset(), **own)
        fields.check(config)
        return config


_registered: dict[str, Job] = {}
_places: dict[str, str] = {}
"""The modules that registered them."""
local_modules: list[ModuleType] = []
"""Of jobs that were named by a file: they aren't installed, so workers get their content."""


def register(job: Job) -> Job:
    """Make a job known by its name. The same module may register it anew, as a notebook's cell that is run again does.

    Raises BadInput where another one has the name, or the job can't be.
    """
    job.check()
    if _registered.get(job.name) is job:
        return job
    frame = inspect.currentframe()
    place = frame.f_back.f_globals.get("__name__", "") if frame and frame.f_back else ""
    own = job.name in _installed() and find(job.name) is not job
    if own or _places.setdefault(job.name, place) != place:
        raise BadInput(f"There is a job {job.name!r} already; give this one another name.")
    _registered[job.name] = job
    return job


def bring(job: Job) -> None:
    """Make known, in a worker, a job that came from the process which started it."""
    if job.name not in names():
        register(job)


def names() -> list[str]:
    """Of all jobs: those of this package, of installed ones (entry points) and those that were registered."""
    return [*dict.fromkeys([*_installed(), *_registered])]


def find(name: str) -> Job:
    """The job of this name. Raises BadInput where there is none."""
    if name not in _registered:
        if name not in (installed := _installed()):
            raise BadInput(
                f"There is no job {name!r}{did_you_mean(name, names())} The jobs are {', '.join(names())}; one of your "
                "own is named by its module, as in my_jobs.py:flowers, or in Python made known by crayon.register(job)."
            )
        _registered[name] = _job_in(pkgutil.resolve_name(installed[name]), installed[name])
    return _registered[name]


def _installed() -> dict[str, str]:
    """Where the jobs of this package and of others' entry points are, as "module:attribute" by name."""
    found = {point.name: point.value for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    return {name: f"{__name__}.{name}:job" for _, name, _ in pkgutil.iter_modules(__path__)} | found


def jobs() -> dict[str, Job]:
    """All jobs by name."""
    return {name: find(name) for name in names()}


def named(place: str) -> Job:
    """The job at `FILE.py:NAME` or `package.module:NAME`, registered. Raises BadInput where there is no such file,
    module or job.
    """
    where, _, attribute = place.rpartition(":")
    if where.endswith(".py"):
        path = Path(where).resolve()
        if not path.is_file():
            raise BadInput(f"There is no file {where}.")
        if path.stem in sys.modules:
            raise BadInput(f"{where} has the name of a module that is in use; rename it.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        _imported(where, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
        local_modules.append(module)
    else:
        try:
            found = importlib.util.find_spec(where)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise BadInput(f"There is no module {where!r} here; is its package installed?")
        module = _imported(where, lambda: importlib.import_module(where))
    if not hasattr(module, attribute):
        raise BadInput(f"{where} has no {attribute!r}{did_you_mean(attribute, vars(module))}")
    return register(_job_in(getattr(module, attribute), place))


def _imported(where: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except CrayonError:
        raise
    except Exception:
        traceback.print_exc()  # the user's own
        raise BadInput(f"{where} can't be imported; see above.") from None


def _job_in(found: Any, place: str) -> Job:
    if not isinstance(found, Job):
        raise BadInput(f"{place} is no crayon.Job but a {type(found).__name__}.")
    found.check()
    return found


def sources(config: Experiment) -> dict[str, str]:
    """The files outside this package that make a job's task, network and data, with their SHA-256."""
    parts = (type(config), config.own_task, config.network, config.data.own and config.data.own.load)
    found = {}
    for name in {getattr(part, "__module__", "crayon") for part in parts if part is not None}:
        file = getattr(sys.modules.get(name), "__file__", None)
        if name.partition(".")[0] != "crayon" and file is not None:
            found[Path(file).name] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return found


def space(config: Experiment) -> dict[str, str]:
    """What a sweep of this job searches by default, by dotted name (see crayon.tuning.space).

    The ranges lie around `config`'s own values, which the first trial has.
    """
    return {
        "epochs": f"{max(1, round(0.4 * config.epochs))}..{max(2, round(1.5 * config.epochs))}",
        "lr": f"{config.lr / 8:.1g}..{config.lr * 5:.1g}:log",
        "beta1": "0.7..0.98",
        **find(config.job).space,
    }


def get(job: str, preset: str | None = None) -> Experiment:
    """The experiment that `job` runs under `preset`, its first by default. Raises BadInput for names that don't
    exist."""
    return find(job).experiment(preset)

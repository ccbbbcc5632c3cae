"""Crayon from Python: what the commands do, as functions that return objects.

config = crayon.preset("cifar10", "quick", epochs=4, **{"data.source": "shapes"})
run = crayon.train(config)
run.result["test/accuracy"], run.dataframe(), run.load().classify(images)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crayon.config.names import did_you_mean, flatten, override
from crayon.config.settings import Experiment, Scalar
from crayon.errors import BadInput
from crayon.report.events import Emit, ignore
from crayon.system.runfolder import RESULT, SWEEP, RunFolder
from crayon.tasks import jobs as registry

if TYPE_CHECKING:
    import optuna
    import pandas

    from crayon.use.model import Model
    from crayon.use.settings import EvaluateSourceConfig


def preset(job: str, preset: str = "quick", **changes: Any) -> Experiment:
    """The settings of a job, those in `changes` replaced.

    Args:
        job: its name, one of `crayon.jobs()`.
        preset: "instant", "quick", "full" or whatever presets the job has.
        changes: by dotted name, as on the command line but with underscores: `epochs=3`, `**{"data.source": "shapes"}`.

    Raises BadInput where there is no such job, preset or setting.
    """
    config = registry.get(job, preset)
    try:
        return override(config, changes)
    except KeyError as error:
        name = error.args[0]
        hint = did_you_mean(name, flatten(config), otherwise=f"; they are {', '.join(flatten(config))}.")
        raise BadInput(f"There is no setting {name!r} for {job}{hint}") from None


def train(config: Experiment, *, extend: bool = False, progress: bool = False) -> Run:
    """Train, or go on with, a run, and measure its best model; what `crayon JOB` does.

    Args:
        config: of `preset`. The same `name` under the same `storage` goes on from its last checkpoint, and a run that
            is complete is returned as it is. `workers=0` trains in this process, otherwise Ray is started or joined.
        extend: go on with a run of fewer epochs, even one that is complete.
        progress: show on standard output what the command shows. Nothing is printed otherwise.

    Raises BadInput before any worker starts, Stopped after Ctrl-C or SIGTERM, with a checkpoint written, RunFailed
    where training could not go on.
    """
    from crayon.launch import driver

    config = dataclasses.replace(config, name=config.name or driver.default_name(config))
    with _display(progress) as emit:
        driver.train(config, emit=emit, started=time.time(), command="crayon.train", extend=extend)
    return Run(_address(config))


def tune(
    config: Experiment,
    space: Mapping[str, str | Sequence[Scalar]] | None = None,
    *,
    progress: bool = False,
    **settings: Any,
) -> Sweep:
    """Search a job's settings, or go on with a sweep; what `crayon JOB tune` does.

    Args:
        config: of `preset`; its own values are the first trial. The same `name` goes on.
        space: by dotted name a range as on the command line ("1e-4..1e-2:log", "4..12"), or a sequence of values.
            It adds to the job's own space, in which a single value fixes a dimension.
        progress: show on standard output what the command shows. Nothing is printed otherwise.
        settings: fields of `crayon.SweepConfig`: trials, minutes, target, sampler, try_, from_ ...

    Raises as `train` does; what is finished is kept.
    """
    from crayon.launch.driver import default_name
    from crayon.tuning import driver
    from crayon.tuning import space as spaces
    from crayon.tuning.settings import SweepConfig
    from crayon.tuning.terminal import SweepDisplay

    known = [field.name for field in dataclasses.fields(SweepConfig)]
    for name in settings:
        if name not in known:
            hint = did_you_mean(name, known, otherwise=f"; they are {', '.join(known)}.")
            raise BadInput(f"A sweep has no setting {name!r}{hint}")
    asked = {name: _written(values) for name, values in (space or {}).items()}
    config, dimensions = spaces.of_job(config, asked, settings.get("objective", ""))
    config = dataclasses.replace(config, name=config.name or default_name(config, "-sweep"))
    with contextlib.ExitStack() as stack:
        file = None if progress else stack.enter_context(open(os.devnull, "w"))
        display = stack.enter_context(SweepDisplay(file))
        driver.tune(
            config,
            SweepConfig(**settings),
            dimensions,
            display=display,
            started=time.time(),
            program=f"crayon {config.job}",
            command=f"tune --name {config.name}",
        )
    return Sweep(_address(config))


def evaluate(
    run: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] = "evaluation",
    checkpoint: str | int = "best",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: int = 0,
    data: EvaluateSourceConfig | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """The metrics that training ends with, of any checkpoint on any data; what `crayon JOB evaluate` does.

    Args:
        run, checkpoint, device: as `crayon.load` takes them.
        out: folder for result.json, pictures and report.html; what was done there already isn't done again.
        workers: Ray workers; 0 = this process.
        data: another source, split or size than the run's own test, validation and training images.
        progress: show on standard output what the command shows.

    Returns the content of result.json, such as "test/accuracy". Raises BadInput where there is no such run or data.
    """
    from crayon.training import checkpoint as checkpoints
    from crayon.use import evaluate as command
    from crayon.use import runs
    from crayon.use.settings import Context, EvaluateConfig, EvaluateSourceConfig

    settings = EvaluateConfig(
        run=os.fspath(run),
        checkpoint=str(checkpoint),
        device=device,
        out=os.fspath(out),
        workers=workers,
        data=data or EvaluateSourceConfig(),
    )
    job = checkpoints.load(runs.find(run, checkpoint), groups=[]).config["job"]
    with _display(progress) as emit:
        command.run(settings, Context(job, f"crayon {job} evaluate", "crayon.evaluate", emit))
    return json.loads(Path(out, RESULT).read_text())


class _Results:
    """A folder of results, here or in an object store. Raises BadInput where there is none."""

    def __init__(self, place: str | os.PathLike[str], holds: str):
        from crayon.use import runs

        self._folder = runs.opened(place)
        if not self._folder.holds(holds):
            raise BadInput(f"There is no {type(self).__name__.lower()} {self._folder.uri}.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @property
    def path(self) -> Path:
        """Where its files are on this machine."""
        return self._folder.path

    @property
    def uri(self) -> str:
        """Its folder or address."""
        return self._folder.uri

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json; empty until a command has come to its end."""
        return self._folder.read_json(RESULT) or {}

    @property
    def pictures(self) -> dict[str, Path]:
        """The PNG files of the end, by name, such as "confusion_matrix" or "history"."""
        return {path.stem: path for path in sorted((self.path / "pictures").glob("*.png"))}


class Run(_Results):
    """A run that was begun, wherever it was trained.

    run: its folder, or s3:// or gs:// address. Raises BadInput where there is none.

    `result` has metrics such as "test/accuracy", seconds, and versions.
    """

    def __init__(self, run: str | os.PathLike[str]):
        super().__init__(run, "config.json")

    @property
    def config(self) -> dict[str, Scalar]:
        """Every setting by its dotted name."""
        return self._folder.read_json("config.json")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row of metrics per epoch: "epoch", "lr", "train/loss", "val/accuracy" ..."""
        return self._folder.read_rows("metrics.jsonl")

    def dataframe(self) -> pandas.DataFrame:
        """`rows` with a column per metric."""
        import pandas

        return pandas.DataFrame(self.rows)

    def load(self, checkpoint: str | int = "best", device: str = "auto") -> Model:
        """Its trained model; see `crayon.load`."""
        from crayon.use.model import load

        return load(self._folder.inside(), checkpoint, device)


class Sweep(_Results):
    """A sweep that was begun.

    sweep: its folder, or s3:// or gs:// address. Raises BadInput where there is none.

    `result` has "best", "trials", "importances" ...
    """

    def __init__(self, sweep: str | os.PathLike[str]):
        super().__init__(sweep, SWEEP)

    @property
    def study(self) -> optuna.Study:
        """The Optuna study."""
        from crayon.tuning.study import open_study

        url = self._folder.read_json(SWEEP)["study"] or f"sqlite:///{self.path / 'study.db'}"
        return open_study(url, self._folder.name)

    @property
    def trials(self) -> pandas.DataFrame:
        """One row per trial, as Optuna's `trials_dataframe`."""
        return self.study.trials_dataframe()

    @property
    def best(self) -> Run:
        """The best trial, measured on the test split. Raises BadInput where no trial has ended."""
        return Run(self._folder.inside("best"))


def _written(values: str | Sequence[Scalar]) -> str:
    return values if isinstance(values, str) else ",".join(map(str, values))


@contextlib.contextmanager
def _display(progress: bool) -> Iterator[Emit]:
    from crayon.report.terminal import RunDisplay

    if progress:
        with RunDisplay() as display:
            yield display
    else:
        yield ignore


def _address(config: Experiment) -> str:
    assert config.name is not None
    return RunFolder(config.storage, config.name).inside()

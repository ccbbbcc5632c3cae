"""The flags of each command: one for each field of its dataclasses, by dotted name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crayon.cli.parser import HelpShown, Parser, parsed
from crayon.config.names import as_flag, flatten
from crayon.config.settings import Experiment
from crayon.errors import BadInput, one_line
from crayon.launch import fitting
from crayon.tasks import jobs
from crayon.tasks.jobs import find, get
from crayon.tuning.settings import SweepConfig
from crayon.use.settings import COMMANDS as COMMANDS_OF_USE
from crayon.use.settings import UseConfig, commands_of

if TYPE_CHECKING:
    from crayon.data.contents import CacheConfig
    from crayon.ops.settings import ChaosConfig, DoctorConfig
    from crayon.tuning.space import Dimension

TRAINING = {
    "train": "Train, or go on with, a run.",
    "tune": "Search a job's settings.",
    "chaos": "Break a run on purpose, and tell whether that changed it.",
}
"""Commands that every job has; those that use what was trained are in crayon.use.settings."""
DOCTOR = (
    "Examines this machine, the Ray cluster that a run would join (RAY_ADDRESS, or ray start on this machine) and a "
    "cluster file, and says how to mend what is wrong. Nothing is started or changed. Exit code 1 if there is an error."
)
CACHE = (
    "Shows, or removes, what Crayon keeps on this machine to be quicker the next time: decoded and rendered images, "
    "downloads, copies of models. Images beyond CRAYON_CACHE_LIMIT (20GiB; none = no limit) are removed by themselves, "
    "those used longest ago first."
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a run begins."""

    config: str | None = None
    """Begin with the settings of this config.json of another run, but for its name and where it lay."""
    extend: bool = False
    """Go on with a run of fewer --epochs, even one that is complete. The learning rate follows the longer schedule."""
    print_config: bool = False
    """Show every setting as JSON, and end."""


def about_job(job: str) -> str:
    """What a job does, in a sentence."""
    return find(job).about


def commands(job: str) -> list[str]:
    """The commands of a job."""
    return [*TRAINING, *commands_of(job)]


def parse(job: str, argv: list[str], program: str) -> Experiment:
    """The experiment that `argv` asks for, over its preset. Raises HelpShown, BadInput, as do the others here."""
    return parse_train(job, argv, program)[0]


def parse_train(job: str, argv: list[str], program: str) -> tuple[Experiment, bool]:
    """As `parse`, and whether a run of fewer epochs goes on."""
    usage = f"{program} [{' | '.join(commands(job))}]"
    argv = _with_config(job, argv, program)
    settings = {"train options": TrainConfig(), "options": _preset(job, argv, program)}
    how, config = parsed(program, about_job(job), settings, argv, usage, _notes(job))
    if how.print_config:
        print(json.dumps(flatten(fitting.fitted(config, on_ray=config.workers != 0)), indent=2))
        raise HelpShown
    return config, how.extend


def parse_sweep(
    job: str, argv: list[str], asked: Mapping[str, str], program: str
) -> tuple[Experiment, SweepConfig, dict[str, Dimension]]:
    """What `argv` and the dimensions `asked` for make of the job's preset."""
    from crayon.tuning import space

    default = _preset(job, argv, program)
    settings = {"sweep options": SweepConfig(), "options": default}
    try:
        about = f"Search settings of: {about_job(job)}"
        sweep, config = parsed(f"{program} tune", about, settings, argv, notes=_notes(job))
    except HelpShown:
        from crayon.tuning.terminal import space_help

        print(f"\n{space_help(space.build(default, jobs.space(default), {})[1])}")
        raise
    config, dimensions = space.of_job(config, asked, sweep.objective)
    return config, sweep, dimensions


def parse_chaos(job: str, argv: list[str], program: str) -> tuple[Experiment, ChaosConfig]:
    """What `argv` makes of the job's preset, and what is to be broken."""
    from crayon.ops.settings import ChaosConfig

    about = f"Break, on purpose and at random moments, a run of: {about_job(job)}"
    settings = {"chaos options": ChaosConfig(), "options": _preset(job, argv, program)}
    chaos, config = parsed(f"{program} chaos", about, settings, argv, notes=_notes(job))
    return config, chaos


def parse_doctor(argv: list[str]) -> DoctorConfig:
    """What to examine."""
    from crayon.ops.settings import DoctorConfig

    return parsed("crayon doctor", DOCTOR, {"options": DoctorConfig}, argv)[0]


def parse_cache(argv: list[str]) -> CacheConfig:
    """What to do with the cache."""
    from crayon.data.contents import CacheConfig

    return parsed("crayon cache", CACHE, {"options": CacheConfig}, argv)[0]


def parse_use(job: str, command: str, argv: list[str], program: str) -> UseConfig:
    """What a command that uses a trained model is asked for."""
    settings = COMMANDS_OF_USE[command]
    return parsed(f"{program} {command}", settings.__doc__ or "", {"options": settings}, argv)[0]


def dimensions(argv: list[str], program: str) -> tuple[dict[str, str], list[str]]:
    """(`--space.NAME RANGE` by name, the last of each; the other words). Raises BadInput."""
    asked: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith("--space."):
            rest.append(word)
            continue
        name, equals, value = word.removeprefix("--space.").partition("=")
        if not equals:
            value = next(words, "")
        if not name or not value or value.startswith("--"):
            raise BadInput(f"--space.{name} needs a range, such as 0.1..0.5. See {program} tune --help.")
        asked[name] = value
    return asked, rest


def _notes(job: str) -> dict[str, str]:
    """What the help of a job says beside what it says for all, by setting."""
    known = jobs.find(job)
    own = {"data.source": f"Or the job's own: {known.source.name}."} if known.source else {}
    return {"preset": f"This job has {', '.join(known.presets)}.", **own}


def _preset(job: str, argv: list[str], program: str) -> Experiment:
    """The job's defaults. They depend on `--preset`, which therefore is read before the other flags."""
    parser = Parser(prog=program, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--preset")
    return get(job, **vars(parser.parse_known_args(argv)[0]))


def _with_config(job: str, argv: list[str], program: str) -> list[str]:
    """`argv`, after the flags that the config.json which it names with --config stands for, but those of its place."""
    parser = Parser(prog=program, add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    file = parser.parse_known_args(argv)[0].config
    if file is None:
        return argv
    try:
        flat = json.loads(Path(file).read_text())
        of = flat.pop("job")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise BadInput(f"--config {file} can't be read as a run's config.json ({one_line(error)}).") from None
    if of != job:
        raise BadInput(f"--config {file} is of {of}; give one of {job}.")
    settings = {name: value for name, value in flat.items() if name not in ("name", "storage")}
    return [*(word for name, value in settings.items() for word in as_flag(name, value)), *argv]

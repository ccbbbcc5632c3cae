"""The flags of each command: one for each field of its dataclasses, by dotted name."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crayon.cli.parser import CommandLine, Parser
from crayon.config.fields import check
from crayon.config.settings import Experiment
from crayon.errors import BadInput
from crayon.tasks import jobs
from crayon.tasks.jobs import JOBS, get
from crayon.tune.settings import SweepConfig
from crayon.use.settings import COMMANDS as COMMANDS_OF_USE
from crayon.use.settings import UseConfig, commands_of

if TYPE_CHECKING:
    from crayon.data.contents import CacheConfig
    from crayon.ops.settings import ChaosConfig, DoctorConfig
    from crayon.tune.space import Dimension

TRAINING = ("train", "tune", "chaos")
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


def commands(job: str) -> list[str]:
    """The commands of a job."""
    return [*TRAINING, *commands_of(job)]


def parse(job: str, argv: list[str], program: str) -> Experiment | None:
    """The experiment that `argv` asks for, over its preset; None when only help was asked for. Raises BadInput."""
    default = _preset(job, argv, program)
    usage = f"{program} [{' | '.join(commands(job))}]"
    parsed = CommandLine(program, _about(job), {"options": default}, usage).parse(argv)
    return parsed[0] if parsed else None


def parse_sweep(
    job: str, argv: list[str], asked: Mapping[str, str], program: str
) -> tuple[Experiment, SweepConfig, dict[str, Dimension]] | None:
    """What `argv` and the dimensions `asked` for make of the job's preset; None when only help was asked for.

    Raises BadInput.
    """
    from crayon.tune import space

    default = _preset(job, argv, program)
    settings = {"sweep options": SweepConfig(), "options": default}
    parsed = CommandLine(f"{program} tune", f"Search settings of: {_about(job)}", settings).parse(argv)
    if parsed is None:
        from crayon.tune.terminal import space_help

        print(f"\n{space_help(space.build(default, jobs.space(default), {})[1])}")
        return None
    sweep, config = parsed
    config, dimensions = space.build(config, jobs.space(config), asked)
    return config, sweep, dimensions


def parse_chaos(job: str, argv: list[str], program: str) -> tuple[Experiment, ChaosConfig] | None:
    """What `argv` makes of the job's preset, and what is to be broken; None when only help was asked for."""
    from crayon.ops.settings import ChaosConfig

    about = f"Break, on purpose and at random moments, a run of: {_about(job)}"
    settings = {"chaos options": ChaosConfig(), "options": _preset(job, argv, program)}
    parsed = CommandLine(f"{program} chaos", about, settings).parse(argv)
    return (parsed[1], parsed[0]) if parsed else None


def parse_doctor(argv: list[str]) -> DoctorConfig | None:
    """What to examine; None when only help was asked for. Raises BadInput."""
    from crayon.ops.settings import DoctorConfig

    return _plain("crayon doctor", DOCTOR, DoctorConfig, argv)


def parse_cache(argv: list[str]) -> CacheConfig | None:
    """What to do with the cache; None when only help was asked for. Raises BadInput."""
    from crayon.data.contents import CacheConfig

    return _plain("crayon cache", CACHE, CacheConfig, argv)


def parse_use(job: str, command: str, argv: list[str], program: str) -> UseConfig | None:
    """What a command that uses a trained model is asked for; None when only help was. Raises BadInput."""
    settings = COMMANDS_OF_USE[command]
    return _plain(f"{program} {command}", settings.__doc__ or "", settings, argv)


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


def _preset(job: str, argv: list[str], program: str) -> Experiment:
    """The job's defaults. They depend on `--preset`, which therefore is read before the other flags."""
    parser = Parser(prog=program, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--preset")
    return get(job, **vars(parser.parse_known_args(argv)[0]))


def _about(job: str) -> str:
    return (JOBS[job].__doc__ or "").strip()


def _plain(program: str, about: str, settings: type, argv: list[str]) -> Any:
    """`argv` as checked `settings`; None when only help was asked for."""
    parsed = CommandLine(program, about, {"options": settings}).parse(argv)
    if parsed is None:
        return None
    check(parsed[0])
    return parsed[0]

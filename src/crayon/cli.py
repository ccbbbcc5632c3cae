"""The command line. Flags are the experiment's dotted names; mistakes end in one sentence and exit code 2."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from crayon import __version__, presets, secrets
from crayon.config import ChaosConfig, Experiment, SweepConfig, flatten, override
from crayon.errors import BadInput, CrayonError
from crayon.presets import JOBS, PRESETS, get

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crayon.doctor.config import DoctorConfig
    from crayon.sweep.space import Dimension

COMMANDS = ("train", "tune", "chaos")
SHORT_GROUPS = ("options", "data options", "sweep options", "chaos options")
DOCTOR = (
    "Examines this machine, the Ray cluster that a run would join (RAY_ADDRESS, or ray start on this machine) and a "
    "cluster file, and says how to mend what is wrong. Nothing is started or changed. Exit code 1 if there is an error."
)
_HELP = {"-h", "--help", "--help-all"}


class Extra(NamedTuple):
    """What a command has beside the experiment's settings."""

    name: str
    settings: type
    title: str


SWEEP = Extra("sweep", SweepConfig, "Search settings of")
CHAOS = Extra("chaos", ChaosConfig, "Break, on purpose and at random moments, a run of")


def main(job: str | None = None, argv: list[str] | None = None) -> None:
    """Entry point of `crayon JOB ...` and, with `job` given, of `jobs/JOB.py ...`. Exits the process."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        sys.exit(run(job, argv))
    except CrayonError as error:
        print(f"{'error' if error.exit_code == 2 else 'stopped'}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(
            "stopped: interrupted before a checkpoint could be written; checkpoints written before are kept.",
            file=sys.stderr,
        )
        sys.exit(130)
    except BrokenPipeError:
        os._exit(141)


def run(job: str | None, argv: list[str]) -> int:
    """Parse and execute. Raises CrayonError."""
    started = command_start()
    secrets.check_arguments(argv)
    program = "crayon" if job is None else os.path.relpath(sys.argv[0])
    if job is None:
        if argv and argv[0] in ("--version", "-V"):
            print(f"crayon {__version__}")
            return 0
        if not argv or argv[0] in ("-h", "--help"):
            print(overview())
            return 0
        job, argv = argv[0], argv[1:]
        if job == "doctor":
            return _doctor(argv)
        if job not in JOBS:
            raise BadInput(f"There is no job {job!r}; the jobs are {', '.join(JOBS)}.")
        program = f"crayon {job}"
    command = "train"
    if argv and not argv[0].startswith("-"):
        command, argv = argv[0], argv[1:]
        if command not in COMMANDS:
            raise BadInput(
                f"{program} has no command {command!r}; there are {', '.join(COMMANDS)} (train is the default)."
            )
    return {"train": _train, "tune": _tune, "chaos": _chaos}[command](job, argv, program, started)


def _train(job: str, argv: list[str], program: str, started: float) -> int:
    config = parse(job, argv, program)
    if config is None:
        return 0

    from crayon import launch
    from crayon.progress import Progress

    command_line = f"{program} {shlex.join(argv)}".rstrip()
    with Progress() as progress:
        launch.train(config, emit=progress, started=started, command=command_line)
    return 0


def _tune(job: str, argv: list[str], program: str, started: float) -> int:
    asked, rest = _dimensions(argv, program)
    parsed = parse_sweep(job, rest, asked, program)
    if parsed is None:
        return 0

    from crayon.sweep.command import tune
    from crayon.sweep.display import SweepDisplay

    config, sweep, space = parsed
    with SweepDisplay() as display:
        tune(
            config,
            sweep,
            space,
            display=display,
            started=started,
            program=program,
            command=f"tune {shlex.join(argv)}",
        )
    return 0


def _chaos(job: str, argv: list[str], program: str, started: float) -> int:
    program = f"{program} chaos"
    default = get(job, _preset(argv, job))
    if _HELP & set(argv):
        print(_help(default, program, "--help-all" in argv, CHAOS))
        return 0
    chosen = _parsed(default, program, argv, CHAOS)
    flat = flatten(chosen)

    from crayon import chaos

    verdict = chaos.run(override(default, {name: flat[name] for name in flatten(default)}), chosen.chaos)
    return 0 if verdict.good else 1


def _doctor(argv: list[str]) -> int:
    parsed = parse_doctor(argv)
    if parsed is None:
        return 0

    from crayon.doctor.command import examine

    code, hangs = examine(*parsed)
    if hangs:  # a thread that can't be ended would keep the process
        sys.stdout.flush()
        os._exit(code)
    return code


def command_start() -> float:
    """Unix time at which this process started: wall times that we report include Python's own start."""
    import psutil

    return psutil.Process().create_time()


def overview() -> str:
    lines = [
        "usage: crayon JOB [train | tune | chaos] [OPTIONS]",
        "",
        "Image models trained and tuned on Ray.",
        "",
        "jobs:",
    ]
    lines += [f"  {name:12s} {(function.__doc__ or '').strip()}" for name, function in JOBS.items()]
    lines += ["", "crayon JOB --help shows a job's settings."]
    lines += [
        "crayon doctor [CLUSTER.yaml] examines this machine, the cluster and a cluster file before a run."
    ]
    return "\n".join(lines)


def parse(job: str, argv: list[str], program: str) -> Experiment | None:
    """The experiment that `argv` asks for, over its preset; None when only help was asked for. Raises BadInput."""
    default = get(job, _preset(argv, job))
    if _HELP & set(argv):
        print(_help(default, program, whole="--help-all" in argv))
        return None
    chosen = _parsed(default, program, argv)
    return override(default, flatten(chosen))


def parse_sweep(
    job: str, argv: list[str], asked: Mapping[str, str], program: str
) -> tuple[Experiment, SweepConfig, dict[str, Dimension]] | None:
    """What `argv` and the dimensions `asked` for make of the job's preset; None when only help was asked for.

    Raises BadInput.
    """
    from crayon.sweep import space

    default = get(job, _preset(argv, job))
    if _HELP & set(argv):
        from crayon.sweep.display import space_help

        ranges = space.build(default, presets.space(default), {})[1]
        text = _help(default, f"{program} tune", "--help-all" in argv, SWEEP)
        print(f"{text}\n{space_help(ranges)}")
        return None
    chosen = _parsed(default, f"{program} tune", argv, SWEEP)
    flat = flatten(chosen)
    config = override(default, {name: flat[name] for name in flatten(default)})
    config, dimensions = space.build(config, presets.space(config), asked)
    return config, chosen.sweep, dimensions


def parse_doctor(argv: list[str]) -> tuple[DoctorConfig, str | None] | None:
    """(what to examine, the cluster file); None when only help was asked for. Raises BadInput."""
    import tyro

    from crayon.doctor.config import DoctorConfig

    about = tyro.conf.arg(metavar="[CLUSTER.yaml]", help="A file for ray up or KubeRay, to be examined too.")
    fields = [("file", Annotated[str | None, tyro.conf.Positional, about], dataclasses.field(default=None))]
    settings = dataclasses.make_dataclass("Settings", fields, bases=(DoctorConfig,), frozen=True)
    out, errors = io.StringIO(), io.StringIO()
    helps = bool(_HELP & set(argv))
    try:
        # tyro draws its errors for standard output's encoding, which therefore is not redirected for them.
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(out if helps else sys.stdout):
            words = ["--help"] if helps else argv
            chosen = tyro.cli(settings, args=words, prog="crayon doctor", description=DOCTOR)
    except SystemExit:
        if helps:
            text = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
            print(re.sub(r"usage:.*\n", "usage: crayon doctor [CLUSTER.yaml] [OPTIONS]\n", text, count=1))
            return None
        raise BadInput(f"{_sentence(errors.getvalue())} See crayon doctor --help.") from None
    asked = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(DoctorConfig)}
    return DoctorConfig(**asked), chosen.file


def _dimensions(argv: list[str], program: str) -> tuple[dict[str, str], list[str]]:
    """(`--space.NAME RANGE` by name, the other words)."""
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
        if name in asked:
            raise BadInput(f"--space.{name} stands there twice; give each dimension once.")
        asked[name] = value
    return asked, rest


def _preset(argv: list[str], job: str) -> str:
    """The preset decides the defaults, so it is looked for before the other flags are read."""
    found = get(job).preset
    for i, word in enumerate(argv):
        if word == "--preset":
            if i + 1 == len(argv):
                raise BadInput(f"--preset needs a value: {' or '.join(PRESETS)}.")
            found = argv[i + 1]
        elif word.startswith("--preset="):
            found = word.partition("=")[2]
    return found


def _parsed(default: Experiment, program: str, argv: list[str], extra: Extra | None = None) -> Any:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return _tyro(default, program, argv, extra)
    except SystemExit:
        raise BadInput(f"{_sentence(errors.getvalue())} See {program} --help.") from None


def _tyro(default: Experiment, program: str, argv: list[str], extra: Extra | None = None) -> Any:
    import tyro

    # `job` is part of the experiment and not a flag: each job has a command of its own.
    fields: list[Any] = [("job", tyro.conf.Suppress[str], dataclasses.field(default=default.job))]
    if extra:
        own = tyro.conf.OmitArgPrefixes[extra.settings]
        fields.append((extra.name, own, dataclasses.field(default_factory=extra.settings)))
    settings = dataclasses.make_dataclass(
        "Settings", fields, bases=(type(default),), frozen=True, kw_only=True
    )
    values = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
    description = (JOBS[default.job].__doc__ or "").strip()
    if extra:
        description = f"{extra.title}: {description}"
    return tyro.cli(settings, default=settings(**values), args=argv, prog=program, description=description)


def _help(default: Experiment, program: str, whole: bool, extra: Extra | None = None) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        _tyro(default, program, ["--help"], extra)
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    usage = program if extra else f"{program} [{' | '.join(COMMANDS)}]"
    text = re.sub(r"usage:.*\n", f"usage: {usage} [OPTIONS]\n", text, count=1)
    if whole:
        return text
    head, *groups = re.split(r"(?m)^(?= (?:\w+ )?options *$)", text)
    titles = [group.split("\n", 1)[0].strip() for group in groups]
    kept = [group for group, title in zip(groups, titles, strict=True) if title in SHORT_GROUPS]
    others = [f"--{title.removesuffix(' options')}.*" for title in titles if title not in SHORT_GROUPS]
    return head + "".join(kept).rstrip() + f"\n\n More: {', '.join(others)}; see {program} --help-all\n"


def _sentence(box: str) -> str:
    """tyro's error box as one line: its first paragraph."""
    lines = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        line = line.strip().strip("│").strip()
        if line.startswith("╭"):
            continue
        if line.startswith(("─", "╰")):
            break
        lines.append(line)
    text = " ".join(lines).strip().rstrip(".")
    return f"{text}." if text else "These options can't be understood."


if __name__ == "__main__":
    main()

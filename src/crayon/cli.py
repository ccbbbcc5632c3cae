"""The command line. Flags are the experiment's dotted names; mistakes end in one sentence and exit code 2."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import sys
from typing import Any

from crayon import __version__
from crayon.config import Experiment, flatten, override
from crayon.errors import BadInput, CrayonError
from crayon.presets import JOBS, PRESETS, get

COMMANDS = ("train",)
SHORT_GROUPS = ("options", "data options")


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
    program = "crayon" if job is None else os.path.relpath(sys.argv[0])
    if job is None:
        if argv and argv[0] in ("--version", "-V"):
            print(f"crayon {__version__}")
            return 0
        if not argv or argv[0] in ("-h", "--help"):
            print(overview())
            return 0
        job, argv = argv[0], argv[1:]
        if job not in JOBS:
            raise BadInput(f"There is no job {job!r}; the jobs are {', '.join(JOBS)}.")
        program = f"crayon {job}"
    if argv and not argv[0].startswith("-"):
        command, argv = argv[0], argv[1:]
        if command not in COMMANDS:
            raise BadInput(
                f"{program} has no command {command!r}; there is {', '.join(COMMANDS)} (the default)."
            )
    config = parse(job, argv, program)
    if config is None:
        return 0

    from crayon import launch
    from crayon.progress import Progress

    command_line = f"{program} {shlex.join(argv)}".rstrip()
    with Progress() as progress:
        launch.train(config, emit=progress, started=started, command=command_line)
    return 0


def command_start() -> float:
    """Unix time at which this process started: wall times that we report include Python's own start."""
    import psutil

    return psutil.Process().create_time()


def overview() -> str:
    lines = ["usage: crayon JOB [train] [OPTIONS]", "", "Image models trained and tuned on Ray.", "", "jobs:"]
    lines += [f"  {name:12s} {(function.__doc__ or '').strip()}" for name, function in JOBS.items()]
    return "\n".join([*lines, "", "crayon JOB --help shows a job's settings."])


def parse(job: str, argv: list[str], program: str) -> Experiment | None:
    """The experiment that `argv` asks for, over its preset; None when only help was asked for. Raises BadInput."""
    default = get(job, _preset(argv, job))
    if {"-h", "--help", "--help-all"} & set(argv):
        print(_help(default, program, whole="--help-all" in argv))
        return None
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            chosen = _tyro(default, program, argv)
    except SystemExit:
        raise BadInput(f"{_sentence(errors.getvalue())} See {program} --help.") from None
    return override(default, flatten(chosen))


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


def _tyro(default: Experiment, program: str, argv: list[str]) -> Any:
    import tyro

    # `job` is part of the experiment and not a flag: each job has a command of its own.
    settings = dataclasses.make_dataclass(
        "Settings",
        [("job", tyro.conf.Suppress[str], dataclasses.field(default=default.job))],
        bases=(type(default),),
        frozen=True,
        kw_only=True,
    )
    values = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
    description = (JOBS[default.job].__doc__ or "").strip()
    return tyro.cli(settings, default=settings(**values), args=argv, prog=program, description=description)


def _help(default: Experiment, program: str, whole: bool) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        _tyro(default, program, ["--help"])
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    text = re.sub(r"usage:.*\n", f"usage: {program} [train] [OPTIONS]\n", text, count=1)
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

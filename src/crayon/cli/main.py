"""The commands. Mistakes end in one sentence and exit code 2."""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import sys
import time
from pathlib import Path

from crayon import __version__
from crayon.cli import flags
from crayon.cli.flags import TRAINING, commands
from crayon.cli.parser import HelpShown
from crayon.config.names import did_you_mean, nearest
from crayon.errors import BadInput, CrayonError, Stopped
from crayon.fast import garbage
from crayon.system import secrets
from crayon.system.hangup import ClosableOutput
from crayon.tasks.jobs import Job, find, named, names, register
from crayon.use.settings import COMMANDS as COMMANDS_OF_USE
from crayon.use.settings import jobs_with


def main(job: str | Job | None = None, argv: list[str] | None = None) -> None:
    """Entry point of `crayon JOB ...` and, with `job` given, of `jobs/JOB.py ...` and of scripts of one's own.

    Exits the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    garbage.relax()
    with (
        contextlib.redirect_stdout(ClosableOutput(sys.stdout)),
        contextlib.redirect_stderr(ClosableOutput(sys.stderr)),
    ):
        sys.exit(_exit_code(job, argv))


def _exit_code(job: str | Job | None, argv: list[str]) -> int:
    try:
        return run(job, argv)
    except CrayonError as error:
        print(f"{'error' if error.exit_code == 2 else 'stopped'}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "stopped: interrupted before a checkpoint could be written; checkpoints written before are kept.",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        os._exit(141)


def run(job: str | Job | None, argv: list[str]) -> int:
    """Parse and execute; the exit code. Raises CrayonError."""
    started = command_start()
    # torch would look through every installed package for makers of other devices than ours (benchmarks/LOG.md).
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    secrets.check_arguments(argv)
    if isinstance(job, Job):
        job = register(job).name
    try:
        return _run(job, argv, started)
    except HelpShown:
        return 0


def _run(job: str | None, argv: list[str], started: float) -> int:
    program = "crayon" if job is None else script(os.path.relpath(sys.argv[0]))
    if job is None:
        if argv and argv[0] in ("--version", "-V"):
            print(f"crayon {__version__}")
            return 0
        if not argv or argv[0] in ("-h", "--help"):
            print(overview())
            return 0
        job, argv = argv[0], argv[1:]
        if job in OTHERS:
            return OTHERS[job](argv)
        program = f"crayon {job}"
        job = named(job).name if ":" in job else _job(job)
    command = "train"
    if argv and not argv[0].startswith("-"):
        command, argv = argv[0], argv[1:]
    if command not in commands(job):
        known = f", which is for {' and '.join(jobs_with(command))}." if command in COMMANDS_OF_USE else ""
        raise BadInput(
            f"{program} has no command {command!r}{known or did_you_mean(command, commands(job))} "
            f"There are {', '.join(commands(job))} (train is the default)."
        )
    training = {"train": _train, "tune": _tune, "chaos": _chaos}
    if command in training:
        return training[command](job, argv, program, started)
    return _use(job, command, argv, program)


def _job(word: str) -> str:
    """The job that the first word names. Raises BadInput."""
    if word not in (known := names()):
        if word in TRAINING or word in COMMANDS_OF_USE:
            own = jobs_with(word) if word in COMMANDS_OF_USE else known
            raise BadInput(f"{word} is a command of a job, as in crayon {own[0]} {word}; see crayon --help.")
        if (near := nearest(word, [*known, *OTHERS])) in OTHERS:
            raise BadInput(f"There is no job {word!r}; did you mean crayon {near}?")
    return find(word).name


def _train(job: str, argv: list[str], program: str, started: float) -> int:
    config, extend = flags.parse_train(job, argv, program)

    from crayon.launch import driver as launch
    from crayon.report.terminal import RunDisplay

    command = f"{program} {shlex.join(argv)}".rstrip()
    with RunDisplay() as display:
        launch.train(config, emit=display, started=started, command=command, extend=extend)
    return 0


def _tune(job: str, argv: list[str], program: str, started: float) -> int:
    asked, rest = flags.dimensions(argv, program)
    config, sweep, space = flags.parse_sweep(job, rest, asked, program)

    from crayon.tuning.driver import tune
    from crayon.tuning.terminal import SweepDisplay

    command = f"tune {shlex.join(argv)}"
    with SweepDisplay() as display:
        tune(config, sweep, space, display=display, started=started, program=program, command=command)
    return 0


def _chaos(job: str, argv: list[str], program: str, started: float) -> int:
    config, chaos_config = flags.parse_chaos(job, argv, program)

    from crayon.ops import chaos

    return 0 if chaos.run(config, chaos_config).good else 1


def _use(job: str, command: str, argv: list[str], program: str) -> int:
    settings = flags.parse_use(job, command, argv, program)

    from crayon.report.terminal import RunDisplay
    from crayon.use.settings import Context

    module = importlib.import_module(
        "crayon.use.serve.command" if command == "serve" else f"crayon.use.{command}"
    )
    name = f"{program} {command}"
    try:
        with RunDisplay() as display:
            module.run(settings, Context(job, name, f"{name} {shlex.join(argv)}", display))
    except KeyboardInterrupt:
        raise Stopped("Interrupted; the same command goes on with what was done.") from None
    return 0


def _doctor(argv: list[str]) -> int:
    config = flags.parse_doctor(argv)

    from crayon.ops.doctor.command import examine

    code, hangs = examine(config)
    if hangs:  # a thread that can't be ended would keep the process
        sys.stdout.flush()
        os._exit(code)
    return code


def _cache(argv: list[str]) -> int:
    config = flags.parse_cache(argv)

    from crayon.data import contents

    for line in contents.clear(config) if config.action == "clear" else contents.listing():
        print(line, flush=True)
    return 0


OTHERS = {"doctor": _doctor, "cache": _cache}
"""Commands that are for no job."""


def command_start() -> float:
    """Unix time at which this process started: wall times that we report include Python's own start."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    except (OSError, ValueError, AttributeError):  # not Linux
        import psutil

        # On Linux this counts from a time of boot in whole seconds, and is up to a second early.
        return psutil.Process().create_time()


def script(path: str) -> str:
    """What calls the file at `path` as a command.

    >>> script("examples/vae.py")
    'python examples/vae.py'
    """
    if not os.access(path, os.X_OK):
        return f"python {shlex.quote(path)}"
    return path if os.sep in path else os.path.join(os.curdir, path)


def overview() -> str:
    """What `crayon --help` prints."""
    uses = {name: f"{use.__doc__} ({', '.join(jobs_with(name))})" for name, use in COMMANDS_OF_USE.items()}
    return "\n".join(
        [
            "usage: crayon JOB [COMMAND] [OPTIONS]",
            "",
            "Image models trained and tuned on Ray.",
            "",
            "jobs:",
            *(f"  {name:12s} {flags.about_job(name)}" for name in names()),
            "",
            "commands (train is the default):",
            *(f"  {name:12s} {text}" for name, text in {**TRAINING, **uses}.items()),
            "",
            "crayon JOB --help shows a job's settings, crayon JOB COMMAND --help a command's.",
            "crayon doctor [CLUSTER.yaml] examines this machine, the cluster and a cluster file before a run.",
            "crayon cache [list | clear] shows or removes what is kept on this machine to be quicker the next time.",
        ]
    )

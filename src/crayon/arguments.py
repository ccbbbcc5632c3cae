"""The words of a command line as a checked experiment. Flags are the experiment's dotted names."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

from crayon import presets
from crayon.config import ChaosConfig, Experiment
from crayon.dotted import flatten, override
from crayon.errors import BadInput
from crayon.presets import JOBS, PRESETS, get
from crayon.sweep.config import SweepConfig
from crayon.use.settings import COMMANDS as COMMANDS_OF_USE
from crayon.use.settings import UseConfig, commands_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crayon.data.contents import CacheConfig
    from crayon.doctor.config import DoctorConfig
    from crayon.sweep.space import Dimension

TRAINING = ("train", "tune", "chaos")
"""Commands that every job has; those that use what was trained are in crayon.use.settings."""
SHORT_GROUPS = ("options", "data options", "sweep options", "chaos options")
DOCTOR = (
    "Examines this machine, the Ray cluster that a run would join (RAY_ADDRESS, or ray start on this machine) and a "
    "cluster file, and says how to mend what is wrong. Nothing is started or changed. Exit code 1 if there is an error."
)
CACHE = (
    "Shows, or removes, what Crayon keeps on this machine to be quicker the next time: decoded and rendered images, "
    "downloads, copies of models. Images beyond CRAYON_CACHE_LIMIT (20GiB; none = no limit) are removed by themselves, "
    "those used longest ago first."
)
CACHE_ACTION = "list shows what there is. clear removes images that no running command uses."
_HELP = {"-h", "--help", "--help-all"}


class Extra(NamedTuple):
    """What a command has beside the experiment's settings."""

    name: str
    settings: type
    title: str


SWEEP = Extra("sweep", SweepConfig, "Search settings of")
CHAOS = Extra("chaos", ChaosConfig, "Break, on purpose and at random moments, a run of")


def commands(job: str) -> list[str]:
    """The commands of a job."""
    return [*TRAINING, *commands_of(job)]


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


def parse_chaos(job: str, argv: list[str], program: str) -> tuple[Experiment, ChaosConfig] | None:
    """What `argv` makes of the job's preset, and what is to be broken; None when only help was asked for."""
    default = get(job, _preset(argv, job))
    if _HELP & set(argv):
        print(_help(default, f"{program} chaos", "--help-all" in argv, CHAOS))
        return None
    chosen = _parsed(default, f"{program} chaos", argv, CHAOS)
    flat = flatten(chosen)
    return override(default, {name: flat[name] for name in flatten(default)}), chosen.chaos


def parse_doctor(argv: list[str]) -> tuple[DoctorConfig, str | None] | None:
    """(what to examine, the cluster file); None when only help was asked for. Raises BadInput."""
    from crayon.doctor.config import DoctorConfig

    file = _positional(
        "file", str | None, "[CLUSTER.yaml]", "A file for ray up or KubeRay, to be examined too.", None
    )
    chosen = _plain(DoctorConfig, [file], argv, "crayon doctor", "[CLUSTER.yaml]", DOCTOR)
    if chosen is None:
        return None
    asked = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(DoctorConfig)}
    return DoctorConfig(**asked), chosen.file


def parse_cache(argv: list[str]) -> tuple[str, CacheConfig] | None:
    """("list" or "clear", what to clear); None when only help was asked for. Raises BadInput."""
    from crayon.data.contents import CacheConfig

    action = _positional("action", Literal["list", "clear"], "[list | clear]", CACHE_ACTION, "list")
    chosen = _plain(CacheConfig, [action], argv, "crayon cache", "[list | clear]", CACHE)
    if chosen is None:
        return None
    return chosen.action, CacheConfig(downloads=chosen.downloads)


def parse_use(job: str, command: str, argv: list[str], program: str) -> UseConfig | None:
    """What a command that uses a trained model is asked for; None when only help was. Raises BadInput."""
    settings, about = COMMANDS_OF_USE[command]
    hints = get_type_hints(settings)
    words = [f for f in dataclasses.fields(settings) if "metavar" in f.metadata]
    fields = [
        _positional(f.name, hints[f.name], f.metadata["metavar"], f.metadata["help"], f.default)
        for f in words
    ]
    usage = " ".join(f.metadata["metavar"] for f in words)
    chosen = _plain(settings, fields, argv, f"{program} {command}", usage, about)
    if chosen is None:
        return None
    return settings(**{f.name: getattr(chosen, f.name) for f in dataclasses.fields(settings)})


def _positional(name: str, kind: Any, metavar: str, help: str, default: Any) -> tuple[str, Any, Any]:
    """A word of the command line, as make_dataclass takes it."""
    import tyro

    about = tyro.conf.arg(metavar=metavar, help=help)
    return name, Annotated[kind, tyro.conf.Positional, about], dataclasses.field(default=default)


def _plain(base: type, fields: list[Any], argv: list[str], program: str, usage: str, about: str) -> Any:
    """`base` with the positional `fields`, as `argv` has it; None when only help was asked for. Raises BadInput."""
    import tyro

    settings = dataclasses.make_dataclass("Settings", fields, bases=(base,), frozen=True, kw_only=True)
    out, errors = io.StringIO(), io.StringIO()
    helps = bool(_HELP & set(argv))
    try:
        # tyro draws its errors for standard output's encoding, which therefore is not redirected for them.
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(out if helps else sys.stdout):
            words = ["--help"] if helps else argv
            chosen = tyro.cli(settings, args=words, prog=program, description=about)
    except SystemExit:
        if helps:
            text = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
            print(re.sub(r"usage:.*\n", f"usage: {program} {usage} [OPTIONS]\n", text, count=1))
            return None
        raise BadInput(f"{_sentence(errors.getvalue())} See {program} --help.") from None
    return chosen


def dimensions(argv: list[str], program: str) -> tuple[dict[str, str], list[str]]:
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
    # Docstrings are the help; looking for comments, too, takes time.
    plain = (tyro.conf.HelptextFromCommentsOff,)
    return tyro.cli(
        settings, default=settings(**values), args=argv, prog=program, description=description, config=plain
    )


def _help(default: Experiment, program: str, whole: bool, extra: Extra | None = None) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        _tyro(default, program, ["--help"], extra)
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    usage = program if extra else f"{program} [{' | '.join(commands(default.job))}]"
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

"""The words of a command line as a checked experiment. Flags are the experiment's dotted names."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import os
import re
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

from crayon.config.names import flatten, override
from crayon.config.settings import ChaosConfig, Experiment
from crayon.errors import BadInput
from crayon.tasks import jobs
from crayon.tasks.jobs import JOBS, PRESETS, get
from crayon.tune.settings import SweepConfig
from crayon.use.settings import COMMANDS as COMMANDS_OF_USE
from crayon.use.settings import UseConfig, commands_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crayon.data.contents import CacheConfig
    from crayon.ops.doctor.config import DoctorConfig
    from crayon.tune.space import Dimension

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
WIDEST = 120
"""Columns of a help: on a wider terminal tyro would put settings side by side."""
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
    from crayon.tune import space

    default = get(job, _preset(argv, job))
    if _HELP & set(argv):
        from crayon.tune.terminal import space_help

        ranges = space.build(default, jobs.space(default), {})[1]
        text = _help(default, f"{program} tune", "--help-all" in argv, SWEEP)
        print(f"{text}\n{space_help(ranges)}")
        return None
    chosen = _parsed(default, f"{program} tune", argv, SWEEP)
    flat = flatten(chosen)
    config = override(default, {name: flat[name] for name in flatten(default)})
    config, dimensions = space.build(config, jobs.space(config), asked)
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
    from crayon.ops.doctor.config import DoctorConfig

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

    helps = bool(_HELP & set(argv))
    bases = (_told(base) if helps else base,)
    settings = dataclasses.make_dataclass("Settings", fields, bases=bases, frozen=True, kw_only=True)
    out, errors = io.StringIO(), io.StringIO()
    try:
        # tyro draws its errors for standard output's encoding, which therefore is not redirected for them.
        with (
            _page(),
            contextlib.redirect_stderr(errors),
            contextlib.redirect_stdout(out if helps else sys.stdout),
        ):
            words = ["--help"] if helps else argv
            chosen = tyro.cli(settings, args=words, prog=program, description=about)
    except SystemExit:
        if helps:
            print(_headed(out.getvalue(), f"{program} {usage}"))
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
        of_extra = _told(extra.settings) if argv == ["--help"] else extra.settings
        own = tyro.conf.OmitArgPrefixes[of_extra]
        fields.append((extra.name, own, dataclasses.field(default_factory=of_extra)))
    base: Any = type(default)
    if argv == ["--help"]:
        base = _told(base)
        default = _alike(base, default)
    settings = dataclasses.make_dataclass("Settings", fields, bases=(base,), frozen=True, kw_only=True)
    values = {f.name: getattr(default, f.name) for f in dataclasses.fields(base)}
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
    with _page(), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        _tyro(default, program, ["--help"], extra)
    usage = program if extra else f"{program} [{' | '.join(commands(default.job))}]"
    text = _headed(out.getvalue(), usage)
    if whole:
        return text
    head, *groups = re.split(r"(?m)^(?= (?:\w+ )?options *$)", text)
    titles = [group.split("\n", 1)[0].strip() for group in groups]
    kept = [group for group, title in zip(groups, titles, strict=True) if title in SHORT_GROUPS]
    others = [f"--{title.removesuffix(' options')}.*" for title in titles if title not in SHORT_GROUPS]
    return head + "".join(kept).rstrip() + f"\n\n More: {', '.join(others)}; see {program} --help-all\n"


@contextlib.contextmanager
def _page() -> Iterator[None]:
    """The width that tyro draws for."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(shutil.get_terminal_size().columns, WIDEST))
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _headed(drawn: str, usage: str) -> str:
    """What tyro drew, with this usage and with its description, which it leaves on one line, broken."""
    lines = "\n".join(line.rstrip() for line in drawn.splitlines())
    _, about, rest = lines.split("\n\n", 2)
    page = min(shutil.get_terminal_size().columns, WIDEST)
    return f"usage: {usage} [OPTIONS]\n\n{textwrap.fill(about, page)}\n\n{rest}"


def _told(settings: type) -> type:
    """`settings`, and those within, with each field's docstring on one line: tyro keeps the breaks of the source."""
    import tyro

    about, hints = _docstrings(settings), get_type_hints(settings, include_extras=True)
    fields: list[Any] = []
    for field in dataclasses.fields(settings):
        kind, default = hints[field.name], dataclasses.field(default=field.default)
        if dataclasses.is_dataclass(kind):
            kind = _told(kind)  # type: ignore[arg-type]
            before = field.default_factory
            default = dataclasses.field(
                default_factory=lambda kind=kind, before=before: _alike(kind, before())
            )
        elif field.name in about:
            kind = Annotated[kind, tyro.conf.arg(help=about[field.name])]
        fields.append((field.name, kind, default))
    name, doc = settings.__name__, " ".join((settings.__doc__ or "").split())
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True, namespace={"__doc__": doc})


def _docstrings(settings: type) -> dict[str, str]:
    """By field, each on one line."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        if dataclasses.is_dataclass(kind):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
            for field, text in itertools.pairwise(body.body):  # type: ignore[attr-defined]
                match field, text:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                        value=ast.Constant(value=str(about))
                    ):
                        found[name] = " ".join(about.split())
    return found


def _alike(kind: type, values: Any) -> Any:
    """`values` as one of `kind`, which has the same fields."""
    hints = get_type_hints(kind)
    return kind(
        **{
            f.name: _alike(hints[f.name], value) if dataclasses.is_dataclass(value) else value
            for f in dataclasses.fields(values)
            for value in [getattr(values, f.name)]
        }
    )


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

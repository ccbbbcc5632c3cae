"""A command line made from dataclasses: its flags have the names, types, defaults and help of the fields."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from crayon.config.fields import Values, check, default, documented, values_of
from crayon.config.names import as_flag, did_you_mean, flatten, override
from crayon.errors import BadInput

WIDEST = 120
"""Columns of a help."""
SHORT_SECTIONS = ("options", "data options", "train options", "sweep options", "chaos options")
"""What --help shows; --help-all shows all."""
HELP = ["-h", "--help", "--help-all"]
_METAVARS = {int: "INT", float: "FLOAT", str: "STR", type(None): "None"}
_WORDS = {int: "a whole number", float: "a number", type(None): "None"}


class HelpShown(Exception):
    """Only help was asked for, and is printed."""


class Parser(argparse.ArgumentParser):
    """Ends with one sentence where a word is wrong."""

    def error(self, message: str) -> NoReturn:
        flag, _, what = message.removeprefix("argument ").partition(": ")
        flag = flag.replace("/", " or ")
        if what.startswith("expected"):
            message = f"{flag} needs a value"
        elif what.startswith("ignored"):
            message = f"{flag} takes no value"
        raise BadInput(f"{message}. See {self.prog} --help.")


class Section(NamedTuple):
    """A dataclass, without those nested in it, as a part of the help."""

    title: str
    prefix: str
    settings: type
    defaults: dict[str, Any]
    """Of the fields that the command line has; MISSING where a value must be given."""

    def fields(self) -> Iterator[dataclasses.Field[Any]]:
        return (field for field in dataclasses.fields(self.settings) if field.name in self.defaults)


def parsed(
    program: str,
    about: str,
    settings: Mapping[str, Any],
    argv: list[str],
    usage: str = "",
    notes: Mapping[str, str] | None = None,
) -> list[Any]:
    """The settings that `argv` asks for.

    settings: by title, dataclasses, or instances whose values are the defaults.
    notes: what the help adds to that of a setting, by dotted name.

    Raises HelpShown where `argv` asks for help, BadInput where a word is wrong.
    """
    sections = [s for title, given in settings.items() for s in _sections(given, title)]
    words = {f.name: f.metadata["metavar"] for s in sections for f in s.fields() if "metavar" in f.metadata}
    page = {"width": min(shutil.get_terminal_size().columns, WIDEST), "max_help_position": 32}
    parser = Parser(
        prog=program,
        usage=" ".join([usage or program, *words.values(), "[OPTIONS]"]),
        description=about,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, **page),
    )
    if set(HELP) & set(argv):
        shown = [
            s for s in sections if "--help-all" in argv or s.title in SHORT_SECTIONS or _foreign(s.settings)
        ]
        for section in shown:
            helps = dict(documented(section.settings))
            for field in section.fields():
                if note := (notes or {}).get(f"{section.prefix}{field.name}"):
                    helps[field.name] = f"{helps.get(field.name, '')} {note}".strip()
            _add(parser, section, helps, asked=True)
        if more := ", ".join(f"--{s.prefix}*" for s in sections if s not in shown):
            parser.epilog = f"More: {more}; see {program} --help-all"
        print(parser.format_help(), end="")
        raise HelpShown
    flags = HELP + [flag for section in sections for flag in _add(parser, section, {})]
    found, rest = parser.parse_known_intermixed_args(_joined(_dashed(word) for word in argv))
    if rest:
        flag = rest[0].partition("=")[0]
        if not re.match("--?[A-Za-z]", flag):
            raise BadInput(f"{rest[0]!r} is a word too many. See {program} --help.")
        asks = did_you_mean(flag.lstrip("-"), [known.lstrip("-") for known in flags], "--")
        raise BadInput(f"There is no option {flag}{asks} See {program} --help.")
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(found).items()}
    given = {name: v for name, v in given.items() if name not in words or v not in (None, ())}
    return [_filled(kind, given, program) for kind in settings.values()]


def _foreign(settings: type) -> bool:
    """Whether a job's own code has these settings, which its help shows first of all."""
    return settings.__module__.partition(".")[0] != "crayon"


def _filled(settings: Any, given: dict[str, Any], program: str) -> Any:
    if isinstance(settings, type):
        needed = [f for f in dataclasses.fields(settings) if default(f) is dataclasses.MISSING]
        if missing := [f for f in needed if f.name not in given]:
            words = [f.metadata.get("metavar", as_flag(f.name, "")[0]) for f in missing]
            is_ = "is" if len(words) == 1 else "are"
            raise BadInput(f"{' and '.join(words)} {is_} missing. See {program} --help.")
        settings = settings(**{f.name: given[f.name] for f in needed})
    known = flatten(settings)
    filled = override(settings, {name: value for name, value in given.items() if name in known})
    check(filled)
    return filled


def _sections(settings: Any, title: str, prefix: str = "") -> Iterator[Section]:
    """`settings` and the dataclasses nested in it."""
    kind = settings if isinstance(settings, type) else type(settings)
    values = {
        f.name: default(f) if settings is kind else getattr(settings, f.name)
        for f in dataclasses.fields(kind)
        if f.metadata.get("flag", True)
    }
    nested = {name: value for name, value in values.items() if dataclasses.is_dataclass(value)}
    yield Section(title, prefix, kind, {name: v for name, v in values.items() if name not in nested})
    for name, value in nested.items():
        yield from _sections(value, f"{prefix}{name} options", f"{prefix}{name}.")


def _add(parser: Parser, section: Section, helps: dict[str, str], asked: bool = False) -> list[str]:
    """Add a section's words and flags to a parser, which shows them where help is `asked` for; returns the flags."""
    first = section.title == "options"
    group = parser.add_argument_group(section.title, None if first else section.settings.__doc__)
    if first and asked:
        group.add_argument("-h", "--help", action="store_true", help="show this help and end")
    flags: list[str] = []
    for field in section.fields():
        name, value = f"{section.prefix}{field.name}", section.defaults[field.name]
        takes = values_of(section.settings, field)
        if "metavar" in field.metadata:
            parser.add_argument(
                field.name,
                type=_reader(field.name, takes),
                metavar=field.metadata["metavar"],
                nargs="*" if takes.many else "?",
                default=None,
                help=field.metadata["about"].replace("%", "%%"),
            )
            continue
        flag = as_flag(name, "")[0]
        told = "required" if value is dataclasses.MISSING else f"default: {_text(value) or 'none'}"
        options: dict[str, Any] = {"dest": name}
        options["help"] = f"{helps.get(field.name, '')} ({told})".strip().replace("%", "%%")
        if takes.types == [bool]:
            action = group.add_argument(flag, as_flag(name, False)[0], action=_Switch, **options)
        else:
            options["metavar"] = (
                "{" + _text(takes.choices, ",") + "}"
                if takes.choices
                else "|".join(_METAVARS[t] for t in takes.types)
            )
            many = "+" if takes.many else None
            action = group.add_argument(flag, type=_reader(flag, takes), nargs=many, **options)
        flags += action.option_strings
    return flags


class _Switch(argparse.Action):
    """A boolean by two flags, of which the first means true."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any):
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string == self.option_strings[0])


def _reader(flag: str, takes: Values) -> Callable[[str], Any]:
    """What makes a value of a word, or raises BadInput."""

    def read(text: str) -> Any:
        if text == "None" and type(None) in takes.types:
            return None
        if takes.choices:  # whether it is one of them is looked at with all that settings may be
            return next((value for value in takes.choices if text == str(value)), text)
        for kind in (int, float, str):
            if kind in takes.types:
                try:
                    return kind(text)
                except ValueError:
                    continue
        raise BadInput(f"{flag} {text} is not {' or '.join(_WORDS[kind] for kind in takes.types)}.")

    return read


def _joined(words: Iterable[str]) -> list[str]:
    """`--data.range -1024..3071` as one word: argparse takes what begins with a dash for another flag.

    >>> _joined(["--data.range", "-1024..3071", "--lr", "1"])
    ['--data.range=-1024..3071', '--lr', '1']
    """
    joined: list[str] = []
    for word in words:
        if re.match(r"-\.?\d", word) and joined and re.fullmatch("--[^=]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _text(value: Any, between: str = " ") -> str:
    return between.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _dashed(word: str) -> str:
    """`--data.val_fraction=.1` as `--data.val-fraction=.1`."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if word.startswith("--") else word

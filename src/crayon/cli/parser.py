"""A command line made from dataclasses: its flags have the names, types, defaults and help of the fields."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from crayon.config.fields import choices, default, documented, is_tuple, kinds, refuse
from crayon.config.names import as_flag, nearest, override
from crayon.errors import BadInput

WIDEST = 120
"""Columns of a help."""
SHORT_SECTIONS = ("options", "data options", "sweep options", "chaos options")
"""What --help shows; --help-all shows all."""
HELP = ("-h", "--help", "--help-all")
_METAVARS = {int: "INT", float: "FLOAT", str: "STR", type(None): "None"}
_WORDS = {int: "a whole number", float: "a number", type(None): "None"}


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
    values: dict[str, Any]
    """Defaults of the fields that the command line has; MISSING where a value must be given."""

    def fields(self) -> Iterator[dataclasses.Field[Any]]:
        return (field for field in dataclasses.fields(self.settings) if field.name in self.values)


class CommandLine:
    """The words that a command understands."""

    def __init__(self, program: str, about: str, settings: Mapping[str, Any], usage: str = ""):
        """settings: by title, dataclasses, or instances whose values are the defaults."""
        self.program, self.about, self.settings = program, about, settings
        self.sections = [s for title, given in settings.items() for s in _sections(given, title)]
        self.words = {f.name: f for s in self.sections for f in s.fields() if "metavar" in f.metadata}
        shown = [field.metadata["metavar"] for field in self.words.values()]
        self.usage = " ".join([usage or program, *shown, "[OPTIONS]"])

    def parse(self, argv: list[str]) -> list[Any] | None:
        """The settings that `argv` asks for; None when it asks for help, which is printed. Raises BadInput."""
        if set(HELP) & set(argv):
            print(self._help(whole="--help-all" in argv), end="")
            return None
        argv = [_dashed(word) for word in argv]
        parser, flags = self._parser(self.sections)
        for word in itertools.takewhile(lambda word: word != "--", argv):
            flag = word.partition("=")[0]
            if re.match("--?[A-Za-z]", flag) and flag not in flags:
                near = nearest(flag.lstrip("-"), [known.lstrip("-") for known in flags])
                asks = f"; did you mean --{near}?" if near else "."
                raise BadInput(f"There is no option {flag}{asks} See {self.program} --help.")
        found, rest = parser.parse_known_intermixed_args(argv)
        if rest:
            raise BadInput(f"{rest[0]!r} is a word too many. See {self.program} --help.")
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(found).items()}
        given = {name: v for name, v in given.items() if name not in self.words or v not in (None, ())}
        return [self._filled(settings, given) for settings in self.settings.values()]

    def _filled(self, settings: Any, given: dict[str, Any]) -> Any:
        names = {f"{s.prefix}{name}" for s in _sections(settings, "") for name in s.values}
        given = {name: value for name, value in given.items() if name in names}
        if isinstance(settings, type):
            needed = [f for f in dataclasses.fields(settings) if default(f) is dataclasses.MISSING]
            missing = [f for f in needed if f.name not in given]
            if missing:
                words = [f.metadata.get("metavar", as_flag(f.name, "")[0]) for f in missing]
                is_ = "is" if len(words) == 1 else "are"
                raise BadInput(f"{' and '.join(words)} {is_} missing. See {self.program} --help.")
            settings = settings(**{f.name: given.pop(f.name) for f in needed})
        return override(settings, given)

    def _help(self, whole: bool) -> str:
        shown = [s for s in self.sections if whole or s.title in SHORT_SECTIONS]
        more = ", ".join(f"--{s.prefix}*" for s in self.sections if s not in shown)
        parser, _ = self._parser(shown, documented)
        parser.epilog = f"More: {more}; see {self.program} --help-all" if more else None
        return parser.format_help()

    def _parser(
        self, sections: list[Section], about: Callable[[type], dict[str, str]] = lambda settings: {}
    ) -> tuple[Parser, list[str]]:
        """(parser, its flags). about: the help of a dataclass's fields."""
        page = {"width": min(shutil.get_terminal_size().columns, WIDEST), "max_help_position": 32}
        parser = Parser(
            prog=self.program,
            usage=self.usage,
            description=self.about,
            add_help=False,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, **page),
        )
        flags = list(HELP)
        for section in sections:
            described = None if section.title == "options" else section.settings.__doc__
            group = parser.add_argument_group(section.title, described)
            if section.title == "options":
                group.add_argument("-h", "--help", action="store_true", help="show this help and end")
            helps = about(section.settings)
            for field in section.fields():
                if "metavar" in field.metadata:
                    _add_word(parser, section, field)
                else:
                    flags += _add_flag(group, section, field, helps.get(field.name, ""))
        return parser, flags


class _Switch(argparse.Action):
    """A boolean by two flags, of which the first means true."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any):
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string == self.option_strings[0])


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


def _add_flag(group: Any, section: Section, field: dataclasses.Field[Any], about: str) -> list[str]:
    """Returns the flag, or both of a boolean."""
    name, value = f"{section.prefix}{field.name}", section.values[field.name]
    flag = as_flag(name, "")[0]
    told = "required" if value is dataclasses.MISSING else f"default: {_text(value)}"
    options: dict[str, Any] = {"dest": name, "help": f"{about} ({told})".strip().replace("%", "%%")}
    if kinds(section.settings, field) == [bool]:
        flags = [flag, as_flag(name, False)[0]]
        group.add_argument(*flags, action=_Switch, **options)
        return flags
    known, types = choices(section.settings, field), kinds(section.settings, field)
    metavar = "{" + _text(known, ",") + "}" if known else "|".join(_METAVARS[t] for t in types)
    many = "+" if is_tuple(section.settings, field) else None
    group.add_argument(flag, type=_reader(flag, types, known), metavar=metavar, nargs=many, **options)
    return [flag]


def _add_word(parser: Parser, section: Section, field: dataclasses.Field[Any]) -> None:
    types, known = kinds(section.settings, field), choices(section.settings, field)
    parser.add_argument(
        field.name,
        type=_reader(field.name, types, known),
        metavar=field.metadata["metavar"],
        nargs="*" if is_tuple(section.settings, field) else "?",
        default=None,
        help=field.metadata["about"].replace("%", "%%"),
    )


def _reader(flag: str, types: list[Any], known: tuple[Any, ...]) -> Callable[[str], Any]:
    """What makes a value of a word, or raises BadInput."""

    def read(text: str) -> Any:
        if text == "None" and type(None) in types:
            return None
        for value in known:
            if text == str(value):
                return value
        if known:
            raise refuse(flag, text, known)
        for kind in (int, float, str):
            if kind in types:
                try:
                    return kind(text)
                except ValueError:
                    continue
        raise BadInput(f"{flag} {text} is not {' or '.join(_WORDS[kind] for kind in types)}.")

    return read


def _text(value: Any, between: str = " ") -> str:
    return between.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _dashed(word: str) -> str:
    """`--data.val_fraction=.1` as `--data.val-fraction=.1`."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if word.startswith("--") else word

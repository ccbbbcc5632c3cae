"""The ways a command ends that are not success and not a bug, and what an error says in a part of a sentence."""

from __future__ import annotations


class CrayonError(Exception):
    """Ends the command with one sentence on stderr and no traceback."""

    exit_code = 1
    on_every_worker = False
    """Whether all workers of a run raise it at the same step, so that none is left waiting for the others."""
    of_machine = False
    """Whether the machine is at fault, a full disk for one, and the same settings may do once that is mended."""


class BadInput(CrayonError):
    """The user asked for something that can't be done. The sentence says what is wrong, where, and what to do."""

    exit_code = 2


class RunFailed(CrayonError):
    """Training started and could not go on (a loss became NaN, the storage filled up, workers kept dying)."""

    exit_code = 1
    of_machine = True


class Diverged(RunFailed):
    """A loss became NaN or infinite."""

    on_every_worker = True
    of_machine = False


class Stopped(CrayonError):
    """The run was asked to stop, and did so after writing a checkpoint."""

    exit_code = 130
    on_every_worker = True


def first_line(error: BaseException | str, longest: int = 200) -> str:
    """The first line of what an error says, without its full stop; of one that says nothing, or only a word,
    its type, too."""
    return _shortened(_lines(error)[0], longest)


def last_line(error: BaseException | str, longest: int = 300) -> str:
    """The last line, which of a traceback, or of what a process has written, says what was wrong."""
    return _shortened(_lines(error)[-1], longest)


def one_line(error: BaseException | str, longest: int = 200) -> str:
    """All that an error says, on one line."""
    return _shortened(" ".join(" ".join(_lines(error)).split()), longest)


def with_type(error: BaseException, longest: int = 200) -> str:
    """All that an error says, on one line, after its type."""
    kind, text = type(error).__name__, one_line(error, longest)
    return text if text.startswith(kind) else f"{kind}: {text}"


def _lines(error: BaseException | str) -> list[str]:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not isinstance(error, BaseException):
        return lines or [""]
    kind = type(error).__name__
    if len(lines) == 1 and (
        isinstance(error, KeyError) or " " not in lines[0]
    ):  # a key, a number: no sentence
        return [f"{kind}: {lines[0]}"]
    return lines or [kind]


def _shortened(text: str, longest: int) -> str:
    text = text.rstrip(".")
    return text if len(text) <= longest else text[: longest - 1] + "…"

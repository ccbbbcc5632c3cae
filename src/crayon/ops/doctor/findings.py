"""What a check returns, and how it is kept from running for ever."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable
from typing import Literal

from crayon.errors import first_line

State = Literal["ok", "note", "warning", "error"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    """What was looked at, in a word or two."""
    state: State
    text: str
    mend: str = ""
    """What to do about it; empty where nothing need be done."""


Check = Callable[[], Iterable[Finding]]


class Pending:
    """A check that runs in a thread of its own from now on."""

    def __init__(self, name: str, check: Check, seconds: float):
        self.name, self.seconds = name, seconds
        self.late = False
        """Whether it was given up. Its thread can't be ended, and may hold up the end of the process."""
        self._found: list[Finding] = []
        self._thread = threading.Thread(target=self._run, args=(check,), daemon=True)
        self._thread.start()

    def _run(self, check: Check) -> None:
        try:
            for finding in check():
                self._found.append(finding)
        except Exception as error:  # one broken check must not hide what the others found
            text = f"could not be checked ({type(error).__name__}: {first_line(error)})"
            self._found.append(Finding(self.name, "warning", text))

    def findings(self) -> list[Finding]:
        """What it found, after `seconds` from now at the latest; then a warning that says so. Never raises."""
        self._thread.join(self.seconds)
        if self._thread.is_alive():
            self.late = True
            late = Finding(self.name, "warning", f"no answer within {self.seconds:.0f} s; not checked")
            return [*self._found, late]
        return self._found


def size(number: float) -> str:
    """Bytes, to read."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:,.0f} {unit}" if number >= 10 or unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def count(number: int, thing: str) -> str:
    """`2 nodes`, `1 node`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"

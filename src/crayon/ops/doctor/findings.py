"""What a check returns, and how it is kept from running for ever."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, get_args

from crayon.errors import with_type

State = Literal["ok", "note", "warning", "error"]
CHECK_SECONDS = 75.0
"""For what is asked of this machine alone."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    state: State
    name: str
    """What was looked at, in a word or two."""
    text: str
    mend: str = ""
    """What to do about it; empty where nothing need be done."""


ok, note, warning, error = (partial(Finding, state) for state in get_args(State))


class Pending:
    """A check that runs in a thread of its own from now on."""

    def __init__(
        self, name: str, check: Callable[[], Iterable[Finding] | None], seconds: float = CHECK_SECONDS
    ):
        self.name, self.seconds = name, seconds
        self._found: list[Finding] = []
        self._thread = threading.Thread(target=self._run, args=(check,), daemon=True)
        self._thread.start()

    @property
    def hangs(self) -> bool:
        """Whether it runs still. Its thread can't be ended, and may hold up the end of the process."""
        return self._thread.is_alive()

    def _run(self, check: Callable[[], Iterable[Finding] | None]) -> None:
        try:
            for finding in check() or ():
                self._found.append(finding)
        except Exception as problem:  # one broken check must not hide what the others found
            text = f"could not be checked ({with_type(problem)})"
            self._found.append(warning(self.name, text))

    def findings(self) -> list[Finding]:
        """What it found, after `seconds` from now at the latest; then a warning that says so. Never raises."""
        self._thread.join(self.seconds)
        late = [warning(self.name, f"no answer within {self.seconds:.0f} s; not checked")]
        return [*self._found, *(late if self.hangs else [])]


def count(number: int, thing: str) -> str:
    """`2 nodes`, `1 node`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def reason(sentence: str) -> str:
    """What is wrong, of a sentence that says what to do, too."""
    return sentence.removeprefix("--storage: ").partition("; ")[0].rstrip(".")

"""The two ways a command ends that are not success and not a bug."""


class CrayonError(Exception):
    """Ends the command with one sentence on stderr and no traceback."""

    exit_code = 1
    on_every_worker = False
    """Whether all workers of a run raise it at the same step, so that none is left waiting for the others."""


class BadInput(CrayonError):
    """The user asked for something that can't be done. The sentence says what is wrong, where, and what to do."""

    exit_code = 2


class RunFailed(CrayonError):
    """Training started and could not go on (a loss became NaN, the storage filled up, workers kept dying)."""

    exit_code = 1

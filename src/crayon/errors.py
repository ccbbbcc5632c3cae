"""The ways a command ends that are not success and not a bug."""


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


class Diverged(RunFailed):
    """A loss became NaN or infinite."""

    on_every_worker = True


class Stopped(CrayonError):
    """The run was asked to stop, and did so after writing a checkpoint."""

    exit_code = 130
    on_every_worker = True

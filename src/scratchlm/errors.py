"""What went wrong for the user, in one line: the argument with its value, why it cannot work, what to do.

`cli.main` prints a `UserError` as that line and exits with status 2; any other exception is our bug and keeps its
traceback.
"""


class UserError(Exception):
    """A mistake or a mishap that the user can mend; its text is the one line they see."""


class BadValue(UserError, ValueError):
    """An argument whose value cannot work."""


class MissingFile(UserError, FileNotFoundError):
    """A file or source that is not there; the text names the verb that makes it."""


class BrokenState(UserError, RuntimeError):
    """Something on disk, or in the run, that can no longer be trusted."""

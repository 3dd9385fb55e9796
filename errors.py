"""Errors that a user can act on: one line with what was found, where, and what to do next."""


class ClipspmError(Exception):
    """A failure that the user can fix; the command line prints it as one line."""

    exit_code = 1


class UsageError(ClipspmError):
    """A wrong option, or a combination of options that cannot work."""

    exit_code = 2


def plain(error: BaseException) -> str:
    """Return the message of ``error`` on one line, without the errno and file name of an OSError."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__


class Interrupted(ClipspmError):
    """Ctrl-C; the message says what has been saved."""

    exit_code = 130

    @classmethod
    def of(cls, stop: BaseException) -> "Interrupted":
        """Build it from ``stop``, whose notes (``add_note``) say what has been saved."""
        return cls("; ".join(["interrupted", *getattr(stop, "__notes__", ())]))

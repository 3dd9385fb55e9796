"""Errors that a user can act on: one line that says what was found, where, and what to do next."""


class ClipspmError(Exception):
    """A failure the user can do something about; the command line prints it as one line."""

    exit_code = 1


class UsageError(ClipspmError):
    """The request itself cannot be met (a wrong option or combination)."""

    exit_code = 2


def plain(error: BaseException) -> str:
    """What ``error`` says on one line, without the number and the file name of the operating system."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__


class Interrupted(ClipspmError):
    """Ctrl-C, with what is safe."""

    exit_code = 130

    @classmethod
    def of(cls, stop: BaseException) -> "Interrupted":
        """The interruption ``stop``; whoever it passed has noted on it what is safe (``add_note``)."""
        return cls("; ".join(["interrupted", *getattr(stop, "__notes__", ())]))

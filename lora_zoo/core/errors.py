"""Third-party exceptions as one line, and the message for an unknown name."""

import difflib
from collections.abc import Iterable


def in_one_line(message: object) -> str:
    return " ".join(str(message).split())


def reason(error: BaseException) -> str:
    """The message of an exception in one line, or its type where there is no message."""
    return in_one_line(error) or type(error).__name__


def unreadable(error: OSError | UnicodeDecodeError) -> str:
    """The reason for which a text file cannot be read."""
    return getattr(error, "strerror", None) or "it is no UTF-8 text"


def unknown(kind: str, given: str, choices: Iterable[str]) -> str:
    """The one-line message for a name that does not exist."""
    choices = list(choices)
    near = difflib.get_close_matches(str(given), choices, n=1, cutoff=0.5)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {given!r}.{meant} Choices: {', '.join(choices)}"

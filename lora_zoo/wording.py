"""Errors of others in the words of one line."""


def in_one_line(message: object) -> str:
    return " ".join(str(message).split())


def reason(error: BaseException) -> str:
    """What an exception says, or its type where it says nothing."""
    return in_one_line(error) or type(error).__name__

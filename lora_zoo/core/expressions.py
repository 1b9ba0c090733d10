"""Regular expressions of users and of strangers' files, bounded in time.

`re` cannot be stopped, and some expressions take it years for a short name; the package `regex` reads the
same expressions and stops.
"""

import math
import re
from typing import Any

import regex

COUNTED, LONGEST = 10_000, 1 << 20
"""Repetitions that numbers in braces ask for, one within the other; characters of an expression."""
_COUNTED = re.compile(r"\{(\d*),?(\d*)\}")
PATIENCE = 0.5  # seconds for one name, which takes microseconds


def matches(expression: str, name: str, *, whole: bool = True) -> bool:
    """True if the expression matches the name, as a whole or at its start.

    Raises re.error for what is no expression, ValueError for one that takes too long.
    """
    return found(expression, name, whole=whole) is not None


def found(expression: str, name: str, *, whole: bool = True) -> Any:
    """The match of an expression, or None; raises as `matches` does."""
    re.compile(expression)
    counts = [int(number) for both in _COUNTED.findall(expression) for number in both if number]
    if math.prod(max(count, 1) for count in counts) > COUNTED or len(expression) > LONGEST:
        raise ValueError(f"the expression {expression[:60]!r} repeats too much, or is too long")
    try:
        return (regex.fullmatch if whole else regex.match)(expression, name, timeout=PATIENCE)
    except TimeoutError:
        raise ValueError(
            f"the expression {expression[:60]!r} takes longer than {PATIENCE} s for the name {name[:60]!r}: "
            "write it without repetitions inside of repetitions"
        ) from None
    except regex.error as error:
        raise re.error(str(error)) from error

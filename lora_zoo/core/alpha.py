"""Alpha as people give it: a number, `auto` (the paper's) or a multiple of the rank that is used ("2r").

of_rank("2r", 4)    # 8.0: a multiple waits until a budget, a pattern or the method has found the rank
"""

import re
from typing import Annotated, Literal, NamedTuple


class Form(NamedTuple):
    """The form that a text must have, and its name for people."""

    pattern: re.Pattern[str]
    words: str


_OF_RANK = re.compile(r"(?=[^e]*[1-9]|r)(\d{1,9}(?:\.\d{1,20})?(?:e[+-]?\d{1,2})?)?r")
Alpha = float | Literal["auto"] | Annotated[str, Form(_OF_RANK, "a multiple of the rank ('2r')")]
"""The scale of the update before division by the rank that is used; auto: the paper's."""


def of_rank(alpha: float | str, rank: int) -> float:
    """A number as it is, a multiple for this rank. ValueError for another text."""
    if not isinstance(alpha, str):
        return float(alpha)
    match = _OF_RANK.fullmatch(alpha)
    if not match:
        raise ValueError(f"alpha must be a number, or a multiple of the rank ('2r'); got {alpha!r}")
    return float(match[1] or 1) * rank


def multiple(factor: float) -> str:
    """The alpha that is `factor` times the rank."""
    return f"{factor:.12g}r"

"""Ranks as people give them for a target: an integer, or one that changes with depth ("4-12")."""

import re
from typing import NamedTuple


class Slope(NamedTuple):
    """The ranks of the first and the last layer; those between lie on the line."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def rank_of(given: object) -> int | Slope:
    """An integer as it is, "4-12" as a slope. ValueError for what is neither."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    match = re.fullmatch(r"(\d{1,9})-(\d{1,9})", given) if isinstance(given, str) else None
    if not match:
        raise ValueError(
            f"rank must be an integer, or two for the first and the last layer (4-12); got {given!r}"
        )
    return Slope(int(match[1]), int(match[2]))

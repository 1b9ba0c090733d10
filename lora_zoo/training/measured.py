"""Measurements of the runs of one process, kept for those that would measure the same."""

from collections.abc import Callable
from typing import Any

KEPT = 64
"""Values that are kept: adapters that begin elsewhere, each by itself, would fill the memory."""


class Measurements:
    """Values by their key, each with the name of the run that it was measured for."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, str]] = {}

    def once(self, key: str, run: str, measure: Callable[[], Any]) -> tuple[Any, str]:
        """The value of this key, and the run that it was measured for; without a key it is measured anew."""
        if not key:
            return measure(), run
        found = self._known.pop(key, None) or (measure(), run)
        self._known[key] = found  # the last used is the last in line
        if len(self._known) > KEPT:
            self._known.pop(next(iter(self._known)))
        return found

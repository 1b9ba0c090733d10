"""The cubic schedule by which a budget, or a share that trains, shrinks to its end."""

from collections.abc import Callable
from typing import NamedTuple

from lora_zoo.core.hooks import Progress


class CubicSchedule(NamedTuple):
    """1 up to step `tinit`, then (1 - t)³, and 0 from `tfinal` steps before the end on.

    Both are steps, or shares of the run if below 1, of which `whole` makes steps. `who` is named in errors.
    """

    who: str
    tinit: float
    tfinal: float
    whole: Callable[[float], int] = round

    def span(self, total: int) -> tuple[int, int]:
        """The steps between which it falls, in a run of `total`."""
        start, tail = (self.whole(t * total) if t < 1 else int(t) for t in (self.tinit, self.tfinal))
        return start, total - tail

    def check(self, total: int) -> None:
        """Raise ValueError where a run of `total` steps has no room for it."""
        start, end = self.span(total)
        if not 0 <= start < end <= total:
            times = f"tinit={self.tinit} and tfinal={self.tfinal}"
            raise ValueError(f"{self.who}: {times} leave no step of {total}")

    def left(self, progress: Progress) -> float:
        """The share that is left at a step."""
        return (1 - self._passed(progress)) ** 3

    def gone(self, progress: Progress) -> float:
        """The share that is gone at a step where it goes slowly at first and fast in the end: t³."""
        return self._passed(progress) ** 3

    def _passed(self, progress: Progress) -> float:
        """The share t of the span that a step has behind it."""
        start, end = self.span(progress.total)
        return min(max((progress.step - start) / (end - start), 0.0), 1.0)

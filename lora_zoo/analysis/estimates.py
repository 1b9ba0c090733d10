"""Estimates with their intervals and the runs behind them."""

from dataclasses import dataclass, replace
from typing import final

NAN = float("nan")


@final
@dataclass(frozen=True)
class Interval:
    """An estimate from `n` runs with its confidence interval; nan bounds where n is too small for one."""

    estimate: float
    low: float
    high: float
    n: int
    level: float = 0.95


@final
@dataclass(frozen=True)
class Difference:
    """The first minus the second, over `n` seeds and, where items were resampled too, `items` of them."""

    estimate: float
    low: float
    high: float
    p: float
    n: int
    items: int | None
    how: str
    level: float = 0.95
    resolved: bool | None = None
    """The verdict of a procedure that gives no p, at its own level."""

    def is_resolved(self, level: float = 0.05) -> bool:
        """True if p, as corrected, is below `level`; a p that is not known resolves nothing."""
        return bool(self.p < level) if self.resolved is None else self.resolved

    def reversed(self) -> "Difference":
        """The second minus the first."""
        return replace(self, estimate=-self.estimate, low=-self.high, high=-self.low)

    def corrected(self, p: float, how: str) -> "Difference":
        return replace(self, p=p, how=f"{self.how}, {how}")

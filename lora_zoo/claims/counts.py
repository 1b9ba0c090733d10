"""Numbers of parameters as papers print them, against those computed from shapes."""

from typing import NamedTuple

from lora_zoo.analysis.statistics import Interval
from lora_zoo.claims.rule import Status, Verdict
from lora_zoo.core.hyperparameters import counted
from lora_zoo.core.variants import VARIANTS


class PrintedCount(NamedTuple):
    """A count for so many square `matrices` of `width`, as printed; `unit` is that of its last digit."""

    variant: str
    matrices: int
    width: int
    rank: int
    printed: float
    unit: float

    def verdict(self) -> Verdict:
        """Supported if the number from shapes is within one `unit` of the printed one."""
        each = counted(VARIANTS.find(self.variant), (self.width, self.width), {"rank": self.rank})
        total = self.matrices * each
        status = Status.SUPPORTED if abs(total - self.printed) < self.unit else Status.NOT_SUPPORTED
        reason = f"computed from shapes: {self.matrices} x {each:,} = {total:,}; printed {self.printed:,.0f}"
        return Verdict(status, reason, Interval(total, total, total, 1), "parameters", 1)

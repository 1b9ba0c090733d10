"""An interleaved stopwatch: what is compared takes turns within a round, in an order of the round's own.

What slows a machine down for a while thus slows all of them, and ratios are taken within a round.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

K = TypeVar("K", bound=Hashable)
Run = Callable[[], object]
Prepare = Callable[[], Run]
"""Makes ready, off the clock, the call that is then timed."""


@dataclass(frozen=True)
class Stopwatch:
    """`least` seconds of work a sample: what takes less is repeated, and the mean is the sample."""

    rounds: int = 15
    warmup: int = 2
    least: float = 0.005
    clock: Callable[[], float] = time.perf_counter
    synchronize: Callable[[], object] = bool
    """Called before each look at the clock: waits for the device."""

    def interleave(self, prepare: Mapping[K, Prepare]) -> dict[K, list[float]]:
        """Seconds of one call of each, a number for each round."""
        order, shuffle = list(prepare), random.Random(0)
        times: dict[K, list[float]] = {key: [] for key in order}
        with _collector_off():
            calls = {key: self._calls(prepare[key]) for key in order}
            for _ in range(self.rounds):
                gc.collect()
                shuffle.shuffle(order)
                for key in order:
                    times[key].append(statistics.fmean(self.once(prepare[key]) for _ in range(calls[key])))
        return times

    def _calls(self, prepare: Prepare) -> int:
        """Warm up and return how many calls make a sample; without a warm-up it is one."""
        warm = [self.once(prepare) for _ in range(self.warmup)]
        return max(1, math.ceil(self.least / max(min(warm), 1e-9))) if warm else 1

    def once(self, prepare: Prepare) -> float:
        run = prepare()
        self.synchronize()
        begun = self.clock()
        run()
        self.synchronize()
        return self.clock() - begun


def clock_for(device: torch.device, threads: int) -> tuple[Callable[[], float], str]:
    """The clock for a device, and its name: other processes' time is left out where that is possible."""
    if device.type == "cpu" and threads == 1:
        return time.process_time, "processor time"
    return time.perf_counter, "wall time"


@contextmanager
def _collector_off() -> Iterator[None]:
    """Inside, garbage is collected on request, and only of objects made inside, which is quick."""
    enabled = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def ratios(times: Sequence[float], over: Sequence[float]) -> list[float]:
    """`times` as multiples of `over`, round by round."""
    return [mine / other for mine, other in zip(times, over, strict=True)]


class Timed(NamedTuple):
    """A column of times, or with `over` of their ratios, in units of which a second has `unit`."""

    head: str
    name: str
    of: str
    over: str = ""
    unit: float = 1.0
    digits: str = ".3g"

    @property
    def text(self) -> str:
        """The text of a cell, to be filled from a row; ratios have their quartiles."""
        name, digits = self.name, ".2f" if self.over else self.digits
        spread = f" ({{{name}_low:{digits}}}-{{{name}_high:{digits}}})" if self.over else ""
        return f"{{{name}:{digits}}}{spread}"


def texts(columns: Iterable[Timed]) -> dict[str, str]:
    return {column.head: column.text for column in columns}


def summary(columns: Iterable[Timed], times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """A row: medians, with quartiles as `_low` and `_high`. What was not timed is left out."""
    row: dict[str, float] = {}
    for column in columns:
        if column.of in times and (not column.over or column.over in times):
            mine = times[column.of]
            over = times[column.over] if column.over else [1 / column.unit] * len(mine)
            low, median, high = quartiles(ratios(mine, over))
            row |= {column.name: median, f"{column.name}_low": low, f"{column.name}_high": high}
    return row

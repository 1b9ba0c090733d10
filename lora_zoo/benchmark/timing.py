"""An alternating stopwatch: contenders take turns within a round, in an order of the round's own.

What slows a machine down for a while thus slows all of them, and ratios are taken within a round.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

K = TypeVar("K", bound=Hashable)
Run = Callable[[], object]
Prepare = Callable[[], Run]
"""Makes ready, off the clock, what is then timed."""


class Spread(NamedTuple):
    """The median and the quartiles of what the rounds gave."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio(times: Sequence[float], over: Sequence[float]) -> Spread:
    """`times` as multiples of `over`, round by round."""
    return Spread.of([mine / other for mine, other in zip(times, over, strict=True)])


@dataclass(frozen=True)
class Stopwatch:
    """`least` seconds of work a sample: what takes less is repeated, and the mean is the sample."""

    rounds: int = 15
    warmup: int = 2
    least: float = 0.005
    clock: Callable[[], float] = time.perf_counter
    settle: Callable[[], object] = bool
    """Called before each look at the clock: waits for the device."""
    seed: int = 0

    def alternate(self, contenders: Mapping[K, Prepare]) -> dict[K, list[float]]:
        """Seconds of one call of each contender, a number for each round."""
        order, shuffle = list(contenders), random.Random(self.seed)
        with _collector_off():
            calls = {name: self._calls(make) for name, make in contenders.items()}
            times: dict[K, list[float]] = {name: [] for name in contenders}
            for _ in range(self.rounds):
                gc.collect()
                shuffle.shuffle(order)
                for name in order:
                    taken = [self.once(contenders[name]) for _ in range(calls[name])]
                    times[name].append(statistics.fmean(taken))
        return times

    def _calls(self, prepare: Prepare) -> int:
        """Warm up, and say how many calls make a sample; without a warm-up it is one."""
        warm = [self.once(prepare) for _ in range(self.warmup)]
        return max(1, math.ceil(self.least / max(min(warm), 1e-9))) if warm else 1

    def once(self, prepare: Prepare) -> float:
        run = prepare()
        self.settle()
        begun = self.clock()
        run()
        self.settle()
        return self.clock() - begun


def clock_for(device: torch.device, threads: int) -> tuple[Callable[[], float], str]:
    """The clock for a device, and its name: what other processes take is left out where that is possible."""
    if device.type == "cpu" and threads == 1:
        return time.process_time, "processor time"
    return time.perf_counter, "wall time"


def settle_for(device: torch.device) -> Callable[[], object]:
    return torch.cuda.synchronize if device.type == "cuda" else bool


@contextmanager
def _collector_off() -> Iterator[None]:
    """Inside, rubbish is collected when asked for, and of what was made inside alone, which is quick."""
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

"""A plan carried out: sweeps of the front door, a folder a cell, until the seeds or the hours are spent.

Every cell's runs lie in `OUT/tuned-LABEL-IDENTITY/`; a second call, and any later comparison with the same
cell, finds them there. `STATE` in the comparison's own folder holds the design and the seconds spent.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lora_zoo import runs
from lora_zoo.compare.contenders import Comparison, Contender
from lora_zoo.compare.costs import Front
from lora_zoo.compare.judging import CellRuns, Family, Ruling, best_rate, cell_runs, rulings
from lora_zoo.compare.planning import Design, beyond, rates_of
from lora_zoo.core.bounded_json import read_json
from lora_zoo.runs.record import write_atomically

STATE = "plan.json"
FIRST = 3
"""Seeds of each cell before anybody looks at the clock: fewer come to no verdict."""


@dataclass
class Work:
    """A comparison at work: what is planned, what is spent, and the runs that are there."""

    comparisons: Sequence[Comparison]
    design: Design
    factors: Sequence[float]
    seconds: dict[str, float]
    """Of a run of each cell, by identity, as the trial foretells."""
    limit: float
    jobs: int
    out: Path
    folder: Path
    front: Front
    say: Callable[[str], None]
    spent: float = 0.0
    plans: int = 1
    stopped: str = ""
    _frames: dict[str, pd.DataFrame] = field(default_factory=dict)
    _measured: dict[str, CellRuns] = field(default_factory=dict)

    @property
    def cells(self) -> list[Contender]:
        """Each cell once, also where it takes part at both sizes."""
        return unique(cell for comparison in self.comparisons for cell in comparison.cells)

    def carry_out(self) -> None:
        """Tune every cell, then add seeds in rounds until all are made or the hours are over."""
        for cell in self.cells * (1 + self.design.spare):
            if self.spent <= self.limit or not len(self.frame(cell)):
                self._make(cell, self.tried(cell), range(self.design.tuning))
        step = max(self.jobs, 2)
        for upto in (*range(FIRST, self.design.seeds, step), self.design.seeds):
            needed = self._open_cells() if upto > FIRST else self.cells
            lacking = {cell.identity: cell for cell in needed if self._lacks(cell, upto)}
            if upto > FIRST and not self._in_time(lacking, step):
                self.stopped = f"the hours were over before seed {upto - 1}"
                break
            for cell in lacking.values():
                self._make(cell, [self.chosen(cell) or 0.0], range(upto))

    def tried(self, cell: Contender) -> list[float]:
        """The planned rates, and those beyond an edge at which the best lay, as far as its runs are there."""
        rates, frame = rates_of(cell.lr, self.factors[: self.design.rates]), self.frame(cell)
        for _ in range(self.design.spare):
            chosen = best_rate(frame[frame["lr"].isin(rates)], self.design.tuning)
            if chosen is None or (further := beyond(chosen, rates)) is None:
                break
            rates = [*rates, further]
            if further not in set(frame["lr"]):
                break
        return rates

    def chosen(self, cell: Contender) -> float | None:
        """The rate that validation chooses of those whose runs are there."""
        frame = self.frame(cell)
        return best_rate(frame[frame["lr"].isin(self.tried(cell))], self.design.tuning)

    def measured(self, cell: Contender) -> CellRuns:
        """The runs of the cell that are there and may count."""
        if cell.identity not in self._measured:
            frame = self.frame(cell)
            frame = frame[frame["seed"] < max(self.design.seeds, self.design.tuning)]
            tried = [rate for rate in self.tried(cell) if rate in set(frame["lr"])]
            self._measured[cell.identity] = cell_runs(cell, frame, tried, self.design.tuning)
        return self._measured[cell.identity]

    @property
    def family(self) -> Family:
        """The verdicts that hold together."""
        number = sum(len(comparison.references) for comparison in self.comparisons)
        return Family(number, self.design.seeds, self.plans)

    def _open_cells(self) -> list[Contender]:
        """The cells of comparisons that further seeds might decide."""
        found = [r for r in self.rulings() if r.difference.is_open]
        return unique(side.cell for ruling in found for side in (ruling.candidate, ruling.reference))

    def rulings(self) -> list[Ruling]:
        """Every verdict, as the runs are now."""
        found: list[Ruling] = []
        for comparison in self.comparisons:
            candidate = self.measured(comparison.candidate)
            others = [self.measured(cell) for cell in comparison.references]
            found += rulings(comparison.at, candidate, others, self.family)
        return found

    def frame(self, cell: Contender) -> pd.DataFrame:
        """The finished runs in the cell's folder, less stale ones; no rows where there are none."""
        if cell.identity not in self._frames:
            self._frames[cell.identity] = _over(self.place(cell))
        return self._frames[cell.identity]

    def place(self, cell: Contender) -> Path:
        """The cell's folder."""
        return self.out / f"tuned-{file_name(cell.label)}-{cell.identity}"

    def _lacks(self, cell: Contender, upto: int) -> bool:
        chosen, frame = self.chosen(cell), self.frame(cell)
        return chosen is not None and len(set(frame["seed"][frame["lr"] == chosen]) & {*range(upto)}) < upto

    def _in_time(self, cells: Iterable[str], step: int) -> bool:
        """True where a further round of seeds of these cells is foretold to end within the hours."""
        return self.spent + sum(step * self.seconds[cell] for cell in cells) / self.jobs <= self.limit

    def _make(self, cell: Contender, rates: Sequence[float], seeds: Iterable[int]) -> None:
        """Make the runs of the cell that are missing; the front door leaves alone what is there."""
        frame, wanted = self.frame(cell), list(seeds)
        there = set(zip(frame["lr"], frame["seed"], strict=True))
        if not [1 for rate in rates for seed in wanted if (rate, seed) not in there]:
            return
        began = time.monotonic()
        words = [
            *cell.overrides,
            f"lr={','.join(f'{rate:g}' for rate in rates)}",
            f"seed={','.join(map(str, wanted))}",
            *(f"out={self.out}", f"hydra.sweep.dir={self.place(cell)}"),
        ]
        self.say(
            f"{cell.label}: lr {', '.join(f'{rate:g}' for rate in rates)}; seeds {wanted[0]}-{wanted[-1]}"
        )
        try:
            self.front(words)
        finally:
            self._frames.pop(cell.identity, None)
            self._measured.pop(cell.identity, None)
            self.spent += time.monotonic() - began
            self.save()

    def save(self) -> None:
        about = {"spent": self.spent, "limit": self.limit, "plans": self.plans, "design": asdict(self.design)}
        write_atomically(self.folder / STATE, json.dumps(about, indent=1))


def _over(folder: Path) -> pd.DataFrame:
    try:
        frame = runs.load(folder)
    except (ValueError, OSError):
        return pd.DataFrame({name: pd.Series(dtype=float) for name in ("lr", "seed", "state", "validation")})
    counted = (
        frame["state"].isin(["done", "diverged"]) & (frame["stale"] == "") & (frame["contradiction"] == "")
    )
    return frame[counted]


class State(NamedTuple):
    """Seconds spent and allowed, plans made, and the design of the latest."""

    spent: float
    limit: float
    plans: int
    design: Design


def state_of(folder: Path) -> State | None:
    """The state in which an earlier call left the folder; None without one."""
    try:
        content = read_json(folder / STATE)
        design = Design(**content["design"])
        return State(float(content["spent"]), float(content["limit"]), int(content["plans"]), design)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def unique(cells: Iterable[Contender]) -> list[Contender]:
    return list({cell.identity: cell for cell in cells}.values())


def file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label).strip("-")

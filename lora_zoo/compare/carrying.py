"""A plan carried out: rates by halving, then seeds in rounds, as sweeps of the front door.

Every cell's runs lie in `OUT/tuned-LABEL-IDENTITY/`; a second call, and any later comparison with the same
cell, finds them there. The comparison's own folder holds its state.
"""

import itertools
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_zoo import runs
from lora_zoo.analysis.halving import FoundRate, Score, Trial, halve
from lora_zoo.analysis.rounds import Job, Plan, Seen, first_jobs, launched
from lora_zoo.compare.contenders import Comparison, Contender
from lora_zoo.compare.costs import Cost, Front
from lora_zoo.compare.judging import FEWEST, CellRuns, Ruling, cell_runs, rounds_of, rulings, seen_of
from lora_zoo.compare.planning import Design, State, rates_of
from lora_zoo.sweeps.cells import with_keys
from lora_zoo.sweeps.rates import TRIAL, score
from lora_zoo.sweeps.seeds import ENDED


@dataclass
class Work:
    """A comparison at work: what is planned, what is spent, and the runs that are there."""

    comparisons: Sequence[Comparison]
    state: State
    factors: Sequence[float]
    costs: Mapping[str, Cost]
    """Of a run of each cell, by identity, as the trial foretells."""
    steps: int
    """Of a whole run."""
    jobs: int
    out: Path
    folder: Path
    front: Front
    say: Callable[[Any], None]
    stopped: str = ""
    found: dict[str, FoundRate] = field(default_factory=dict)
    """The rate of each cell, by identity, once it is chosen."""
    _launched: dict[str, set[tuple[float, int, int]]] = field(default_factory=dict)
    _frames: dict[str, pd.DataFrame] = field(default_factory=dict)
    _measured: dict[str, CellRuns] = field(default_factory=dict)

    @cached_property
    def every(self) -> list[Contender]:
        """The cells of all comparisons; one that takes part at both sizes stands there twice."""
        return [cell for comparison in self.comparisons for cell in comparison.cells]

    @property
    def cells(self) -> list[Contender]:
        """Each cell once."""
        return unique(self.every)

    @property
    def design(self) -> Design:
        return self.state.design

    @property
    def plan(self) -> Plan:
        """The rules of the seeds; plans that are made anew after a look share the error."""
        hours, level = self.state.limit / 3600, 0.05 / self.state.plans
        return Plan(FEWEST, self.design.seeds, hours, step=max(self.jobs, 2), level=level)

    def seconds(self, cell: Contender) -> float:
        """Of a whole run, as foretold."""
        return self.costs[cell.identity].seconds(self.steps)

    def carry_out(self) -> None:
        """Choose every cell's rate, then add seeds in rounds until all is decided or the hours are over."""
        self.found = {cell.identity: self._tuned(cell) for cell in self.cells}
        launched(lambda seen: first_jobs(seen, len(self.every), FEWEST), self._launch, self._seen)
        rounds = rounds_of(self.comparisons, self.plan)
        spent, hours = self.state.spent, self.plan.hours
        _, halted = launched(rounds.next_jobs, self._launch, self._seen, hours, spent=spent)
        self.stopped = "the hours were over" if halted.startswith("time") else halted

    def _tuned(self, cell: Contender) -> FoundRate:
        def launch(trials: list[Trial]) -> None:
            self._make(cell, [trial.rate for trial in trials], range(self.design.tuning), trials[0].steps)

        rates = rates_of(cell.lr, self.factors[: self.design.rates])
        budget = self.design.budget(self.steps)
        return halve([rates], budget, launch=launch, read=lambda _: self._trials(cell))[0]

    def _trials(self, cell: Contender) -> dict[Trial, Score]:
        """The scores of rates and steps, means over the tuning seeds; () where a run diverged or failed."""
        known = self._launched.get(cell.identity, ())
        found: dict[Trial, Score] = {Trial(0, rate, steps): () for rate, steps, _ in known}
        frame = self.frame(cell)
        for (rate, steps), own in frame[frame["seed"] < self.design.tuning].groupby(["lr", "steps"]):
            if len(own) == self.design.tuning:
                done = [own.loc[[i]] for i in own.index if own["state"][i] == "done"]
                scores = [score(run, "test", last=steps == self.steps) for run in done]
                mean = tuple(float(x) for x in np.mean(scores, axis=0)) if len(scores) == len(own) else ()
                found[Trial(0, float(rate), int(steps))] = mean
        return found

    def _launch(self, jobs: list[Job]) -> None:
        """Launch runs of the chosen rates, once where a cell takes part at both sizes."""
        wanted = {(self.every[number].identity, seed) for number, seed in jobs}
        for cell in self.cells:
            if seeds := sorted(seed for identity, seed in wanted if identity == cell.identity):
                self._make(cell, [self.found[cell.identity].rate], seeds, self.steps)

    def _seen(self) -> Seen:
        """The runs of the chosen rates; their seconds are shared by the workers."""
        sides = [self.measured(cell) for cell in self.every]
        seconds = {
            (number, int(seed)): float(took) / self.jobs
            for number, side in enumerate(sides)
            for seed, took in side.runs["total_seconds"].items()
        }
        return replace(seen_of(sides), seconds=seconds)

    def measured(self, cell: Contender) -> CellRuns:
        """The runs of the cell that are there and may count."""
        if cell.identity not in self._measured:
            found, frame = self.found[cell.identity], self.frame(cell)
            chosen = (frame["lr"] == found.rate) & (frame["steps"] == self.steps)
            chosen &= frame["seed"] < self.plan.most
            tuning = frame["trial"].isin(list(found.scores)) & (frame["seed"] < self.design.tuning)
            self._measured[cell.identity] = cell_runs(cell, frame[chosen | tuning], found, self.steps)
        return self._measured[cell.identity]

    def rulings(self) -> list[Ruling]:
        """Every verdict, as the runs are now."""
        return rulings(self.comparisons, [self.measured(cell) for cell in self.every], self.plan)

    def frame(self, cell: Contender) -> pd.DataFrame:
        """The cell's runs that ended, less stale ones; a failed one counts in the call that made it."""
        if cell.identity not in self._frames:
            frame = _over(self.place(cell), self.steps)
            mine = frame["job"].isin(list(self._launched.get(cell.identity, ())))
            self._frames[cell.identity] = frame[(frame["state"] != "failed") | mine]
        return self._frames[cell.identity]

    def place(self, cell: Contender) -> Path:
        """The cell's folder."""
        return self.out / f"tuned-{file_name(cell.label)}-{cell.identity}"

    def _make(self, cell: Contender, rates: Sequence[float], seeds: Iterable[int], steps: int) -> None:
        """Make runs of the cell; the front door leaves alone what is there."""
        began, seeds = time.monotonic(), list(seeds)
        lr, seed = ",".join(f"{rate:g}" for rate in rates), ",".join(map(str, seeds))
        short = {} if steps == self.steps else {**TRIAL, "epochs": "null", "steps": steps}
        words = [
            *with_keys(cell.overrides, short),
            *(f"lr={lr}", f"seed={seed}", f"out={self.out}", f"hydra.sweep.dir={self.place(cell)}"),
        ]
        self.say(f"{cell.label}: {steps:,} steps at lr {lr}, seed {seed}")
        self._launched.setdefault(cell.identity, set()).update(itertools.product(rates, [steps], seeds))
        try:
            self.front(words)
        finally:
            for known in (self._frames, self._measured):
                known.pop(cell.identity, None)
            self.state.spent += time.monotonic() - began
            self.state.save(self.folder)


def _over(folder: Path, steps: int) -> pd.DataFrame:
    """The runs that ended, trials among them; `steps` are those of runs that are none."""
    parts = []
    for trials in (False, True):
        with suppress(ValueError, OSError):
            part = runs.load(folder, trials=trials)
            parts.append(part if trials else part.assign(steps=steps))
    if not parts:
        return pd.DataFrame(columns=["lr", "steps", "seed", "state", "total_seconds", "trial", "job"])
    frame = pd.concat(parts, ignore_index=True)
    jobs = [*zip(frame["lr"], frame["steps"], frame["seed"], strict=True)]
    keys = pd.DataFrame({"trial": [job[:2] for job in jobs], "job": jobs})
    frame = pd.concat([frame, keys], axis=1)
    sound = (frame["stale"] == "") & (frame["contradiction"] == "")
    return frame[frame["state"].isin(ENDED) & sound]


def unique(cells: Iterable[Contender]) -> list[Contender]:
    return list({cell.identity: cell for cell in cells}.values())


def file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label).strip("-")

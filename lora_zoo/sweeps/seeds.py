"""A sweep with seed=auto: its rounds, and the plan that its folder keeps beside the runs.

The plan stands in `.seeds.json`, from where `lora_zoo.runs.load` gives it to each run, so that tables know
that the number of seeds followed from the scores. All of it but `hours`, `step` and `first` is chosen before
the first look: a sweep that has begun goes on with the same plan, or not at all.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from lora_zoo.analysis.columns import format_key
from lora_zoo.analysis.protocol import better, chosen_by
from lora_zoo.analysis.rounds import CLAIM, End, Job, Plan, Rounds, Seen, chosen, first_jobs, launched
from lora_zoo.claims.evidence import Evidence
from lora_zoo.runs import load
from lora_zoo.runs.keys import column
from lora_zoo.runs.loading import SEEDS
from lora_zoo.sweeps.cells import Launch, Overrides, Specify, keys_of, with_keys
from lora_zoo.sweeps.plans import check_plan, keep, kept
from lora_zoo.sweeps.until_claim import ClaimRounds, Look, look

ENDED = ("done", "diverged", "failed")
CHOSEN = ("most", "against", "margin", "value", "level")
"""Of a plan: what may not change once runs have been looked at."""


def grouped(
    keys: Sequence[Mapping[str, str]], tune: Sequence[str]
) -> dict[tuple[tuple[str, str], ...], list[int]]:
    """The cells that differ in tuned axes alone, by the others."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for cell, key in enumerate(keys):
        groups.setdefault(tuple((k, v) for k, v in key.items() if k not in tune), []).append(cell)
    return groups


class SeedSweep:
    """The sweep in `folder`, of cells by their overrides, one of which is its seed.

    `apart` are the keys that a cell was given by another plan, and is not known by.
    """

    def __init__(
        self, folder: Path, cells: Sequence[Overrides], plan: Plan, apart: Sequence[str] = ()
    ) -> None:
        self.folder, self.cells, self.plan = folder, cells, plan
        self.keys = keys_of(cells, apart)
        self.identities: dict[Job, str | None] = {}

    def run(self, launch: Launch, specify: Specify, spent: float = 0.0) -> list[End]:
        """Launch rounds until the plan is done; `spent` are seconds that count, of what came before.

        ValueError where the folder holds another plan.
        """
        check_plan(self.folder, SEEDS, "seeds", {name: getattr(self.plan, name) for name in CHOSEN})
        self.specify, before, began = specify, spent, time.monotonic()
        spent += float(kept(self.folder, SEEDS).get("seconds", 0.0))

        def clock() -> float:
            return spent + time.monotonic() - began

        def launch_round(jobs: list[Job]) -> None:
            self._keep(seconds=clock() - before, halted="interrupted")
            launch([with_keys(self.cells[cell], {"seed": seed}) for cell, seed in jobs])
            self._keep(seconds=clock() - before, halted="interrupted")

        if self.plan.tune and (halted := self._choose(launch_round, clock)):
            self._keep(halted=halted, stops=[f"{', '.join(self.plan.tune)} not chosen yet: {halted}"])
            return []
        ends = self._rounds().run(launch_round, self._seen, spent=clock())
        halted = next((end.stopped for end in ends if end.stopped.startswith("open: ")), "")
        names = [*map(format_key, self.keys)]
        stops = [f"{names[end.cell]}: {end.words(names)}" for end in ends]
        self._keep(halted=halted.removeprefix("open: "), stops=stops)
        return ends

    def _choose(self, launch: Callable[[list[Job]], None], clock: Callable[[], float]) -> str:
        """Run all settings of the tuned axes on the first seeds and go on with the best of each cell.

        Returns what halted it, if anything.
        """

        def wanted(seen: Seen) -> list[Job]:
            return first_jobs(seen, len(self.cells), self.plan.first)

        seen, halted = launched(wanted, launch, self._seen, self.plan.hours, spent=clock())
        groups = grouped(self.keys, self.plan.tune)
        if not halted:
            kept_cells = chosen(seen, list(groups.values()))
            self.cells, self.identities = [self.cells[cell] for cell in kept_cells], {}
            self.keys = [dict(key) for key in groups]
        return halted

    def _rounds(self) -> Rounds | ClaimRounds:
        against = self.plan.against
        if not against.startswith(CLAIM):
            return Rounds(self.keys, self.plan)

        def look_now() -> Look:
            return look(against, Evidence(load(self.folder)), self.identities)

        return ClaimRounds(len(self.cells), self.plan, look_now)

    def _keep(self, **more: Any) -> None:
        keep(self.folder, SEEDS, asdict(self.plan) | more)

    def _seen(self) -> Seen:
        try:
            frame = load(self.folder)
        except ValueError:  # no run yet
            return Seen()
        frame = (
            frame[frame["state"].isin(ENDED)].drop_duplicates("run", keep="last").set_index("run", drop=False)
        )
        jobs = {job: run for job, run in self._known(set(frame.index)).items()}
        if not jobs:
            return Seen()
        mine = frame.loc[list(jobs.values())]
        judged = self._judged(mine)
        values = mine[judged].astype(float).where(mine["state"] == "done").tolist()
        seconds = mine["total_seconds"].astype(float).fillna(0.0).tolist()
        links = {path.name[-8:] for path in self.folder.iterdir() if path.is_symlink()}
        seen = Seen(
            dict(zip(jobs, values, strict=True)),
            dict(zip(jobs, seconds, strict=True)),
            better(mine, judged),
            found={job for job, run in jobs.items() if run in links},
        )
        if not self.plan.tune:
            return seen
        judge = chosen_by(mine[mine["state"] == "done"], self.plan.value)
        validation = mine[judge].astype(float).where(mine["state"] == "done").tolist()
        direction = better(mine, judge)
        return replace(seen, validation=dict(zip(jobs, validation, strict=True)), better_validation=direction)

    def _known(self, runs: set[str]) -> dict[Job, str]:
        """The runs of the sweep's jobs among those that have ended, of each cell up to the first gap."""
        found: dict[Job, str] = {}
        for cell in range(len(self.cells)):
            for seed in range(self.plan.most):
                job = (cell, seed)
                if job not in self.identities:
                    spec = self.specify(with_keys(self.cells[cell], {"seed": seed}))
                    self.identities[job] = spec.identity if spec else None
                run = self.identities[job]
                if run is None or run not in runs:
                    break
                found[job] = run
        return found

    def _judged(self, runs: pd.DataFrame) -> str:
        """The column that is compared; validation where no run was judged on test, as in tables."""
        judged = column(runs, self.plan.value)
        return "validation" if judged == "test" and runs["test"].isna().all() else judged

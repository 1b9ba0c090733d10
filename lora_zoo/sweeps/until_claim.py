"""Seeds for a claim of the ledger: seeds.against=claim:ID adds them to its cells until it is decided.

The ledger's intervals are sequential where seed=auto added the seeds (`lora_zoo.claims.rule`), so that the
verdict holds though it was looked at after every round.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, final

from lora_zoo.analysis.rounds import CLAIM, End, Job, Launch, Plan, Read, Seen, first_jobs, launched
from lora_zoo.claims import claims
from lora_zoo.claims.evidence import Evidence
from lora_zoo.claims.registry import Measured
from lora_zoo.claims.rule import Status
from lora_zoo.core.errors import unknown


class Look(NamedTuple):
    """The verdict after a round: its words, whether more seeds may change it, and the cells it rests on."""

    words: str
    is_open: bool
    cells: frozenset[int]


def claim_of(against: str) -> Measured:
    """The claim that `claim:ID` names. ValueError where there is none, or runs do not decide it."""
    name, known = against.removeprefix(CLAIM), claims()
    if name not in known:
        raise ValueError(unknown("claim", name, [key for key, c in known.items() if isinstance(c, Measured)]))
    claim = known[name]
    if not isinstance(claim, Measured):
        raise ValueError(f"{against}: no runs decide this claim; `python -m lora_zoo.claims` says what does")
    return claim


def check_claim(plan: Plan, experiment: str) -> None:
    """ValueError where the sweep's runs are not the claim's, or the plan says what the claim says itself."""
    claim = claim_of(plan.against)
    if claim.experiment != experiment:
        wanted = f"+experiment={claim.experiment}" if claim.experiment else f"no experiment: {claim.sweep}"
        given = f"+experiment={experiment}" if experiment else "no experiment"
        raise ValueError(f"{plan.against} is about the runs of {wanted}; the sweep has {given}")
    if plan.margin:
        raise ValueError(f"seeds.margin={plan.margin:g}: {plan.against} has a margin of its own")


def look(against: str, evidence: Evidence, runs: Mapping[Job, str | None]) -> Look:
    """The claim's verdict by `evidence`; `runs` are the names of the sweep's jobs."""
    claim = claim_of(against)
    tested = claim.tested(evidence)
    verdict = claim.of(tested)
    is_open = verdict.status is Status.INCONCLUSIVE and not tested.missing
    cells = frozenset(cell for (cell, _), run in runs.items() if run in tested.runs)
    why = f" ({tested.missing[0]})" if tested.missing else ""
    return Look(f"{claim.id} is {verdict.status}{why}", is_open, cells)


@final
class ClaimRounds:
    """The rounds over so many cells, in each of which the cells of the claim get more seeds."""

    def __init__(self, cells: int, plan: Plan, look: Callable[[], Look]) -> None:
        self.cells, self.plan, self.look = cells, plan, look

    def run(self, launch: Launch, read: Read, *, spent: float = 0.0) -> list[End]:
        """Launch rounds until the claim is decided, or the seeds or the hours are spent."""
        seen, halted = launched(self.next_jobs, launch, read, self.plan.hours, spent=spent)
        found = self.look()
        return [
            End(cell, seen.tried(cell), self._why(cell, seen, found, halted)) for cell in range(self.cells)
        ]

    def next_jobs(self, seen: Seen) -> list[Job]:
        """The jobs of the next round: the first seeds of every cell, then more of the claim's."""
        if missing := first_jobs(seen, self.cells, self.plan.first):
            return missing
        found = self.look()
        if not found.is_open or not found.cells:
            return []
        target = min(self.plan.most, min(map(seen.tried, found.cells)) + self.plan.step)
        return [(cell, seed) for cell in sorted(found.cells) for seed in range(seen.tried(cell), target)]

    def _why(self, cell: int, seen: Seen, found: Look, halted: str) -> str:
        if found.cells and cell not in found.cells:
            return f"not asked for by {self.plan.against}"
        if not found.is_open:
            return found.words
        if seen.tried(cell) >= self.plan.most:
            return f"{found.words}: open at the greatest number of seeds ({self.plan.most})"
        return f"open: {halted or found.words}"

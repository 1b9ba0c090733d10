"""The ledger of claims: what papers and sources say, as statements that results support or do not.

    for entry in ledger(load("runs")):
        print(entry.id, entry.verdict.status, entry.verdict.said)

verdicts.py holds the rule, the same for every claim; each other file the claims of a paper or a theme. A new
claim is a function under `@claim`, and its three frames in tests/claims/trios.py.
"""

from dataclasses import dataclass

import pandas as pd

from lora_zoo.analysis.claims.reading import Evidence
from lora_zoo.analysis.claims.registry import claims
from lora_zoo.analysis.claims.verdicts import Status, Verdict


@dataclass(frozen=True)
class Entry:
    """A claim beside its verdict. `command` makes the runs that it needs; `against` names claims that
    disagree with it."""

    id: str
    paper: str
    where: str
    says: str
    needs: str
    command: str
    against: tuple[str, ...]
    verdict: Verdict


def ledger(frame: pd.DataFrame | None = None) -> list[Entry]:
    """Every claim with what `frame` (None: no runs) says about it, by id."""
    evidence = Evidence(pd.DataFrame() if frame is None else frame)
    return [
        Entry(c.id, c.paper, c.where, c.says, c.needs, c.command, c.against, c.verdict(evidence))
        for c in claims().values()
    ]


__all__ = ["Entry", "Status", "Verdict", "claims", "ledger"]

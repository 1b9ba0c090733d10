"""The ledger of claims: what papers and sources say, as statements that results support or do not.

    for entry in ledger(load("runs")):
        print(entry.id, entry.verdict.status, entry.verdict.reason)

rule.py says when a claim counts as supported, forms.py has the forms that claims take, and each file of
catalogue/ the claims of a paper or a theme. A new claim is a row (or a function) there, and three frames in
tests/claims/trios.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lora_zoo.claims.evidence import Evidence
from lora_zoo.claims.registry import claims
from lora_zoo.claims.rule import Status, Verdict


@dataclass(frozen=True)
class LedgerEntry:
    """A claim beside its verdict. `command` makes the runs that it needs; `against` names claims that
    disagree with it."""

    id: str
    paper: str
    where: str
    statement: str
    needs: str
    command: str
    against: Sequence[str]
    verdict: Verdict


def ledger(frame: pd.DataFrame | None = None) -> list[LedgerEntry]:
    """Every claim with its verdict by `frame` (None: no runs), by id."""
    evidence = Evidence(pd.DataFrame() if frame is None else frame)
    return [
        LedgerEntry(c.id, c.paper, c.where, c.statement, c.needs, c.command, c.against, c.verdict(evidence))
        for c in claims().values()
    ]


__all__ = ["LedgerEntry", "Status", "Verdict", "claims", "ledger"]

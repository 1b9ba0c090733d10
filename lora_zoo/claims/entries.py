"""The ledger: every claim beside its verdict."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import pandas as pd

from lora_zoo.claims.evidence import Evidence
from lora_zoo.claims.registry import claims
from lora_zoo.claims.rule import Verdict


@dataclass(frozen=True)
class LedgerEntry:
    """A claim and its verdict. `command` makes the runs that it needs; `against` names opposite claims."""

    id: str
    paper: str
    where: str
    statement: str
    needs: str
    command: str
    against: Sequence[str]
    verdict: Verdict


def ledger(frame: pd.DataFrame | None = None, among: Container[str] | None = None) -> list[LedgerEntry]:
    """Every claim, or those whose id is `among` these, with its verdict by `frame` (None: no runs), by id."""
    evidence = Evidence(pd.DataFrame() if frame is None else frame)
    return [
        LedgerEntry(c.id, c.paper, c.where, c.statement, c.needs, c.command, c.against, c.verdict(evidence))
        for c in claims().values()
        if among is None or c.id in among
    ]

"""A report of runs: its parts, each made once and when it is asked for."""

from functools import cached_property
from typing import Any

import pandas as pd

from lora_zoo.analysis.integrity import findings
from lora_zoo.claims import LedgerEntry, Status, ledger
from lora_zoo.report import content
from lora_zoo.report.figure_list import FigureList
from lora_zoo.report.tables import Table, tables
from lora_zoo.runs.keys import axes

DECIDED = (Status.SUPPORTED, Status.NOT_SUPPORTED, Status.INCONCLUSIVE)


class Report:
    """The report of a frame from `lora_zoo.runs.load`. ValueError where no run may be counted."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    @cached_property
    def tables(self) -> list[Table]:
        return tables(self.frame)

    @cached_property
    def ledger(self) -> list[LedgerEntry]:
        """Every claim, those of the runs' own experiments first."""
        names = set(self.frame["experiment"])
        return sorted(ledger(self.frame), key=lambda entry: entry.needs not in names)

    @cached_property
    def figures(self) -> FigureList:
        return content.figures(self.frame)

    @cached_property
    def findings(self) -> list[Any]:
        return [finding for _, part in content.parts(self.frame) for finding in findings(part)]

    @property
    def axes(self) -> list[str]:
        return axes(self.frame)

    @property
    def decided(self) -> list[LedgerEntry]:
        return [entry for entry in self.ledger if entry.verdict.status in DECIDED]

    @property
    def undecided(self) -> list[LedgerEntry]:
        """Claims that these runs say nothing about."""
        return [entry for entry in self.ledger if entry.verdict.status not in DECIDED]

    @property
    def tested(self) -> list[LedgerEntry]:
        """The claims that the experiments of these runs test."""
        names = set(self.frame["experiment"].dropna()) - {""}
        return sorted((entry for entry in self.ledger if entry.needs in names), key=lambda entry: entry.id)

    @property
    def question(self) -> str:
        every = content.parts(self.frame)
        return str(every[0][0].get("question", "")) if len(every) == 1 else ""

    @property
    def commands(self) -> list[str]:
        names = [about["name"] for about, _ in content.parts(self.frame) if about]
        return [f"python -m lora_zoo.run -m +experiment={name}" for name in names]

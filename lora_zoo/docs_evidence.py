"""Tables of experiments/ read back from their Markdown: rows of variants, and verdicts on claims.

The ledger takes minutes over all archives; these tables hold what it said when the runs were kept.
"""

import functools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import lora_zoo

EXPERIMENTS = Path(lora_zoo.__file__).parents[1] / "experiments"
ALL_VARIANTS = ("zoo/README.md", "zoo_style/README.md", "perf/zoo/step.md")
"""Pages with a row for every variant: its first cell is a task or a shape, its second the variant."""


class MeasuredRow(NamedTuple):
    """A row of a table, and the head of that table."""

    head: tuple[str, ...]
    cells: tuple[str, ...]


class PrintedVerdict(NamedTuple):
    """A verdict as the page of an experiment prints it."""

    experiment: str
    verdict: str
    effect: str
    n: str

    @property
    def page(self) -> str:
        return f"{self.experiment}/README.md"


def rows_of(page: str, variant: str) -> list[MeasuredRow]:
    """The rows of a variant in a page of `ALL_VARIANTS`."""
    return [row for row in rows(page) if row.head[1] == "variant" and row.cells[1] == variant]


@functools.cache
def rows(page: str) -> tuple[MeasuredRow, ...]:
    """Every row of every table of a page of experiments/."""
    rows: list[MeasuredRow] = []
    head: tuple[str, ...] = ()
    for line in (EXPERIMENTS / page).read_text().splitlines():
        if not line.startswith("|"):
            head = ()
        elif not head:
            head = _cells(line)
        elif not line.startswith(("|-", "| -")):
            rows.append(MeasuredRow(head, _cells(line)))
    return tuple(rows)


@functools.cache
def verdicts() -> Mapping[str, Sequence[PrintedVerdict]]:
    """The printed verdicts by the claim's id."""
    found: dict[str, list[PrintedVerdict]] = defaultdict(list)
    for path in sorted(EXPERIMENTS.glob("*/README.md")):
        for head, cells in rows(f"{path.parent.name}/README.md"):
            claim = re.match(r"\*\*(\S+/\S+)\*\*:", cells[0])
            if claim and head[2:5] == ("verdict", "effect", "n"):
                found[claim[1]].append(PrintedVerdict(path.parent.name, *cells[2:5]))
    return found


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|")))

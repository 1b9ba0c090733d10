"""The ledger for people: a table on the terminal, Markdown, JSON."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_zoo.claims.entries import LedgerEntry
from lora_zoo.claims.rule import Status

if TYPE_CHECKING:
    from rich.table import Table

COLOURS = {Status.SUPPORTED: "green", Status.NOT_SUPPORTED: "red", Status.INCONCLUSIVE: "yellow"}
HEAD = ("claim", "source", "verdict", "effect", "n", "found")


def effect(entry: LedgerEntry) -> str:
    """The deciding estimate with its interval, level and unit; "" where nothing was compared."""
    made = entry.verdict.effect
    if made is None:
        return ""
    if made.low == made.high:  # counted, not sampled
        return f"{made.estimate:,.6g} {entry.verdict.unit}"
    bounds = "" if math.isnan(made.low) else f" [{made.low:.3g}, {made.high:.3g}]"
    return f"{made.estimate:.3g}{bounds} {entry.verdict.unit}"


def row(entry: LedgerEntry) -> tuple[str, ...]:
    """The cells of `HEAD` but the first, which is the id and what the claim says."""
    n = str(entry.verdict.n) if entry.verdict.n else ""
    found = entry.verdict.reason
    if entry.against:
        found += f" (contradicts {', '.join(entry.against)})"
    return (f"{entry.paper}, {entry.where}".rstrip(", "), entry.verdict.status, effect(entry), n, found)


def totals(entries: Sequence[LedgerEntry]) -> str:
    """The number of claims of each status."""
    counts = Counter(entry.verdict.status for entry in entries)
    parts = [f"{counts[status]} {status}" for status in Status if counts[status]]
    return f"{len(entries)} claims: {', '.join(parts)}."


def contradictions(entries: Sequence[LedgerEntry]) -> Iterator[str]:
    """A sentence for each pair of claims that disagree."""
    by_id = {entry.id: entry for entry in entries}
    pairs = {tuple(sorted((e.id, other))): None for e in entries for other in e.against if other in by_id}
    for one, other in pairs:
        a, b = (f"{name} ({by_id[name].verdict.status})" for name in (one, other))
        yield f"{a} against {b}"


def grid(entries: Sequence[LedgerEntry]) -> list[str]:
    """The lines of a Markdown table, a row a claim."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for entry in entries:
        cells = (f"**{entry.id}**: {entry.statement}", *row(entry))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def markdown(entries: Sequence[LedgerEntry]) -> str:
    pairs = ["Contradictions among the sources:", "", *(f"* {pair}" for pair in contradictions(entries))]
    return "\n".join([totals(entries), "", *grid(entries), "", *pairs])


def as_json(entries: Sequence[LedgerEntry]) -> str:
    """A list of objects, one a claim; what is not known is null."""
    return json.dumps([_plain(entry) for entry in entries], indent=1, ensure_ascii=False, allow_nan=False)


def _plain(entry: LedgerEntry) -> dict[str, Any]:
    made = entry.verdict.effect
    numbers = None if made is None else {key: _number(value) for key, value in vars(made).items()}
    return vars(entry) | {
        "against": list(entry.against),
        "verdict": vars(entry.verdict) | {"status": str(entry.verdict.status), "effect": numbers},
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def overview(entries: Sequence[LedgerEntry]) -> "Table":
    """The ledger for a terminal, a line a claim where the window allows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table("claim", "verdict", "effect", "n", title=totals(entries), box=box.SIMPLE_HEAD)
    made.columns[0].overflow, made.columns[3].justify = "fold", "right"
    for entry in entries:
        status, n = entry.verdict.status, str(entry.verdict.n or "")
        made.add_row(entry.id, Text(status, COLOURS.get(status, "dim")), effect(entry), n)
    return made


def table(entries: Sequence[LedgerEntry]) -> "Table":
    """The ledger for a terminal, with what each claim says and what was found."""
    from rich.table import Table
    from rich.text import Text

    made = Table("claim", "verdict", "found", title=totals(entries), show_lines=True, expand=True)
    for column, ratio in zip(made.columns, (5, 3, 5), strict=True):
        column.ratio, column.overflow = ratio, "fold"
    for entry in entries:
        source, status, size, n, found = row(entry)
        claim = Text.assemble((entry.id, "bold"), f" ({source})\n{entry.statement}")
        colour = COLOURS.get(entry.verdict.status, "dim")
        made.add_row(
            claim, Text.assemble((status, colour), f"\n{size}", f"\nn={n}" if n else ""), Text(found)
        )
    return made

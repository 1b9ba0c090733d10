"""`python -m lora_zoo.claims [DIR|ARCHIVE…]`: the papers' claims, with the verdicts of measured runs.

Without arguments, the results that are kept in experiments/ are read. Each filter that is given must hold.
Exit codes: 0 the ledger was printed, whatever it says; 2 the sources cannot be read, or no claim is left.
"""

import argparse
import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_zoo.claims.rule import Status
from lora_zoo.core.errors import unknown
from lora_zoo.terminal import on_the_terminal, say

if TYPE_CHECKING:
    import pandas as pd

    from lora_zoo.claims import LedgerEntry
    from lora_zoo.claims.registry import Claim

KEPT = "experiments"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lora_zoo.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="*", help="folders with runs at any depth, or archives (*.jsonl.gz)")
    parser.add_argument("--format", choices=("table", "markdown", "json"), default="table")
    parser.add_argument("--claim", metavar="GLOB", help="claims of this id, such as 'dora/*'")
    parser.add_argument("--paper", metavar="TEXT", help="claims of a paper: (a part of) its arXiv id")
    parser.add_argument("--status", choices=[status.replace(" ", "_") for status in Status])
    parser.add_argument("--experiment", metavar="NAME", help="claims that this experiment's runs decide")
    parser.add_argument("--details", action="store_true", help="what each claim says, and what was found")
    given = parser.parse_args(arguments)
    with on_the_terminal():
        from lora_zoo.claims import claims, ledger

        asked = asked_for([*claims().values()], given)  # before any run is read
        entries = of_status(ledger(runs_of(given.sources), {claim.id for claim in asked}), given.status)
        print_ledger(entries, given.format, details=given.details)


def asked_for(claims: "Sequence[Claim]", filters: argparse.Namespace) -> "list[Claim]":
    """The claims that every filter keeps, whatever their verdicts; ValueError where none is left."""
    left = [
        claim
        for claim in claims
        if (not filters.claim or fnmatch.fnmatch(claim.id, filters.claim))
        and (not filters.paper or filters.paper in claim.paper)
        and (not filters.experiment or claim.needs == filters.experiment)
    ]
    if not left:
        raise ValueError(f"none of {len(claims)} claims is left by the filters{_nearest(claims, filters)}")
    return left


def of_status(entries: "list[LedgerEntry]", status: str | None) -> "list[LedgerEntry]":
    """The entries of a verdict, all where none is named; ValueError where none is left."""
    left = [entry for entry in entries if not status or entry.verdict.status == status.replace("_", " ")]
    if not left:
        raise ValueError(f"none of {len(entries)} claims is left by the filters")
    return left


def _nearest(claims: "Sequence[Claim]", filters: argparse.Namespace) -> str:
    """The names nearest to one that no claim has."""
    ids = [claim.id for claim in claims]
    experiments = {claim.needs for claim in claims if claim.command.endswith(f"+experiment={claim.needs}")}
    if filters.experiment and filters.experiment not in experiments:
        return ": " + unknown("experiment", filters.experiment, sorted(experiments))
    if filters.claim and not fnmatch.filter(ids, filters.claim):
        return ": " + unknown("claim", filters.claim, ids).partition(" Choices:")[0]
    return ""


def runs_of(sources: Sequence[str]) -> "pd.DataFrame | None":
    """The runs of `sources`; of those in experiments/ where none are given, None where there are none."""
    from lora_zoo.runs import load

    kept = sources or sorted(map(str, Path(KEPT).glob("*/results.jsonl.gz")))
    if not kept:
        say(f"{KEPT}/ holds no results.jsonl.gz here; give folders with runs, or archives")
        return None
    return load(*kept)


def print_ledger(entries: "Sequence[LedgerEntry]", form: str, *, details: bool = False) -> None:
    from lora_zoo.claims import show

    if form != "table":
        print({"markdown": show.markdown, "json": show.as_json}[form](entries))
        return
    from rich.console import Console

    console = Console()
    console.print(show.table(entries) if details else show.overview(entries))
    if pairs := list(show.contradictions(entries)):
        console.print("Contradictions among the sources:", *pairs, sep="\n  ")
    if not details:
        console.print("--details says what each claims and what was found; --claim, --paper, --status filter")


if __name__ == "__main__":
    main()

"""`python -m lora_zoo.claims [DIR|ARCHIVE…]`: the papers' claims, with the verdicts of measured runs.

Without arguments, the results that are kept in experiments/ are read. Exit codes: 0 the ledger was printed,
whatever it says; 2 the sources cannot be read.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_zoo.terminal import on_the_terminal, say

if TYPE_CHECKING:
    import pandas as pd

    from lora_zoo.claims import LedgerEntry

KEPT = "experiments"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lora_zoo.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="*", help="folders with runs at any depth, or archives (*.jsonl.gz)")
    parser.add_argument("--format", choices=("table", "markdown", "json"), default="table")
    given = parser.parse_args(arguments)
    with on_the_terminal():
        from lora_zoo.claims import ledger

        print_ledger(ledger(runs_of(given.sources)), given.format)


def runs_of(sources: Sequence[str]) -> "pd.DataFrame | None":
    """The runs of `sources`; of those in experiments/ where none are given, None where there are none."""
    from lora_zoo.runs import load

    kept = sources or sorted(map(str, Path(KEPT).glob("*/results.jsonl.gz")))
    if not kept:
        say(f"{KEPT}/ holds no results.jsonl.gz here; give folders with runs, or archives")
        return None
    return load(*kept)


def print_ledger(entries: "Sequence[LedgerEntry]", form: str) -> None:
    from lora_zoo.claims import show

    if form != "table":
        print({"markdown": show.markdown, "json": show.as_json}[form](entries))
        return
    from rich.console import Console

    console = Console()
    console.print(show.table(entries))
    console.print("Contradictions among the sources:", *show.contradictions(entries), sep="\n  ")


if __name__ == "__main__":
    main()

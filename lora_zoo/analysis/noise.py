"""`python -m lora_zoo.analysis.noise RUNS… --by rank`: the seeds that each difference needs, by each score.

For every pair of cells and each score: the mean difference, its standard deviation over seeds, p of the
paired t test, p over items x seeds, and the seeds that a true difference of this size needs (80 % power, 5 %
level). A pilot of five seeds knows the deviation to a factor of about two, and the size of a difference that
may be noise not even so well: read the table as a whole, not a row.
"""

import argparse
import itertools
import math
from collections.abc import Sequence

import pandas as pd

from lora_zoo.analysis.comparison import Cell
from lora_zoo.analysis.power import seeds_for
from lora_zoo.analysis.protocol import cells
from lora_zoo.analysis.statistics import paired, paired_items
from lora_zoo.runs import examples, load
from lora_zoo.terminal import on_the_terminal

VALUES = ("test", "test_nll")
_FORMS = {"difference": "{:.4g}", "sd": "{:.4g}", "p": "{:.2g}", "p_items": "{:.2g}", "seeds": "{:g}"}


def noise(
    frame: pd.DataFrame, by: Sequence[str], values: Sequence[str] = VALUES, tune: Sequence[str] = ()
) -> pd.DataFrame:
    """A row for each pair of cells and each of `values`: one, other, value, n, and the columns of the table.

    `difference` is one - other; `seeds` is inf above 10,000, and nan where the seeds do not vary or are one.
    ValueError as `cells` raises it.
    """
    rows = []
    for value in values:
        kept = _examples(frame, value)
        for one, other in itertools.combinations(cells(frame, by, value, tune).cells, 2):
            rows.append({"one": str(one), "other": str(other), "value": value, **_compared(one, other, kept)})
    return pd.DataFrame(rows).sort_values(["one", "other"], kind="stable", ignore_index=True)


def _examples(frame: pd.DataFrame, value: str) -> pd.DataFrame | None:
    """Items x runs of a score; None where no run kept its examples."""
    try:
        return examples(frame, value.removesuffix("_nll"), "nll" if value.endswith("_nll") else "score")
    except ValueError:
        return None


def _compared(one: Cell, other: Cell, kept: pd.DataFrame | None) -> dict[str, float]:
    over_seeds = paired(one.values, other.values)
    sd = float((one.values - other.values).std(ddof=1))
    items = math.nan if kept is None else paired_items(one.scores(kept), other.scores(kept)).p
    found = {"n": over_seeds.n, "difference": over_seeds.estimate, "sd": sd, "p": over_seeds.p}
    return {**found, "p_items": items, "seeds": seeds_for(over_seeds.estimate, sd)}


def markdown(table: pd.DataFrame) -> str:
    """The table, and the median of the seeds by each score."""
    names = ["one", "other", "value", "n", *_FORMS]
    lines = [names, ["---"] * len(names)]
    lines += [[_FORMS.get(n, "{}").format(row[n]) for n in names] for row in table.to_dict("records")]
    of_values = table.groupby("value", sort=False)["seeds"]
    said = [
        f"{value}: {part.median():g} seeds in the median of {len(part)} pairs" for value, part in of_values
    ]
    return "\n".join([*(f"| {' | '.join(map(str, line))} |" for line in lines), "", *said])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.analysis.noise", description=__doc__)
    parser.add_argument("sources", nargs="+", help="folders with runs at any depth, or archives (*.jsonl.gz)")
    parser.add_argument("--by", nargs="+", required=True, help="the axes of the cells: rank, variant, …")
    parser.add_argument("--tune", nargs="*", default=(), help="axes chosen by validation for each cell")
    parser.add_argument("--value", nargs="+", default=VALUES, help="scores (test test_nll)")
    given = parser.parse_args(arguments)
    with on_the_terminal():
        print(markdown(noise(load(*given.sources), given.by, given.value, given.tune)))


if __name__ == "__main__":
    main()

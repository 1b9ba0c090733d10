"""Agreement of ranks, against hand values and the definition of τ-b."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lora_zoo.analysis.agreement import rank_agreement, rank_map
from lora_zoo.analysis.statistics import interval
from lora_zoo.report import figures
from lora_zoo.report.figures import Nothing
from tests.report.synthetic import sweep


def table(**methods: list[list[float]]) -> pd.DataFrame:
    """Method: for each seed the ranks of the matrices m0, m1, …"""
    rows = [
        {"method": method, "seed": seed, "name": f"m{number}", "rank": rank}
        for method, seeds in methods.items()
        for seed, ranks in enumerate(seeds)
        for number, rank in enumerate(ranks)
    ]
    return pd.DataFrame(rows)


def pair(found: pd.DataFrame, a: str, b: str) -> Mapping[str, Any]:
    (row,) = found[(found["a"] == a) & (found["b"] == b)].to_dict("records")
    return row


def test_tau_is_that_of_the_hand() -> None:
    """Of 6 pairs: 5 agree, 1 does not; with ties in one, 5 agree and 1 is tied: 5 / √(6 · 5)."""
    found = rank_agreement(table(a=[[1, 2, 3, 4]], b=[[1, 2, 4, 3]], c=[[1, 2, 3, 3]], d=[[4, 3, 2, 1]]))
    assert pair(found, "a", "b")["tau"] == pytest.approx(4 / 6)
    assert pair(found, "a", "c")["tau"] == pytest.approx(5 / math.sqrt(30))
    assert pair(found, "a", "d")["tau"] == pytest.approx(-1)
    assert pair(found, "a", "b")["n"] == 1 and math.isnan(pair(found, "a", "b")["low"])
    assert math.isnan(pair(found, "a", "a")["tau"]) and pair(found, "a", "a")["n"] == 0


def test_two_methods_meet_within_a_seed_and_one_meets_itself_across_seeds() -> None:
    source = np.random.default_rng(0)
    draws = {name: source.integers(0, 5, (seeds, 9)).tolist() for name, seeds in (("a", 4), ("b", 3))}
    found = rank_agreement(table(**draws), level=0.9)
    across = [
        stats.kendalltau(*draws_of).statistic for draws_of in zip(draws["a"][:3], draws["b"], strict=True)
    ]
    row, own = pair(found, "a", "b"), pair(found, "a", "a")
    expected = interval(across, 0.9)
    assert (row["tau"], row["low"], row["high"], row["n"]) == pytest.approx(
        (expected.estimate, expected.low, expected.high, 3)
    )
    within = [stats.kendalltau(*two).statistic for two in itertools.combinations(draws["a"], 2)]
    assert (own["tau"], own["n"]) == (pytest.approx(np.mean(within)), 6) and math.isnan(own["low"])


def test_a_run_without_an_order_does_not_count_and_what_is_absent_has_rank_0() -> None:
    rows = table(a=[[1, 2, 3], [3, 2, 1]], b=[[2, 2, 2], [3, 2, 1]])
    assert pair(rank_agreement(rows), "a", "b")["n"] == 1
    fewer = rows.drop(rows.index[(rows["method"] == "b") & (rows["seed"] == 1) & (rows["name"] == "m2")])
    assert pair(rank_agreement(fewer), "a", "b")["tau"] == pytest.approx(1)
    with pytest.raises(ValueError, match="seeds stand twice: a has two runs of seed 0"):
        rank_agreement(pd.concat([rows, rows.head(3)]))


def test_ranks_are_read_from_records_and_drawn() -> None:
    runs = sweep(variants=("lora", "adalora", "sora"), ranks=(4,), seeds=2)
    shapes = {"adalora": [1, 2, 3, 4], "sora": [1, 3, 2, 4]}
    for record, variant in zip(runs["updates"], runs["variant"], strict=True):
        for row, rank in zip(record, shapes.get(variant, [4, 4, 4, 4]), strict=True):
            row["singular_values"] = [1.0] * rank + [1e-9]
    runs = runs.assign(program=None)
    ranks = rank_map(runs)
    assert sorted(ranks["method"].unique()) == ["adalora", "lora", "sora"]
    assert ranks[(ranks["method"] == "sora") & (ranks["seed"] == 1)]["rank"].tolist() == [1, 3, 2, 4]
    (heat,) = figures.agreement(runs, ["variant"]).panels
    assert heat.rows.set_index(["row", "column"])["value"].to_dict() == pytest.approx(
        {("AdaLoRA",) * 2: 1, ("SoRA",) * 2: 1, ("AdaLoRA", "SoRA"): 4 / 6, ("SoRA", "AdaLoRA"): 4 / 6}
    )
    with pytest.raises(Nothing, match="no two settings leave ranks that differ"):
        figures.agreement(sweep(), ["variant", "rank"])

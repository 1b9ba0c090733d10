"""Agreement of importance measures: Kendall's τ between the ranks that methods leave to the same matrices.

table = rank_map(runs.load("runs"), ["variant", "program"])
rank_agreement(table)     # a row a pair of methods: tau, its interval over seeds, n
"""

import itertools
from collections.abc import Iterable, Sequence

import pandas as pd
from scipy import stats

from lora_zoo.analysis.columns import plain, replicates
from lora_zoo.analysis.estimates import NAN
from lora_zoo.analysis.statistics import interval
from lora_zoo.runs.curves import updates


def rank_agreement(table: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Mean τ-b of each two methods, a row a pair, with a t interval over `n` seeds.

    `table` has a row a method, seed and matrix (`name`) with its `rank`, or any other importance; a matrix
    that only one of two runs has counts as 0 in the other. Runs of two methods are compared within each seed
    that both have. A method is compared with itself across seeds, which is as well as another can agree with
    it; these pairs share runs, so that there is no interval. A run whose ranks are all equal has no order and
    does not count; τ is nan where none is left. ValueError where a method has two runs of one seed.
    """
    if (twice := table.duplicated(["method", "seed", "name"])).any():
        row = table[twice].iloc[0]
        raise ValueError(f"seeds stand twice: {row['method']} has two runs of seed {row['seed']}")
    every = table.pivot(index="name", columns=["method", "seed"], values="rank").fillna(0).astype(float)
    ranks = {(str(a), s): column.to_numpy() for (a, s), column in every.items() if column.nunique() > 1}
    seeds = {method: [s for a, s in ranks if a == method] for method in dict.fromkeys(table["method"])}
    rows = []
    for a, b in itertools.combinations_with_replacement(seeds, 2):
        if a == b:
            pairs = [((a, s), (a, t)) for s, t in itertools.combinations(seeds[a], 2)]
        else:
            pairs = [((a, s), (b, s)) for s in seeds[a] if s in seeds[b]]
        mean = interval([stats.kendalltau(ranks[one], ranks[other]).statistic for one, other in pairs], level)
        low, high = (NAN, NAN) if a == b else (mean.low, mean.high)
        rows.append({"a": a, "b": b, "tau": mean.estimate, "low": low, "high": high, "n": mean.n})
    return pd.DataFrame(rows, columns=["a", "b", "tau", "low", "high", "n"])


def rank_map(runs: pd.DataFrame, by: Sequence[str] = ("variant", "program")) -> pd.DataFrame:
    """The rank of each ΔW of finished runs, a row a method, seed and matrix; what `by` holds is the method.

    It is the numerical rank in the run's record, from which what a method pruned is gone.
    """
    done = runs[runs["state"] == "done"]
    methods = [_joined(row) for row in done[[*by]].itertuples(index=False)]
    about = pd.DataFrame({"run": done["run"], "method": methods, "seed": replicates(done)})
    found = updates(done).rename(columns={"numerical_rank": "rank"})[["run", "name", "rank"]]
    return about.merge(found, on="run").drop(columns="run")


def _joined(values: Iterable[object]) -> str:
    return " ".join(str(value) for value in values if plain(value) is not None)

"""For every claim about ΔW's directions: made-up runs that support it, that refute it, and too noisy ones."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from tests.claims.planted import adapter, nothing, table, uneven
from tests.claims.trios import QUIET, Levels, Make, Trio, _sometimes, frame, score, svd, trio

SEVEN = ("lora_table7", "rank")
INTRUDERS = ("intruders", "variant rank alpha")
FULL = ("full", math.nan, math.nan)
RANKS = (1, 4, 16, 64)


def amplified(of: Callable[[float], dict[str, float]], other: float = 50.0) -> Make:
    """The table `amplification` with these columns for q; those of v are wrong, and one q has none."""

    def make(level: float) -> dict[str, Any]:
        mine = of(level)
        rows = uneven("q", **mine) + nothing("q", *mine) + uneven("v", **dict.fromkeys(mine, other))
        return score(0.9) | table("amplification", rows)

    return make


def of_spectrum(name: str, column: str) -> Make:
    """The table `name` with e^level, in `column`, of what is expected."""

    def make(level: float) -> dict[str, Any]:
        rows = [r | {"expected": 0.1} for r in uneven("q", **{column: 0.1 * math.exp(level)})]
        rows += [r | {"expected": 0.2} for r in uneven("down", **{column: 0.2 * math.exp(level)})]
        return score(0.9) | table(name, rows)

    return make


def of_w(column: str) -> Make:
    def make(level: float) -> dict[str, Any]:
        rows = uneven("q", **{column: math.exp(level)}) + uneven("down", **{column: math.exp(level)})
        return score(0.9) | table("amplification", rows)

    return make


def counted(level: float) -> dict[str, Any]:
    """All intruders in one matrix; one is too small to tell, and that of the embeddings does not count."""
    rows = [*uneven("q", intruders=0.0), {"name": "v0", "role": "v", "layer": 0, "intruders": level}]
    rows += nothing("up", "intruders") + uneven("embed", intruders=9 - level)
    return score(0.9) | table("intruders", rows)


def effective(level: float) -> dict[str, Any]:
    return score(0.9) | table(
        "spectra", uneven("q", effective_rank=level) + uneven("embed", effective_rank=-level)
    )


def forgetting(sign: int) -> Make:
    """Whole intruders, and a loss that grows (falls, where `sign` is -1) with them by about as much."""

    def make(level: float) -> dict[str, Any]:
        return counted(round(level)) | {"retention_before": 3.0, "retention_after": 3.0 + sign * level}

    return make


def _lora(*levels: float) -> Levels:
    """At α = 8; at α = r there are as many as no claim but one would want."""
    fixed = {("lora", rank, 8.0): level for rank, level in zip(RANKS, levels, strict=True)}
    return fixed | {("lora", rank, float(rank)): 5.0 for rank in RANKS}


def planted(
    level: float, noise: float, parts: Callable[[float], dict[str, tuple[float, float]]], of: str = "A"
) -> pd.DataFrame:
    """Runs of rank 8 and 64 with adapters; `parts` makes of a run's level what q and v share with others."""
    made = frame(*SEVEN, {8: level, 64: level}, noise)
    runs = zip(made["rank"], made["seed"], made["test"], strict=True)
    return made.assign(adapter=[adapter(rank, seed, parts(own), of) for rank, seed, own in runs])


def _shared_top(of: str) -> Trio:
    """Refuted by v alone; at every level, all adapters of one seed have the same first direction."""
    return Trio(
        planted(0.9, QUIET, lambda level: {"q": (level, 0.1), "v": (level, 0.1)}, of),
        planted(0.3, QUIET, lambda level: {"q": (0.5 + level, 0.9), "v": (level, 0.9)}, of),
        planted(0.7, 0.2, lambda level: {"q": (level, 0.1), "v": (level, 0.1)}, of),
    )


other_directions = Trio(
    planted(0.3, QUIET, lambda level: {"q": (0.9, level), "v": (0.9, level)}),
    planted(0.95, QUIET, lambda level: {"q": (0.1, level - 0.6), "v": (0.1, level)}),
    planted(0.77, 0.1, lambda level: {"q": (0.5, level), "v": (0.5, level)}),
)
two_seeds = Trio(
    planted(0.7, QUIET, lambda level: {"q": (level, level), "v": (level, level)}),
    planted(0.05, QUIET, lambda level: {"q": (0.6 + level, 0.6 + level), "v": (level, level)}),
    planted(0.25, 0.1, lambda level: {"q": (level, level), "v": (level, level)}),
)
q_more = Trio(
    planted(0.8, QUIET, lambda level: {"q": (0.1, level), "v": (0.9, 0.6)}),
    planted(0.4, QUIET, lambda level: {"q": (0.9, level), "v": (0.1, 0.6)}),
    planted(0.6, 0.2, lambda level: {"q": (level, level), "v": (0.6, 0.6)}),
)

rank_4_64 = {4: math.log(21.5), 64: math.log(1.9)}
some_intruders = _lora(2, 4, 0, 9)
falls = _lora(9.3, 7.1, 4.6, 2.2)


def half(make: Make, odd: int) -> pd.DataFrame:
    """Every other seed."""
    made = frame(*INTRUDERS, falls, 0.2, make)
    return made[made["seed"] % 2 == odd]


never: Levels = {("lora", 4, 8.0): 0.0, ("lora", 16, 8.0): 0.0}
always: Levels = {("lora", 4, 8.0): 3.0, ("lora", 16, 8.0): 1.0}

TRIOS: dict[str, Trio] = {
    "lora/change-along-w": trio(
        *SEVEN,
        {4: 1.5, 64: 1.05},
        {4: 1.5, 64: 0.95},
        amplified(lambda level: {"own": level * 2.0, "random": 2.0}),
        loud=3,
    ),
    "lora/change-off-the-top": trio(
        *SEVEN,
        {4: 0.01, 64: 0.05},
        {4: 0.01, 64: 0.3},
        amplified(lambda level: {"own": 15 + 15 * level, "random": 15.0, "base": 30.0}),
        loud=3,
    ),
    "lora/amplifies": trio(
        *SEVEN, {4: 20.0, 64: 1.2}, {4: 20.0, 64: 0.8}, amplified(lambda level: {"factor": level}), loud=30
    ),
    "lora/amplifies-more-at-rank-4": trio(
        *(*SEVEN, rank_4_64 | {8: 9.0}, {4: 0.5, 8: -9.0, 64: 2.0}),
        amplified(lambda level: {"factor": math.exp(level)}),
        loud=4,
    ),
    "lora/amplification-factors": trio(
        *(*SEVEN, rank_4_64, {4: math.log(21.5), 64: 0.0}),
        amplified(lambda level: {"factor": math.exp(level)}),
        loud=1,
    ),
    "lora/top-direction-shared": _shared_top("A"),
    "lora/top-direction-of-change-shared": _shared_top("right"),
    "lora/other-directions-differ": other_directions,
    "lora/seeds-share-directions": two_seeds,
    "lora/q-shares-more-than-v": q_more,
    "pissa/changes-the-top": trio(
        *svd, {"pissa": 0.3}, {"pissa": -0.3}, of_spectrum("touched", "top"), loud=1
    ),
    "milora/leaves-the-top": trio(
        *svd, {"milora": 0.1}, {"milora": 0.4}, of_spectrum("touched", "top"), loud=1
    ),
    "milora/changes-the-bottom": trio(
        *svd,
        {"milora": 0.5, "lora": 0.1},
        {"milora": 0.0, "lora": 0.1},
        of_spectrum("touched", "bottom"),
        loud=1,
    ),
    "milora/pissa-along-w": trio(
        *(*svd, {"pissa": 2.0, "lora": 0.1, "milora": 0.0}, {"pissa": 1.0, "lora": 0.1, "milora": 2.0}),
        of_w("own"),
        loud=5,
    ),
    "milora/amplification-order": trio(
        *(*svd, {"lora": 2.0, "milora": 1.0, "pissa": 0.0}, {"lora": 2.0, "milora": 0.0, "pissa": 1.0}),
        of_w("factor"),
        loud=5,
    ),
    "intruders/lora-has-some": trio(
        *INTRUDERS, _lora(2, 4, 9, 0), some_intruders, counted, quiet=0.0
    )._replace(noisy=_sometimes(*INTRUDERS, [never, always], counted)),
    "intruders/full-has-none": trio(*INTRUDERS, {FULL: 0.0}, {FULL: 1.0}, counted, quiet=0.0)._replace(
        noisy=_sometimes(*INTRUDERS, [{FULL: 0.0}, {FULL: 2.0}], counted)
    ),
    "intruders/fall-with-rank": trio(*INTRUDERS, falls, _lora(9.3, 7.1, 7.6, 2.2), counted, loud=9),
    "intruders/fewer-with-alpha": trio(*INTRUDERS, _lora(0, 0, 8, 7), _lora(9, 9, 8, 3), counted, loud=9),
    "intruders/full-has-more-ranks": trio(
        *(*INTRUDERS, _lora(1, 3, 9, 30) | {FULL: 40.0}, _lora(1, 3, 9, 30) | {FULL: 20.0}),
        effective,
        loud=90,
    ),
    "intruders/forget": Trio(
        frame(*INTRUDERS, falls, 0.2, forgetting(1)),
        frame(*INTRUDERS, falls, 0.2, forgetting(-1)),
        pd.concat([half(forgetting(1), 0), half(forgetting(-1), 1)], ignore_index=True),
    ),
}

"""For every claim about runs: made-up runs that support it, that refute it, and that are too noisy to say.

A frame is made from cells {values of the axes: level}. A run's level is its cell's, plus noise of mean zero
over the seeds; `make` turns a level into the columns that the claim reads.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

SEEDS = (0, 1, 2, 3, 4)
LR, RATIO, SIZE = "task_lr", "variant.hyperparameters.loraplus_lr_ratio", "config.task.sizes.train"
QUIET, LOUD = 0.002, 0.1
SETTING = {
    **{"model": "pocket", "task": "pocket-sql", "steps": 200, "batch_size": 16, "metric": "exact_match"},
    **{"state": "done", "stale": "", "variant": "lora", "folder": None, "record": None},
}

Make = Callable[[float], dict[str, Any]]
Levels = Mapping[Any, float]


class Trio(NamedTuple):
    supports: pd.DataFrame
    refutes: pd.DataFrame
    noisy: pd.DataFrame


def score(level: float) -> dict[str, Any]:
    return {"test": level, "validation": level}


def frame(
    experiment: str, axes: str, cells: Levels, noise: float, make: Make = score, **columns: Any
) -> pd.DataFrame:
    """One run a cell and seed. `axes` are names separated by blanks, a cell's key their values."""
    names = axes.split()
    rows = []
    for key, level in cells.items():
        values = key if isinstance(key, tuple) else (key,)
        draws = np.random.default_rng(zlib.crc32(repr(key).encode())).standard_normal(len(SEEDS))
        for seed, draw in zip(SEEDS, noise * (draws - draws.mean()), strict=True):
            cell = dict(zip(names, values, strict=True))
            run = f"{zlib.crc32(repr((experiment, key, seed)).encode()):08x}"
            about = {"tune": ["task.lr"]} if experiment in TUNED else {}
            named = {"run": run, "name": run, "experiment": experiment, "experiment_about": about}
            rows.append(
                SETTING | named | columns | make(level + draw) | cell | {"seed": seed, "data_seed": seed}
            )
    return pd.DataFrame(rows)


TUNED = ("bakeoff_rank", "bakeoff_budget", "lora_plus_ratio")


def trio(
    experiment: str,
    axes: str,
    good: Levels,
    bad: Levels,
    make: Make = score,
    *,
    quiet: float = QUIET,
    loud: float = LOUD,
    noisy: Levels | None = None,
    **columns: Any,
) -> Trio:
    unclear = noisy or good
    if make is score:
        unclear = {key: near_the_middle(level) for key, level in unclear.items()}
    made = [
        frame(experiment, axes, cells, noise, make, **columns)
        for cells, noise in ((good, quiet), (bad, quiet), (unclear, loud))
    ]
    return Trio(*made)


def near_the_middle(level: float) -> float:
    """A score that stays one, whatever the noise: within 0.4 and 0.6."""
    return 0.4 + 0.2 * level


def losses(level: float) -> dict[str, Any]:
    """A curve with this mean loss in its first quarter, and later one that falls as this rises."""
    history = [{"step": step, "loss": level if step <= 50 else -level} for step in range(5, 201, 5)]
    return score(0.9) | {"history": history}


def gradients(level: float) -> dict[str, Any]:
    """Gradient norms of e^level after the first step."""
    norms = [{"step": 1, "loss": 1.0, "grad_norm": 99.0}]
    norms += [{"step": step, "loss": 1.0, "grad_norm": float(np.exp(level))} for step in range(2, 201)]
    return score(0.9) | {"history": norms}


def retention(level: float) -> dict[str, Any]:
    return score(0.9) | {"retention_before": 3.0, "retention_after": 3.0 + level}


def decomposed(level: float) -> dict[str, Any]:
    """Four query matrices whose ΔM and ΔD correlate by tanh(level), and value ones that correlate by 1."""
    r = np.tanh(level)
    x, z = np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(5), np.array([1.0, -1, -1, 1]) / 2
    y = r * x + np.sqrt(1 - r**2) * z
    rows = [
        _matrix("q", i, 4, magnitude_change=a, direction_change=b)
        for i, (a, b) in enumerate(zip(x, y, strict=True))
    ]
    rows += [_matrix("v", i, 4, magnitude_change=a, direction_change=a) for i, a in enumerate(x)]
    return score(0.9) | {"updates": rows}


def _matrix(role: str, layer: int, rank: int, **more: float) -> dict[str, Any]:
    block = "self_attn" if role in "qkvo" else "mlp"
    name = f"model.layers.{layer}.{block}.{role}_proj"
    sizes = dict.fromkeys(("norm", "relative_norm", "stable_rank", "effective_rank"), 1.0)
    values = {"singular_values": [1.0] * rank + [0.0]}
    return {"name": name, "shape": [128, 128], **sizes, **values, **more}


def ranks(of: Callable[[str, int, float], float]) -> Make:
    """Final ranks 200 x (1 + of(role, layer, level)) of four layers with seven roles."""

    def make(level: float) -> dict[str, Any]:
        rows = [
            _matrix(role, layer, max(round(200 * (1 + of(role, layer, level))), 0))
            for layer in range(4)
            for role in ("q", "k", "v", "o", "gate", "up", "down")
        ]
        return score(0.9) | {"updates": rows}

    return make


def change(level: float) -> dict[str, Any]:
    return score(0.0) | {"updates": [_matrix("q", 0, 4) | {"norm": max(level, 0.0)}]}


def column(name: str) -> Make:
    return lambda level: score(0.9) | {name: level}


def _line(values: Sequence[Any], levels: Sequence[float]) -> Levels:
    return dict(zip(values, levels, strict=True))


TARGETS = ("q", "k", "v", "o", "q,k", "q,v", "q,k,v,o")
table_5 = _line(TARGETS, (0.70, 0.69, 0.80, 0.81, 0.72, 0.94, 0.94))
upside_down = _line(TARGETS, (0.94, 0.95, 0.96, 0.97, 0.99, 0.80, 0.60))
level_5 = dict.fromkeys(TARGETS, 0.9)


def _table_6(one: float, four: float, sixty_four: float, q: tuple[float, float] = (0.5, 0.8)) -> Levels:
    cells = {
        (t, r): level for t in ("q,v", "q,k,v,o") for r, level in ((1, one), (4, four), (64, sixty_four))
    }
    return cells | {("q", 1): q[0], ("q", 4): q[1], ("q", 64): q[1]}


def _study(one: float, four: float, sixteen: float, most: float) -> Levels:
    return _line((1, 4, 8, 16, 128), (one, four, four, sixteen, most))


def _variants(levels: Mapping[Any, float], best: float = 0.02, penalty: float = 0.1) -> Levels:
    """Every variant at three rates: its level at its best one, `penalty` less at the others."""
    return {
        (name, rate): level - penalty * (rate != best)
        for name, level in levels.items()
        for rate in (0.01, 0.02, 0.04)
    }


def _pair(experiment: str, winner: str, loser: str, by: float = 0.1) -> Trio:
    good, bad = ({winner: 0.8 + s, loser: 0.8} for s in (by, -by))
    return trio(experiment, "variant task_lr", _variants(good), _variants(bad))


def _as_good(experiment: str, one: str, other: str) -> Trio:
    good, bad = ({one: level, other: 0.9} for level in (0.9, 0.8))
    return trio(experiment, "variant task_lr", _variants(good), _variants(bad))


def _ratios(*levels: float) -> Levels:
    """Scores at λ = 1, 2, 4, 8, 16, 32, at A's best rate of two."""
    ratios = (1, 2, 4, 8, 16, 32)
    return {
        (ratio, rate): level - 0.3 * (rate == 0.02)
        for ratio, level in zip(ratios, levels, strict=True)
        for rate in (0.005, 0.02)
    }


def _optimum(good: Levels, bad: Levels) -> Trio:
    flat = {key: 0.7 for key in good}
    return trio("lora_plus_ratio", f"{RATIO} task_lr", good, bad, noisy=flat, variant="lora_plus")


four_eight = _ratios(0.5, 0.7, 0.9, 0.8, 0.5, 0.4)
sixteen_best = _ratios(0.5, 0.6, 0.7, 0.8, 0.9, 0.5)
one_best = _ratios(0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


def _rates(levels: Mapping[str, tuple[float, float]]) -> Levels:
    """Starts at the learning rates 0.005 and 0.02."""
    return {
        (i, rate): level
        for i, pair in levels.items()
        for rate, level in zip((0.005, 0.02), pair, strict=True)
    }


def _starts(
    good: Mapping[str, tuple[float, float]], bad: Mapping[str, tuple[float, float]], **more: Any
) -> Trio:
    return trio("starts", "init task_lr", _rates(good), _rates(bad), **more)


def _rs(lora: Sequence[float], rslora: Sequence[float]) -> Levels:
    lines = {"lora": lora, "rslora": rslora}
    return {(v, r): x for v, line in lines.items() for r, x in zip((4, 16, 64, 128), line, strict=True)}


def _exponents(lora: float, rslora: float) -> Levels:
    logs = np.log([4, 16, 64, 128])
    return _rs((lora * logs).tolist(), (rslora * logs).tolist())


def _over(plain4: float, plain64: float, drop4: float, drop64: float, decay64: float) -> Levels:
    return {
        (4, 0.0, 0.0): plain4,
        (64, 0.0, 0.0): plain64,
        (4, 0.2, 0.0): drop4,
        (64, 0.2, 0.0): drop64,
        (4, 0.0, 0.1): plain4,
        (64, 0.0, 0.1): decay64,
    }


OVER = ("overfitting", "rank lora_dropout weight_decay")
GAP: Make = lambda level: {"test": 1.0 - level, "metrics.train.exact_match": 1.0}  # noqa: E731
uneven = ranks(lambda role, layer, level: level * (-1) ** layer)
feed_forward = ranks(lambda role, layer, level: level if role in ("gate", "up", "down") else -level)
upper = ranks(lambda role, layer, level: level if layer >= 2 else -level)
patterned = ranks(
    lambda role, layer, level: 0.5 * np.sin(7 * layer + 3 * len(role) + ord(role[0]) + 2 * level)
)
BUDGETS = ("adalora_budgets", "rank")


def _budgets(good: float, bad: float, make: Make, **more: Any) -> Trio:
    return trio(*BUDGETS, {200: good, 400: good}, {200: bad, 400: bad}, make, variant="adalora", **more)


def part_used(level: float) -> dict[str, Any]:
    """All ranks alike, their mean `level` of a budget of 200."""
    rows = [_matrix("q", layer, round(200 * level)) for layer in range(4)]
    return score(0.9) | {"updates": rows}


def _sometimes(
    experiment: str, axes: str, cells: Sequence[Levels], make: Make, **columns: Any
) -> pd.DataFrame:
    """Runs whose cells alternate, seed by seed, between those given."""
    frames = [frame(experiment, axes, one, 0.0, make, **columns) for one in cells]
    return pd.concat([f[f["seed"] % len(frames) == i] for i, f in enumerate(frames)], ignore_index=True)


BYTES = ("lora_fa_memory", "variant rank")


def _bytes(fa: float) -> Levels:
    return {("lora", 8): 1.0, ("lora", 64): 1.1, ("lora_fa", 8): fa, ("lora_fa", 64): fa}


def _vera(score_of_vera: float, part: float, noise: float) -> pd.DataFrame:
    made = frame("bakeoff_rank", "variant task_lr", _variants({"vera": score_of_vera, "lora": 0.9}), noise)
    return made.assign(trainable=made["variant"].map({"vera": part * 16384, "lora": 16384.0}))


def _zoo(winner: str, loser: str, experiment: str = "zoo") -> Trio:
    """At rates that a search has found: one a variant."""
    good, bad = ({winner: 0.8 + by, loser: 0.8} for by in (0.1, -0.1))
    return trio(experiment, "variant", good, bad)


def sequences(level: float) -> dict[str, Any]:
    """A sequence of two tasks: the first loses `level` of 0.8, the second gains half of that on 0.4."""
    told = [{"first": {"exact_match": 0.8}, "second": {"exact_match": 0.1}}]
    told += [{"first": {"exact_match": 0.8 - level}, "second": {"exact_match": 0.4 + level / 2}}]
    learned = [{"group": "first", "groups": {"test": told[0]}}, {"group": "second"}]
    return score(0.5) | {"record": {"stages": learned, "groups": {"test": told[1]}}}


def _smaller(name: str, part: float, good: float) -> Trio:
    """A variant of `part` of LoRA's parameters that scores `good`, and 0.2 less; LoRA scores 0.8."""

    def made(level: float, noise: float) -> pd.DataFrame:
        runs = frame("zoo", "variant", {name: level, "lora": 0.8}, noise)
        return runs.assign(trainable=runs["variant"].map({name: part * 16384, "lora": 16384.0}))

    return Trio(made(good, QUIET), made(good - 0.2, QUIET), made(0.8, LOUD))


def _mixed(router: float, merges: float) -> Levels:
    """Each composition at its best weight, and 0.3 less at another; the merges' best is not the router's."""
    best = {"xlora": (router, 1.0)} | dict.fromkeys(("weighted_sum", "ties", "dare_linear"), (merges, 0.25))
    return {(of, w): level - 0.3 * (w != at) for of, (level, at) in best.items() for w in (0.25, 1.0)}


def _equal(score_of_vera: float, noise: float) -> pd.DataFrame:
    made = frame("bakeoff_budget", "variant task_lr", _variants({"vera": score_of_vera, "lora": 0.8}), noise)
    return made.assign(trainable=made["variant"].map({"vera": 16000.0, "lora": 16384.0}))


VARIANTS = ("dora", "pissa", "milora", "rslora", "vera", "full")
tied = {"lora": 0.9, **dict.fromkeys(VARIANTS, 0.901), "full": 0.99, "vera": 0.7}
apart = {"lora": 0.9, **dict.fromkeys(VARIANTS, 0.8), "vera": 0.9}


def _most(experiment: str) -> Trio:
    return trio(experiment, "variant task_lr", _variants(tied), _variants(apart))


def _own_rates(same: bool) -> Levels:
    """Variants with equal scores at rates of their own (or at one, where they differ only in their own)."""
    names, rates = ("lora", "dora", "pissa", "milora"), (0.01, 0.02, 0.04)
    best = dict(zip(names, (0.02, 0.01, 0.04, 0.04), strict=True))
    rise = dict(zip(names, (0.0, 0.3, 0.1, 0.2), strict=True))
    own = {(n, r): 0.9 - (0.1 + rise[n]) * (r != best[n]) for n in names for r in rates}
    alike = {
        (n, r): 0.6 + rise[n] * (r == best[n]) - 0.05 * (r != best[n] and n == "lora")
        for n in names
        for r in rates
    }
    return own if same else alike


def _scan(spread: float) -> Levels:
    """Scores over α and rate that depend on their product, and by `spread` on α."""
    return {
        (alpha, rate): 0.2 + 0.3 * alpha * rate + spread * np.log2(alpha)
        for alpha in (4, 8, 16)
        for rate in (0.01, 0.02, 0.04)
    }


def _ranked(lora: Sequence[float], dora: Sequence[float]) -> Levels:
    lines = {"lora": lora, "dora": dora}
    return {
        (v, r, rate): x - 0.2 * (rate == 0.01)
        for v, line in lines.items()
        for r, x in zip((4, 8, 16, 32), line, strict=True)
        for rate in (0.01, 0.02)
    }


def _seconds(experiment: str, lora: float, full: float) -> tuple[str, str, Levels]:
    levels = {(v, rate): s for v, s in (("lora", lora), ("full", full)) for rate in (0.01, 0.02)}
    return experiment, "variant task_lr", levels


def seconds(level: float) -> dict[str, Any]:
    return score(0.9) | {"step_seconds": float(np.exp(level)), "cpu_share": 1.0}


five = ("lora_table5", "target_modules")
six = ("lora_table6", "target_modules rank")
study = ("lora_rank_study", "rank")
rs = ("rslora_ranks", "variant rank")
svd = ("svd_starts", "variant")
plus = ("lora_plus_ratio", f"{RATIO} task_lr")


def _replayed(with_it: float, without: float) -> Levels:
    """What earlier tasks lose, in one adapter that goes on and in a chain."""
    return {(how, share): at for how in ("same", "new") for share, at in ((0.05, with_it), (0.0, without))}


def remembered(level: float) -> dict[str, Any]:
    """A sequence that loses `level`, in its score as well."""
    return sequences(level) | score(0.9 - level)


ROUNDS = ("relora_rank", "program config.program.name rank")


def _rounds(times: float) -> Levels:
    return {(name, name, r): r * by for r in (2, 4) for name, by in ((None, 1.0), ("relora", times))}


def rank_of(level: float) -> dict[str, Any]:
    """Two matrices with so many components."""
    return score(0.9) | {"updates": [_matrix("q", layer, round(level)) for layer in range(2)]}


def _dropped(few: float, part: float, noise: float) -> pd.DataFrame:
    """LoRA-drop scores `few` with `part` of the parameters, 0.85 with all of them, 0.8 where others rest."""
    cells = {(0.7, True): few, (1.0, True): 0.85, (0.7, False): 0.8}
    made = frame("lora_drop", "config.program.threshold config.program.share", cells, noise)
    return made.assign(trainable=made["config.program.threshold"].map({0.7: part * 16384, 1.0: 16384.0}))


HIDDEN_PARTS = "config.variant.key_dropout config.variant.hidden_dropout config.variant.kl_weight"


def _parts(keys: float, hidden: float, both: float) -> Levels:
    """Scores of each kind of dropout alone; plain LoRA has 0.6, both without a KL 0.7."""
    return {(0.1, 0.0, 0.0): keys, (0.0, 0.1, 0.0): hidden, (0.0, 0.0, 0.0): 0.6} | {
        (0.1, 0.1, 1.0): both,
        (0.1, 0.1, 0.0): 0.7,
    }


TRIOS: dict[str, Trio] = {
    "lora/q-or-k-alone": trio(*five, table_5, upside_down),
    "lora/spread-the-budget": trio(*five, table_5, upside_down),
    "lora/qv-over-qk": trio(*five, table_5, upside_down),
    "overview/qk-over-qv": trio(*five, upside_down, table_5),
    "lora/qv-ties-with-all": trio(*five, table_5, upside_down),
    "lora/rank-1-suffices": trio(*six, _table_6(0.9, 0.9, 0.9), _table_6(0.8, 0.9, 0.9)),
    "lora/rank-4-suffices": trio(*six, _table_6(0.5, 0.9, 0.9), _table_6(0.9, 0.8, 0.9)),
    "lora/q-alone-needs-rank": trio(*six, _table_6(0.9, 0.9, 0.9), _table_6(0.5, 0.9, 0.9, (0.8, 0.7))),
    "lora/rank-1-falls-short": trio(*study, _study(0.7, 0.9, 0.9, 0.5), _study(0.9, 0.7, 0.8, 1.0)),
    "lora/gain-ends-at-16": trio(*study, _study(0.1, 0.3, 0.9, 0.9), _study(0.9, 0.9, 0.8, 0.9)),
    "theory/half-the-width": trio(*study, _study(0.95, 0.3, 0.6, 0.9), _study(0.1, 0.9, 0.8, 0.9)),
    "rslora/gradients-of-lora-fall": trio(
        *rs, _exponents(-0.5, 0), _exponents(-0.1, -0.5), gradients, loud=3
    ),
    "rslora/gradients-stay": trio(*rs, _exponents(-0.5, 0), _exponents(0, -0.5), gradients, loud=3),
    "rslora/rank-pays": trio(
        *rs, _rs([0.9] * 4, (0.6, 0.7, 0.8, 0.9)), _rs((0.6, 0.7, 0.8, 0.9), (0.9, 0.8, 0.7, 0.6))
    ),
    "rslora/rank-does-not-pay-in-lora": trio(
        *rs, _rs([0.8] * 4, (0.6, 0.7, 0.8, 0.9)), _rs((0.6, 0.7, 0.8, 0.9), [0.8] * 4)
    ),
    "rslora/only-with-the-root": trio(
        *rs,
        _rs([2.0] * 4, (2.0, 1.8, 1.6, 1.2)),
        _rs((2.0, 1.8, 1.6, 1.2), [2.0] * 4),
        column("loss"),
        loud=3,
    ),
    "lora-plus/ratio-helps": trio(*plus, four_eight, one_best, variant="lora_plus"),
    "lora-plus/optimum": _optimum(four_eight, sixteen_best),
    "lora-plus/below-sixteen": _optimum(one_best, sixteen_best),
    "lora-plus/sixteen": _optimum(sixteen_best, four_eight),
    "lora-plus/faster": trio(*plus, one_best, four_eight, losses, variant="lora_plus", loud=3),
    "dora/full-negative": trio(
        "dora_decomposition", "variant", {"full": -0.7}, {"full": 0.7}, decomposed, loud=2
    ),
    "dora/lora-positive": trio(
        "dora_decomposition", "variant", {"lora": 0.7}, {"lora": -0.7}, decomposed, loud=2
    ),
    "dora/dora-negative": trio(
        "dora_decomposition", "variant", {"dora": -0.7}, {"dora": 0.7}, decomposed, loud=2
    ),
    "dora/magnitudes": trio(
        *("dora_decomposition", "variant"),
        {"full": np.arctanh(-0.62), "lora": np.arctanh(0.83), "dora": np.arctanh(-0.31)},
        {"full": np.arctanh(-0.62), "lora": np.arctanh(0.83), "dora": np.arctanh(0.31)},
        decomposed,
        loud=2,
    ),
    "dora/over-lora": _pair("bakeoff_rank", "dora", "lora"),
    "dora/half-the-rank": trio(
        *("", "variant rank task_lr", _ranked([0.7] * 4, [0.5, 0.9, 0.5, 0.5])),
        _ranked([0.7, 0.7, 0.9, 0.7], [0.9, 0.7, 0.9, 0.9]),
    ),
    "dora/less-rank-sensitive": trio(
        *("", "variant rank task_lr", _ranked([0.5, 0.6, 0.9, 0.7], [0.7] * 4)),
        _ranked([0.9] * 4, [0.5, 0.6, 0.9, 0.7]),
    ),
    "adalora/uneven": _budgets(0.5, 0.03, uneven, quiet=0.01, loud=0.12, noisy={200: 0.12, 400: 0.12}),
    "adalora/feed-forward": _budgets(0.3, -0.3, feed_forward, quiet=0.05, loud=0.7),
    "adalora/top-layers": _budgets(0.3, -0.3, upper, quiet=0.05, loud=0.7),
    "adalora/same-pattern": trio(
        *(*BUDGETS, {200: 0.0, 400: 0.0}, {200: 0.0, 400: 1.57}, patterned),
        variant="adalora",
        quiet=0.05,
        loud=1.5,
    ),
    "adalora/budget-met": trio(
        *(*BUDGETS, {200: 1.0, 400: 2.0}, {200: 0.5, 400: 2.0}, part_used), variant="adalora", quiet=0.0
    )._replace(
        noisy=_sometimes(*BUDGETS, [{200: 1.0, 400: 2.0}, {200: 0.5, 400: 2.0}], part_used, variant="adalora")
    ),
    "adalora/over-lora": _pair("bakeoff_budget", "adalora", "lora"),
    "pissa/faster-early": trio(
        *svd, {"lora": 2.0, "pissa": 1.0}, {"lora": 1.0, "pissa": 2.0}, losses, loud=3
    ),
    "pissa/over-lora": _pair("bakeoff_rank", "pissa", "lora"),
    "milora/lora-over-pissa": _pair("bakeoff_rank", "lora", "pissa"),
    "milora/over-pissa": _pair("bakeoff_rank", "milora", "pissa"),
    "milora/over-lora": _pair("bakeoff_rank", "milora", "lora"),
    "milora/forgets-less": trio(
        *svd,
        {"milora": 0.1, "lora": 0.5, "pissa": 0.7},
        {"milora": 0.6, "lora": 0.5, "pissa": 0.7},
        retention,
        loud=3,
    ),
    "lora/forgets-less": trio(
        *svd, {"lora": 0.1, "full": 0.5}, {"lora": 0.5, "full": 0.1}, retention, loud=3
    ),
    "lora/learns-less": _pair("bakeoff_rank", "full", "lora"),
    "lora-fa/activations": trio(*BYTES, _bytes(0.1), _bytes(0.9), column("saved_bytes"), quiet=0.0)._replace(
        noisy=_sometimes(*BYTES, [_bytes(0.1), _bytes(0.9)], column("saved_bytes"))
    ),
    "lora-fa/as-good": _as_good("bakeoff_rank", "lora_fa", "lora"),
    "asymmetry/b-only-as-good": _as_good("bakeoff_budget", "lora_fa", "lora"),
    "asymmetry/a-alone-is-worse": trio(
        *("asymmetry", "config.variant.trained", {"B": 0.9, "A": 0.8}, {"B": 0.8, "A": 0.9}),
        variant="asymmetric_lora",
    ),
    "xgblora/random-layers": trio(
        *("", "config.program.layers task_lr"),
        _variants({2: 0.9, 0: 0.8}),
        _variants({2: 0.8, 0: 0.9}),
    ),
    "delta-lora/activations": trio(
        *("", "variant", {"lora": 1.0, "delta_lora": 1.0}, {"lora": 1.0, "delta_lora": 1.5}),
        column("saved_bytes"),
        quiet=0.0,
    )._replace(
        noisy=_sometimes(
            *("", "variant"),
            [{"lora": 1.0, "delta_lora": 1.0}, {"lora": 1.0, "delta_lora": 1.5}],
            column("saved_bytes"),
        )
    ),
    **{
        claim: _zoo(winner, loser)
        for claim, winner, loser in [
            ("moslora/over-lora", "moslora", "lora"),
            ("hira/over-lora", "hira", "lora"),
            ("delora/over-lora", "delora", "lora"),
            ("lora-pro/over-lora", "lora_pro", "lora"),
            ("lora-dropout/over-lora", "lora_dropout_masks", "lora"),
            ("prompt-tuning/below-full", "full", "prompt_tuning"),
            ("delta-lora/over-lora", "delta_lora", "lora"),
            ("roselora/over-lora", "roselora", "lora"),
            ("dora-dynamic/as-good-as-lora", "dora_dynamic", "lora"),
            ("sparse-adapter/as-good-as-dense", "sparse_adapter", "lora"),
            ("dylora/as-good-as-lora", "dylora", "lora"),
        ]
    },
    **{
        claim: _zoo(winner, loser, "continual")
        for claim, winner, loser in [
            ("o-lora/over-sequential", "o_lora", "lora"),
            ("online-lora/over-sequential", "online_lora", "lora"),
            ("am-lora/over-o-lora", "am_lora", "o_lora"),
            ("color/over-sequential", "color", "lora"),
        ]
    },
    "o-lora/keeps-and-blocks": trio(
        *("continual", "variant", {"o_lora": 0.1, "lora": 0.5}, {"o_lora": 0.5, "lora": 0.1}),
        sequences,
        noisy={"o_lora": 0.3, "lora": 0.32},
    ),
    "randlora/over-lora": _smaller("randlora", 1.06, 0.9),
    "melora/over-lora": _smaller("melora", 1.0, 0.9),
    "fourierft/fewer-parameters": _smaller("fourierft", 0.4, 0.8),
    "lora-xs/fewer-parameters": _smaller("lora_xs", 0.04, 0.8),
    "vera/fewer-parameters": Trio(_vera(0.9, 0.2, QUIET), _vera(0.8, 0.2, QUIET), _vera(0.9, 0.2, 0.04)),
    "vera/more-per-parameter": trio(
        *("vera_parameters", "rank", {16: 0.5, 64: 0.6, 1024: 0.9}, {16: 0.9, 64: 0.6, 1024: 0.5}),
        variant="vera",
    ),
    "vera/at-equal-parameters": Trio(_equal(0.9, QUIET), _equal(0.7, QUIET), _equal(0.9, 0.1)),
    "starts/one-factor-zero": _starts(
        {"kaiming": (0.5, 0.9), "both_zero": (0.0, 0.01), "both_random": (0.8, 0.1)},
        {"kaiming": (0.5, 0.8), "both_zero": (0.0, 0.01), "both_random": (0.95, 0.1)},
    ),
    "starts/both-zero-stays": _starts(
        *({"both_zero": (0.0, 0.0)}, {"both_zero": (0.0, 1.0)}), make=change, quiet=0.0
    )._replace(
        noisy=_sometimes(
            "starts", "init task_lr", [_rates({"both_zero": x}) for x in ((0, 0), (1, 1))], change
        )
    ),
    "starts/both-random-at-small-rates": _starts(
        {"kaiming": (0.5, 0.9), "both_random": (0.7, 0.1)}, {"kaiming": (0.5, 0.1), "both_random": (0.3, 0.9)}
    ),
    "starts/symmetric-as-good": _starts(
        {"kaiming": (0.5, 0.9), "symmetric": (0.9, 0.5)}, {"kaiming": (0.5, 0.9), "symmetric": (0.6, 0.8)}
    ),
    "starts/a-random-wins": _starts(
        {"kaiming": (0.5, 0.9), "zero_a": (0.8, 0.5)}, {"kaiming": (0.5, 0.8), "zero_a": (0.9, 0.5)}
    ),
    "starts/a-random-takes-larger-rates": _starts(
        {"kaiming": (0.5, 0.9), "zero_a": (0.9, 0.5)},
        {"kaiming": (0.9, 0.5), "zero_a": (0.5, 0.9)},
        noisy=_rates({"kaiming": (0.7, 0.7), "zero_a": (0.7, 0.7)}),
    ),
    "overfitting/grows-with-rank": trio(
        *OVER, _over(0.1, 0.5, 0, 0, 0), _over(0.5, 0.1, 1, 1, 1), GAP, loud=1
    ),
    "overfitting/small-rank-generalises": trio(*OVER, _over(0.9, 0.8, 0, 1, 1), _over(0.8, 0.9, 1, 0, 0)),
    "overfitting/dropout-helps": trio(*OVER, _over(0.9, 0.6, 0.9, 0.8, 0.6), _over(0.6, 0.9, 0.9, 0.8, 1.0)),
    "overfitting/decay-helps": trio(*OVER, _over(0.9, 0.6, 0.9, 0.6, 0.8), _over(0.6, 0.9, 0.9, 1.0, 0.8)),
    "overfitting/dropout-helps-large-ranks-more": trio(
        *OVER, _over(0.9, 0.6, 0.95, 0.8, 0), _over(0.6, 0.9, 0.9, 0.95, 0)
    ),
    "tuning/most-tie": _most("bakeoff_rank"),
    "tuning/most-tie-at-equal-parameters": _most("bakeoff_budget"),
    "tuning/shrinks-differences": trio(
        "bakeoff_rank", "variant task_lr", _own_rates(True), _own_rates(False)
    ),
    "tuning/alpha-is-a-rate": trio("", "alpha task_lr", _scan(0.0), _scan(0.1)),
    "cost/steps-faster-than-full": trio(
        *_seconds("bakeoff_rank", -1, 0), _seconds("", 1, 0)[2], seconds, loud=3
    ),
    "cost/steps-slower-than-full": trio(
        *_seconds("bakeoff_rank", 1, 0), _seconds("", -1, 0)[2], seconds, loud=3
    ),
    "cost/back-to-the-lowest-layer": trio(
        "", "layers", {"0": 0.5, "3": 0.0}, {"0": 0.0, "3": 0.5}, seconds, loud=3
    ),
    "data/gap-grows": trio(
        *("", f"variant {SIZE}"),
        {("lora", 400): 0.8, ("lora", 6400): 0.85, ("full", 400): 0.81, ("full", 6400): 0.99},
        {("lora", 400): 0.8, ("lora", 6400): 0.98, ("full", 400): 0.9, ("full", 6400): 0.99},
    ),
    "replay/needed": trio(
        *("continual_replay", "config.program.adapter config.program.replay"),
        _replayed(0.1, 0.5),
        _replayed(0.5, 0.1),
        remembered,
        noisy=_replayed(0.3, 0.32),
    ),
    "am-lora/sparsity-helps": trio(
        "am_lora_sparsity", "config.variant.sparsity", {1e-4: 0.9, 0: 0.8}, {1e-4: 0.8, 0: 0.9}
    ),
    "relora/rounds-add-rank": trio(*ROUNDS, _rounds(4), _rounds(1), rank_of, quiet=0.0)._replace(
        noisy=_sometimes(*ROUNDS, [_rounds(4), _rounds(1)], rank_of)
    ),
    **dict.fromkeys(
        ("mixing/learned-over-linear", "mixing/learned-over-merges"),
        trio(
            *("mixing", "config.variant.composition config.variant.weight"),
            _mixed(0.9, 0.8),
            _mixed(0.8, 0.9),
        ),
    ),
    "stages/full-then-lora": _zoo("lora", "full", "full_then_lora"),
    "lora-drop/half-the-parameters": Trio(
        *(_dropped(*given) for given in ((0.9, 0.4, QUIET), (0.7, 0.4, QUIET), (0.8, 0.4, LOUD)))
    ),
    "lora-drop/shared-over-none": Trio(
        *(_dropped(*given) for given in ((0.95, 0.4, QUIET), (0.6, 0.4, QUIET), (0.8, 0.4, LOUD)))
    ),
    "corda/keeps-knowledge": trio(
        *("data_starts", "init", {"corda_kpm": 0.1, "kaiming": 0.5, "pissa": 0.7}),
        {"corda_kpm": 0.6, "kaiming": 0.5, "pissa": 0.7},
        retention,
        loud=3,
    ),
    **{
        f"{name}/faster-early": trio(
            *("data_starts", "init", {init: 1.0, "kaiming": 2.0}, {init: 2.0, "kaiming": 1.0}), losses, loud=3
        )
        for name, init in (("eva", "eva"), ("lora-ga", "lora_ga"))
    },
    "hiddenkey/each-part-helps": trio(
        *("hiddenkey_parts", HIDDEN_PARTS, _parts(0.7, 0.75, 0.8)), _parts(0.5, 0.75, 0.8)
    ),
}

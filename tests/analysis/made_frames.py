"""Frames of runs made by hand, after the columns of `lora_zoo.runs.loading`, with effects that are known."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd


def run(seed: int, **said: Any) -> dict[str, Any]:
    """One sound run; `test` and `validation` are to be given."""
    row = {
        "state": "done",
        "stale": "",
        "contradiction": "",
        "experiment": "made",
        "variant": "lora",
        "rank": 8,
        "lr": 0.01,
        "task_lr": 0.01,
        "seed": seed,
        "data_seed": seed,
        "model": "pocket",
        "task": "sql",
        "metric": "exact_match",
        "trainable": 100,
        "commit": "c0ffee",
        "dirty": False,
        "started": "2026-01-01T00:00:00+00:00",
        "config.task.metrics": "exact_match",
        "config.threads": 1,
        "data.test.sha256": "t",
        "data.test.size": 500,
        "data.validation.sha256": "v",
        "made_of.source": "s",
        **said,
    }
    names = ("variant", "rank", "lr", "task", "seed")
    own = {"run": digest([row[n] for n in names])[:8], "name": "-".join(str(row[n]) for n in names)}
    return own | {"folder": f"runs/{own['name']}-{own['run']}", "adapter.sha256": digest(own["run"])} | row


def digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def study(
    means: dict[str, float],
    seeds: Iterable[int] = range(5),
    noise: float = 0.01,
    shared: float = 0.05,
    **said: Any,
) -> pd.DataFrame:
    """Variants of known means. A seed shifts all of them by N(0, shared²), each by N(0, noise²) besides."""
    rng = np.random.default_rng(7)
    seeds = list(seeds)
    shift = dict(zip(seeds, rng.normal(0, shared, len(seeds)), strict=True))
    rows = []
    for variant, mean in means.items():
        for seed in seeds:
            value = mean + shift[seed] + rng.normal(0, noise)
            rows.append(run(seed, **{"variant": variant, "test": value, "validation": value} | said))
    return pd.DataFrame(rows)


def tuned(
    choices: dict[str, dict[float, tuple[float, float]]], seeds: Iterable[int] = range(3)
) -> pd.DataFrame:
    """variant: {lr: (validation, test)}, with a little noise over seeds."""
    rng = np.random.default_rng(3)
    rows = [
        run(
            seed,
            variant=variant,
            lr=lr,
            task_lr=lr,
            validation=validation + rng.normal(0, 0.001),
            test=test + rng.normal(0, 0.001),
        )
        for variant, tries in choices.items()
        for lr, (validation, test) in tries.items()
        for seed in seeds
    ]
    return pd.DataFrame(rows)

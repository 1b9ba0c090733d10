"""Records as runs write them, made in no time, for tests of what reads them."""

import copy
import functools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lora_zoo.config import command_line, compose
from lora_zoo.config.schema import Settings, register
from lora_zoo.config.spec import flat_hyperparameters, readable_name
from lora_zoo.core.variants import VARIANTS
from lora_zoo.runs.identity import identified, specify
from lora_zoo.runs.record import RESULT, Record, plain

register()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@functools.cache
def settings(*overrides: str) -> Settings:
    """The run's settings; for several seeds they are composed once, and the seed is put where it stands."""
    seeds = [given for given in overrides if given.startswith("seed=")]
    if not seeds:
        return _composed(*overrides)
    made = _composed(*(given for given in overrides if given not in seeds), f"seed={_ANY_SEED}")
    seed = int(seeds[-1].removeprefix("seed="))
    own = {key: seed if value == _ANY_SEED else value for key, value in made.variant.items()}
    data_seed = seed if made.data_seed == _ANY_SEED else made.data_seed
    return replace(made, seed=seed, data_seed=data_seed, variant=own)


_ANY_SEED = 987_654_321


@functools.cache
def _composed(*overrides: str) -> Settings:
    return specify(compose.check(command_line.rewritten(list(overrides)), multirun=False)[0]).settings


def recorded(*overrides: str, experiment: dict[str, Any] | None = None, test: Any = 0.5, **more: Any) -> dict:
    """The record of a finished run with these overrides; `more` replaces its keys, None removes one."""
    chosen = settings(*overrides)
    variant = VARIANTS.find(chosen.variant["name"])
    config = copy.deepcopy(asdict(chosen))
    if experiment is not None:
        config["experiment"] = experiment
    adapted = 8 if variant.count else 0
    about = {"name": variant.name, "paper": variant.paper, "equation": variant.equation}
    seed, metric = chosen.seed, chosen.task.metrics[0]
    identity, made_of = identified(config, variant)
    record = {
        "schema": 1,
        "state": "done",
        "name": readable_name(chosen, variant),
        "identity": identity,
        "made_of": made_of,
        "command": " ".join(["python -m lora_zoo.run", *overrides]),
        "config": config,
        "seed": seed,
        "data_seed": chosen.data_seed,
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:01:00+00:00",
        "environment": {"commit": COMMIT, "dirty": False, "threads": 1, "device": "x86_64"},
        "variant": about | {"hyperparameters": flat_hyperparameters(chosen, variant)},
        "data": {"test": {"size": 4, "sha256": "aa"}},
        "metric": metric,
        "metric_facts": {metric: {"higher_is_better": True, "range": [0.0, 1.0]}},
        "parameters": {"trainable": 1000, "total": 945_920, "share": 0.1, "adapted": adapted, "in_full": []},
        "timings": {"steps": 200, "step_median": 0.25, "train": 50.0, "total": 60.0},
        "zero_shot": {"validation": {metric: 0.0}, "test": {metric: 0.125}},
        "metrics": {"validation": {metric: test}, "test": {metric: test}},
        "history": history(3, seed=seed),
        "updates": [update("model.layers.1.self_attn.q_proj", 1.0 + seed)],
        "adapter": {"folder": "adapter", "bytes": 4000, "sha256": f"weights of {overrides}"},
        "memory": {"peak_rss": 10**9, "saved": 5000, "saved_frozen": 3000},
    }
    return {key: value for key, value in (record | more).items() if value is not None}


def history(points: int, seed: int = 0) -> list[dict[str, Any]]:
    logs: list[dict[str, Any]] = [
        {
            "loss": 1 / (3 + step) + seed / 7,
            "grad_norm": 1 / 3,
            "learning_rate": 0.02,
            "epoch": 0.1,
            "step": step,
        }
        for step in range(1, points + 1)
    ]
    return [*logs, {"train_runtime": 2.5, "train_loss": 0.6 + seed, "epoch": 0.1, "step": points}]


def update(name: str, first: float) -> dict[str, Any]:
    sigma = [first, first / 3, first / 1e7]
    return {
        "name": name,
        "shape": [6, 4],
        "norm": first * 1.05,
        "relative_norm": None,
        "stable_rank": 1.1,
        "effective_rank": 1.7,
        "singular_values": sigma,
    }


def written(
    root: Path,
    record: dict[str, Any],
    scores: dict[str, dict[int, float]] | None = None,
    nll: dict[str, dict[int, float]] | None = None,
) -> Path:
    """The folder of a run that holds the record, and by split the scores and nll of examples."""
    folder = root / f"{record['name']}-{record['identity']}"
    while folder.exists():
        folder = folder.with_name(f"{folder.name}-2")
    folder.mkdir(parents=True)
    (folder / RESULT).write_text(json.dumps(plain(record), indent=1))
    keeper = object.__new__(Record)
    keeper.folder = folder
    for split, values in (scores or {}).items():
        likely = {i: {"nll": n, "tokens": 2} for i, n in (nll or {}).get(split, {}).items()}
        answer = {"prediction": "a", "reference": "b"}
        keeper.examples(
            split, [{"item": i, **answer, "score": s, **likely.get(i, {})} for i, s in values.items()]
        )
    return folder

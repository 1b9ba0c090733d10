"""What is left of each task in one model that is merged of an adapter for each, by every composition.

python -m lora_zoo.run -m +variant=lora rank=8 'target_modules=[q,v]' eval_splits=[validation,test] \
    task=pocket-topic,pocket-rewrite,pocket-pick,pocket-lookup task.lr=1e-2 \
    steps=200 seed=0,1,2 threads=1 out=RUNS
python experiments/merging/merge.py RUNS

Options that a method has to find (a weight, a density) are chosen by the mean over tasks on validation.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lora_zoo.compose import prepare
from lora_zoo.core.composition import composition_of
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.models.composing import common_base, load_adapters_of
from lora_zoo.models.loading import load_tokenizer
from lora_zoo.runs import load
from lora_zoo.training.retention import tasks_of

WEIGHTS, DENSITIES = (0.25, 0.5, 0.75, 1.0), (0.2, 0.5)
TRIED: dict[str, list[dict[str, Any]]] = {
    "average": [{}],
    "weighted_sum": [{"weight": w} for w in WEIGHTS],
    "linear_of_factors": [{"weight": w} for w in WEIGHTS],
    "magnitude_prune": [{"weight": w, "density": d} for w in WEIGHTS for d in DENSITIES],
    "ties": [{"weight": w, "density": d} for w in (1.0, 1.5, 2.0, 3.0) for d in DENSITIES],
    "dare_linear": [{"weight": w, "density": d} for w in WEIGHTS for d in DENSITIES],
    "compeft": [{"weight": w, "density": d, "scale": 1.0} for w in WEIGHTS for d in DENSITIES],
    "fisher": [{}],
    "regmean": [{"alpha": a} for a in (0.5, 0.9, 1.0)],
}


def settings(by: str, given: dict[str, Any], n: int) -> dict[str, Any]:
    """A composition's options: one weight for all adapters."""
    own = {key: value for key, value in given.items() if key != "weight"}
    return own | ({"weights": [given["weight"]] * n} if "weight" in given else {})


def of_seed(runs: dict[str, Path]) -> dict[str, Any]:
    """By method: the options that validation chose, and each task's test score."""
    base = common_base(runs, None, False)
    network = load_adapters_of(base, runs, load_tokenizer(base.model)).model
    validation, test = tasks_of(runs, "validation"), tasks_of(runs, "test")
    found: dict[str, Any] = {"alone": {"options": {}, "test": {t.task: t.alone for t in test}}}
    adapters_of(network).activate()
    found["base"] = {"options": {}, "test": {t.task: t.retained(network).composed for t in test}}
    for by, tried in TRIED.items():
        compositions = [composition_of(by, tuple(runs), settings(by, given, len(runs))) for given in tried]
        scores = []
        for composition in compositions:
            prepare(network, composition, runs, None, None)
            scores.append(
                np.mean([t.retained(network).composed for t in validation]) if len(tried) > 1 else 0
            )
        best = int(np.argmax(scores))
        prepare(network, compositions[best], runs, None, None)
        found[by] = {"options": tried[best], "test": {t.task: t.retained(network).composed for t in test}}
    return found


def main(folder: Path) -> None:
    by_seed = load(folder).groupby("seed")
    runs = {int(seed): dict(zip(own["task"], map(Path, own["folder"]), strict=True)) for seed, own in by_seed}
    found = {seed: of_seed(own) for seed, own in sorted(runs.items())}
    print(json.dumps(found, indent=1))
    tasks = list(next(iter(runs.values())))
    print("| method | " + " | ".join(tasks) + " | mean | chosen |\n|---|" + "---|" * (len(tasks) + 2))
    for by in next(iter(found.values())):
        scores = np.array([[own[by]["test"][task] for task in tasks] for own in found.values()])
        chosen = "; ".join(json.dumps(own[by]["options"]) for own in found.values())
        cells = " | ".join(f"{s:.3f}" for s in [*scores.mean(0), scores.mean()])
        print(f"| {by} | {cells} | {chosen if '{}' not in chosen else ''} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

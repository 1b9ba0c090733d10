"""Adapters taken away from their base, and adapters weighted for a task that none of them was trained for.

python experiments/merging/weights.py RUNS     # the runs that merge.py reads

Negation (task arithmetic, Ilharco et al., 2023, arXiv:2212.04089): W - w ΔW of one task's adapter, and how
likely the references of that task and of the others are then. An unseen task (LoRAHub, Huang et al., 2023,
arXiv:2307.13269): three adapters, weighted by the loss on a few training examples of the fourth task.
Numbers are the mean loss of 200 test examples, in nats a reference token.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lora_zoo.compose import prepare
from lora_zoo.core.composition import Composition, composition_of
from lora_zoo.injection.composition_data import AdapterData
from lora_zoo.models.composing import common_base, load_adapters_of
from lora_zoo.models.loading import load_tokenizer
from lora_zoo.runs import load
from lora_zoo.training.run_data import examples_of_run

TAKEN = (0.25, 0.5, 1.0)
SHOTS = (5, 64)
JUDGED = 200


class Judge:
    """The adapters of one seed on one base, and the test examples of each of their tasks."""

    def __init__(self, runs: Mapping[str, Path]) -> None:
        base = common_base(runs, None, False)
        self.network: nn.Module = load_adapters_of(base, runs, load_tokenizer(base.model)).model
        self.runs = runs
        self.data = {
            task: AdapterData(
                self.network,
                [*runs],
                target=[*examples_of_run(run, self.network, split="test", number=JUDGED)],
            )
            for task, run in runs.items()
        }

    def loss(self, task: str, composition: Composition) -> float:
        data = self.data[task]
        data.names = composition.names
        return data.loss(composition)

    def negated(self) -> dict[str, dict[str, float]]:
        """{"base", "pocket-topic - 0.5", …: {task: loss}}."""
        taken = {"base": ("pocket-topic", 0.0)}
        taken |= {f"{task} - {share:g}": (task, share) for task in self.runs for share in TAKEN}
        return {
            label: {judged: self.loss(judged, _sum({task: -share})) for judged in self.runs}
            for label, (task, share) in taken.items()
        }

    def unseen(self, task: str) -> dict[str, Any]:
        """The loss on a task of the base, the best other adapter, their average, LoRAHub and its own."""
        others = {name: run for name, run in self.runs.items() if name != task}
        alone = {name: self.loss(task, _sum({name: 1.0})) for name in self.runs}
        found: dict[str, Any] = {
            "base": self.loss(task, _sum(dict.fromkeys(others, 0.0))),
            "best other adapter": min(alone[name] for name in others),
            "average": self.loss(task, composition_of("average", tuple(others), {})),
        }
        for shots in SHOTS:
            hub: Any = composition_of("lorahub", tuple(others), {"optimizer": "scipy", "budget": 80})
            prepare(self.network, hub, others, self.runs[task], shots)
            found[f"LoRAHub, {shots} examples"] = self.loss(task, hub.found)
            found[f"weights, {shots} examples"] = dict(zip(others, hub.weights, strict=True))
        return found | {"its own adapter": alone[task]}


def _sum(weights: Mapping[str, float]) -> Composition:
    return composition_of("weighted_sum", tuple(weights), {"weights": [*weights.values()]})


def main(folder: Path) -> None:
    by_seed = load(folder).groupby("seed")
    runs = {int(seed): dict(zip(own["task"], map(Path, own["folder"]), strict=True)) for seed, own in by_seed}
    found = {}
    for seed, own in sorted(runs.items()):
        judge = Judge(own)
        found[seed] = {"negated": judge.negated(), "unseen": {task: judge.unseen(task) for task in own}}
    (folder / "weights.json").write_text(json.dumps(found, indent=1))
    for part in ("negated", "unseen"):
        tables = [own[part] for own in found.values()]
        if part == "unseen":  # labels down, tasks across, as of negation
            labels = [label for label in next(iter(tables[0].values())) if not label.startswith("weights")]
            tables = [{label: {t: own[t][label] for t in own} for label in labels} for own in tables]
        tasks = [*next(iter(tables[0].values()))]
        print(f"| {part} | {' | '.join(tasks)} |\n|---|{'---|' * len(tasks)}")
        for label in tables[0]:
            cells = (f"{np.mean([own[label][task] for own in tables]):.2f}" for task in tasks)
            print(f"| {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The data at which a composition of a model's adapters looks (`core.composition.CompositionData`)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lora_zoo.core.composition import Composition
from lora_zoo.core.seeding import generator
from lora_zoo.core.statistics import Statistics, not_collectable
from lora_zoo.core.train_eval import in_mode
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.statistics import Batch, Collector, refuse_padding


class AdapterData:
    """Batches, keyword arguments of the model: `own` by adapter, and those `target`s to which one composes.

    data = AdapterData(model, ["style", "tone"], own={"style": …, "tone": …})
    fisher = composition_of("fisher", ["style", "tone"], {})
    fisher.prepare(data)
    adapters_of(model).activate("style", "tone", composition=fisher)
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        *,
        own: Mapping[str, Iterable[Batch]] | None = None,
        target: Sequence[Batch] = (),
    ) -> None:
        self.model, self.names, self.target = model, names, target
        self.own: Mapping[str, Iterable[Batch]] = own or {}

    def statistics(self, name: str, needs: Sequence[str]) -> Mapping[str, Statistics]:
        """Means over the batches of `name`, none of them padded; its model is merged meanwhile.

        So a gradient is that of the effective weight. ValueError where there is no batch.
        """
        adapters: Any = adapters_of(self.model)
        every = {m.name: m for other in self.names for m in adapters[other].matrices.values()}
        matrices = [matrix for matrix in every.values() if not not_collectable(needs, matrix.host)]
        collector = Collector(self.model, matrices, needs, f"the composition of {name!r}")
        adapters.activate(name)
        adapters.merge()
        try:
            with in_mode(self.model, training=False), collector:
                for batch in self.own.get(name, ()):
                    refuse_padding(self.model, batch)
                    collector.add(batch)
        finally:
            adapters.unmerge()
        if not collector.batches:
            raise ValueError(f"there are no examples of {name!r} to look at")
        return collector.means()

    def fit(
        self,
        composition: Composition,
        learns: nn.Module,
        *,
        steps: int,
        lr: float,
        batch_size: int,
        seed: int,
    ) -> float:
        """Train `learns` on the target's batches, in an order drawn anew each time that all were seen.

        ValueError where there is none, and for a loss of NaN or inf.
        """
        adapters_of(self.model).activate(*self.names, composition=composition)
        optimizer = torch.optim.AdamW(learns.parameters(), lr=lr, weight_decay=0.0)
        source, order, mean = generator("composition", seed), list[int](), float("nan")
        with in_mode(self.model, training=True):
            for step in range(1, steps + 1):
                while len(order) < batch_size:
                    order += torch.randperm(len(self.target), generator=source).tolist()
                drawn, order = order[:batch_size], order[batch_size:]
                optimizer.zero_grad()
                losses = [self.model(**self.target[number]).loss / batch_size for number in drawn]
                torch.stack(losses).sum().backward()
                mean = float(torch.stack(losses).detach().sum())
                if not math.isfinite(mean):
                    raise ValueError(
                        f"{composition.name}: the loss of step {step} is {mean}; give a smaller lr"
                    )
                optimizer.step()
        return mean

    @torch.no_grad()
    def loss(self, composition: Composition) -> float:
        """The mean over the target's batches. ValueError where there is none."""
        if not self.target:
            raise ValueError("there are no examples to which one could compose")
        adapters_of(self.model).activate(*self.names, composition=composition)
        with in_mode(self.model, training=False):
            return sum(float(self.model(**batch).loss) for batch in self.target) / len(self.target)

"""Merges that look at each adapter's own data: Fisher-weighted means and regression means.

All named adapters take part at every matrix: one that does not adapt it has ΔW = 0 there.
"""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lora_zoo.compositions.task_vectors import TaskVectors
from lora_zoo.core.composition import CompositionData, register
from lora_zoo.core.statistics import Statistics


class DataDriven(TaskVectors, ABC):
    """A mean of task vectors by what `prepare` has found at each matrix."""

    examples, looks_at = "own", 256
    needs: ClassVar[Sequence[str]]

    def __init__(self, names: Sequence[str], *, weights: Sequence[float] | None = None) -> None:
        super().__init__(names, weights=weights)
        self.statistics: dict[str, Mapping[str, Statistics]] = {}
        """Adapter -> matrix -> its statistics."""

    def prepare(self, data: CompositionData) -> None:
        self.statistics = {name: data.statistics(name, self.needs) for name in self.names}

    def leaves(self, name: str) -> bool:
        if not self.statistics:
            raise ValueError(f"{self.name} looks at data: prepare it before it is used")
        return name not in self.names or len(self.names) == 1

    def known(self, place: str) -> dict[str, Tensor]:
        """Adapter -> its only statistic at a matrix; {} for a bias, and where a layer has none."""
        (need,) = self.needs
        return {name: own[place][need] for name, own in self.statistics.items() if place in own}

    def mean(self, changes: Mapping[str, Tensor]) -> Tensor:
        """Σ w_i ΔW_i / Σ w_i."""
        return self.weighted(changes) / sum(self.weights.values())


@register("fisher")
class Fisher(DataDriven):
    """Merging Models with Fisher-Weighted Averaging (Matena and Raffel, 2022), arXiv:2111.09832.

    F_i is the mean of squared gradients of the loss with respect to W'_i, one example at a time: the
    diagonal of the empirical Fisher, with the labels of the data (the authors also take the expectation over
    the model's own). `floor`, as a share of the mean entry of F_i, is added to it (MergeLM adds 1e-6
    whatever the size of the gradients, which may be larger than all of F). c_i = w_i / ‖F_i‖ where
    `normalize` makes models equal whose losses are of several sizes, as in MergeLM; else w_i. Biases are
    averaged.
    """

    equation = "W' = W + Σ c_i F_i ⊙ ΔW_i / Σ c_i F_i"
    needs = ("squared_gradient",)

    def __init__(
        self,
        names: Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        normalize: bool = True,
        floor: float = 1e-6,
    ) -> None:
        super().__init__(names, weights=weights)
        if floor <= 0:
            raise ValueError(f"floor must be above 0, for entries without a gradient; got {floor}")
        self.normalize, self.floor = normalize, floor
        self.scales: dict[str, tuple[float, float]] = {}
        """Adapter -> c, and what is added to its F."""

    def prepare(self, data: CompositionData) -> None:
        super().prepare(data)
        for name, own in self.statistics.items():
            every = torch.cat([of["squared_gradient"].flatten() for of in own.values()])
            if not every.any():
                raise ValueError(f"the loss of {name!r} has no gradient at what is composed")
            size = float(every.norm()) if self.normalize else 1.0
            self.scales[name] = self.weights[name] / size, self.floor * float(every.mean())

    def merged(self, changes: Mapping[str, Tensor], place: str) -> Tensor:
        known = self.known(place)
        if not known:
            return self.mean(changes)
        scales = self.scales
        F = {name: scales[name][0] * (own + scales[name][1]) for name, own in known.items()}
        return torch.stack([F[name] * change for name, change in changes.items()]).sum(0) / sum(F.values())


@register("regmean")
class RegMean(DataDriven):
    """Dataless Knowledge Fusion by Merging Weights of Language Models (Jin et al., 2023), arXiv:2212.09849.

    The matrix whose outputs are nearest, in squares, to those of each adapter's own on its own inputs.
    G_i = E[x xᵀ] at adapter i's layer, its entries off the diagonal times `alpha`. Where x spans no whole
    space the smallest such change is taken. What is no product with x (embeddings, convolutions, biases)
    is averaged.
    """

    equation = "W' = W + (Σ ΔW_i Ĝ_i)(Σ Ĝ_i)⁻¹, Ĝ = α G + (1 - α) diag(G)"
    needs = ("input_moment",)

    def __init__(self, names: Sequence[str], *, alpha: float = 0.9) -> None:
        super().__init__(names)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie between 0 and 1; got {alpha}")
        self.alpha = alpha

    def merged(self, changes: Mapping[str, Tensor], place: str) -> Tensor:
        G_II = {name: self.shrunk(moment_II) for name, moment_II in self.known(place).items()}
        if not G_II:
            return self.mean(changes)
        total_OI = torch.stack([change.double() @ G_II[name] for name, change in changes.items()]).sum(0)
        inverse_II = torch.linalg.pinv(torch.stack([*G_II.values()]).sum(0), hermitian=True)
        return (total_OI @ inverse_II).to(next(iter(changes.values())).dtype)

    def shrunk(self, G_II: Tensor) -> Tensor:
        return self.alpha * G_II + (1 - self.alpha) * G_II.diagonal().diag()

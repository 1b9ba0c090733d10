"""CoLoR: Continual Learning with Low Rank Adaptation (Wistuba et al., 2023). Not ColA, nor COLA's chain.

Shapes: O out, I in, N rows; x is (N, …, I).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_zoo.core.host import LayerHost
from lora_zoo.core.variants import register
from lora_zoo.variants.continual.centroids import NearestCentroid, k_means
from lora_zoo.variants.continual.task_loras import TaskLoRAs


@register("color")
class CoLoR(TaskLoRAs):
    """A LoRA a task; each row goes through that of the task whose centroid its features are nearest to.

    The paper takes the features of the frozen model's end and a head of each data set; here a language
    model's own head serves all, and features are those of the last adapted matrix, without adapters.
    """

    paper = "arXiv:2311.17601"
    by_row = "chooses an adapter by the mean embedding of a row"
    equation = "W' x = W x + s B_t A_t x, t the task of the centroid nearest to the input's features"
    count = "R * (O + I)"
    hooks = NearestCentroid
    route_N: Tensor | None = None
    idle = False
    """True in the pass that asks for features."""

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        plain = kind not in ("convolution", "embedding")
        return (
            None if plain else "its tasks are found by vectors that a matrix sees, a row of them an example"
        )

    def branch(self, x: Tensor, dropped: Tensor, host: LayerHost) -> Tensor:
        if self.idle:
            return x.new_zeros(())
        newest = len(self.tasks) - 1
        if self.route_N is None or len(self.route_N) != len(x):
            return self.one(newest, dropped, host)
        tasks = self.route_N.unique().tolist()
        if len(tasks) == 1:
            return self.one(tasks[0], dropped, host)
        whole = torch.stack([self.one(task, dropped, host) for task in tasks])
        place_N = torch.searchsorted(torch.tensor(tasks).to(self.route_N), self.route_N)
        return whole[place_N, torch.arange(len(x), device=x.device)]

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Clusters far apart are told apart."""
        near_NH = torch.linspace(0, 1e-3, 8).to(self.A_RI)[:, None].expand(8, 3)
        C_KH = k_means(torch.cat([near_NH, near_NH + 9]), 2)
        assert sorted(round(float(c)) for c in C_KH[:, 0]) == [0, 9]

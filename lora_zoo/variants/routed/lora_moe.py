"""LoRAMoE: Alleviate World Knowledge Forgetting in LLMs via MoE-Style Plugin (Dou et al., ACL 2024).

Shapes: N samples, T tokens, E experts.
"""

from typing import Any

import torch
from torch import Tensor

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.variants import register
from lora_zoo.variants.routed.mixture import ExpertPairs


@register("lora_moe")
class LoRAMoE(ExpertPairs):
    """§3: LoRAs in the feed-forward block, all of them weighed for each token.

    `balance` (β; 0, as in the official script) is the weight of the localised balancing constraint: what the
    experts have of each sample has a small σ² / μ², where those of the sample's kind count 1 + `delta` and
    the others 1 - `delta`. The first half of the experts is for samples of the task 1, the second for those
    of 0 (`task_ids`); without tasks all count 1. The paper divides by μ, the code by μ², as here; the code's
    sums hold padding, these do not.
    """

    paper = "arXiv:2312.09979"
    targets = ("gate", "up", "down")
    paper_alpha = 32.0
    defaults = {"rank": 4}  # noqa: RUF012 - a fact, which nobody changes

    def __init__(
        self, context: LayerContext, *, balance: float = 0.0, delta: float = 0.1, **hyper: Any
    ) -> None:
        super().__init__(context, balance=balance, **hyper)
        if not 0 <= delta <= 1:
            raise ValueError(f"lora_moe: delta must lie in [0, 1]; got {delta}")
        self.delta = delta

    def imbalance(self, probabilities_E: Tensor, weights_E: Tensor) -> Tensor:
        """Eq. 7: σ² / μ² of Z = I ∘ Q over samples and experts, Q the sums of each sample's weights."""
        kept = self.counter.kept(weights_E)
        known_E = weights_E if kept is None else weights_E * kept[..., None]
        Q_NE = known_E.flatten(1, -2).sum(1) if known_E.ndim > 2 else known_E
        Z_NE = Q_NE * self.importance(Q_NE)
        return Z_NE.var() / (Z_NE.mean().square() + 1e-10)

    def importance(self, Q_NE: Tensor) -> Tensor:
        """I (N, E): 1 + δ for experts of the sample's kind, 1 - δ for the others; 1 without tasks."""
        tasks = self.counter.tasks_of(len(Q_NE))
        if tasks is None:
            return torch.ones_like(Q_NE)
        E = Q_NE.shape[1]
        first_E = torch.arange(E, device=Q_NE.device) < E // 2
        same_NE = first_E == (tasks.to(Q_NE.device) == 1)[:, None]
        return torch.where(same_NE, 1 + self.delta, 1 - self.delta)

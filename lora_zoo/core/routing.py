"""Routing weights of mixtures: the top k, their balance, and their means over an evaluation.

Shapes: E experts, T tokens (or examples, where these are routed as a whole).
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor


@final
class RoutingRecord:
    """Sums over tokens, by matrix: the weights of its experts, and the entropy of each token's."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # (E + 2,): the weights, the entropies, the tokens

    @torch.no_grad()
    def add(self, name: str, weights_TE: Tensor) -> None:
        """Add the weights of some tokens, each row of which has the sum 1."""
        wide_TE = weights_TE.double()
        entropy = torch.special.entr(wide_TE).sum()
        tokens = wide_TE.new_tensor(len(wide_TE))
        sums = torch.cat([wide_TE.sum(0), torch.stack([entropy, tokens])]).cpu()
        self._sums[name] = self._sums.get(name, 0.0) + sums

    def extend(self, other: "RoutingRecord") -> None:
        """Add what another record has seen."""
        for name, sums in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + sums

    def summary(self) -> dict[str, dict[str, Any]]:
        """By matrix the mean weight of each expert (`load`) and the mean entropy of a token's, in nats."""
        found = {}
        for name, sums in self._sums.items():
            *load, entropy = (sums[:-1] / sums[-1]).tolist()
            found[name] = {"load": load, "entropy": entropy}
        return found


def mean_load(summary: Mapping[str, Mapping[str, Any]], expert: int) -> float:
    """The mean over matrices, of which there must be one, of what an expert has of the weights."""
    return sum(own["load"][expert] for own in summary.values()) / len(summary)


def routing_means(summary: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The means over matrices of the entropy, in nats, and of the greatest load; {} without experts."""
    n = max(len(summary), 1)
    found = {
        "routing_entropy": sum(own["entropy"] for own in summary.values()) / n,
        "routing_greatest_load": sum(max(own["load"]) for own in summary.values()) / n,
    }
    return found if summary else {}


def balance_of(probabilities_TE: Tensor, weights_TE: Tensor) -> Tensor:
    """Switch's load-balancing loss E Σᵢ fᵢ Pᵢ (arXiv:2101.03961, eq. 4): 1 if even, up to E if collapsed.

    fᵢ is the share of the choices that fall on expert i, those with a weight above 0; Pᵢ its mean
    probability, which alone has a gradient.
    """
    chosen_TE = (weights_TE > 0).to(probabilities_TE.dtype)
    share_E = chosen_TE.sum(0) / chosen_TE.sum()
    return probabilities_TE.shape[-1] * (share_E * probabilities_TE.mean(0)).sum()


def top_softmax(scores: Tensor, k: int) -> Tensor:
    """The softmax over the k greatest of the last axis, or all where they are fewer; 0 elsewhere."""
    chosen = scores.topk(min(k, scores.shape[-1])).indices
    kept = torch.full_like(scores, -torch.inf).scatter(-1, chosen, scores.gather(-1, chosen))
    return kept.softmax(-1)


def top_k(probabilities: Tensor, k: int) -> Tensor:
    """The k greatest of the last axis over their sum, and 0 for the others."""
    values, places = probabilities.topk(k, dim=-1)
    return torch.zeros_like(probabilities).scatter(-1, places, values / values.sum(-1, keepdim=True))

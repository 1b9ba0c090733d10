"""O-LoRA: Orthogonal Subspace Learning for Language Model Continual Learning (Wang et al., EMNLP 2023).

Shapes: O out, I in, R rank, S the rank of all earlier adapters together.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Additive


class OrthogonalToPriors(AdapterHooks):
    """λ₁ Σ |A_old A_tᵀ| over matrices and entries, and the official code's λ₂ Σ ‖p‖₂ over new factors.

    A_old is every frozen adapter under this one: `prior` runs, and what earlier stages have settled. The
    paper squares the entries (eq. 7), its code takes their magnitudes; this is the code's. ValueError for a
    negative λ.
    """

    over_priors = True

    def __init__(self, adapters: Mapping[str, Any], *, orthogonality: float = 0.5, l2: float = 0.0) -> None:
        super().__init__(adapters)
        if orthogonality < 0 or l2 < 0:
            raise ValueError(
                f"o_lora: orthogonality >= 0 and l2 >= 0 are needed; got {orthogonality} and {l2}"
            )
        self.orthogonality, self.l2 = orthogonality, l2

    def subspaces(self, matrix: str) -> list[Tensor]:
        """The A (S, I) of each frozen adapter of a matrix, detached. ValueError for one that has none."""
        found = []
        for name, adapters in self.prior.items():
            if matrix in adapters:
                pair = adapters[matrix].factors()
                if pair is None:
                    raise ValueError(f"o_lora: the ΔW of {name} at {matrix} is no product with an A to avoid")
                found.append(pair[1].detach())
        return found

    def overlap(self) -> Tensor | float:
        """Σ |A_old A_tᵀ|: 0 where no adapter is under this one."""
        every = [
            (A_SI @ adapter.A_RI.T).abs().sum()
            for name, adapter in self.adapters.items()
            for A_SI in self.subspaces(name)
        ]
        return sum(every, 0.0)

    def regularizer(self) -> Tensor | float:
        found = self.orthogonality * self.overlap() if self.orthogonality else 0.0
        if self.l2:
            new = [p for adapter in self.adapters.values() for p in (adapter.A_RI, adapter.B_OR)]
            found = found + self.l2 * sum(torch.linalg.vector_norm(p) for p in new)
        return found


@register("o_lora")
class OLoRA(Additive):
    """§3.2: a LoRA whose A keeps away from the rows of all earlier tasks' A, which stay as they are.

    Without an adapter under it, plain LoRA. A sequence of tasks: program=sequence program.adapter=new.
    """

    title = "O-LoRA"
    paper = "arXiv:2310.14152"
    equation = "W' = W + Σ_{j<t} s B_j A_j + s B_t A_t; loss + λ₁ Σ |A_j A_tᵀ|"
    count = "R * (O + I)"
    hooks = OrthogonalToPriors

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Rows on disjoint inputs do not overlap, and equal rows do by their squared length."""
        one_RI, I = torch.zeros_like(self.A_RI), self.A_RI.shape[1]
        one_RI[:, : I // 2] = self.A_RI[:, : I // 2]
        assert not ((self.A_RI - one_RI) @ one_RI.T).any()
        own = (self.A_RI[:1] @ self.A_RI[:1].T).abs().sum()
        torch.testing.assert_close(own, self.A_RI[0].square().sum())

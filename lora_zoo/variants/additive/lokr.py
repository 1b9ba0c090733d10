"""LoKr: Navigating Text-To-Image Customization, the Kronecker product of LyCORIS (Yeh et al., ICLR 2024).

Shapes: O = L K out, I = M N in, R rank.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.seeding import kaiming_bound
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.plain import PlainFormat
from lora_zoo.variants.low_rank import Scaled


@register("lokr")
class LoKr(Scaled):
    """§3.3: ΔW is a small matrix C, each of whose entries multiplies one larger low-rank matrix.

    C begins at zero and the other random, as in PEFT. Each is a product of rank r where r is less than half
    of its longer side, C only with `decompose_both`; the scale is α/r in either case. The sides divide O
    and I as evenly as they can, the smaller ones at most `decompose_factor` (-1: no limit).
    """

    paper = "arXiv:2309.14859"
    equation = "W' = W + (α/r) C ⊗ (B A)"
    count = "L * M + R * (K + N)"
    peft = PlainFormat(
        "LoKr",
        {
            **{"C_LM": "lokr_w1", "C_LR": "lokr_w1_a", "C_RM": "lokr_w1_b"},
            **{"D_KN": "lokr_w2", "B_KR": "lokr_w2_a", "A_RN": "lokr_w2_b"},
        },
        {
            "rank": ("r", 8),
            "alpha": ("alpha", 8),
            "decompose_both": ("decompose_both", False),
            "decompose_factor": ("decompose_factor", -1),
        },
    )

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        decompose_both: bool = False,
        decompose_factor: int = -1,
    ) -> None:
        super().__init__(context)
        self.scale = self.scale_of(alpha, rank)
        hyper = {"rank": rank, "decompose_both": decompose_both, "decompose_factor": decompose_factor}
        for name, shape in factor_shapes(context.shape, hyper).items():
            start = context.full(shape) if name in ("C_LM", "C_LR") else drawn(context, name, shape)
            self.register_parameter(name, nn.Parameter(start))

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        limit = hyper["decompose_factor"]
        return None if limit == -1 or limit > 0 else f"decompose_factor must be above 0, or -1; got {limit}"

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[tuple[int, int], Mapping[str, Any]]]) -> int:
        return sum(a * b for s, own in matrices for a, b in factor_shapes(s, own).values())

    def pair(self) -> tuple[Tensor, Tensor]:
        """(C (L, M), the larger matrix (K, N))."""
        own = self._parameters
        C_LM = own["C_LM"] if "C_LM" in own else own["C_LR"] @ own["C_RM"]  # type: ignore[operator]
        D_KN = own["D_KN"] if "D_KN" in own else own["B_KR"] @ own["A_RN"]  # type: ignore[operator]
        return C_LM, D_KN  # type: ignore[return-value]

    def weight(self, W_OI: Tensor) -> Tensor:
        C_LM, D_KN = self.pair()
        return W_OI + self.scale * torch.kron(C_LM, D_KN)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Each block (K, N) of ΔW is the same matrix times its entry of C."""
        C_LM, D_KN = self.pair()
        dW_OI, (K, N) = (self.weight(W_OI) - W_OI) / self.scale, D_KN.shape
        for row, own in zip(dW_OI.split(K), C_LM, strict=True):
            for block, c in zip(row.split(N, 1), own, strict=True):
                torch.testing.assert_close(block, c * D_KN, rtol=1e-4, atol=1e-5)


def drawn(context: LayerContext, name: str, shape: tuple[int, int]) -> Tensor:
    """torch's default start of a linear layer, in which the first of more ranks are the same numbers."""
    bound, columns = kaiming_bound(shape[1], 3**-0.5), name.endswith("R")
    found = context.uniform(name, shape[::-1] if columns else shape, bound)
    return found.T.contiguous() if columns else found


def factor_shapes(shape: tuple[int, int], hyper: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The trained tensors of a matrix (O, I) and their shapes."""
    R, limit = hyper["rank"], hyper["decompose_factor"]
    (L, K), (M, N) = (divided(side, limit) for side in shape)
    thin = hyper["decompose_both"] and max(L, M) / 2 > R
    first = {"C_LR": (L, R), "C_RM": (R, M)} if thin else {"C_LM": (L, M)}
    return first | ({"B_KR": (K, R), "A_RN": (R, N)} if max(K, N) / 2 > R else {"D_KN": (K, N)})


def divided(side: int, limit: int) -> tuple[int, int]:
    """`side` as a product: `limit` times the rest where that divides, else the most even one up to it."""
    if limit > 0 and side % limit == 0:
        return limit, side // limit
    most = min(int(side**0.5), limit if limit > 0 else side)
    small = max(size for size in range(1, most + 1) if side % size == 0)
    return small, side // small

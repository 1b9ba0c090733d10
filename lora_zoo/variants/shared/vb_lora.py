"""VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks (Li et al., NeurIPS 2024).

Shapes: O out, I in, R rank; H vectors of length L in the bank, T sub-vectors to a side of a matrix, K chosen.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.hooks import AdapterHooks, Groups, split
from lora_zoo.core.seeding import generator, uniform
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Product

LONGEST = 256
"""The paper's length of a vector, the most that `vector_length=auto` takes."""


class VectorBank(nn.Module):
    """H trained vectors of length L, drawn from U(±0.02)."""

    def __init__(self, vectors: int, length: int, like: Tensor, seed: int) -> None:
        super().__init__()
        bank_HL = uniform(vectors, length, 0.02, generator("init", seed, "vector bank"))
        self.bank_HL = nn.Parameter(bank_HL.to(like))


class BankHooks(AdapterHooks):
    """Appendix: the logits learn at ten times the bank's rate (1e-2 and 1e-3)."""

    def __init__(self, adapters: Mapping[str, "VBLoRA"], *, logits_lr_ratio: float = 10.0) -> None:
        super().__init__(adapters)
        if logits_lr_ratio <= 0:
            raise ValueError(f"vb_lora: logits_lr_ratio must be above 0; got {logits_lr_ratio}")
        self.ratio = logits_lr_ratio

    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> VectorBank:
        return VectorBank(hyper["num_vectors"], length_of(hyper, shapes.values()), like, seed)

    def param_groups(self, named: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float) -> Groups:
        logits, bank = split(named, ".bank_HL", {"lr": lr}, lr=lr * self.ratio, weight_decay=weight_decay)
        return [bank, logits]


@register("vb_lora")
class VBLoRA(Product):
    """§3.2-3.3: each stretch of A's rows and B's columns is a mixture of `topk` vectors of one global bank.

    There is no scale, and as in the paper's code ΔW is small at step 0 and not 0. `vector_length=auto` is the
    greatest length up to the paper's 256 that divides the sides of all adapted matrices.
    """

    title = "VB-LoRA"
    paper = "arXiv:2405.15179"
    equation = "W' = W + B A, their sub-vectors Σ_k softmax(top-K logits)_k bank_k"
    count = "num_vectors * R * (O + I) // vector_length"
    hooks = BankHooks
    identity_at_start = False

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 4,
        num_vectors: int = 256,
        vector_length: int | Literal["auto"] = "auto",
        topk: int = 2,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(context)
        if not 1 <= topk <= num_vectors:
            raise ValueError(f"vb_lora: topk must lie between 1 and num_vectors={num_vectors}; got {topk}")
        self.topk = topk
        self.vectors: VectorBank = context.shared  # type: ignore[assignment]
        (O, I), length = context.shape, self.vectors.bank_HL.shape[1]
        B_RTH = context.normal("B", (rank, O // length, num_vectors), 0.1)
        self.A_RTH = nn.Parameter(context.normal("A", (rank, I // length, num_vectors), 0.1))
        self.B_TRH = nn.Parameter(B_RTH.transpose(0, 1).contiguous())
        self.dropout = context.dropout(lora_dropout)

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        length = hyper["vector_length"]
        if length == "auto" or (length >= 1 and not any(side % length for side in shape)):
            return None
        return f"vector_length={length} must divide both sides; `auto` finds a length that does"

    @classmethod
    def trainable_count(cls, matrices: Sequence[tuple[tuple[int, int], Mapping[str, Any]]]) -> int:
        hyper = matrices[0][1]
        length = length_of(hyper, (shape for shape, _ in matrices))
        logits = super().trainable_count([(s, {**own, "vector_length": length}) for s, own in matrices])
        return logits + int(hyper["num_vectors"]) * length

    def mixed(self, logits: Tensor) -> Tensor:
        """Logits (..., H) -> the sub-vectors (..., L)."""
        top, chosen = logits.topk(self.topk, dim=-1)
        return (top.softmax(-1)[..., None] * self.vectors.bank_HL[chosen]).sum(-2)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.mixed(self.B_TRH).transpose(1, 2).flatten(0, 1), self.mixed(self.A_RTH).flatten(1)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """Each sub-vector is a convex combination of the bank's `topk` vectors of highest logits."""
        bank_HL = self.vectors.bank_HL
        B_OR, A_RI = self.factors()
        for logits, parts in ((self.A_RTH, A_RI), (self.B_TRH.transpose(0, 1), B_OR.T)):
            least = logits.sort(dim=-1).values[..., -self.topk, None]
            share = logits.exp() * (logits >= least)
            expected = share / share.sum(-1, keepdim=True) @ bank_HL
            torch.testing.assert_close(parts, expected.flatten(1), rtol=1e-4, atol=1e-6)


def length_of(hyper: Mapping[str, Any], shapes: Iterable[tuple[int, int]]) -> int:
    """The length of the bank's vectors for matrices (O, I) of these shapes."""
    if hyper["vector_length"] != "auto":
        return int(hyper["vector_length"])
    common = math.gcd(*(side for shape in shapes for side in shape))
    return max(length for length in range(1, min(common, LONGEST) + 1) if common % length == 0)

"""Settled adapters: several adapters folded into one plain LoRA, with W untouched and the function equal.

Shapes: O out, I in, R rank.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter, Variant
from lora_zoo.core.dtypes import uncast
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.native import inject_saved
from lora_zoo.formats.peft.forms import SavedAdapter, spread
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.plan import InjectionPlan, complete_hyperparameters


def refuse_unsettled(variant: type[Variant], who: str) -> None:
    """Raise ValueError, in the name of `who`, for a variant of which nothing can be settled."""
    if not variant.adapts:
        variant.require_weight(f"settled, as {who} asks")
    elif not _factored(variant):
        able = [name for name, cls in VARIANTS.items() if _factored(cls)]
        raise ValueError(
            f"{who} settles adapters as factors, and the ΔW of {variant.name} is no product of two that W "
            f"does not enter; variants that settle: {', '.join(able)}"
        )


def _factored(variant: type[Variant]) -> bool:
    return variant.pointwise and getattr(variant, "factors", Adapter.factors) is not Adapter.factors


@torch.no_grad()
def settled(
    model: nn.Module, parts: Sequence[Injection], name: str, seed: int, in_full: Injection | None = None
) -> Injection:
    """Put one LoRA called `name` in the place of `parts`, its ΔW the sum of theirs, in place.

    It also holds what `in_full` trained in full. ValueError where a ΔW has no factors.
    """
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    matrices = {matrix.name: matrix for part in parts for matrix in part.matrices.values()}
    for part in parts:
        for matrix in part.adapters:
            pair = _factors(part, matrix)
            if pair is None:
                raise ValueError(f"the ΔW of {part.variant.name} at {matrix} is no product that could settle")
            pairs.setdefault(matrix, []).append(pair)
    joined = {matrix: _joined(own) for matrix, own in pairs.items()}
    state = {f"{matrix}.{key}": t.clone() for matrix, own in joined.items() for key, t in own.items()}
    trained = in_full.trained if in_full else {}
    state |= {key: trained[key].clone() for key in (in_full.fully_trained if in_full else ())}
    ranks = {matrix: len(own["A_RI"]) for matrix, own in joined.items()}
    hyper, patterns = spread(rank=ranks, alpha={matrix: float(rank) for matrix, rank in ranks.items()})
    cls = VARIANTS.find("lora")
    complete = complete_hyperparameters(cls, hyper)
    plan = InjectionPlan(cls, complete, [matrices[n] for n in joined], [*trained], patterns=patterns)
    for part in parts:
        part.remove()
    return inject_saved(model, SavedAdapter(plan, state, Path(name), name, seed), name)


@torch.no_grad()
def accumulated_rank(parts: Sequence[Injection]) -> dict[str, int]:
    """The largest rank over the matrices of the sum of all ΔW: `bound` by the factors, `rank` as it is.

    A singular value counts above float32's rounding of the largest one. {} where a ΔW is no product, and
    where nothing is adapted.
    """
    found: dict[str, int] = {}
    for matrix in dict.fromkeys(name for part in parts for name in part.adapters):
        own = [_factors(part, matrix) for part in parts if matrix in part.adapters]
        pairs = [pair for pair in own if pair is not None]
        if len(pairs) < len(own):
            return {}
        B_OR, A_RI = _side_by_side(pairs)
        small_RR = torch.linalg.qr(B_OR.double()).R @ torch.linalg.qr(A_RI.T.double()).R.T
        sides = len(B_OR), A_RI.shape[1]
        rank = int(torch.linalg.matrix_rank(small_RR, rtol=torch.finfo(torch.float32).eps * max(sides)))
        bound = min(len(A_RI), *sides)
        found = {"bound": max(found.get("bound", 0), bound), "rank": max(found.get("rank", 0), rank)}
    return found


def _factors(part: Injection, matrix: str) -> tuple[Tensor, Tensor] | None:
    """B (O, R) and A (R, I) of a part's ΔW; None where it is no product."""
    with uncast(part.matrices[matrix].host.matrix().device):
        return part.adapters[matrix].factors()


def _side_by_side(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """B and A of the sum of all, of the ranks' sum."""
    return torch.cat([B for B, _ in pairs], dim=1), torch.cat([A for _, A in pairs])


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """B (O, R) and A (R, I) whose product is the sum of all; R is the ranks' sum, or the smaller side."""
    B_OR, A_RI = _side_by_side(pairs)
    O, I = len(B_OR), A_RI.shape[1]
    if len(A_RI) > min(O, I):
        dW_OI, one = B_OR @ A_RI, torch.eye(min(O, I), dtype=A_RI.dtype, device=A_RI.device)
        B_OR, A_RI = (dW_OI, one) if I <= O else (one, dW_OI)
    return {"A_RI": A_RI, "B_OR": B_OR}

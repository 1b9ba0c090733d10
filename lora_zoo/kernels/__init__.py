"""Forward and backward of an adapted dense layer in one piece: the frozen layer and as little more as can be.

The plain definition is `F.linear(x, weight(W))`, which these equal; what they do not take (see `fits`) is
done by ordinary operations. Each picks the cheaper order for the shapes at hand, forward and gradients apart:
two thin products beside W x, or the effective matrix formed once and one large product (arXiv:2312.03415).
Where x is narrower than float32 the former alone: rounded to x's dtype, W' would lose a small change.

Shapes: N tokens, O out, I in, R rank; x is (..., I) and the output (..., O).
"""

import torch
from torch import Tensor

from lora_zoo.core.dropout import Mask
from lora_zoo.core.dtypes import at_least_float32, cast
from lora_zoo.core.host import LayerHost
from lora_zoo.kernels.additive import LoraFunction
from lora_zoo.kernels.dora import DoraFunction
from lora_zoo.kernels.dtypes import exactly, formable
from lora_zoo.kernels.shared import NONE, FactorPair
from lora_zoo.kernels.vera import VeraFunction


def fits(host: LayerHost, x: Tensor, *tensors: Tensor) -> bool:
    """Whether a kernel takes this layer: dense, whole, frozen, its dtypes allowed, in plain reverse mode.

    Compilers, functional transforms and forward-mode derivatives are given ordinary operations.
    """
    if not host.dense or host.known is not None or not x.numel():
        return False
    W_OI, bias_O = host.matrix(), host.layer.bias
    if W_OI.requires_grad or (isinstance(bias_O, Tensor) and bias_O.requires_grad):
        return False
    if any(t.device != x.device for t in (W_OI, *tensors)) or not _allowed(x, W_OI, *tensors):
        return False
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _allowed(x: Tensor, W_OI: Tensor, *tensors: Tensor) -> bool:
    """Whether the adapter has one dtype, x's or a wider; autocast takes any, but leaves float64 as it is."""
    first, *others = {t.dtype for t in tensors}
    if others:
        return False
    if cast(x.device):
        narrow = torch.get_autocast_dtype(x.device.type).itemsize == 2
        return narrow and x.is_floating_point() and torch.float64 not in (x.dtype, W_OI.dtype, first)
    return x.dtype == W_OI.dtype and first == torch.promote_types(x.dtype, first)


def product(
    host: LayerHost, x: Tensor, pair: FactorPair, start: FactorPair | None = None, mask: Mask | None = None
) -> Tensor:
    """W x + bias + (B A + B0 A0) drop(x); `start` is the frozen B0 A0 of a residual start."""
    x, pair, start = branched(x, pair, start)
    x, *factors = learning(x, *pair)
    with exactly(x):
        y: Tensor = LoraFunction.apply(x, host.matrix(), host.layer.bias, *factors, *(start or NONE), mask)
    return y


def decomposed(
    host: LayerHost,
    x: Tensor,
    m_O: Tensor,
    pair: FactorPair,
    start: FactorPair | None = None,
    mask: Mask | None = None,
) -> Tensor:
    """W x + bias + (W' - W) drop(x), W' = m V / ‖V‖_row, V = W + B A + B0 A0; the norm has no gradient."""
    W_OI = host.matrix()
    with exactly(x), torch.no_grad():
        dtype = at_least_float32(torch.promote_types(W_OI.dtype, pair.B_OR.dtype))
        B_OR, A_RI = (t.to(dtype) for t in joined(pair, start))
        V_OI = torch.addmm(W_OI.to(dtype), B_OR, A_RI)
        norm_O = V_OI.norm(dim=1).detach().clamp_min(torch.finfo(V_OI.dtype).tiny)
    x, pair, start = branched(x, pair, start)
    x, gain_O, *factors = learning(x, m_O / norm_O, *pair)
    known = V_OI if formable(x, pair.B_OR) else None
    with exactly(x):
        y: Tensor = DoraFunction.apply(
            x, W_OI, host.layer.bias, known, gain_O, *factors, *(start or NONE), mask
        )
    return y


def scaled(
    host: LayerHost, x: Tensor, b_O: Tensor, d_R: Tensor, pair: FactorPair, mask: Mask | None = None
) -> Tensor:
    """W x + bias + diag(b) B diag(d) A drop(x) with B and A frozen."""
    dtype = narrowed(x, pair.B_OR.dtype)
    x, *own = learning(x.to(narrowed(x, x.dtype)), b_O, d_R, *pair)
    with exactly(x):
        y: Tensor = VeraFunction.apply(x, host.matrix(), host.layer.bias, *own, dtype, mask)
    return y


def branched(
    x: Tensor, pair: FactorPair, start: FactorPair | None = None
) -> tuple[Tensor, FactorPair, FactorPair | None]:
    """The input and the branch, narrowed under autocast; where x is narrow, the start is within the pair.

    A residual start's product is large and nearly the pair's own: it is their difference that is rounded.
    """
    if cast(x.device) or not formable(x, pair.B_OR):
        pair, start = joined(pair, start), None
    B_OR, A_RI = (t.to(narrowed(x, t.dtype)) for t in pair)
    return x.to(narrowed(x, x.dtype)), FactorPair(B_OR, A_RI), start


def narrowed(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """What autocast makes of `dtype` beside x."""
    return torch.get_autocast_dtype(x.device.type) if cast(x.device) else dtype


def joined(pair: FactorPair, start: FactorPair | None) -> FactorPair:
    """B A + B0 A0 as one pair."""
    if start is None:
        return pair
    return FactorPair(torch.cat([pair.B_OR, start.B_OR], dim=1), torch.cat([pair.A_RI, start.A_RI]))


def learning(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, without their gradients where none are recorded: a Function sees the tensors alone."""
    return tensors if torch.is_grad_enabled() else tuple(t.detach() for t in tensors)


__all__ = ["FactorPair", "decomposed", "fits", "product", "scaled"]

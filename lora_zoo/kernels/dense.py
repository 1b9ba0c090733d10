"""Calls that a kernel of a dense layer serves, and how it receives x and the factors.

Shapes: O out, I in, R rank; x is (..., I).
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.dtypes import cast, multiplies_bfloat16
from lora_zoo.core.host import LayerHost
from lora_zoo.core.kernel import Kernel
from lora_zoo.kernels.dtypes import formable
from lora_zoo.kernels.shared import FactorPair


class DenseKernel(Kernel):
    """A kernel of a whole dense layer with a frozen W and bias, in plain reverse mode."""

    def refusal(self, x: Tensor, host: LayerHost, operands: tuple[Any, ...]) -> str:
        return reason_of_mode() or _of_layer(x, host) or _of_tensors(x, host.matrix(), *flattened(operands))

    def lean(self, adapter: Any, x: Tensor, host: LayerHost) -> Tensor | None:
        plain = host.dense and not host.stores_codes and host.known is None and not host.replaced
        if not (plain and type(x) is Tensor and x.is_contiguous() and x.numel()):
            return None
        if cast(x.device) or reason_of_mode():
            return None
        W_OI, operands = host.matrix(), self.lean_operands(adapter)
        for tensor in (W_OI, *flattened(operands)):
            if tensor.dtype is not x.dtype or tensor.device != x.device or type(tensor) not in ORDINARY:
                return None
        x_NI = x.view(-1, x.shape[-1])
        return self.value(x_NI, W_OI, host.own_bias, operands).view(*x.shape[:-1], -1)

    def lean_operands(self, adapter: Any) -> tuple[Any, ...]:
        """`operands` where no gradients are recorded."""
        return self.operands(adapter)

    @abstractmethod
    def value(self, x_NI: Tensor, W_OI: Tensor, bias_O: Tensor | None, operands: tuple[Any, ...]) -> Tensor:
        """The output (N, O), of tensors of one dtype and device."""


ORDINARY = (Tensor, nn.Parameter)
"""Types of tensors that a kernel may write into."""


def reason_of_mode() -> str:
    """The reason that lies in how torch runs now: compilers and functional transforms trace operations."""
    if torch.compiler.is_compiling():
        return "torch.compile fuses ordinary operations itself"
    if torch.jit.is_tracing():
        return "torch.jit traces ordinary operations"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms ordinary operations"
    return "forward-mode derivatives" if torch.autograd.forward_ad._current_level >= 0 else ""


def _of_layer(x: Tensor, host: LayerHost) -> str:
    """The reason that lies in the layer or in what is asked of it."""
    if not host.dense:
        return f"a layer of type {host.kind} is not dense"
    if host.stores_codes:
        return "the layer is quantised, and multiplies in a way of its own"
    if host.known is not None:
        return "the frozen layer's output is computed once for several adapters"
    if host.replaced:
        return "the layer's forward is replaced"
    if not x.numel():
        return "the input is empty"
    W_OI, bias_O = host.matrix(), host.own_bias
    if W_OI.requires_grad or (isinstance(bias_O, Tensor) and bias_O.requires_grad):
        return "the layer's own weight or bias trains"
    return ""


def _of_tensors(x: Tensor, *tensors: Tensor) -> str:
    """The reason that lies in the tensors' types, devices and dtypes; W is the first."""
    if any(type(t) not in ORDINARY for t in (x, *tensors)):
        return "a tensor's type has operations of its own"
    if any(t.device != x.device for t in tensors):
        return "the tensors are on several devices"
    return "" if _dtypes_fit(x, *tensors) else "the dtypes differ in a way that the kernel does not know"


def flattened(operands: tuple[Any, ...]) -> Any:
    """The tensors of `operands` and of the factor pairs among them that learn."""
    for operand in operands:
        if isinstance(operand, Tensor):
            yield operand
        elif operand is not None:
            yield from operand[:2]


def _dtypes_fit(x: Tensor, W_OI: Tensor, *tensors: Tensor) -> bool:
    """True if the adapter has one dtype, x's or a wider; autocast takes any, but leaves float64 as it is."""
    first, *others = {t.dtype for t in tensors}
    if others:
        return False
    if cast(x.device):
        narrow = torch.get_autocast_dtype(x.device.type).itemsize == 2
        return narrow and x.is_floating_point() and torch.float64 not in (x.dtype, W_OI.dtype, first)
    return x.dtype == W_OI.dtype and first == torch.promote_types(x.dtype, first)


def branched(
    host: LayerHost, x: Tensor, pair: FactorPair, start: FactorPair | None = None
) -> tuple[Tensor, FactorPair, FactorPair | None]:
    """The input and the branch as they are multiplied; where x is narrow, the start is within the pair.

    A residual start's product is large and nearly the pair's own: it is their difference that is rounded. So
    it keeps its dtype, where autocast is off.
    """
    own = host if start is None else None
    if cast(x.device) or not formable(x, pair.B_OR):
        pair, start = joined(pair, start), None
    B_OR, A_RI = (t.to(narrowed(x, t.dtype, own)) for t in pair[:2])
    return x.to(narrowed(x, x.dtype)), FactorPair(B_OR, A_RI, pair.scale), start


def narrowed(x: Tensor, dtype: torch.dtype, host: LayerHost | None = None) -> torch.dtype:
    """The dtype to which autocast, or a bfloat16 layer, narrows `dtype` in a product with x.

    Products of bfloat16 are summed in float32 and rounded once, and parameters and the sums of their
    gradients stay float32: factors, thin products and results are rounded by factors within 1 ± u, u = 2^-8.
    To first order, with |·| the entries' magnitudes and the scale in B, LoRA's errors are at most
    3 u |Bᵀ| |gᵀ| |x| in A's gradient, 3 u |gᵀ| |x| |Aᵀ| in B's, u (2 |x| |Wᵀ| + 4 |x| |Aᵀ| |Bᵀ|) in the
    output and u (2 |g| |W| + 4 |g| |B| |A|) in the input's gradient; of the frozen layer alone they are
    u |x| |Wᵀ| and u |g| |W|. Dropout, which scales x, adds one u to what x enters. The factors' own rounding
    is the same for all tokens, so that it does not average out.
    """
    if cast(x.device):
        return torch.get_autocast_dtype(x.device.type)
    if host is None or (x.dtype, dtype) != (torch.bfloat16, torch.float32):
        return dtype
    return host.branch_dtype or (x.dtype if multiplies_bfloat16(x.device) else dtype)


def joined(pair: FactorPair, start: FactorPair | None) -> FactorPair:
    """B A + B0 A0 as one pair, the scales in B: where it is narrowed, they are not rounded apart."""
    if start is None:
        return FactorPair(*pair.scaled())
    (B_OR, A_RI), (B0_OR, A0_RI) = pair.scaled(), start.scaled()
    return FactorPair(torch.cat([B_OR, B0_OR], dim=1), torch.cat([A_RI, A0_RI]))


def learning(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, without their gradients where none are recorded: a Function sees the tensors alone."""
    return tensors if torch.is_grad_enabled() else tuple(t.detach() for t in tensors)

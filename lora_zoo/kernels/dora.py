"""W x + bias + (gain V - W) drop(x), V = W + B A + B0 A0: a product with the rows of V scaled.

Shapes: N tokens, O out, I in, R rank; x is (..., I) and the output (..., O).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_zoo.core.dropout import Mask
from lora_zoo.core.dtypes import at_least_float32, uncast
from lora_zoo.core.host import LayerHost
from lora_zoo.core.kernel import KERNELS
from lora_zoo.kernels.dense import DenseKernel, branched, joined, learning
from lora_zoo.kernels.dtypes import formable, plus_
from lora_zoo.kernels.shared import (
    NO_PAIR,
    NONE,
    FactorPair,
    columns,
    formed,
    frozen,
    in_own_dtypes,
    keep,
    kept_of,
    linear,
    returned,
    seen,
    through,
    unflattened,
)


@KERNELS.register("dora")
class DoraKernel(DenseKernel):
    """W x + bias + (W' - W) drop(x) with W' = m V / ‖V‖_row; m and the factors are the adapter's."""

    def operands(self, adapter: Any) -> tuple[Any, ...]:
        return adapter.m_O, *adapter.pairs()

    def run(self, x: Tensor, host: LayerHost, operands: tuple[Any, ...], mask: Mask | None) -> Tensor:
        m_O, pair, start = operands
        return decomposed(host, x, m_O, pair, start, mask)

    def value(self, x_NI: Tensor, W_OI: Tensor, bias_O: Tensor | None, operands: tuple[Any, ...]) -> Tensor:
        m_O, (B_OR, A_RI, scale), start = operands
        B0_OR, A0_RI, start_scale = start or NO_PAIR
        V_OI = formed(W_OI, B_OR, A_RI, B0_OR, A0_RI, (scale, start_scale))
        return F.linear(x_NI, V_OI.mul_((m_O / norm_of(V_OI))[:, None]), bias_O)


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
    pair, start = FactorPair(*pair.scaled()), start and FactorPair(*start.scaled())
    with uncast(x.device), torch.no_grad():
        dtype = at_least_float32(torch.promote_types(W_OI.dtype, pair.B_OR.dtype))
        B_OR, A_RI = (t.to(dtype) for t in joined(pair, start)[:2])
        V_OI = torch.addmm(W_OI.to(dtype), B_OR, A_RI)
        norm_O = norm_of(V_OI)
    x, pair, start = branched(host, x, pair, start)
    x, gain_O, *factors = learning(x, m_O / norm_O, *pair[:2])
    known = V_OI if formable(x, pair.B_OR) else None
    with uncast(x.device):
        y: Tensor = DoraFunction.apply(
            x, W_OI, host.own_bias, known, gain_O, *factors, *(start[:2] if start else NONE), mask
        )
    return y


def norm_of(V_OI: Tensor) -> Tensor:
    """The norm of each row (O,), never zero."""
    return V_OI.norm(dim=1).detach().clamp_min(torch.finfo(V_OI.dtype).tiny)


def differentiable(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of `DoraFunction`, by operations that autograd records."""
    mask, x, _, gain_O, W_OI, _, B_OR, A_RI, B0_OR, A0_RI = kept_of(ctx)
    for_x, *_, for_gain, for_B, for_A, _, _, _ = ctx.needs_input_grad
    g_NO = g.reshape(-1, g.shape[-1])
    wide_NO = g_NO.to(gain_O.dtype)
    gained_NO = wide_NO * gain_O
    pair = joined(FactorPair(B_OR, A_RI), None if B0_OR is None else FactorPair(B0_OR, A0_RI))
    V_OI = W_OI.to(gain_O.dtype) + (pair.B_OR @ pair.A_RI).to(gain_O.dtype)
    dgain_O = dB_OR = dA_RI = dx = None
    if for_gain or for_B or for_A:
        dropped_NI = seen(x.reshape(-1, x.shape[-1]), mask, gain_O.dtype)
        dgain_O = (wide_NO * (dropped_NI @ V_OI.T)).sum(0) if for_gain else None
        dV_OI = (gained_NO.T @ dropped_NI).to(B_OR.dtype)
        dB_OR, dA_RI = dV_OI @ A_RI.T if for_B else None, B_OR.T @ dV_OI if for_A else None
    if for_x:
        dx = returned(g_NO, W_OI, gained_NO @ V_OI - wide_NO @ W_OI.to(wide_NO.dtype), mask)
    return unflattened(dx, ctx.shape), None, None, None, dgain_O, dB_OR, dA_RI, None, None, None


class DoraFunction(torch.autograd.Function):
    """V is written over; it is None where it may not be formed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_OI: Tensor,
        bias_O: Tensor | None,
        V_OI: Tensor | None,
        gain_O: Tensor,
        B_OR: Tensor,
        A_RI: Tensor,
        B0_OR: Tensor | None,
        A0_RI: Tensor | None,
        mask: Mask | None,
    ) -> Tensor:
        learns, ctx.saved_output = any(ctx.needs_input_grad[4:7]), None
        dropped = x if mask is None else mask.drop(x)
        if V_OI is None:
            kept = frozen(dropped, W_OI)
            wide = F.linear(F.linear(dropped.to(A_RI.dtype), A_RI), B_OR).to(gain_O.dtype)
            wide.add_(kept).mul_(gain_O)
            if mask is not None:
                wide.sub_(kept).add_(frozen(x, W_OI))
            y = (wide if bias_O is None else wide.add_(bias_O)).to(x.dtype)
        elif mask is None:
            y = linear(x, V_OI.mul_(gain_O[:, None]), bias_O)
            kept = y
            if learns:
                ctx.saved_output, kept = SavedOutput.of(y)
        else:
            y = linear(x - dropped, W_OI, bias_O)
            kept = F.linear(dropped, V_OI)
            y.addcmul_(kept, gain_O)
        own = (x, kept) if learns else NONE
        keep(ctx, x, mask, *own, gain_O, W_OI, bias_O, B_OR, A_RI, B0_OR, A0_RI)
        return y

    @staticmethod
    @in_own_dtypes(differentiable)
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mask, x, kept, gain_O, W_OI, bias_O, B_OR, A_RI, B0_OR, A0_RI = kept_of(ctx)
        g_NO = g.reshape(-1, g.shape[-1])
        for_x, *_, for_gain, for_B, for_A, _, _, _ = ctx.needs_input_grad
        wide_NO = g_NO.to(gain_O.dtype)
        gained_NO = wide_NO * gain_O
        gB_NR = gained_NO.to(B_OR.dtype) @ columns(B_OR)
        together = formable(g, B_OR)
        dgain_O = dG_OR = dA_RI = dx = None
        if for_A or for_B or (for_gain and not together):
            dropped_NI = seen(x.reshape(-1, x.shape[-1]), mask, A_RI.dtype)
            dG_OR = ((dropped_NI @ A_RI.T).to(gain_O.dtype).T @ wide_NO).T
            dA_RI = gB_NR.T @ dropped_NI if for_A else None
        if for_gain and ctx.saved_output and not ctx.saved_output.overwritten():
            dgain_O = of_output(wide_NO, kept, gain_O, bias_O)
        elif for_gain:
            if ctx.saved_output:
                kept = F.linear(x, formed(W_OI, B_OR, A_RI, B0_OR, A0_RI))
            dgain_O = (wide_NO * kept.reshape(g_NO.shape)).sum(0)
            if not together and dG_OR is not None:  # W x alone is kept, for its B A x is not as exact
                dgain_O += (dG_OR * B_OR).sum(1)
        if for_x and mask is None:
            dx = through(gained_NO.to(g.dtype), W_OI, gB_NR, A_RI, B0_OR, A0_RI, None)
        elif for_x:
            changed_NO = (gained_NO - g_NO).to(g.dtype)
            more_NI = through(changed_NO, W_OI, gB_NR, A_RI, B0_OR, A0_RI, None, of_pair=gained_NO)
            dx = plus_(mask.drop_(more_NI), g_NO, W_OI.to(g.dtype))
        dB_OR = (gain_O[:, None] * dG_OR).to(B_OR.dtype) if for_B and dG_OR is not None else None
        return unflattened(dx, ctx.shape), None, None, None, dgain_O, dB_OR, dA_RI, None, None, None


def of_output(g_NO: Tensor, y: Tensor, gain_O: Tensor, bias_O: Tensor | None) -> Tensor:
    """The gain's gradient from the output y = gain (V x) + bias; where the gain is zero it is zero."""
    dgain_O = (g_NO * y.reshape(g_NO.shape)).sum(0)
    if bias_O is not None:
        dgain_O -= g_NO.sum(0) * bias_O
    tiny = torch.finfo(gain_O.dtype).tiny
    return dgain_O / torch.where(gain_O.abs() < tiny, tiny, gain_O)


class SavedOutput(NamedTuple):
    """The layer's output, kept for backward without a copy; invalid once it was changed in place."""

    probe: Tensor
    version: int

    @classmethod
    def of(cls, y: Tensor) -> tuple["SavedOutput", Tensor]:
        """The record of `y`, and `y` as it is saved.

        Autograd does not check `.data` for changes; the probe, which shares y's version and no memory, does.
        """
        saved, kept = cls(y.detach(), y._version), y.data
        saved.probe.data = y.new_empty(0)
        return saved, kept

    def overwritten(self) -> bool:
        return self.probe._version != self.version

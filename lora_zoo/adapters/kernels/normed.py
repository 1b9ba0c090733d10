"""W x + bias + (gain V - W) drop(x), V = W + B A + B0 A0: a product with the rows of V scaled.

Shapes: N tokens, O out, I in, R rank; x is (..., I) and the output (..., O).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora_zoo.adapters.kernels.dtypes import formable, in_own_dtypes, plus_
from lora_zoo.adapters.kernels.parts import (
    NONE,
    columns,
    formed,
    frozen,
    keep,
    kept_of,
    seen,
    through,
    unflattened,
)
from lora_zoo.adapters.randomness import Mask


class Normed(torch.autograd.Function):
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
        learns, u, ctx.lent = any(ctx.needs_input_grad[4:7]), None, None
        if V_OI is None:
            dropped = x if mask is None else mask.drop(x)
            Wx = frozen(dropped, W_OI)
            Vx = beside(Wx, dropped, B_OR, A_RI, gain_O.dtype)
            u = None if mask is None and bias_O is None else Vx.to(x.dtype)
            Vx.mul_(gain_O)
            if mask is not None:
                Vx.sub_(Wx).add_(frozen(x, W_OI))
            y = (Vx if bias_O is None else Vx.add_(bias_O)).to(x.dtype)
        elif mask is None:
            y = F.linear(x, V_OI.mul_(gain_O[:, None]), bias_O)
        else:
            dropped = mask.drop(x)
            y = F.linear(x - dropped, W_OI, bias_O)
            u = F.linear(dropped, V_OI)
            y.addcmul_(u, gain_O)
        if learns and u is None:
            ctx.lent, u = Lent.of(y)
        keep(ctx, x, mask, *((x, u) if learns else NONE), gain_O, W_OI, bias_O, B_OR, A_RI, B0_OR, A0_RI)
        return y

    @staticmethod
    @once_differentiable
    @in_own_dtypes
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mask, x, u, gain_O, W_OI, bias_O, B_OR, A_RI, B0_OR, A0_RI = kept_of(ctx)
        g_NO = g.reshape(-1, g.shape[-1])
        for_x, *_, for_gain, for_B, for_A, _, _, _ = ctx.needs_input_grad
        gained_NO = g_NO * gain_O
        own_NO = gained_NO.to(B_OR.dtype)
        gB_NR = own_NO @ columns(B_OR)
        dgain_O = dB_OR = dA_RI = dx = None
        if for_gain and ctx.lent and not ctx.lent.written():
            dgain_O = of_output(g_NO, u, gain_O, bias_O)
        elif for_gain:
            u = times_V(x, W_OI, B_OR, A_RI, B0_OR, A0_RI, gain_O.dtype) if ctx.lent else u
            dgain_O = (g_NO.to(gain_O.dtype) * u.reshape(g_NO.shape)).sum(0)
        if for_A or for_B:
            dropped_NI = seen(x.reshape(-1, x.shape[-1]), mask, A_RI.dtype)
            dB_OR = ((dropped_NI @ A_RI.T).T @ own_NO).T if for_B else None
            dA_RI = gB_NR.T @ dropped_NI if for_A else None
        if for_x and mask is None:
            dx = through(gained_NO.to(g.dtype), W_OI, gB_NR, A_RI, B0_OR, A0_RI, None)
        elif for_x:
            changed_NO = (gained_NO - g_NO).to(g.dtype)
            more_NI = through(changed_NO, W_OI, gB_NR, A_RI, B0_OR, A0_RI, None, of_pair=gained_NO)
            dx = plus_(mask.drop_(more_NI), g_NO, W_OI.to(g.dtype))
        return unflattened(dx, ctx.shape), None, None, None, dgain_O, dB_OR, dA_RI, None, None, None


def times_V(
    x: Tensor,
    W_OI: Tensor,
    B_OR: Tensor,
    A_RI: Tensor,
    B0_OR: Tensor | None,
    A0_RI: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """V x in `dtype`."""
    if formable(x, B_OR):
        return F.linear(x, formed(W_OI, B_OR, A_RI, B0_OR, A0_RI))
    return beside(frozen(x, W_OI), x, B_OR, A_RI, dtype)


def beside(Wx: Tensor, x: Tensor, B_OR: Tensor, A_RI: Tensor, dtype: torch.dtype) -> Tensor:
    """W x + B A x in a dtype wider than that of `Wx`, a new tensor."""
    return F.linear(F.linear(x.to(A_RI.dtype), A_RI), B_OR).to(dtype).add_(Wx)


def of_output(g_NO: Tensor, y: Tensor, gain_O: Tensor, bias_O: Tensor | None) -> Tensor:
    """The gain's gradient from the output y = gain (V x) + bias; where the gain is zero it is zero."""
    dgain_O = (g_NO.to(gain_O.dtype) * y.reshape(g_NO.shape)).sum(0)
    if bias_O is not None:
        dgain_O -= g_NO.sum(0) * bias_O
    tiny = torch.finfo(gain_O.dtype).tiny
    return dgain_O / torch.where(gain_O.abs() < tiny, tiny, gain_O)


class Lent(NamedTuple):
    """An output that is kept without a copy; whoever comes next keeps it as well, or writes over it."""

    witness: Tensor
    version: int

    @classmethod
    def of(cls, y: Tensor) -> tuple["Lent", Tensor]:
        """`.data` is not checked for that, and the witness, a tensor without memory, tells it."""
        lent, kept = cls(y.detach(), y._version), y.data
        lent.witness.data = y.new_empty(0)
        return lent, kept

    def written(self) -> bool:
        return self.witness._version != self.version

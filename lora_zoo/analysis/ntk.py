"""The empirical neural tangent kernel of a model, before and after training (Jacot et al., 2018).

before = tangent_kernel(outputs(model), injection.parameters())      # outputs: (N,), one number an example
...
alignment(before, tangent_kernel(outputs(model), injection.parameters()))

Letters: N examples, P parameters.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def tangent_kernel(outputs_N: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """K (N, N) with K_ij = <∂f_i/∂θ, ∂f_j/∂θ>, in float64, over the parameters that require a gradient.

    `outputs_N` is one number an example (a logit, a margin, a loss), with its graph; N backward passes are
    made through it. ValueError for outputs of another shape or without a graph, and without parameters.
    """
    chosen = [p for p in parameters if p.requires_grad]
    if outputs_N.ndim != 1:
        raise ValueError(f"outputs must be one number an example, (N,); got {tuple(outputs_N.shape)}")
    if not chosen:
        raise ValueError("there is no parameter that requires a gradient")
    if not outputs_N.requires_grad:
        raise ValueError("the outputs do not depend on a parameter, or were computed without a graph")
    rows = []
    for output in outputs_N:
        found = torch.autograd.grad(output, chosen, retain_graph=True, allow_unused=True)
        pairs = zip(found, chosen, strict=True)
        rows.append(torch.cat([torch.zeros(p.numel()) if g is None else g.flatten().cpu() for g, p in pairs]))
    gradients_NP = torch.stack(rows).double()
    return gradients_NP @ gradients_NP.T


def alignment(one_NN: Tensor, other_NN: Tensor) -> float:
    """Centred kernel alignment (Cortes et al., 2012), 1 for kernels that are equal up to scale and shift.

    <HKH, HLH>_F / (‖HKH‖_F ‖HLH‖_F) with H = I - 11ᵀ/N. ValueError for other shapes; NaN where a centred
    kernel is zero.
    """
    if one_NN.shape != other_NN.shape or one_NN.ndim != 2 or one_NN.shape[0] != one_NN.shape[1]:
        raise ValueError(
            f"kernels must be (N, N) of one N; got {tuple(one_NN.shape)} and {tuple(other_NN.shape)}"
        )
    one, other = (_centred(kernel.double()) for kernel in (one_NN, other_NN))
    return float((one * other).sum() / (one.norm() * other.norm()))


def _centred(kernel_NN: Tensor) -> Tensor:
    return kernel_NN - kernel_NN.mean(0) - kernel_NN.mean(1, keepdim=True) + kernel_NN.mean()


__all__ = ["alignment", "tangent_kernel"]

"""The components of low-rank factors: which of them live, cutting to these, and their Gram matrix.

Shapes: R rank, K kept components, or the side of a factor.
"""

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.components import selected, tensors_of
from lora_zoo.core.dtypes import at_least_float32


def inverse_gram(X_RK: Tensor, damping: float) -> Tensor:
    """(X Xᵀ + damping 1)⁻¹ (R, R), the Gram matrix's inverse; of a singular one the pseudoinverse."""
    wide_RK = X_RK.to(at_least_float32(X_RK.dtype))
    gram_RR = wide_RK @ wide_RK.T
    gram_RR.diagonal().add_(damping)
    return torch.linalg.pinv(gram_RR, hermitian=True).to(X_RK.dtype)


@torch.no_grad()
def cut(adapter: Adapter, index_K: Tensor) -> None:
    """Keep these components on every axis that the suffix of a tensor's name calls R, in place."""
    for name, tensor in tensors_of(adapter).items():
        smaller = selected(name, tensor.detach(), index_K).contiguous()
        trains = isinstance(tensor, nn.Parameter)
        setattr(adapter, name, nn.Parameter(smaller, tensor.requires_grad) if trains else smaller)


def alive(mask_R: Tensor) -> Tensor:
    """The indices where `mask_R` is true; the first where it is so nowhere, as an adapter has a rank."""
    return mask_R.nonzero()[:, 0] if mask_R.any() else mask_R.new_zeros(1, dtype=torch.int64)

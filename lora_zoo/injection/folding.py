"""Merge updates that are constant over each group of inputs into zero points: the integers stay as they are.

Shapes: O out, I in, G groups, L inputs of a group.
"""

import torch
from torch import Tensor, nn

from lora_zoo.injection.inject import Injection
from lora_zoo.quantizers.coded_linear import CodedLinear
from lora_zoo.quantizers.codes import Uniform


@torch.no_grad()
def fold(injection: Injection) -> nn.Module:
    """Add an adapter's ΔW to the zero points of its layers, take it out and return the model (QA-LoRA, §3.3).

    ValueError, before any change, where a layer has no zero points, where ΔW is no constant of each of its
    groups, or where parameters beside the adapter were trained.
    """
    if injection.fully_trained:
        name = injection.fully_trained[0]
        raise ValueError(f"only zero points can be moved, and {name} was trained in full: merge instead")
    found = []
    for name, _, dW_OI in injection:
        matrix = injection.matrices.get(name)
        layer = matrix.host.layer if matrix is not None and matrix.host.whole else None
        if not isinstance(layer, CodedLinear) or not isinstance(layer.quantizer, Uniform):
            raise ValueError(
                f"{name} has no zero points: quantise the base by model.quantization=reference_int4"
            )
        found.append((layer, constants(name, dW_OI, layer.quantizer.group)))
    for layer, dW_OG in found:
        zeros: Tensor = layer.zeros  # type: ignore[assignment]
        zeros.add_(dW_OG.to(zeros))
    return injection.remove()


def constants(name: str, dW_OI: Tensor, group: int) -> Tensor:
    """ΔW (O, G), one number for each group of a row. ValueError where it varies inside of one."""
    O, I = dW_OI.shape
    dW_OGL = dW_OI.view(O, I // group, group)
    if float((dW_OGL - dW_OGL[..., :1]).abs().max()) > 1e-5 * float(dW_OI.abs().max()):
        raise ValueError(
            f"the update of {name} is no constant of each {group} inputs, which zero points could hold: "
            f"it is variant=qa_lora variant.group_size={group} that is made for it"
        )
    return dW_OGL.mean(2)


__all__ = ["constants", "fold"]

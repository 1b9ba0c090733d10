"""PEFT's layout of factors B (O, R), A (R, I) for each kind of layer, and its limits there.

Shapes: O out, I in, R rank, G groups of a convolution; a layer's W is (O, I) as our hosts see it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_zoo.core.host import Host
from lora_zoo.formats.peft.forms import pick, stored

MAGNITUDE = "lora_magnitude_vector"
NAMES = (
    "lora_A.weight",
    "lora_B.weight",
    "lora_embedding_A",
    "lora_embedding_B",
    MAGNITUDE,
    f"{MAGNITUDE}.weight",
)
"""The tensors of a module that LoRA adapts in PEFT's files."""


class LayerFactors(NamedTuple):
    """The product B A of a whole layer, without its scale; DoRA's magnitudes too where it has them."""

    B_OR: Tensor
    A_RI: Tensor
    m_O: Tensor | None = None


def check(name: str, host: Host) -> None:
    """Raise ValueError where PEFT would compute something else on this layer, or nothing."""
    if not host.peft_layer:
        raise ValueError(
            f"{name} is a {host.kind} that its module reads by itself, which is not exchanged with PEFT; "
            "python -m lora_zoo.merge writes it into the model"
        )
    layer: Any = host.layer
    if host.peft_layer == "convolution" and (set(layer.dilation) != {1} or layer.padding_mode != "zeros"):
        raise ValueError(
            f"{name}: PEFT's branch beside a convolution has dilation 1 and pads with zeros, this layer has "
            f"dilation {layer.dilation} and padding_mode={layer.padding_mode!r}"
        )


def write(host: Host, pair: LayerFactors) -> dict[str, Tensor]:
    """The factors as tensors by PEFT's short names."""
    B_OR, A_RI, m_O = pair
    if host.peft_layer == "embedding":
        tensors = {"lora_embedding_A": A_RI, "lora_embedding_B": B_OR}
    elif host.peft_layer == "convolution":
        tensors = _convolution(host, A_RI, B_OR)
    else:
        tensors = {"lora_A.weight": A_RI, "lora_B.weight": B_OR}
    if m_O is not None:
        one = [1] * (host.tensor().ndim - 2)
        tensors[MAGNITUDE] = m_O.view(1, -1, *one) if host.peft_layer == "convolution" else m_O
    return {name: stored(tensor) for name, tensor in tensors.items()}


def width(host: Host) -> int:
    """The number of PEFT's ranks per rank of ours: a grouped convolution has them once a group."""
    return int(getattr(host.layer, "groups", 1)) if host.peft_layer == "convolution" else 1


def _convolution(host: Host, A_RI: Tensor, B_OR: Tensor) -> dict[str, Tensor]:
    """PEFT's A reads the channels of all groups, its B those of one: ours, once a group, zero elsewhere."""
    G, (channels, *kernel) = width(host), host.tensor().shape[1:]
    R, one = len(A_RI), [1] * len(kernel)
    A = A_RI.new_zeros(G, R, G, channels, *kernel)
    for group in range(G):
        A[group, :, group] = A_RI.view(R, channels, *kernel)
    return {
        "lora_A.weight": A.view(G * R, G * channels, *kernel),
        "lora_B.weight": B_OR[(..., *[None] * len(one))],
    }


def read(module: str, host: Host, tensors: Mapping[str, Tensor], dora: bool) -> LayerFactors:
    """The factors in `tensors`. ValueError that names the missing, unexpected or misshapen tensor."""
    O, I = host.shape
    embedding = host.peft_layer == "embedding"
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    tensors = {name.replace(f"{MAGNITUDE}.weight", MAGNITUDE): tensor for name, tensor in tensors.items()}
    G, spatial = width(host), host.tensor().shape[2:] if host.peft_layer == "convolution" else ()
    R = max(1, len(tensors[names[0]])) if names[0] in tensors and tensors[names[0]].ndim else 1
    inputs = (host.tensor().shape[1] * G, *spatial) if host.peft_layer == "convolution" else (I,)
    shapes = {names[0]: (R, *inputs), names[1]: (O, R // G, *[1] * len(spatial))}
    if dora:
        shapes[MAGNITUDE] = (1, O, *[1] * len(spatial)) if host.peft_layer == "convolution" else (O,)
    A, B, *_ = pick(module, tensors, shapes)
    B_OR, A_RI = B.flatten(1), A.flatten(1)
    if G > 1:
        B_OR, A_RI = _ungrouped(module, B_OR, A.view(G, R // G, G, -1), dora)
    return LayerFactors(B_OR, A_RI, tensors[MAGNITUDE].flatten() if dora else None)


def _ungrouped(module: str, B_OR: Tensor, A_GRGI: Tensor, dora: bool) -> tuple[Tensor, Tensor]:
    """Our B (O, R) and A (R, I), which serves every group; of rank G R where groups have A's of their own."""
    G = len(A_GRGI)
    own = torch.stack([A_GRGI[group, :, group] for group in range(G)])
    if int(A_GRGI.count_nonzero()) != int(own.count_nonzero()):
        raise ValueError(
            f"{module}.lora_A.weight reads the channels of other groups, which no grouped kernel can"
        )
    if all(torch.equal(own[0], other) for other in own[1:]):
        return B_OR, own[0]
    if dora:
        raise ValueError(
            f"{module}: PEFT's norm for DoRA on groups with an A of their own is not that of the layer"
        )
    return torch.block_diag(*B_OR.chunk(G)), own.flatten(0, 1)

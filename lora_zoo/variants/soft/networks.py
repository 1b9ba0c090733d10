"""Networks of torch's layers, drawn by the seed alone."""

from torch import Tensor, nn

from lora_zoo.core.init import is_blank
from lora_zoo.core.seeding import flat, generator, uniform


def drawn(network: nn.Module, like: Tensor, seed: int) -> nn.Module:
    """`network`, made on `meta`, on the device and in the dtype of `like`.

    Linear and recurrent layers start from torch's bounds, embeddings from N(0, 1).
    """
    network.to(like.dtype).to_empty(device=like.device)
    for name, layer in network.named_modules():
        for key, parameter in layer.named_parameters(recurse=False):
            source = generator("init", seed, "shared", f"{name}.{key}")
            rows, columns = flat(tuple(parameter.shape))
            drawn_ = uniform(rows, columns, _bound(layer), source).view(parameter.shape)
            parameter.data.copy_(parameter.new_zeros(()) if is_blank() else drawn_)
    return network


def _bound(layer: nn.Module) -> float:
    """torch's own: U(-n^-1/2, n^-1/2) of n inputs, of a recurrent layer n hidden units."""
    return float(getattr(layer, "in_features", None) or layer.hidden_size) ** -0.5  # type: ignore[arg-type]

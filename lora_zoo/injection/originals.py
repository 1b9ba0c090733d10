"""The weights from before a base's quantisation, for starts that look at them."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from lora_zoo.injection.matrices import TargetMatrix, find_matrices
from lora_zoo.injection.module_names import unwrapped

_KEPT = "_lora_zoo_original"


def remember_original(model: nn.Module, original: nn.Module | Callable[[], nn.Module]) -> None:
    """Let `model`, which is quantised, know the model that it is of, or a function that loads it."""
    vars(unwrapped(model))[_KEPT] = (original,)  # a tuple, so that it is no part of the model


def original_of(model: nn.Module) -> nn.Module:
    """The model from before the quantisation. ValueError where nobody said which that is."""
    (kept,) = vars(unwrapped(model)).get(_KEPT, (None,))
    if kept is None:
        raise ValueError(
            "the weights from before the quantisation of this base are not known: load the unquantised base "
            "with model.quantization=…, or give it to remember_original(model, original)"
        )
    return kept if isinstance(kept, nn.Module) else kept()


def original_matrices(model: nn.Module, names: Iterable[str]) -> dict[str, TargetMatrix]:
    """The matrices `names` of the model from before the quantisation. ValueError where it lacks one."""
    known = {matrix.name: matrix for matrix in find_matrices(model)}
    if absent := [name for name in names if name not in known]:
        raise ValueError(f"the model from before the quantisation has no {absent[0]}")
    return {name: known[name] for name in names}


def original_weights(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """W (O, I) of each from before the quantisation of `model`."""
    found = original_matrices(original_of(model), names)
    return {name: matrix.host.matrix().detach() for name, matrix in found.items()}


__all__ = ["original_matrices", "original_of", "original_weights", "remember_original"]

"""Statistics of data at a matrix, for what looks at data before it is built (EVA, LoRA-GA, …).

An initialisation or a variant names in `needs` what it looks at. `inject` collects it on the unadapted model
and hands it over in `LayerContext.statistics`: what is built is a pure function of W and of these tensors.
"""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from torch import Tensor

from lora_zoo.core.errors import unknown
from lora_zoo.core.host import Host

Statistics: TypeAlias = Mapping[str, Tensor]
"""Name -> tensor, of one matrix."""

STATISTICS = {
    "input_mean": "E[x] (I) over all positions of all batches, float64",
    "input_moment": "E[x xᵀ] (I, I) over all positions of all batches, float64",
    "input_magnitude": "E|x| (I) over all positions of all batches, float64",
    "gradient": "mean over batches of ∂L/∂W (O, I), float32 or wider",
    "squared_gradient": "mean over batches of (∂L/∂W)² (O, I); of one example each: the empirical Fisher",
    "original": "W (O, I) from before the quantisation of the base, in the dtype that it was loaded in",
}
OF_INPUTS = ("input_mean", "input_moment")
EVERY_OF_INPUTS = (*OF_INPUTS, "input_magnitude")
ORIGINAL = "original"
"""No statistic of data: with it, the others are collected on the model from before its quantisation."""

UNQUANTISED = "the start makes up for the error of a quantised base; give model.quantization=nf4, say"


def of_data(needs: Iterable[str]) -> tuple[str, ...]:
    """Those of `needs` for which the model reads data."""
    return tuple(name for name in needs if name != ORIGINAL)


def check_needs(needs: Iterable[str]) -> tuple[str, ...]:
    """`needs` as a tuple. ValueError for a statistic that does not exist."""
    needs = tuple(needs)
    for name in needs:
        if name not in STATISTICS:
            raise ValueError(unknown("statistic", name, STATISTICS))
    return needs


def not_collectable(needs: Iterable[str], host: Host) -> str:
    """The reason why a matrix cannot have these statistics, "" if it can."""
    needs = tuple(needs)
    asked = [name for name in needs if name in EVERY_OF_INPUTS]
    if asked and not (host.dense and host.sees_input):
        return f"{' and '.join(asked)} are statistics of a linear layer's inputs, and it has none"
    if ORIGINAL in needs:
        meets = host.stores_codes or host.like.is_meta  # an outline has no codes yet
        return "" if meets else UNQUANTISED
    if host.stores_codes and (asked := [name for name in needs if name not in EVERY_OF_INPUTS]):
        return f"{' and '.join(asked)} of W cannot be had, as its codes take no gradient"
    return ""

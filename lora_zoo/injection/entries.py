"""The adapters of one stored tensor: the weight, bias or output that one or several of them make of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.composition import Composition
from lora_zoo.core.dtypes import at_least_float32
from lora_zoo.core.host import Host, LayerHost


class AdapterEntry(NamedTuple):
    """One adapted part of the tensor."""

    host: Host
    adapter: Adapter


Entries = Sequence[AdapterEntry]
"""The parts that one named adapter adapts."""


def composed(
    composition: Composition, base: Tensor, live: Mapping[str, Entries], of: Callable[[Entries], Tensor]
) -> Tensor:
    """The tensor that the adapters `live` make of `base` together, where `of` gives what one makes of it."""
    changed = {name: of(entries) for name, entries in live.items()}
    first = next(iter(changed))
    if len(changed) == 1 and composition.leaves(first):
        return changed[first]
    return composition.combine(base, changed)


def weight_of(stored: Tensor, entries: Entries) -> Tensor:
    """`stored` (the layer's own layout) with one adapter's matrices effective, in float32 or wider."""
    wide = stored.to(at_least_float32(stored.dtype)).clone(memory_format=torch.contiguous_format)
    for host, adapter in entries:
        host.write(wide, adapter.weight(host.read(stored)))
    return wide


def bias_of(stored_O: Tensor, entries: Entries) -> Tensor:
    """The bias `stored_O` with one adapter's parts effective, in float32 or wider."""
    wide_O = stored_O.to(at_least_float32(stored_O.dtype)).clone()
    for host, adapter in entries:
        wide_O[host.part] = adapter.bias(stored_O[host.part]).to(wide_O.dtype)
    return wide_O


def output_of(x: Tensor, base: Tensor, entries: Entries) -> Tensor:
    """The layer's output for x with one adapter; `base` is the frozen layer's."""
    hosts = [(cast(LayerHost, host).with_output(base), adapter) for host, adapter in entries]
    if len(hosts) == 1 and hosts[0][0].whole:
        host, adapter = hosts[0]
        return adapter.output(x, host).to(base.dtype)
    y = base.clone()
    for host, adapter in hosts:
        y[..., host.part] = adapter.output(x, host).to(y.dtype)
    return y

"""The adapters of one stored tensor: the weight, bias or output that one or several of them make of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.composition import Composition
from lora_zoo.core.dtypes import at_least_float32, wide
from lora_zoo.core.host import Host, LayerHost


class AdapterEntry(NamedTuple):
    """One adapted part of the tensor."""

    host: Host
    adapter: Adapter


Entries = Sequence[AdapterEntry]
"""The parts that one named adapter adapts."""


def composed(
    composition: Composition,
    base: Tensor,
    live: Mapping[str, Entries],
    of: Callable[[Entries], Tensor],
    place: str,
) -> Tensor:
    """The tensor that the adapters `live` make of `base` together, where `of` gives what one makes of it."""
    return composition.combined(base, {name: of(entries) for name, entries in live.items()}, place)


def composed_by_matrix(composition: Composition, stored: Tensor, live: Mapping[str, Entries]) -> Tensor:
    """`stored` with every matrix that adapters `live` adapt composed by itself, in float32 or wider."""
    hosts: dict[str, Host] = {}
    adapters: dict[str, dict[str, Adapter]] = {}
    for name, entries in live.items():
        for host, adapter in entries:
            hosts[adapter.matrix_name] = host
            adapters.setdefault(adapter.matrix_name, {})[name] = adapter
    effective = stored.to(at_least_float32(stored.dtype)).clone(memory_format=torch.contiguous_format)
    for place, host in hosts.items():
        host.write(effective, composition.matrix(wide(host.read(stored)), adapters[place], place))
    return effective


def routed(
    layer: str,
    weights: Tensor | None,
    base: Tensor,
    live: Mapping[str, Entries],
    of: Callable[[Entries], Tensor],
) -> Tensor:
    """`base` (…, O), or what the adapters `live` make of it by `weights`, one for each at each position.

    ValueError where the weights are not those of the positions of `base`.
    """
    if weights is None:
        return base
    if weights.shape[:-1].numel() != base.shape[:-1].numel():
        shapes = f"{tuple(weights.shape)} do not fit its output {tuple(base.shape)}"
        raise ValueError(f"{layer}: the adapters' weights {shapes}")
    at = weights.reshape(*base.shape[:-1], -1)
    changes = [at[..., k, None] * (of(entries) - base) for k, entries in enumerate(live.values())]
    return base + sum(changes).to(base.dtype)  # type: ignore[union-attr]


def weight_of(stored: Tensor, entries: Entries) -> Tensor:
    """`stored` (the layer's own layout) with one adapter's matrices effective, in float32 or wider."""
    wide = stored.to(at_least_float32(stored.dtype)).clone(memory_format=torch.contiguous_format)
    for host, adapter in entries:
        host.write(wide, adapter.weight(host.read(stored)))
    return wide


def changes_bias(entries: Entries) -> bool:
    """True if one of the parts gets another bias."""
    return any(adapter.changes_bias_of(host) for host, adapter in entries)


def bias_of(wide_O: Tensor, entries: Entries) -> Tensor:
    """The bias `wide_O`, in float32 or wider, with one adapter's parts effective."""
    changed_O = wide_O.clone()
    for host, adapter in entries:
        if adapter.changes_bias_of(host):
            changed_O[host.part] = adapter.effective_bias(host).to(changed_O.dtype)
    return changed_O


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

"""Wrappers that put adapters into a model: one for each stored tensor, shared by all named adapters.

Several active adapters add their changes, each against the frozen W: W' = W + Σ (weight_i(W) - W).

Adapters are float32, or float64 on a float64 base, which keeps its dtype; outputs have the frozen layer's
dtype. Autocast narrows products with x alone: effective weights, norms and penalties are not cast. Wrappers
removed by merge() or disabled() are moved to the model's device and dtype when they return. deepcopy copies
adapters. Checkpointing and torch.compile change nothing: a model is one graph, which dropout breaks at each
mask.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.dtypes import at_least_float32, uncast
from lora_zoo.core.host import Host, LayerHost, Rows
from lora_zoo.injection.batched import AdapterEntry, RowGroup, batched_forward


class AdapterWrapper(nn.Module, ABC):
    """The adapters of one stored tensor: by adapter name, one for each part that is adapted."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.active = name, cast(tuple[str, ...], ())
        self.adapters = nn.ModuleDict()
        self.entries: dict[str, list[AdapterEntry]] = {}
        self.row_groups: tuple[RowGroup, ...] = ()
        self._alone: dict[str, nn.ModuleDict] = {}

    def add(self, adapter_name: str, host: Host, adapter: Adapter) -> None:
        entries = self.entries.setdefault(adapter_name, [])
        adapter.train(self.training)
        self.adapters[f"{adapter_name}/{len(entries)}"] = adapter
        entries.append(AdapterEntry(host, adapter))

    def drop(self, adapter_name: str) -> None:
        for number in range(len(self.entries.pop(adapter_name, []))):
            del self.adapters[f"{adapter_name}/{number}"]

    def isolate(self, adapter_name: str) -> None:
        """Make `adapter_name` the active adapter, and the only one among the model's modules."""
        if adapter_name not in self._alone:
            own = enumerate(self.entries.get(adapter_name, ()))
            self._alone[adapter_name] = nn.ModuleDict({f"{adapter_name}/{n}": s.adapter for n, s in own})
        self.active, self.adapters = (adapter_name,), self._alone[adapter_name]

    def show_all(self) -> None:
        """Undo `isolate`: every adapter is among the model's modules again."""
        every = ((f"{name}/{n}", s.adapter) for name, own in self.entries.items() for n, s in enumerate(own))
        self.adapters, self._alone = nn.ModuleDict(dict(every)), {}

    def live(self) -> list[list[AdapterEntry]]:
        """The entries of each active adapter that has any here."""
        return [self.entries[name] for name in self.active if name in self.entries]

    def effective(self, stored: Tensor) -> Tensor:
        """`stored` (the layer's own layout) with every adapted matrix effective; its dtype is kept."""
        if self.row_groups:
            raise ValueError(f"{self.name} is read, not called: rows cannot have their own adapters there")
        live = self.live()
        for _, adapter in (entry for entries in live for entry in entries):
            adapter.require_weight(f"read at {self.name}")
        if not any(adapter.changes_weight for entries in live for _, adapter in entries):
            return stored
        wide = stored.to(at_least_float32(stored.dtype)).clone(memory_format=torch.contiguous_format)
        with uncast(stored.device):
            for host, adapter in live[0]:
                host.write(wide, adapter.weight(host.read(stored)))
            for host, adapter in (entry for entries in live[1:] for entry in entries):
                W_OI = host.read(stored)
                host.write(wide, host.read(wide) + (adapter.weight(W_OI) - W_OI))
        return wide.to(stored.dtype)

    def effective_bias(self) -> Tensor | None:
        """The layer's bias with every adapted part effective; the stored one where no adapter changes it."""
        if self.row_groups and any(_new_biases(own) for own in self.entries.values()):
            raise ValueError(f"{self.name}.bias is read, but each row of this batch has a bias of its own")
        live, stored_O = self.live(), self.stored_bias
        new = [_new_biases(entries) for entries in live]
        if not any(new):
            return stored_O
        if stored_O is None:
            wide_O = self.stored.new_zeros(len(live[0][0].host.view(self.stored)))
        else:
            wide_O = stored_O.clone()
        dtype, wide_O = wide_O.dtype, wide_O.to(at_least_float32(wide_O.dtype))
        for part, _, after_O in new[0]:
            wide_O[part] = after_O.to(wide_O.dtype)
        for part, before_O, after_O in (change for own in new[1:] for change in own):
            wide_O[part] += (after_O - before_O).to(wide_O.dtype)
        return wide_O.to(dtype)

    @property
    @abstractmethod
    def stored(self) -> nn.Parameter:
        """The tensor that the adapters work on."""

    @property
    def stored_bias(self) -> nn.Parameter | None:
        """The bias that they change as well; None where there is none within reach."""
        return None

    @abstractmethod
    def store(self, tensor: nn.Parameter, bias: nn.Parameter | None) -> None:
        """Replace `stored` by `tensor` and `stored_bias` by `bias`, while the plain layer is in the model."""

    @abstractmethod
    def install(self, model: nn.Module) -> None:
        """Put the wrapper into the model."""

    @abstractmethod
    def uninstall(self, model: nn.Module) -> None:
        """Put the plain layer back, with `stored` as it is."""


class LayerWrapper(AdapterWrapper):
    """A module in place of a layer: the frozen layer and its adapters."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__(name)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if self.row_groups:
            return batched_forward(self.row_groups, self.entries, x, self.layer(x))
        live = self.live()
        if not live:
            return self.layer(x)
        host, adapter = live[0][0]
        if len(live) == len(live[0]) == 1 and host.whole:
            return adapter.output(x, cast(LayerHost, host))
        base = self.layer(x)
        y = base.clone()
        for host, out in _outputs(live[0], x, base):
            y[..., host.part] = out.to(y.dtype)
        for host, out in (pair for entries in live[1:] for pair in _outputs(entries, x, base)):
            y[..., host.part] += (out - host.rows_of(base)).to(y.dtype)
        return y

    @property
    def stored(self) -> nn.Parameter:
        return self.layer.weight  # type: ignore[return-value]

    @property
    def stored_bias(self) -> nn.Parameter | None:
        return getattr(self.layer, "bias", None)

    def store(self, tensor: nn.Parameter, bias: nn.Parameter | None) -> None:
        self.layer.weight = moved(tensor, self.stored)
        own = self.stored_bias
        if bias is not own:
            like = self.stored if own is None else own
            self.layer.bias = bias if bias is None else moved(bias, like)  # type: ignore[assignment]

    @property
    def weight(self) -> Tensor:
        """The effective weight in the layer's own layout, for code that reads `.weight`."""
        return self.effective(self.stored)

    @property
    def bias(self) -> Tensor | None:
        """The effective bias, for code that reads `.bias`."""
        return self.effective_bias()

    def install(self, model: nn.Module) -> None:
        self.adapters.to(self.stored.device)
        put(model, self.name, self)

    def uninstall(self, model: nn.Module) -> None:
        put(model, self.name, self.layer)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)  # in_features, padding_idx, …


def _new_biases(entries: Sequence[AdapterEntry]) -> list[tuple[Rows, Tensor, Tensor]]:
    """The rows, their bias and what it becomes, of each of these adapters that changes it."""
    found = ((host.part, adapter.effective_bias(host)) for host, adapter in entries)
    return [(part, *change) for part, change in found if change is not None]


def _outputs(entries: Sequence[AdapterEntry], x: Tensor, base: Tensor) -> Iterator[tuple[LayerHost, Tensor]]:
    for host, adapter in cast(list[tuple[LayerHost, Adapter]], entries):
        yield host, adapter.output(x, host.with_output(base))


def put(model: nn.Module, name: str, part: nn.Module | nn.Parameter) -> None:
    """Set the base model's module or parameter called `name`."""
    parent_name, _, child = name.rpartition(".")
    owner: Any = model
    for step in parent_name.split(".") if parent_name else []:
        owner = getattr(owner, step)
        owner = owner.layer if isinstance(owner, LayerWrapper) else owner
    if parametrize.is_parametrized(owner, child):
        owner, child = owner.parametrizations[child], "original"
    setattr(owner, child, moved(part, getattr(owner, child)) if isinstance(part, nn.Parameter) else part)


def moved(parameter: nn.Parameter, like: Tensor) -> nn.Parameter:
    """Move `parameter` to the device and dtype of `like`: the model may have moved meanwhile."""
    parameter.data = parameter.data.to(like)
    return parameter

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
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.dtypes import at_least_float32, uncast
from lora_zoo.core.host import Host, LayerHost
from lora_zoo.core.kernel import hooked
from lora_zoo.injection.batched import AdapterEntry, RowGroup, batched_forward
from lora_zoo.injection.module_names import unwrapped

P = TypeVar("P", nn.Module, nn.Parameter, Tensor)
Moved = TypeVar("Moved", bound=Tensor)


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
        if not live:
            return stored
        for _, adapter in (entry for entries in live for entry in entries):
            adapter.require_weight(f"read at {self.name}")
        wide = stored.to(at_least_float32(stored.dtype)).clone(memory_format=torch.contiguous_format)
        with uncast(stored.device):
            for host, adapter in live[0]:
                host.write(wide, adapter.weight(host.read(stored)))
            for host, adapter in (entry for entries in live[1:] for entry in entries):
                W_OI = host.read(stored)
                host.write(wide, host.read(wide) + (adapter.weight(W_OI) - W_OI))
        return wide.to(stored.dtype)

    def effective_bias(self, stored_O: Tensor) -> Tensor:
        """The layer's bias `stored_O` with every adapted part effective; itself where none changes it."""
        every = [entry for own in self.entries.values() for entry in own] if self.row_groups else []
        if any(adapter.changes_bias for _, adapter in every):
            raise ValueError(f"{self.name}.bias is read, but each row of this batch has a bias of its own")
        live = self.live()
        if not any(adapter.changes_bias for entries in live for _, adapter in entries):
            return stored_O
        wide_O = stored_O.to(at_least_float32(stored_O.dtype)).clone()
        with uncast(stored_O.device):
            for host, adapter in live[0]:
                wide_O[host.part] = adapter.bias(stored_O[host.part]).to(wide_O.dtype)
            for host, adapter in (entry for entries in live[1:] for entry in entries):
                b_O = stored_O[host.part]
                wide_O[host.part] += (adapter.bias(b_O) - b_O).to(wide_O.dtype)
        return wide_O.to(stored_O.dtype)

    @property
    @abstractmethod
    def stored(self) -> nn.Parameter:
        """The tensor that the adapters work on."""

    @property
    def stored_bias(self) -> nn.Parameter | None:
        """The bias that they change as well; None where there is none within reach."""
        return None

    @abstractmethod
    def store(self, tensor: nn.Parameter, bias: nn.Parameter | None = None) -> None:
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
        return self._between_hooks(x) if hooked(self.layer) else self._adapted(x)

    def _between_hooks(self, x: Tensor) -> Tensor:
        """The layer's hooks, called with the layer, see the adapted layer's input and output."""
        own = vars(self.layer).get("forward")

        def restore() -> None:
            vars(self.layer).pop("forward", None)
            vars(self.layer).update({} if own is None else {"forward": own})

        def adapted(x: Tensor) -> Tensor:
            restore()
            return self._adapted(x)

        vars(self.layer)["forward"] = adapted
        try:
            return self.layer(x)
        finally:
            restore()

    def _adapted(self, x: Tensor) -> Tensor:
        if self.row_groups:
            return batched_forward(self.row_groups, self.entries, x, self.layer.forward(x))
        live = self.live()
        if not live:
            return self.layer.forward(x)
        host, adapter = live[0][0]
        if len(live) == len(live[0]) == 1 and host.whole:
            return adapter.output(x, cast(LayerHost, host))
        base = self.layer.forward(x)
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

    def store(self, tensor: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        self.layer.weight = moved(tensor, self.stored)
        if bias is not None and self.stored_bias is not None:
            self.layer.bias = moved(bias, self.stored_bias)

    @property
    def weight(self) -> Tensor:
        """The effective weight in the layer's own layout, for code that reads `.weight`."""
        return self.effective(self.stored)

    @property
    def bias(self) -> Tensor | None:
        """The effective bias, for code that reads `.bias`."""
        return None if self.stored_bias is None else self.effective_bias(self.stored_bias)

    def install(self, model: nn.Module) -> None:
        self.adapters.to(self.stored.device)
        self.__dict__["former"] = put(model, self.name, self)  # the layer, or what wraps it

    def uninstall(self, model: nn.Module) -> None:
        put(model, self.name, self.__dict__.pop("former"))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)  # in_features, padding_idx, …


def _outputs(entries: Sequence[AdapterEntry], x: Tensor, base: Tensor) -> Iterator[tuple[LayerHost, Tensor]]:
    for host, adapter in cast(list[tuple[LayerHost, Adapter]], entries):
        yield host, adapter.output(x, host.with_output(base))


def put(model: nn.Module, name: str, part: P) -> P:
    """Set the base model's module, parameter or buffer called `name`; returns the former one."""
    parent_name, _, child = name.rpartition(".")
    owner: Any = unwrapped(model)
    for step in parent_name.split(".") if parent_name else []:
        owner = unwrapped(getattr(owner, step))
        owner = owner.layer if isinstance(owner, LayerWrapper) else owner
    if parametrize.is_parametrized(owner, child):
        owner, child = owner.parametrizations[child], "original"
    former: P = getattr(owner, child)
    setattr(owner, child, moved(part, former) if isinstance(part, Tensor) else part)
    return former


def moved(parameter: Moved, like: Tensor) -> Moved:
    """Move `parameter` to the device and dtype of `like`: the model may have moved meanwhile."""
    parameter.data = parameter.data.to(like)
    return parameter

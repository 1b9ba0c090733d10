"""Shells: what stands in a model where adapters work. One shell a stored tensor, for all named adapters.

Several active adapters add their changes, each against the frozen W: W' = W + Σ (weight_i(W) - W).

Adapters are float32, or float64 on a float64 base, which keeps its dtype; outputs have the frozen layer's
dtype. Autocast narrows products with x alone: effective weights, norms and penalties are not cast. What is
out of the model (merged, disabled) follows its device and dtype later; copies have adapters of their own.
Checkpointing and torch.compile change nothing: a model is one graph, which dropout breaks at each mask.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.dtypes import at_least_float32, uncast
from lora_zoo.core.host import Host, LayerHost
from lora_zoo.hosts.parameter import ParameterHost
from lora_zoo.inject.batched import Entry, RowGroup, batched_forward


class AdapterWrapper(nn.Module, ABC):
    """The adapters of one stored tensor: by adapter name, one for each part that is adapted."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.active = name, cast(tuple[str, ...], ())
        self.adapters = nn.ModuleDict()
        self.slots: dict[str, list[Entry]] = {}
        self.row_groups: tuple[RowGroup, ...] = ()
        self._alone: dict[str, nn.ModuleDict] = {}

    def add(self, adapter_name: str, host: Host, adapter: Adapter) -> None:
        slots = self.slots.setdefault(adapter_name, [])
        adapter.train(self.training)
        self.adapters[f"{adapter_name}/{len(slots)}"] = adapter
        slots.append(Entry(host, adapter))

    def drop(self, adapter_name: str) -> None:
        for number in range(len(self.slots.pop(adapter_name, []))):
            del self.adapters[f"{adapter_name}/{number}"]

    def isolate(self, adapter_name: str) -> None:
        """Make `adapter_name` the active one, and the only one that a walk through the model meets."""
        if adapter_name not in self._alone:
            own = enumerate(self.slots.get(adapter_name, ()))
            self._alone[adapter_name] = nn.ModuleDict({f"{adapter_name}/{n}": s.adapter for n, s in own})
        self.active, self.adapters = (adapter_name,), self._alone[adapter_name]

    def show_all(self) -> None:
        """Undo `isolate`: a walk through the model meets every adapter."""
        every = ((f"{name}/{n}", s.adapter) for name, own in self.slots.items() for n, s in enumerate(own))
        self.adapters, self._alone = nn.ModuleDict(dict(every)), {}

    def live(self) -> list[list[Entry]]:
        """The slots of each active adapter that has any here."""
        return [self.slots[name] for name in self.active if name in self.slots]

    def effective(self, stored: Tensor) -> Tensor:
        """`stored` (the layer's own layout) with every adapted matrix effective; its dtype is kept."""
        if self.row_groups:
            raise ValueError(f"{self.name} is read, not called: rows cannot have their own adapters there")
        live = self.live()
        if not live:
            return stored
        wide = stored.to(at_least_float32(stored.dtype)).clone(memory_format=torch.contiguous_format)
        with uncast(stored.device):
            for host, adapter in live[0]:
                host.write(wide, adapter.weight(host.read(stored)))
            for host, adapter in (slot for slots in live[1:] for slot in slots):
                W_OI = host.read(stored)
                host.write(wide, host.read(wide) + (adapter.weight(W_OI) - W_OI))
        return wide.to(stored.dtype)

    @property
    @abstractmethod
    def stored(self) -> nn.Parameter:
        """The tensor that the adapters work on."""

    @abstractmethod
    def store(self, tensor: nn.Parameter) -> None:
        """Put `tensor` in the place of `stored`, while the plain layer is in the model."""

    @abstractmethod
    def install(self, model: nn.Module) -> None:
        """Stand in the model."""

    @abstractmethod
    def uninstall(self, model: nn.Module) -> None:
        """Leave the plain layer in its place, with `stored` as it is."""


class LayerWrapper(AdapterWrapper):
    """Stands where a layer stood: the frozen layer, and the adapters that say what it effectively is."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__(name)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if self.row_groups:
            return batched_forward(self.row_groups, self.slots, x, self.layer(x))
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
        for host, out in (pair for slots in live[1:] for pair in _outputs(slots, x, base)):
            y[..., host.part] += (out - host.rows_of(base)).to(y.dtype)
        return y

    @property
    def stored(self) -> nn.Parameter:
        return self.layer.weight  # type: ignore[return-value]

    def store(self, tensor: nn.Parameter) -> None:
        self.layer.weight = moved(tensor, self.stored)

    @property
    def weight(self) -> Tensor:
        """The effective weight in the layer's own layout, for code that reads `.weight`."""
        return self.effective(self.stored)

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.layer, "bias", None)

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


def _outputs(slots: Sequence[Entry], x: Tensor, base: Tensor) -> Iterator[tuple[LayerHost, Tensor]]:
    for host, adapter in cast(list[tuple[LayerHost, Adapter]], slots):
        yield host, adapter.output(x, host.given(base))


class ParametrizedWeight(AdapterWrapper):
    """A parametrisation (torch.nn.utils.parametrize) of a parameter that its module reads by itself."""

    owner: nn.Module

    def __init__(self, name: str, owner: nn.Module, parameter: str) -> None:
        super().__init__(name)
        self.__dict__["owner"] = owner  # not a submodule: the owner contains this shell
        self.parameter = parameter
        self.within, self.kept = False, list[Tensor]()  # a list: a Parameter would be registered
        self.hooks: list[RemovableHandle] = []

    def forward(self, stored: Tensor) -> Tensor:
        """The effective tensor; a stack of experts, which its module reads once an expert, once a pass."""
        if not self.within or torch.compiler.is_compiling():
            return self.effective(stored)
        if not self.kept:
            self.kept.append(self.effective(stored))
        return self.kept[0]

    def _begin(self, *_: object) -> None:
        self.within = True

    def _end(self, *_: object) -> None:
        self.within, self.kept = False, []

    @property
    def stored(self) -> nn.Parameter:
        return ParameterHost(self.owner, self.parameter).tensor()  # type: ignore[return-value]

    def store(self, tensor: nn.Parameter) -> None:
        setattr(self.owner, self.parameter, moved(tensor, self.stored))

    def install(self, model: nn.Module) -> None:
        trains = self.stored.requires_grad
        self.adapters.to(self.stored.device)
        self.owner.__dict__.setdefault(_ORDER, list(self.owner._parameters))
        _give_own_class(self.owner)
        parametrize.register_parametrization(self.owner, self.parameter, self, unsafe=True)
        self.stored.requires_grad_(trains)
        if self.stored.ndim > 2:
            begin = self.owner.register_forward_pre_hook(self._begin)
            self.hooks = [begin, self.owner.register_forward_hook(self._end, always_call=True)]

    def uninstall(self, model: nn.Module) -> None:
        while self.hooks:
            self.hooks.pop().remove()
        _give_own_class(self.owner)
        parametrize.remove_parametrizations(self.owner, self.parameter, leave_parametrized=False)
        held = self.owner._parameters
        self.owner._parameters = {name: held[name] for name in self.owner.__dict__[_ORDER] if name in held}
        if not parametrize.is_parametrized(self.owner):
            del self.owner.__dict__[_ORDER]


_ORDER = "_parameters_order"  # a parametrised parameter comes back at the end; the owner keeps its order


def _give_own_class(owner: nn.Module) -> None:
    """Copies of a parametrised module share the class that torch made for it and adds properties to."""
    if parametrize.is_parametrized(owner):
        cls = type(owner)
        owner.__class__ = type(cls.__name__, cls.__bases__, dict(vars(cls)))


def make_wrapper(host: Host, name: str) -> AdapterWrapper:
    """The shell for the tensor called `name` in which `host` reads its matrix."""
    wrapper: AdapterWrapper
    if isinstance(host, ParameterHost):
        wrapper = ParametrizedWeight(name, host.layer, host.parameter)
    else:
        wrapper = LayerWrapper(name, host.layer)
    wrapper.training = host.layer.training
    return wrapper


def put(model: nn.Module, name: str, part: nn.Module | nn.Parameter) -> None:
    """Set the module or parameter called `name`, beneath the shells on the way."""
    parent_name, _, child = name.rpartition(".")
    owner: Any = model
    for step in parent_name.split(".") if parent_name else []:
        owner = getattr(owner, step)
        owner = owner.layer if isinstance(owner, LayerWrapper) else owner
    if parametrize.is_parametrized(owner, child):
        owner, child = owner.parametrizations[child], "original"
    setattr(owner, child, moved(part, getattr(owner, child)) if isinstance(part, nn.Parameter) else part)


def moved(parameter: nn.Parameter, like: Tensor) -> nn.Parameter:
    """`parameter` with the device and dtype of what stood in for it: the model may be elsewhere by now."""
    parameter.data = parameter.data.to(like)
    return parameter

"""Wrappers that put adapters into a model: one for each stored tensor, shared by all named adapters.

Several active adapters are composed as `lora_zoo.compositions` has it, by default by adding their changes.

Adapters are float32, or float64 on a float64 base, which keeps its dtype; outputs have the frozen layer's
dtype. Autocast narrows products with x alone: effective weights, norms and penalties are not cast. Wrappers
removed by merge() or disabled() are moved to the model's device and dtype when they return. deepcopy copies
adapters. Checkpointing and torch.compile change nothing: a model is one graph, which dropout breaks at each
mask.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.composition import Composition
from lora_zoo.core.dtypes import at_least_float32, uncast
from lora_zoo.core.host import Host, LayerHost
from lora_zoo.core.kernel import hooked
from lora_zoo.injection.batched import BatchRows, UnreadWeight, batched_forward
from lora_zoo.injection.entries import (
    AdapterEntry,
    Entries,
    bias_of,
    changes_bias,
    composed,
    composed_by_matrix,
    output_of,
    routed,
    weight_of,
)
from lora_zoo.injection.module_names import unwrapped

P = TypeVar("P", nn.Module, nn.Parameter, Tensor)
Moved = TypeVar("Moved", bound=Tensor)


class AdapterWrapper(nn.Module, ABC):
    """The adapters of one stored tensor: by adapter name, one for each part that is adapted."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.composition = name, cast(Composition | None, None)
        self.adapters = nn.ModuleDict()
        self.entries: dict[str, list[AdapterEntry]] = {}
        self.live: dict[str, list[AdapterEntry]] = {}
        """Those of the active adapters."""
        self.sole: AdapterEntry | None = None
        """The one that makes the whole output by itself."""
        self.parts: list[AdapterEntry] = []
        """Those of the one adapter whose parts a kernel may compute together."""
        self.batch: BatchRows | None = None
        """The rows of a batch of which each has its own adapter."""
        self._alone: dict[str, nn.ModuleDict] = {}

    def add(self, adapter_name: str, host: Host, adapter: Adapter) -> None:
        entries = self.entries.setdefault(adapter_name, [])
        adapter.train(self.training)
        self.adapters[f"{adapter_name}/{len(entries)}"] = adapter
        entries.append(AdapterEntry(host, adapter))

    def drop(self, adapter_name: str) -> None:
        for number in range(len(self.entries.pop(adapter_name, []))):
            del self.adapters[f"{adapter_name}/{number}"]

    def activate(self, names: Sequence[str], composition: Composition) -> None:
        """Make `names` the active adapters, composed by `composition`."""
        self.composition = composition
        self.live = {name: self.entries[name] for name in names if name in self.entries}
        alone = [own[0] for name, own in self.live.items() if len(own) == 1 and composition.leaves(name)]
        self.sole = alone[0] if len(alone) == len(self.live) == 1 and alone[0].host.whole else None
        of_one = [own for name, own in self.live.items() if composition.leaves(name)]
        together = len(of_one) == len(self.live) == 1 and self.sole is None
        self.parts = of_one[0] if together and all(entry.adapter.fused for entry in of_one[0]) else []

    def isolate(self, adapter_name: str, composition: Composition) -> None:
        """Make `adapter_name` the active adapter, and the only one among the model's modules."""
        if adapter_name not in self._alone:
            own = enumerate(self.entries.get(adapter_name, ()))
            self._alone[adapter_name] = nn.ModuleDict({f"{adapter_name}/{n}": s.adapter for n, s in own})
        self.adapters = self._alone[adapter_name]
        self.activate((adapter_name,), composition)

    def show_all(self) -> None:
        """Undo `isolate`: every adapter is among the model's modules again."""
        every = ((f"{name}/{n}", s.adapter) for name, own in self.entries.items() for n, s in enumerate(own))
        self.adapters, self._alone = nn.ModuleDict(dict(every)), {}

    def follow(self, device: torch.device) -> None:
        """Move the adapters to `device`, where the model has gone while they were out of it."""
        own = chain(self.adapters.parameters(), self.adapters.buffers())
        if any(tensor.device != device for tensor in islice(own, 1)):
            self.adapters.to(device)

    def composed(self, base: Tensor, of: Callable[[Entries], Tensor], place: str = "") -> Tensor:
        """The tensor that the active adapters make of `base`, where `of` gives what one makes of it."""
        assert self.composition is not None, "adapters are activated before they are used"
        return composed(self.composition, base, self.live, of, place or self.name)

    def effective(self, stored: Tensor) -> Tensor:
        """`stored` (the layer's own layout) with every adapted matrix effective; its dtype is kept."""
        if self.batch is not None and any(self.batch.live(self.entries)):
            return self._unread(stored, "rows cannot have their own adapters")
        if self.live and self.composition is not None and self.composition.routes:
            return self._unread(stored, f"{self.composition.name} has no weight")
        for entries in self.live.values():
            entries[0].adapter.require_weight(f"read at {self.name}")
        if not any(entry.adapter.changes_weight for own in self.live.values() for entry in own):
            return stored
        with uncast(stored.device):
            if self.composition is not None and not self.composition.of_outputs:
                return composed_by_matrix(self.composition, stored, self.live).to(stored.dtype)
            wide = stored.to(at_least_float32(stored.dtype))
            return self.composed(wide, partial(weight_of, stored)).to(stored.dtype)

    def _unread(self, stored: Tensor, reason: str) -> Tensor:
        return UnreadWeight.of(stored, f"{self.name} is read, not called: {reason} there")

    def effective_bias(self) -> Tensor | None:
        """The layer's bias with every adapted part effective; the stored one where no adapter changes it."""
        batch = self.batch.live(self.entries) if self.batch else []
        if any(changes_bias(entries) for own in batch for entries in own.values()):
            raise ValueError(f"{self.name}.bias is read, but each row of this batch has a bias of its own")
        if not any(map(changes_bias, self.live.values())):
            return self.stored_bias
        own_O = cast(Tensor | None, self.stored_bias)
        if own_O is None:
            own_O = (values := self.values).new_zeros(len(self._host.view(values)))
        with uncast(own_O.device):
            wide_O = own_O.to(at_least_float32(own_O.dtype))
            return self.composed(wide_O, partial(bias_of, wide_O), f"{self.name}.bias").to(own_O.dtype)

    @property
    @abstractmethod
    def stored(self) -> nn.Parameter:
        """The tensor that the adapters work on."""

    @property
    def _host(self) -> Host:
        """A host of one of its parts."""
        return next(iter(self.entries.values()))[0].host

    @property
    def values(self) -> Tensor:
        """`stored`, or the values of its codes."""
        return self._host.tensor() if self.entries and self._host.stores_codes else self.stored

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
        if self.batch is not None:
            return batched_forward(self.batch, self.entries, x, self.layer.forward(x))
        if self.sole is not None:
            host, adapter = self.sole
            return adapter.output(x, cast(LayerHost, host))
        if not self.live:
            return self.layer.forward(x)
        if self.composition is not None and not self.composition.of_outputs:
            return self._by_weight(x)
        y = self._by_one_kernel(x)
        if y is not None:
            return y
        base = self.layer.forward(x)
        if self.composition is not None and self.composition.routes:
            weights = self.composition.route(self.name, x, [*self.live])
            return routed(self.name, weights, base, self.live, partial(output_of, x, base))
        return self.composed(base, partial(output_of, x, base))

    def _by_one_kernel(self, x: Tensor) -> Tensor | None:
        """The output of a layer whose parts one kernel computes together; None where it does not."""
        if not self.parts:
            return None
        adapters = [entry.adapter for entry in self.parts]
        if any(hooked(adapter) or (adapter.training and adapter.dropout.p) for adapter in adapters):
            return None
        kernel, whole = adapters[0].fused, cast(LayerHost, type(self.parts[0].host)(self.layer))
        whole.branch_dtype = self.parts[0].host.branch_dtype
        if kernel is None or any(kernel.refusal(x, whole, kernel.operands(own)) for own in adapters):
            return None
        parts = [(entry.host.part, entry.adapter) for entry in self.parts]
        operands = kernel.of_parts(parts, whole.shape[0])
        return None if operands is None else kernel.run(x, whole, operands, None)

    def _by_weight(self, x: Tensor) -> Tensor:
        """The output with the composed weight and bias."""
        part = cast(LayerHost, next(iter(self.live.values()))[0].host)
        whole = type(part)(self.layer)
        bias_O = self.effective_bias()
        return whole.apply(x, whole.view(self.weight), None if bias_O is None else lambda own_O: bias_O)

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
        return self.effective(self.values if self.live else self.stored)

    @property
    def bias(self) -> Tensor | None:
        """The effective bias, for code that reads `.bias`."""
        return self.effective_bias()

    def install(self, model: nn.Module) -> None:
        self.follow(self.stored.device)
        self.__dict__["former"] = put(model, self.name, self)  # the layer, or what wraps it

    def uninstall(self, model: nn.Module) -> None:
        put(model, self.name, self.__dict__.pop("former"))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)  # in_features, padding_idx, …


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

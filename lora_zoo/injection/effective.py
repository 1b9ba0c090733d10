"""Effective weights that are formed once, and used by passes without gradients until something changes.

Such a pass costs what the plain model's costs, whatever the variant. Its outputs equal those of the merged
model to the bit, and those of the adapted model to rounding.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.dtypes import at_least_float32, cast
from lora_zoo.core.host import Host
from lora_zoo.core.kernel import hooked
from lora_zoo.injection.wrappers import AdapterWrapper, LayerWrapper
from lora_zoo.kernels.dense import reason_of_mode

SHARE_OF_FREE = 0.5
"""The part of a device's free memory that effective weights may take, where no limit is given."""
MEMORY, UNTOLD = Path("/proc/meminfo"), 2**30
"""Where Linux tells what memory is available; the bytes that are taken where nothing tells it."""


class EffectiveWeights:
    """The effective weights of a model's layers, formed anew when anything that they are made of has changed.

    It is looked for when a pass of the whole model begins: tensors that were written in place or replaced,
    parameters of adapters that were written through `.data`, attributes of adapters, activation, device,
    dtype. A write through `.data` into a frozen weight or a buffer is not seen. Passes with gradients, in
    training mode, under autocast, compiled, of rows with adapters of their own, and of a part of the model
    take the ordinary way.
    """

    def __init__(
        self,
        wrappers: Callable[[], Mapping[str, AdapterWrapper]],
        *,
        max_memory: int | None = None,
    ) -> None:
        """`max_memory` is in bytes. ValueError for a negative one."""
        if max_memory is not None and max_memory < 0:
            raise ValueError(f"effective: max_memory is a number of bytes, 0 or more; got {max_memory}")
        self._wrappers, self._max_memory = wrappers, max_memory
        self._form()

    def layers(self) -> dict[nn.Module, nn.Module]:
        """The adapted layers that have one, each with the plain layer that holds it."""
        return {wrapper.layer: plain for wrapper, plain in self._plain.items()}

    def begin(self, model: nn.Module, *_: object) -> None:
        """Let the layers use them in the pass that begins, where it is one that can (a forward pre-hook)."""
        if model.training or torch.is_grad_enabled() or reason_of_mode() or any(map(cast, self._devices)):
            return
        if self._marks != self._sources.marks() or not self._unwritten():
            self._form()
        for wrapper, plain in self._plain.items():
            vars(wrapper)["forward"] = plain.forward

    def end(self, *_: object) -> None:
        """Undo `begin` (a forward hook)."""
        for wrapper in self._plain:
            vars(wrapper).pop("forward", None)

    def _unwritten(self) -> bool:
        """True if the adapters' parameters have the values that they had."""
        return all(map(torch.equal, self._parameters, self._values))

    @torch.no_grad()
    def _form(self) -> None:
        self._plain = dict[LayerWrapper, nn.Module]()
        self.left_out = dict[str, str]()
        """The adapted tensors without a kept weight, and the reason of each."""
        self.memory = 0
        """The bytes that the effective weights take."""
        limit, wrappers = self._max_memory, self._wrappers()
        for name, wrapper in wrappers.items():
            reason = _unfit(wrapper)
            if not reason and isinstance(wrapper, LayerWrapper):
                limit = _free(wrapper.stored.device) if limit is None else limit
                needed = wrapper.stored.nbytes
                if self.memory + needed <= limit:
                    self._plain[wrapper] = _plain(wrapper)
                    self.memory += needed
                    continue
                reason = f"it takes {needed:,} bytes, and {limit - self.memory:,} of {limit:,} are left"
            self.left_out[name] = reason
        self._sources = Sources.of([*wrappers.values()])
        self._marks, tensors = self._sources.marks(), self._sources.tensors()
        self._alive = [
            tensors,
            [wrapper.live for wrapper in self._sources.wrappers],
        ]  # marks have their numbers
        self._devices = {t.device for t in tensors}
        own = (p for adapter in self._sources.adapters for p in adapter.parameters())
        self._parameters = [*{id(p): p for p in own}.values()]
        self._values = [p.detach().clone() for p in self._parameters]


class Sources(NamedTuple):
    """The places of all that effective weights are made of."""

    wrappers: Sequence[AdapterWrapper]
    adapters: Sequence[Adapter]
    layers: Sequence[nn.Module]
    stores: Sequence[Mapping[str, Tensor | None]]
    """The modules' tensors by name, as torch keeps them."""

    @classmethod
    def of(cls, wrappers: Sequence[AdapterWrapper]) -> "Sources":
        entries = [*chain.from_iterable(own for wrapper in wrappers for own in wrapper.live.values())]
        layers = [*dict.fromkeys(entry.host.layer for entry in entries)]
        modules = dict.fromkeys(m for entry in entries for m in entry.adapter.modules())
        stores = [store for m in modules for store in (m._parameters, m._buffers) if store]
        return cls(
            wrappers, [e.adapter for e in entries], layers, [*stores, *(m._parameters for m in layers)]
        )

    def tensors(self) -> list[Tensor]:
        return [t for store in self.stores for t in store.values() if t is not None]

    def marks(self) -> list[Any]:
        """Marks that differ once anything was assigned, replaced, moved or written in place."""
        return [
            *[(id(wrapper.live), wrapper.batch is None) for wrapper in self.wrappers],
            *[(adapter.assigned, hooked(adapter)) for adapter in self.adapters],
            *[(hooked(layer), "forward" in vars(layer)) for layer in self.layers],
            *[(id(t), t._version, t.data_ptr()) for t in self.tensors()],
        ]


def _unfit(wrapper: AdapterWrapper) -> str:
    """The reason why the tensor of `wrapper` has no effective weight that a plain layer could use, or ""."""
    entries = [entry for own in wrapper.live.values() for entry in own]
    if not entries:
        return "no adapter of it is active"
    if not isinstance(wrapper, LayerWrapper):
        return "its module reads it by itself"
    if wrapper.batch is not None:
        return "rows have adapters of their own"
    composition = wrapper.composition
    if composition is not None and composition.routes:
        return f"{composition.name} has no weight"
    return _unplain(wrapper) or next(filter(None, (_without_weight(*entry) for entry in entries)), "")


def _unplain(wrapper: LayerWrapper) -> str:
    """The reason why the layer of `wrapper` is not one that holds a plain weight, or ""."""
    own = wrapper.layer._parameters
    if hooked(wrapper.layer) or "forward" in {*vars(wrapper.layer), *vars(wrapper)}:
        return "the layer has hooks, or a forward pass that was given to it"
    if hasattr(wrapper.stored, "full_tensor"):
        return "processes have divided its weight"
    if own.get("weight") is not wrapper.stored or own.get("bias") is not wrapper.stored_bias:
        return "its layer makes its weight from others"
    if wrapper.stored.dtype != at_least_float32(wrapper.stored.dtype):
        return f"an effective weight in {wrapper.stored.dtype} would lose a small change"
    return ""


def _without_weight(host: Host, adapter: Adapter) -> str:
    if not adapter.pointwise:
        return f"{adapter.name} has no effective weight"
    if hooked(adapter):
        return "the adapter has hooks"
    if adapter.varies:
        return "its weight differs within a pass"
    return "the layer is quantised" if host.stores_codes else host.unmergeable


def _plain(wrapper: LayerWrapper) -> nn.Module:
    """The plain layer with the effective weight and bias."""
    plain = copy.copy(wrapper.layer)
    bias_O = wrapper.effective_bias()
    own = {"weight": wrapper.effective(wrapper.stored)} | ({} if bias_O is None else {"bias": bias_O})
    frozen = {name: nn.Parameter(tensor.detach(), requires_grad=False) for name, tensor in own.items()}
    plain._parameters = {**plain._parameters, **frozen}
    return plain


def _free(device: torch.device) -> int:
    """The bytes that effective weights may take on `device`."""
    if device.type == "cuda":
        return int(SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0])
    told = re.search(r"MemAvailable:\s+(\d+) kB", MEMORY.read_text()) if MEMORY.is_file() else None
    return int(SHARE_OF_FREE * int(told[1]) * 1024) if told else UNTOLD

"""How a variant looks in PEFT. A variant's file declares its form; one without follows from its factors."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Variant
from lora_zoo.core.variants import VARIANTS
from lora_zoo.inject.injection import Injection
from lora_zoo.inject.matrices import TargetMatrix

V = TypeVar("V", bound=Variant)
PREFIX = "base_model.model."
"""What stands before a module's name in PEFT's files."""


class Unfit(ValueError):
    """PEFT's form of this variant does not hold this adapter; plain LoRA may."""


class Packed(NamedTuple):
    """What PEFT's files hold of the adapted matrices: configuration fields and tensors by PEFT's names."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: list[str]


@dataclass
class Saved:
    """A PEFT folder that was read: its configuration, and its tensors by adapted module."""

    file: Path
    config: dict[str, Any]
    modules: dict[str, dict[str, Tensor]]
    shared: dict[str, Tensor] = field(default_factory=dict)


class Unpacked(NamedTuple):
    """What `Injection` needs: hyperparameters, their patterns, places, tensors by our names.

    `started`: the start factors are computed from the base, as PEFT does when it loads.
    """

    hyper: dict[str, Any]
    patterns: dict[str, dict[str, float]]
    places: list[TargetMatrix]
    state: dict[str, Tensor]
    started: bool = False


class PeftFormat(ABC):
    """One way of writing adapters for PEFT, and of reading them back."""

    peft_type: ClassVar[str]
    shared: ClassVar[tuple[str, ...]] = ()
    """Tensors that belong to the model and not to one of its layers."""

    @abstractmethod
    def to_peft(self, injection: Injection) -> Packed:
        """Raises Unfit where PEFT's form does not hold this adapter."""

    @abstractmethod
    def accepts(self, config: Mapping[str, Any]) -> bool:
        """Whether adapters of this configuration are of this form."""

    @abstractmethod
    def from_peft(self, saved: Saved, model: nn.Module) -> Unpacked:
        """ValueError for a tensor that is missing, left over, misshapen or not what we compute with."""


class Declared(NamedTuple):
    form: PeftFormat
    reads: bool


_DECLARED: dict[type[Variant], Declared] = {}


def in_peft(form: PeftFormat, *, reads: bool = True) -> Callable[[type[V]], type[V]]:
    """The variant below has `form` in PEFT. `reads`: adapters of that form become this variant here."""

    def declare(cls: type[V]) -> type[V]:
        _DECLARED[cls] = Declared(form, reads)
        return cls

    return declare


def form_of(cls: type[Variant]) -> PeftFormat | None:
    """The form that a variant declares, if it does."""
    return next((_DECLARED[base].form for base in cls.__mro__ if base in _DECLARED), None)


def reader_of(config: Mapping[str, Any]) -> tuple[type[Variant], PeftFormat]:
    """The variant that adapters of PEFT's configuration `config` become."""
    for cls in VARIANTS.values():
        form, reads = _DECLARED.get(cls, (None, False))
        if form and reads and form.accepts(config):
            return cls, form
    raise ValueError(f"no variant reads PEFT's {config['peft_type']} with these options")


def peft_types() -> list[str]:
    """The `peft_type`s that are read."""
    return sorted({d.form.peft_type for cls in VARIANTS.values() if (d := _DECLARED.get(cls)) and d.reads})


def whole_dense(place: TargetMatrix) -> bool:
    """Whether `place` is a whole linear layer, which is all that some of PEFT's methods adapt."""
    return not place.whole and place.host.dense


def pick(module: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    """The tensors of these names. ValueError for one that is missing, left over or of another shape."""
    for name in sorted(tensors.keys() ^ shapes.keys()):
        raise ValueError(f"{module}.{name} is {'not expected' if name in tensors else 'missing'}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != tuple(shape):
            raise ValueError(f"{module}.{name} is {tuple(tensors[name].shape)}, not {tuple(shape)}")
    return [tensors[name] for name in shapes]


def stored(tensor: Tensor) -> Tensor:
    """As files hold it: float32 on the CPU, with memory of its own."""
    return tensor.detach().to("cpu", torch.float32).contiguous().clone()


def number(value: float) -> float:
    """An integer where it is one, as PEFT's fields are typed; otherwise without noise in the last digit."""
    tidy = float(f"{value:.15g}")
    return int(tidy) if tidy.is_integer() else tidy


def spread(**values: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Hyperparameters and their patterns, from each place's value: the most frequent one is the rule."""
    rules = {key: most(own.values()) for key, own in values.items()}
    patterns = {key: {n: v for n, v in own.items() if v != rules[key]} for key, own in values.items()}
    return rules, {key: own for key, own in patterns.items() if own}


def most(values: Iterable[float]) -> float:
    """The most frequent value, the least of several."""
    every = sorted(values)
    return max(every, key=every.count)

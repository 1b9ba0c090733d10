"""PEFT's form of a variant: the class attribute `peft`. A variant without one is written by its factors."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Variant
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import TargetMatrix, find_matrices
from lora_zoo.injection.plan import InjectionPlan

PREFIX = "base_model.model."
"""The prefix of module names in PEFT's files."""
HyperAndState = tuple[dict[str, Any], dict[str, Tensor]]


class Unfit(ValueError):
    """PEFT's form of this variant does not hold this adapter; plain LoRA may."""


class PeftContent(NamedTuple):
    """The content of PEFT's files about adapted matrices: configuration, and tensors by PEFT's names."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass
class PeftFolder:
    """A PEFT folder that was read: its configuration, and its tensors by adapted module.

    `targets`: matrix -> the module that the configuration calls it by, where they differ.
    """

    file: Path
    config: dict[str, Any]
    modules: dict[str, dict[str, Tensor]]
    shared: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)


class ParsedAdapter(NamedTuple):
    """A PEFT adapter in our terms: hyperparameters, their patterns, matrices, tensors by our names.

    `init_from_base`: residual factors are computed from the base, as PEFT does when it loads.
    """

    hyper: dict[str, Any]
    patterns: dict[str, dict[str, float]]
    matrices: list[TargetMatrix]
    state: dict[str, Tensor]
    init_from_base: bool = False


class SavedAdapter(NamedTuple):
    """An adapter that was read from disk for one model: a plan for it, and tensors by our names."""

    plan: InjectionPlan
    state: dict[str, Tensor]
    source: Path
    name: str = "default"
    seed: int = 0
    init_from_base: bool = False
    """True if residual factors are computed from the base, and not in `state`."""
    prior: "tuple[SavedAdapter, ...]" = ()
    """The adapters on which it was trained."""


class PeftFormat(ABC):
    """A format of PEFT's: writes adapters and reads them back."""

    fixed: Mapping[str, Any] = {}
    """Fields of the configuration that have this value, and no other."""
    reads: bool = True
    """False where adapters of this form become another variant when they are read."""
    biases: ClassVar[bool] = False
    """True if its files hold what a variant does to biases."""
    weightless: ClassVar[bool] = False
    """True for a method without an effective weight; its adapters cannot be written as LoRA."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Names of tensors that belong to the model and not to one of its layers."""
    shared_prefix: ClassVar[str] = "base_model."
    """The prefix of their names in files."""
    prefix: ClassVar[str] = PREFIX
    """The prefix of the names of the base's modules in files."""
    read_as: str = ""
    """The variant that adapters of this form become when they are read; "" for the form's own."""

    @property
    @abstractmethod
    def peft_type(self) -> str:
        """The name of the method in PEFT's configuration."""

    @property
    @abstractmethod
    def names(self) -> Collection[str]:
        """The names of an adapted module's tensors."""

    @property
    def options(self) -> Collection[str]:
        """The fields of the configuration that are read, beside those of every method."""
        return ()

    def in_full(
        self, folder: "PeftFolder", rest: Mapping[str, Tensor]
    ) -> tuple["PeftFolder", dict[str, Tensor]]:
        """The folder, its `modules_to_save` complete, and the tensors beside adapters by their own names."""
        return folder, dict(rest)

    @abstractmethod
    def to_peft(self, injection: Injection) -> PeftContent:
        """Convert to PEFT's format. Unfit where that cannot hold this adapter."""

    def accepts(self, config: Mapping[str, Any]) -> bool:
        """True if adapters of this configuration have this format."""
        return bool(config["peft_type"] == self.peft_type)

    @abstractmethod
    def from_peft(self, folder: PeftFolder, model: nn.Module) -> ParsedAdapter:
        """Convert from PEFT's format. ValueError for a missing, unexpected, misshapen or wrong tensor."""


class DenseFormat(PeftFormat):
    """A method that PEFT has for whole linear layers alone."""

    method: str

    @abstractmethod
    def config(self, injection: Injection) -> dict[str, Any]:
        """The method's own fields of the configuration. Unfit where the layers differ in one."""

    @abstractmethod
    def tensors(self, adapter: Any) -> dict[str, Tensor]:
        """A layer's tensors by PEFT's short names."""

    @abstractmethod
    def parse(self, folder: PeftFolder, known: Mapping[str, TargetMatrix]) -> HyperAndState:
        """Our hyperparameters, and the tensors by our names."""

    def to_peft(self, injection: Injection) -> PeftContent:
        for name, matrix in injection.matrices.items():
            if not whole_dense(matrix):
                raise Unfit(f"PEFT's {self.method} adapts whole linear layers, {name} is none")
        config = {
            "peft_type": self.peft_type,
            "target_modules": sorted(injection.adapters),
            "fan_in_fan_out": any(matrix.host.transposed for matrix in injection.matrices.values()),
            **self.config(injection),
        }
        tensors = {
            f"{PREFIX}{name}.{short}": stored(tensor)
            for name, adapter in injection.adapters.items()
            for short, tensor in self.tensors(adapter).items()
        }
        return PeftContent(config, tensors)

    def from_peft(self, folder: PeftFolder, model: nn.Module) -> ParsedAdapter:
        known = {matrix.name: matrix for matrix in find_matrices(model) if matrix.name in folder.modules}
        for module in folder.modules:
            if not whole_dense(known[module]):
                raise ValueError(f"{module}, a {known[module].host.kind}, has no {self.method} in PEFT")
        hyper, state = self.parse(folder, known)
        return ParsedAdapter(hyper, {}, [known[module] for module in folder.modules], state)


def readers() -> list[tuple[type[Variant], PeftFormat]]:
    """The formats that are read, each with the variant that its adapters become."""
    own = [cls for cls in VARIANTS.values() if cls.peft and cls.peft.reads and not cls.preset_of]
    return [(VARIANTS.find(cls.peft.read_as) if cls.peft.read_as else cls, cls.peft) for cls in own]


def reader_of(config: Mapping[str, Any]) -> tuple[type[Variant], PeftFormat]:
    """The variant that adapters of PEFT's configuration `config` become."""
    for cls, form in readers():
        if form.accepts(config):
            return cls, form
    raise ValueError(f"no variant reads PEFT's {config['peft_type']} with these options")


def peft_types() -> list[str]:
    """The `peft_type`s that are read."""
    return sorted({form.peft_type for _, form in readers()})


def whole_dense(matrix: TargetMatrix) -> bool:
    """True if `matrix` is a whole linear layer: some of PEFT's methods adapt nothing else."""
    return not matrix.whole and matrix.host.dense


def pick(module: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    """The tensors of these names. ValueError for one that is missing, left over or of another shape."""
    for name in sorted(tensors.keys() ^ shapes.keys()):
        raise ValueError(f"{module}.{name} is {'not expected' if name in tensors else 'missing'}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != tuple(shape):
            raise ValueError(f"{module}.{name} is {tuple(tensors[name].shape)}, not {tuple(shape)}")
    return [tensors[name] for name in shapes]


def stored(tensor: Tensor) -> Tensor:
    """A copy on the CPU, as files hold it: float32, counts as they are."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype).contiguous().clone()


def number(value: float) -> float:
    """An integer where it is one, as PEFT's fields are typed; otherwise without noise in the last digit."""
    tidy = float(f"{value:.15g}")
    return int(tidy) if tidy.is_integer() else tidy


def spread(**values: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Hyperparameters and their patterns, from each matrix's values: the most frequent one is the rule."""
    rules = {key: most(own.values()) for key, own in values.items()}
    patterns = {key: {n: v for n, v in own.items() if v != rules[key]} for key, own in values.items()}
    return rules, {key: own for key, own in patterns.items() if own}


def most(values: Iterable[float]) -> float:
    """The most frequent value, the least of several."""
    every = sorted(values)
    return max(every, key=every.count)

"""PEFT's methods whose files hold an adapter's tensors as they are here, under other names."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lora_zoo.formats.peft.forms import DenseFormat, HyperAndState, PeftContent, PeftFolder, Unfit, number
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import TargetMatrix


@dataclass(frozen=True)
class PlainFormat(DenseFormat):
    """A format that is three tables: the names of tensors, the fields of settings, and fixed fields.

    `tensor_names` and `fields` map ours to PEFT's, a field with PEFT's default; an adapter has some of the
    tensors. `implied` are our settings that every file means. `conv1d`: PEFT adapts a Conv1D as well.
    """

    method: str
    tensor_names: Mapping[str, str]
    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=dict)
    conv1d: bool = False

    @property
    def peft_type(self) -> str:
        return self.method.upper()

    @property
    def names(self) -> Collection[str]:
        return tuple(self.tensor_names.values())

    @property
    def options(self) -> Collection[str]:
        return (*(theirs for theirs, _ in self.fields.values()), *self.fixed)

    def to_peft(self, injection: Injection) -> PeftContent:
        if injection.patterns:
            raise Unfit(f"PEFT's {self.method} has one value of {min(injection.patterns)} for all layers")
        content = super().to_peft(injection)
        if content.config["fan_in_fan_out"] and not self.conv1d:
            raise Unfit(f"PEFT's {self.method} does not adapt a Conv1D")
        if not self.conv1d:
            del content.config["fan_in_fan_out"]
        if "alpha" not in self.fields and set(injection.scales()) - {1.0}:
            raise Unfit(f"PEFT's {self.method} has no alpha but that of scale 1")
        return content

    def config(self, injection: Injection) -> dict[str, Any]:
        return {theirs: self._value(injection, ours) for ours, (theirs, _) in self.fields.items()} | dict(
            self.fixed
        )

    def _value(self, injection: Injection, ours: str) -> Any:
        """A setting as PEFT's fields are typed; of one that is `auto`, what all adapters have made of it."""
        value = injection.hyper[ours]
        if value == "auto":
            value, *others = {getattr(adapter, ours) for adapter in injection.adapters.values()}
            if others:
                raise Unfit(f"PEFT's {self.method} has one value of {ours} for all layers")
        return number(value) if isinstance(value, float) else value

    def tensors(self, adapter: Any) -> dict[str, Tensor]:
        state: dict[str, Tensor] = adapter.state_dict()
        if extra := sorted(state.keys() - self.tensor_names.keys()):
            raise Unfit(f"PEFT's {self.method} has no place for {extra[0]}")
        return {self.tensor_names[name]: tensor for name, tensor in state.items()}

    def parse(self, folder: PeftFolder, known: Mapping[str, TargetMatrix]) -> HyperAndState:
        for key, value in self.fixed.items():
            if key in folder.config and folder.config[key] != value:
                raise ValueError(f"{key}={folder.config[key]!r} is not supported, {value!r} is")
        ours = {theirs: name for name, theirs in self.tensor_names.items()}
        state = {
            f"{module}.{ours[name]}": tensor
            for module, tensors in folder.modules.items()
            for name, tensor in tensors.items()
        }
        values = {name: folder.config.get(key, default) for name, (key, default) in self.fields.items()}
        return values | dict(self.implied), state

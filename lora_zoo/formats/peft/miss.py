"""PEFT's MiSS, whose `init_weights` chooses among three methods: two are ours called miss, one is bone."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lora_zoo.formats.peft.forms import HyperAndState, PeftFolder
from lora_zoo.formats.peft.plain import PlainFormat
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import TargetMatrix

BAT, MINI = "bat", "mini"


@dataclass(frozen=True)
class ShardFormat(PlainFormat):
    """MiSS with shared shards: `mini` where the shards' columns are shared as well."""

    @property
    def options(self) -> Collection[str]:
        return (*super().options, "mini_r", "init_weights")

    def accepts(self, config: Mapping[str, Any]) -> bool:
        return super().accepts(config) and config.get("init_weights", True) != BAT

    def config(self, injection: Injection) -> dict[str, Any]:
        columns = injection.hyper["mini_r"]
        return super().config(injection) | {"init_weights": MINI if columns else True, "mini_r": columns or 1}

    def parse(self, folder: PeftFolder, known: Mapping[str, TargetMatrix]) -> HyperAndState:
        hyper, state = super().parse(folder, known)
        mini = folder.config.get("init_weights", True) == MINI
        return hyper | {"mini_r": folder.config.get("mini_r", 1) if mini else 0}, state


@dataclass(frozen=True)
class BatFormat(PlainFormat):
    """MiSS in its mode `bat`."""

    def accepts(self, config: Mapping[str, Any]) -> bool:
        return super().accepts(config) and config.get("init_weights", True) == BAT

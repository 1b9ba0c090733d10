"""PEFT's RandLoRA: two small tensors a layer, and the frozen bases that all layers share."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from lora_zoo.formats.peft.forms import HyperAndState, PeftContent, PeftFolder, pick, stored
from lora_zoo.formats.peft.plain import PlainFormat
from lora_zoo.inits.random_bases import RandomBases
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import TargetMatrix

BASES = ("randlora_A", "randlora_B")


@dataclass(frozen=True)
class RandLoraFormat(PlainFormat):
    """RandLoRA with its bases, of which PEFT's files hold a copy for each layer as well."""

    shared: ClassVar[tuple[str, ...]] = BASES

    @property
    def names(self) -> Collection[str]:
        return (*super().names, *BASES)

    @property
    def options(self) -> Collection[str]:
        return (*super().options, "save_projection")

    def to_peft(self, injection: Injection) -> PeftContent:
        config, tensors = super().to_peft(injection)
        adapter: Any = next(iter(injection.adapters.values()))
        bases = cast(RandomBases, adapter.bases)
        every = {"base_model.randlora_A": bases.A_RS[:, None], "base_model.randlora_B": bases.B_LNR}
        config |= {"save_projection": True}
        return PeftContent(config, tensors | {name: stored(tensor) for name, tensor in every.items()})

    def parse(self, folder: PeftFolder, known: Mapping[str, TargetMatrix]) -> HyperAndState:
        own = {
            module: {name: tensor for name, tensor in tensors.items() if name not in BASES}
            for module, tensors in folder.modules.items()
        }
        hyper, state = super().parse(PeftFolder(folder.file, folder.config, own), known)
        shapes = [matrix.shape for matrix in known.values()]
        projection = _projection(folder, shapes, hyper["rank"], hyper["projection_prng_key"])
        return hyper | {"projection": projection}, state


def _projection(folder: PeftFolder, shapes: list[tuple[int, int]], rank: int, seed: int) -> str:
    """The name of our projection that gives PEFT's bases. ValueError where its seed gives others."""
    if not folder.config.get("save_projection", True):
        return "peft"
    for projection in ("peft", "nested"):
        ours = RandomBases(shapes, rank, seed=seed, projection=projection, device=torch.device("cpu"))
        if all(map(_same, (ours.A_RS[:, None], ours.B_LNR), _given(folder, ours))):
            return projection
    raise ValueError(f"base_model.randlora_A and _B are not those that projection_prng_key={seed} gives here")


def _given(folder: PeftFolder, ours: RandomBases) -> list[Tensor]:
    shapes = {"randlora_A": tuple(ours.A_RS[:, None].shape), "randlora_B": tuple(ours.B_LNR.shape)}
    return pick("base_model", folder.shared, shapes)


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(ours, theirs.float())

"""Low-rank pairs in PEFT: LoRA, rsLoRA and DoRA, and whatever else is a product B A.

Parts of a fused layer become one pair on the whole of it, a residual init a pair of twice the rank.
Shapes: O out, I in, R rank.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.core.host import Host
from lora_zoo.formats.peft import attention, experts, layers
from lora_zoo.formats.peft.forms import (
    PREFIX,
    ParsedAdapter,
    PeftContent,
    PeftFolder,
    PeftFormat,
    most,
    number,
    spread,
)
from lora_zoo.formats.peft.patterns import pattern_key, rank_and_alpha
from lora_zoo.formats.peft.updates import LowRankUpdate, joined, no_wider, with_norms
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.matrices import find_matrices
from lora_zoo.injection.plan import hyperparameters_at

RESIDUAL = ("pissa", "olora")
"""PEFT's initialisations that change the base again whenever an adapter is loaded."""
OPTIONS = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_dropout"),
    *("init_lora_weights", "target_parameters"),
)


class PeftModule(NamedTuple):
    """An adapted module, or a stack of experts called `name`, whose tensors PEFT keeps at `key`."""

    name: str
    key: str
    tensors: dict[str, Tensor]
    rank: int
    alpha: float


@dataclass(frozen=True)
class LoraFormat(PeftFormat):
    """`root`: the scale is α/√r; `magnitude`: our name of DoRA's vector, "" where there is none."""

    peft_type, names, options = "LORA", layers.NAMES, OPTIONS
    root: bool = False
    magnitude: str = ""
    reads: bool = True

    def accepts(self, config: Mapping[str, Any]) -> bool:
        dora = bool(config.get("use_dora"))
        same_scale = dora or bool(config.get("use_rslora")) == self.root
        return config["peft_type"] == "LORA" and dora == bool(self.magnitude) and same_scale

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.root else rank)

    def alpha(self, scale: float, rank: int) -> float:
        return number(scale * (math.sqrt(rank) if self.root else rank))

    def to_peft(self, injection: Injection) -> PeftContent:
        updates = [self._update(injection, name) for name in injection.adapters]
        return self.write(updates, injection.hyper.get("lora_dropout", 0.0))

    def _update(self, injection: Injection, name: str) -> LowRankUpdate:
        adapter, matrix = injection.adapters[name], injection.matrices[name]
        tensors = adapter.state_dict()
        B_OR, A_RI = tensors["B_OR"], tensors["A_RI"]
        alpha = hyperparameters_at(matrix, injection.hyper, injection.patterns)["alpha"]
        scale = self.scale(alpha, len(A_RI))
        if "A0_RI" in tensors:
            B_OR, A_RI = torch.cat([B_OR, -tensors["B0_OR"]], dim=1), torch.cat([A_RI, tensors["A0_RI"]])
            alpha = None
        return LowRankUpdate(matrix, B_OR, A_RI, scale, alpha, tensors.get(self.magnitude))

    def write(self, updates: list[LowRankUpdate], dropout: float) -> PeftContent:
        """Updates as PEFT's LoRA. ValueError where PEFT does not adapt one of the layers."""
        parts = _grouped(updates, lambda update: update.matrix.whole or update.matrix.name)
        whole = [joined(own) for own in parts.values()]
        packed = [self._module(update) for update in whole if not experts.stacked(update.matrix)]
        packed += self._stacks([update for update in whole if experts.stacked(update.matrix)])
        modules = [one for one in packed if one.name == one.key]
        transposed = any(update.matrix.host.transposed for update in whole)
        config: dict[str, Any] = {
            "peft_type": "LORA",
            "target_modules": sorted(one.name for one in modules),
            "target_parameters": sorted(one.name for one in packed if one.name != one.key) or None,
            "use_dora": bool(self.magnitude),
            "use_rslora": self.root,
            "lora_dropout": number(dropout),
            "fan_in_fan_out": transposed and len(modules) == len(packed),
            "init_lora_weights": True,
        }
        ranks, alphas = {one.name: one.rank for one in packed}, {one.name: one.alpha for one in packed}
        for key, pattern, values in (("r", "rank_pattern", ranks), ("lora_alpha", "alpha_pattern", alphas)):
            config[key] = most(values.values()) if values else 8
            config[pattern] = {
                pattern_key(name, values): value for name, value in values.items() if value != config[key]
            }
        if config["target_parameters"]:
            config["peft_version"] = experts.WRITTEN
        tensors = {f"{PREFIX}{one.key}.{short}": t for one in packed for short, t in one.tensors.items()}
        return PeftContent(config, tensors)

    def _module(self, update: LowRankUpdate) -> PeftModule:
        name, host = update.matrix.name, update.matrix.host
        layers.check(name, host)
        if self.magnitude:
            update = with_norms(name, host, update)
        B_OR, A_RI = no_wider(update.B_OR, update.A_RI)
        rank = len(A_RI) * layers.width(host)
        alpha = update.alpha if rank == len(update.A_RI) else None
        alpha = self.alpha(update.scale, rank) if alpha is None else number(alpha)
        tensors = layers.write(host, layers.LayerFactors(B_OR, A_RI, update.m_O))
        return PeftModule(name, name, tensors, rank, alpha)

    def _stacks(self, updates: list[LowRankUpdate]) -> Iterator[PeftModule]:
        """One module for each stack of experts; experts that are not adapted and lesser ranks get zeros."""
        groups = _grouped(updates, lambda update: update.matrix.tensor)
        for tensor, own in groups.items():
            if self.magnitude:
                raise ValueError(f"{tensor} stacks experts, for which PEFT has plain LoRA alone")
            host: Any = own[0].matrix.host
            beside = [t for t in groups if t.rpartition(".")[0] == tensor.rpartition(".")[0]]
            thin = [no_wider(update.B_OR, update.A_RI) for update in own]
            rank = max(len(A_RI) for _, A_RI in thin)
            pairs = {
                update.matrix.host.expert: (B_OR * (update.scale / own[0].scale), A_RI)  # type: ignore[attr-defined]
                for update, (B_OR, A_RI) in zip(own, thin, strict=True)
            }
            alpha = self.alpha(own[0].scale, rank)
            key = experts.keys(beside, host)[tensor]
            yield PeftModule(tensor, key, experts.write(host, pairs, rank), rank, alpha)

    def from_peft(self, folder: PeftFolder, model: nn.Module) -> ParsedAdapter:
        known = {matrix.name: matrix for matrix in find_matrices(model)}
        theirs, init = LoraFormat(bool(folder.config.get("use_rslora"))), _residual_init(folder)
        ranks, alphas, state = dict[str, int](), dict[str, float](), dict[str, Tensor]()

        def keep(name: str, B: Tensor, A: Tensor, rank: int, alpha: float) -> None:
            B_OR, A_RI = no_wider(B, A)
            R = ranks[name] = len(A_RI)
            same = theirs.root == self.root and rank == R
            alphas[name] = alpha if same else self.alpha(theirs.scale(alpha, rank), R)
            state.update({f"{name}.A_RI": A_RI, f"{name}.B_OR": B_OR})

        stacks = experts.resolve(folder, known)
        for module, own in stacks.items():
            rank, alpha = rank_and_alpha(folder, own[0].tensor)
            version = experts.version_of(folder, "stacked experts")
            pairs = experts.read(module, own[0].host, folder.modules[module], rank, version)
            for matrix, pair in zip(own, pairs, strict=True):
                keep(matrix.name, *pair, rank, alpha)
        for module in [name for name in folder.modules if name not in stacks]:
            host = known[module].host
            if module not in folder.targets:
                layers.check(module, host)
            rank, alpha = rank_and_alpha(folder, module)
            alpha *= attention.times_added(folder, module)
            factors = layers.read(module, host, folder.modules[module], bool(self.magnitude))
            _check_rank(module, rank, len(factors.A_RI), host)
            keep(module, factors.B_OR, factors.A_RI, rank, alpha)
            if init:
                _check_init(module, init, host)
            state |= {} if factors.m_O is None else {f"{module}.{self.magnitude}": factors.m_O}
        dropout = 0.0 if init else float(folder.config.get("lora_dropout") or 0.0)
        hyper: dict[str, Any] = {"lora_dropout": dropout} | ({"init": init} if init else {})
        rules, patterns = spread(rank=ranks, alpha=alphas)
        if dropout and folder.targets:  # PEFT ignores it there
            patterns["lora_dropout"] = dict.fromkeys(folder.targets, 0.0)
        return ParsedAdapter(hyper | rules, patterns, [known[name] for name in ranks], state, bool(init))


def _grouped(
    updates: list[LowRankUpdate], key: Callable[[LowRankUpdate], str]
) -> dict[str, list[LowRankUpdate]]:
    groups: dict[str, list[LowRankUpdate]] = {}
    for update in updates:
        groups.setdefault(key(update), []).append(update)
    return groups


def _check_rank(module: str, configured: int, found: int, host: Host) -> None:
    if configured not in {found, found * layers.width(host)}:
        raise ValueError(f"{module}: its tensors have rank {found}, the configuration says {configured}")


def _residual_init(folder: PeftFolder) -> str:
    """The residual init that PEFT repeats on loading, or "". ValueError for one that it cannot repeat."""
    init = str(folder.config.get("init_lora_weights", True)).lower()
    if init in {"loftq", "corda"}:
        raise ValueError(
            f"init_lora_weights={init}: PEFT changes the base on loading by data that is not in the folder"
        )
    return init if init.startswith(RESIDUAL) else ""


def _check_init(module: str, init: str, host: Host) -> None:
    if not host.dense or (init == "olora" and host.transposed):
        raise ValueError(f"init_lora_weights={init} on {module}, a {host.kind}, does not work in PEFT")

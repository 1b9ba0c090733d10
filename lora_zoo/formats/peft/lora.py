"""Low-rank pairs in PEFT: LoRA, rsLoRA and DoRA, and whatever else is a product B A.

Parts of a fused layer become one pair on the whole of it, a residual start a pair of twice the rank.
Shapes: O out, I in, R rank.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.core.host import Host
from lora_zoo.formats.peft import experts as stacks
from lora_zoo.formats.peft import layers
from lora_zoo.formats.peft.forms import PREFIX, Packed, PeftFormat, Saved, Unpacked, most, number, spread
from lora_zoo.formats.peft.low_rank import no_wider
from lora_zoo.formats.peft.patterns import pattern_key, rank_and_alpha
from lora_zoo.formats.peft.updates import LowRankUpdate, check_norms, joined
from lora_zoo.inject.injection import Injection
from lora_zoo.inject.matrices import places
from lora_zoo.inject.plan import hyperparameters_at

RESIDUAL = ("pissa", "olora")
"""PEFT's starts that change the base again whenever an adapter is loaded."""


class One(NamedTuple):
    """A module, or a stack of experts called `name`, whose tensors PEFT keeps at `key`."""

    name: str
    key: str
    tensors: dict[str, Tensor]
    rank: int
    alpha: float


@dataclass(frozen=True)
class LoraFormat(PeftFormat):
    """`root`: the scale is α/√r; `magnitude`: what DoRA's vector is called here, "" where there is none."""

    peft_type: ClassVar[str] = "LORA"
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

    def to_peft(self, injection: Injection) -> Packed:
        pieces = [self._piece(injection, name) for name in injection.adapters]
        return self.write(pieces, injection.hyper.get("lora_dropout", 0.0))

    def _piece(self, injection: Injection, name: str) -> LowRankUpdate:
        adapter, place = injection.adapters[name], injection.places[name]
        tensors = adapter.state_dict()
        B_OR, A_RI, alpha = (
            tensors["B_OR"],
            tensors["A_RI"],
            hyperparameters_at(place, injection.hyper, injection.patterns)["alpha"],
        )
        scale = self.scale(alpha, len(A_RI))
        if "A0_RI" in tensors:
            B_OR, A_RI = torch.cat([B_OR, -tensors["B0_OR"]], dim=1), torch.cat([A_RI, tensors["A0_RI"]])
            alpha = None
        return LowRankUpdate(place, B_OR, A_RI, scale, alpha, tensors.get(self.magnitude))

    def write(self, pieces: list[LowRankUpdate], dropout: float) -> Packed:
        """ValueError where PEFT does not adapt one of the layers."""
        groups: dict[str, list[LowRankUpdate]] = {}
        for piece in pieces:
            groups.setdefault(piece.place.whole or piece.place.name, []).append(piece)
        whole = [joined(parts) for parts in groups.values()]
        packed = [self._module(piece) for piece in whole if not stacks.stacked(piece.place)]
        packed += self._stacks([piece for piece in whole if stacks.stacked(piece.place)])
        modules = [one for one in packed if one.name == one.key]
        transposed = any(piece.place.host.kind == layers.TRANSPOSED for piece in whole)
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
        tensors = {f"{PREFIX}{one.key}.{short}": t for one in packed for short, t in one.tensors.items()}
        return Packed(config, tensors, [])

    def _module(self, piece: LowRankUpdate) -> One:
        name, host = piece.place.name, piece.place.host
        layers.check(name, host)
        if self.magnitude:
            check_norms(name, host, piece)
        B_OR, A_RI = no_wider(piece.B_OR, piece.A_RI)
        rank = len(A_RI) * layers.width(host)
        alpha = piece.alpha if rank == len(piece.A_RI) else None
        alpha = self.alpha(piece.scale, rank) if alpha is None else number(alpha)
        return One(name, name, layers.write(host, layers.LayerFactors(B_OR, A_RI, piece.m_O)), rank, alpha)

    def _stacks(self, pieces: list[LowRankUpdate]) -> Iterator[One]:
        """One for each parameter that stacks experts: those not adapted get zeros, lesser ranks too."""
        groups: dict[str, list[LowRankUpdate]] = {}
        for piece in pieces:
            groups.setdefault(piece.place.tensor, []).append(piece)
        for tensor, own in groups.items():
            if self.magnitude:
                raise ValueError(f"{tensor} stacks experts, for which PEFT has plain LoRA alone")
            host: Any = own[0].place.host
            beside = [t for t in groups if t.rpartition(".")[0] == tensor.rpartition(".")[0]]
            thin = [no_wider(piece.B_OR, piece.A_RI) for piece in own]
            rank = max(len(A_RI) for _, A_RI in thin)
            pairs = {
                piece.place.host.expert: (B_OR * (piece.scale / own[0].scale), A_RI)  # type: ignore[attr-defined]
                for piece, (B_OR, A_RI) in zip(own, thin, strict=True)
            }
            alpha = self.alpha(own[0].scale, rank)
            yield One(tensor, stacks.keys(beside, host)[tensor], stacks.write(host, pairs, rank), rank, alpha)

    def from_peft(self, saved: Saved, model: nn.Module) -> Unpacked:
        known = {place.name: place for place in places(model)}
        ranks: dict[str, int] = {}
        alphas: dict[str, float] = {}
        state: dict[str, Tensor] = {}
        root, start = bool(saved.config.get("use_rslora")), _start(saved)
        experts = stacks.resolve(saved, known)
        for module, own in experts.items():
            rank, alpha = rank_and_alpha(saved, own[0].tensor)
            pairs = stacks.read(module, own[0].host, saved.modules[module], rank)
            for place, (B, A) in zip(own, pairs, strict=True):
                B_OR, A_RI = no_wider(B, A)
                ranks[place.name], scale = len(A_RI), LoraFormat(root).scale(alpha, rank)
                alphas[place.name] = (
                    self.alpha(scale, len(A_RI)) if root != self.root or len(A_RI) != rank else alpha
                )
                state |= {f"{place.name}.A_RI": A_RI, f"{place.name}.B_OR": B_OR}
        for module, tensors in saved.modules.items():
            if module in experts:
                continue
            host = known[module].host
            layers.check(module, host)
            rank, alpha = rank_and_alpha(saved, module)
            pair = layers.read(module, host, tensors, bool(self.magnitude))
            _check_rank(module, rank, len(pair.A_RI), host)
            B_OR, A_RI = no_wider(pair.B_OR, pair.A_RI)
            ranks[module] = len(A_RI)
            scale = LoraFormat(root).scale(alpha, rank)
            same = root == self.root and len(A_RI) == rank
            alphas[module] = alpha if same else self.alpha(scale, len(A_RI))
            if start:
                _check_start(module, start, host)
            state |= {f"{module}.A_RI": A_RI, f"{module}.B_OR": B_OR}
            state |= {} if pair.m_O is None else {f"{module}.{self.magnitude}": pair.m_O}
        hyper: dict[str, Any] = {
            "lora_dropout": 0.0 if start else float(saved.config.get("lora_dropout") or 0.0)
        }
        hyper |= {"init": start} if start else {}
        rules, patterns = spread(rank=ranks, alpha=alphas)
        return Unpacked(hyper | rules, patterns, [known[name] for name in ranks], state, bool(start))


def _check_rank(module: str, configured: int, found: int, host: Host) -> None:
    if configured not in {found, found * layers.width(host)}:
        raise ValueError(f"{module}: its tensors have rank {found}, the configuration says {configured}")


def _start(saved: Saved) -> str:
    """The residual start that PEFT repeats on loading, or "". ValueError for one that it cannot repeat."""
    start = str(saved.config.get("init_lora_weights", True)).lower()
    if start in {"loftq", "corda"}:
        raise ValueError(
            f"init_lora_weights={start}: PEFT changes the base on loading by data that is not in the folder"
        )
    return start if start.startswith(RESIDUAL) else ""


def _check_start(module: str, start: str, host: Host) -> None:
    allowed = (layers.LINEAR,) if start == "olora" else (layers.LINEAR, layers.TRANSPOSED)
    if host.kind not in allowed:
        raise ValueError(f"init_lora_weights={start} on {module}, a {host.kind}, does not work in PEFT")

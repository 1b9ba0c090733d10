"""The interface of every variant: a pure map from the frozen matrix W to the effective matrix W' = weight(W).

Forward, merging, ΔW = W' - W, spectra, export, parameter counts and nearly all tests follow from `weight`; a
variant overrides `forward` only to compute the same value faster.
Shapes: O out, I in, R rank; W is (O, I) whatever the layer's own layout.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lora_zoo.adapters import inits, kernels, targets
from lora_zoo.adapters.hosts import Host, LayerHost, at_least_float32, uncast
from lora_zoo.adapters.kernels import Pair
from lora_zoo.adapters.method import Method
from lora_zoo.adapters.places import Place, places
from lora_zoo.adapters.randomness import Clock, Dropout


@dataclass(frozen=True)
class Site:
    """Where an adapter sits, and all that it may know: its draws depend on `name` and `seed` alone."""

    name: str
    host: Host
    seed: int
    clock: Clock
    shared: nn.Module | None = None

    @property
    def shape(self) -> tuple[int, int]:
        O, I = self.host.matrix().shape
        return O, I

    def dropout(self, p: float) -> Dropout:
        """Dropout with masks of this site's own. ValueError unless 0 <= p < 1, 0 where there is no input."""
        if p and not self.host.sees_input:
            raise ValueError(
                f"lora_dropout={p} has no meaning on {self.name}: its module reads the weight by itself, "
                "so that the adapter never sees the input; use lora_dropout=0 or exclude_modules"
            )
        return Dropout(p, seed=self.seed, name=self.name, clock=self.clock)


class Plan(NamedTuple):
    """What a variant does to a model: matrices that get an adapter, parameters that train as they are.

    `missed` says, a sentence each, which targets match nothing.
    """

    adapted: list[Place]
    in_full: list[str]
    missed: Sequence[str] = ()


class Variant(ABC):
    """Anything that the registry holds, from a matrix's adapter to full fine-tuning."""

    name: ClassVar[str]
    paper: ClassVar[str]
    equation: ClassVar[str]
    count: ClassVar[str]
    """Trainable parameters per adapted matrix, as an expression in O, I, R and the hyperparameters."""
    mergeable: ClassVar[bool] = True
    refuses: ClassVar[Mapping[str, str]] = {}
    """A host's `kind` -> why this variant has no meaning on it."""
    inits: ClassVar[Sequence[str]] = ()
    method: ClassVar[type[Method]] = Method

    @classmethod
    @abstractmethod
    def plan(cls, model: nn.Module, asked: targets.Targets, in_full: Sequence[str] | None) -> Plan:
        """Resolve what the user asked for against `model`. ValueError where nothing could be done.

        `in_full` names the parameters of `modules_to_save`; None where none were asked for.
        """

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int | None:
        """The greatest rank that a matrix (O, I) takes; None where there is no such limit."""
        return None

    @classmethod
    def allows(cls, init: str) -> bool:
        return init in cls.inits or (bool(inits.ITERATED.fullmatch(init)) and "pissa_niter" in cls.inits)


class Adapter(nn.Module, Variant):
    """One adapted matrix. A subclass's keyword-only arguments are its hyperparameters."""

    def __init__(self, site: Site) -> None:
        super().__init__()

    @classmethod
    def plan(cls, model: nn.Module, asked: targets.Targets, in_full: Sequence[str] | None) -> Plan:
        known = places(model)
        chosen, missed = targets.choose(known, asked)
        if not chosen and not missed:
            raise ValueError(f"nothing is left to adapt of target_modules={asked.target_modules}")
        for place in chosen:
            if reason := cls.refuses.get(place.host.kind):
                raise ValueError(f"{cls.name} cannot adapt {place.name}, a {place.host.kind}: {reason}")
        if sentence := targets.overlooked(known, asked, chosen):
            warnings.warn(sentence, stacklevel=4)
        said = [targets.missing(model, known, *miss) for miss in missed]
        return Plan(chosen, list(in_full or ()), said)

    @abstractmethod
    def weight(self, W_OI: Tensor) -> Tensor:
        """The effective matrix (O, I): the paper's equation, pure in `W_OI` and the adapter's tensors."""

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        W_OI = host.matrix()
        with uncast(W_OI.device):
            effective_OI = self.weight(W_OI).to(W_OI.dtype)
        return host.apply(x, effective_OI)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """(B (O, R), A (R, I)) with ΔW = B A, the scale included; None where ΔW is no such product."""
        return None

    def law(self, W_OI: Tensor) -> None:
        """Assert what makes this variant itself (called by the conformance suite)."""


class Product(Adapter, ABC):
    """W' = W + B A for some `factors()`: the branch is two thin products beside the frozen layer."""

    dropout: Dropout

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]: ...

    def weight(self, W_OI: Tensor) -> Tensor:
        B_OR, A_RI = self.factors()
        return W_OI + B_OR @ A_RI

    def pairs(self) -> tuple[Pair, Pair | None]:
        """What `factors()` is made of: the product that learns, and a frozen one if there is any."""
        return Pair(*self.factors()), None

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        learning, frozen = self.pairs()
        if kernels.fits(host, x, *learning):
            return kernels.product(host, x, learning, frozen, self.dropout.mask(x))
        B_OR, A_RI = self.factors()
        y = host.base(x)
        return y + host.low_rank(host.dropped(x, self.dropout), B_OR, A_RI).to(y.dtype)


class LowRank(Adapter, ABC):
    """Owns trainable factors A (R, I) and B (O, R), their scale s, their start and the branch's dropout.

    A residual start (PiSSA and kin) also keeps its start factors A0, B0; the update is s (B A - B0 A0).
    """

    inits: ClassVar[Sequence[str]] = (*inits.INITS, *inits.CONTROLS, "pissa_niter")
    A0_RI: Tensor | None
    B0_OR: Tensor | None

    def __init__(self, site: Site, *, rank: int, scale: float, init: str, lora_dropout: float) -> None:
        super().__init__(site)
        if not 0 < abs(scale) < float("inf"):
            raise ValueError(f"the scale of {site.name} must be a number other than 0; alpha gave {scale}")
        self.rank, self.scale, self.init = rank, scale, start_for(type(self), init, site.host)
        begun, residual = inits.begin(
            self.init, site.host.matrix(), rank=rank, scale=scale, seed=site.seed, site=site.name
        )
        self.A_RI, self.B_OR = nn.Parameter(begun.A_RI), nn.Parameter(begun.B_OR)
        self.register_buffer("A0_RI", begun.A_RI.clone() if residual else None)
        self.register_buffer("B0_OR", begun.B_OR.clone() if residual else None)
        self.dropout = site.dropout(lora_dropout)
        if lora_dropout and residual:
            raise ValueError(
                f"lora_dropout={lora_dropout} would change the model at step 0 with the residual start "
                f"init={init}; use lora_dropout=0 with it"
            )

    @classmethod
    def largest_rank(cls, shape: tuple[int, int], hyper: Mapping[str, Any]) -> int | None:
        return min(shape)

    def pairs(self) -> tuple[Pair, Pair | None]:
        """The scaled (s B, A), and a residual start's (-s B0, A0)."""
        learning = Pair(self.scale * self.B_OR, self.A_RI)
        if self.A0_RI is None or self.B0_OR is None:
            return learning, None
        return learning, Pair(-self.scale * self.B0_OR, self.A0_RI)

    def branch(self) -> tuple[Tensor, Tensor]:
        """Thin (B, A), the scale and a residual start's own factors included."""
        learning, frozen = self.pairs()
        if frozen is None:
            return learning
        return torch.cat([learning.B_OR, frozen.B_OR], dim=1), torch.cat([learning.A_RI, frozen.A_RI])

    def update(self) -> Tensor:
        """s B A, less s B0 A0 where the start is residual: (O, I)."""
        B_OR, A_RI = self.branch()
        with uncast(A_RI.device):
            return B_OR @ A_RI

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}, init={self.init}"


class Additive(LowRank, Product, ABC):
    """LoRA's own form: the trainable product is added to W."""

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.branch()


class Baseline(Variant, ABC):
    """Trains the model's own parameters, or none, and adapts no matrix."""

    count: ClassVar[str] = ""


def start_for(cls: type[Variant], init: str, host: Host) -> str:
    """The start that `init` means on this kind of layer, where the variant allows it."""
    usual = host.starts.get(init, init)
    return usual if cls.allows(usual) else init


def trainable(W_OI: Tensor, shape: tuple[int, ...], fill: float = 0.0) -> nn.Parameter:
    """A constant trainable tensor on `W_OI`'s device, in float32 or wider."""
    return nn.Parameter(W_OI.new_full(shape, fill, dtype=at_least_float32(W_OI.dtype)))


__all__ = ["Adapter", "Additive", "Baseline", "LowRank", "Plan", "Product", "Site", "Variant", "trainable"]

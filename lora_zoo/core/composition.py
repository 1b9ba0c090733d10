"""Compositions: the tensor that several active adapters make together of one of the base's.

The tensor is a stored weight, a matrix, a bias or a layer's output. A member is found by its file in
`lora_zoo/compositions/` or by the entry point `lora_zoo.composition`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.hyperparameters import checked, keywords
from lora_zoo.core.registry import Registry
from lora_zoo.core.statistics import Statistics


class CompositionData(Protocol):
    """The data at which a composition looks before it composes."""

    model: nn.Module
    own: Mapping[str, Iterable[Mapping[str, Any]]]
    """Adapter -> batches of its own training examples, keyword arguments of the model."""

    def statistics(self, name: str, needs: Sequence[str]) -> Mapping[str, Statistics]:
        """Matrix -> statistics (`core.statistics`) of the model with the adapter `name` on its own data.

        Of every matrix that one of the adapters changes; one whose layer cannot have them is left out.
        """
        ...

    def loss(self, composition: "Composition") -> float:
        """The mean loss, over the examples to which one composes, of the model so composed."""
        ...

    def fit(
        self,
        composition: "Composition",
        learns: nn.Module,
        *,
        steps: int,
        lr: float,
        batch_size: int,
        seed: int,
    ) -> float:
        """Train the parameters of `learns`, a part of the composition, by that loss; return the last step's.

        The composition is active before, during and after it. AdamW without decay, at a constant rate.
        """
        ...


class Composition(ABC):
    """A way to compose the adapters called `names`; a subclass's keyword-only arguments are its options."""

    name: ClassVar[str]
    equation: ClassVar[str]
    of_outputs: ClassVar[bool] = True
    """True if it is linear in the changes: it then composes outputs as it composes weights. False: a layer's
    output is that of its composed matrices and bias, so that every adapter must have an effective weight."""
    of_factors: ClassVar[bool] = False
    """True if it composes the factors of ΔW = B A, which every adapter must have."""
    examples: ClassVar[str] = ""
    """The data that `prepare` looks at: "own" (each adapter's), a split ("train", "validation") of those to
    which one composes, or "" for none."""

    looks_at: ClassVar[int] = 0
    """How many of these examples, where no number is asked for."""
    routes: ClassVar[bool] = False
    """True if the input decides (`RoutedComposition`): no composed weight can be read, merged or exported."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.handles = tuple(names), list[RemovableHandle]()

    def require_weight(self, action: str) -> None:
        """Raise ValueError, saying that `action` is impossible, where the input decides."""
        if self.routes:
            raise ValueError(
                f"{self.name} weighs adapters by the input, so that they have no one weight together: it "
                f"cannot be {action}"
            )

    def enter(self, model: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> None:
        """Begin to compose the adapters of `model`: stored tensor -> adapter -> its (host, adapter) pairs.

        ValueError where that is impossible.
        """
        self.leave()

    def leave(self) -> None:
        """Take out of the model what `enter` has put there."""
        while self.handles:
            self.handles.pop().remove()

    def leaves(self, name: str) -> bool:
        """True if a tensor that `name` alone adapts is just what that adapter makes of it."""
        return True

    def prepare(self, data: CompositionData) -> None:  # noqa: B027
        """Look at data, once, before anything is composed."""

    def learns(self, model: nn.Module, layers: Sequence[str]) -> nn.Module | None:
        """Make the part of it that trains, for adapters of these stored tensors; None where nothing does."""
        return None

    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors that it has learned, beside its options; {} where it learns nothing."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the `tensors` of one with the same options. ValueError where they do not fit."""
        if tensors:
            raise ValueError(f"{self.name} learns nothing; got {min(tensors)}")

    def notes(self) -> list[str]:
        """Sentences on what has been composed: an error, a size, weights that were found."""
        return []

    def matrix(self, W_OI: Tensor, adapters: Mapping[str, Adapter], place: str) -> Tensor:
        """The composed matrix (O, I) called `place`; `adapters` are the active ones on it."""
        changed = {name: adapter.weight(W_OI) for name, adapter in adapters.items()}
        return self.combined(W_OI, changed, place)

    def combined(self, base: Tensor, changed: Mapping[str, Tensor], place: str) -> Tensor:
        """`combine`, or the only change where it stays as it is."""
        first = next(iter(changed))
        if len(changed) == 1 and self.leaves(first):
            return changed[first]
        return self.combine(base, changed, place)

    def route(self, layer: str, x: Tensor, names: Sequence[str]) -> Tensor | None:
        """The weights (…, K) of the K adapters `names` at each position of the output; None: the base alone.

        Asked where it `routes`. `layer` is the name of the stored tensor, `x` the layer's input.
        """
        return None

    @abstractmethod
    def combine(self, base: Tensor, changed: Mapping[str, Tensor], place: str) -> Tensor:
        """The composed tensor, in the shape of `base`; `place` is the name of the tensor.

        `changed` maps each active adapter that adapts it, in the order of activation, to `base` as that
        adapter alone would have it; where an adapter adapts a part, the rest is as in `base`.
        """


class RoutedComposition(Composition):
    """y = base + Σ wₖ(x) (yₖ - base): the weights of the adapters differ from position to position."""

    routes = True

    def leaves(self, name: str) -> bool:
        return False

    def combine(self, base: Tensor, changed: Mapping[str, Tensor], place: str) -> Tensor:
        self.require_weight("read as a tensor")
        return base

    @abstractmethod
    def route(self, layer: str, x: Tensor, names: Sequence[str]) -> Tensor | None: ...


COMPOSITIONS: Registry[type[Composition]] = Registry("composition", "lora_zoo.compositions", attribute="name")
register = COMPOSITIONS.register


def composition_of(
    chosen: str | Composition | None, names: Sequence[str], options: Mapping[str, Any]
) -> Composition:
    """The composition that was asked for; by default `weighted_sum` where there are weights, else `sum`.

    ValueError for a name or an option that does not exist, and for a wrong value.
    """
    if isinstance(chosen, Composition):
        return chosen
    name = chosen or ("weighted_sum" if "weights" in options else "sum")
    cls = COMPOSITIONS.find(name)
    return cls(names, **checked(name, keywords(cls), options))

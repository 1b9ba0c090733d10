"""Frozen adapters of earlier runs as one model: composed as they are, or by a router that trains."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lora_zoo.core.adapter import Baseline
from lora_zoo.core.composition import COMPOSITIONS, Composition, composition_of
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.hyperparameters import keywords
from lora_zoo.core.variants import register
from lora_zoo.injection.adapter_set import adapters_of

FITTED = ("steps", "lr", "batch_size")
"""Options of a composition that trains itself; in a run they are the run's own."""


class Together(nn.Module):
    """A composition and, as a submodule, what it learns."""

    def __init__(self, composition: Composition, learned: nn.Module | None) -> None:
        super().__init__()
        self.composition, self.learned = composition, learned


class ComposedHooks(AdapterHooks):
    needs_priors = True
    common: Together | None

    def __init__(
        self,
        adapters: Mapping[str, Any],
        *,
        composition: str = "average",
        weight: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(adapters)

    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> nn.Module | None:
        prior, model = hyper["prior"], hyper["model"]
        made = chosen(hyper, prior, seed)
        if not prior:
            return None
        below = adapters_of(model)
        layers = dict.fromkeys(m.tensor for name in prior for m in below[name].matrices.values())
        return Together(made, made.learns(model, [*layers]))

    def composition(self) -> Composition | None:
        if self.common is None:
            return None
        found = self.common.composition
        if hasattr(found, "seen"):
            found.seen = self._seen
        return found

    def _seen(self, weights: Mapping[str, Tensor]) -> None:
        """Note what a pass weighs each adapter, as a share of all."""
        if self.counter.routing is not None:
            for layer, weights_BLK in weights.items():
                w_TK = self.counter.tokens(weights_BLK)
                share_TK = w_TK / w_TK.sum(-1, keepdim=True).clamp_min(1e-12)
                self.counter.routing.add(layer or "all layers", share_TK)


@register("composed")
class Composed(Baseline):
    """The prior adapters as a composition of `lora_zoo.compositions` has them, in one run with its record.

    `weight` is that of every adapter: the composition's `weights`, or the `scale` of a router; `options` are
    its others. Nothing trains, but for what the composition learns by gradients (X-LoRA's classifier).
    """

    paper = "-"
    equation = "W' = W composed with its prior adapters"
    identity_at_start = False
    hooks = ComposedHooks


def chosen(hyper: Mapping[str, Any], names: Sequence[str], seed: int) -> Composition:
    """The composition that was asked for. ValueError for options that it has not, or that are the run's."""
    name, weight, options = str(hyper["composition"]), hyper["weight"], dict(hyper["options"] or {})
    cls = COMPOSITIONS.find(name)
    known = keywords(cls)
    if cls.examples and cls.learns is Composition.learns:
        raise ValueError(f"composed: {name} looks at data first; use python -m lora_zoo.compose --by {name}")
    if wrong := [key for key in FITTED if key in options and key in known]:
        raise ValueError(f"composed: {wrong[0]} of {name} is the run's own; give it as {wrong[0]}=…")
    if weight is not None and not known.keys() & {"weights", "scale"}:
        raise ValueError(f"composed: {name} takes no weight; got weight={weight}")
    of_all = {"weights": [weight] * len(names)} if "weights" in known else {"scale": weight}
    own = {"seed": seed} if "seed" in known else {}
    return composition_of(name, names, own | options | ({} if weight is None else of_all))

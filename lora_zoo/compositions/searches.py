"""Weights that are searched for, by the loss on examples of what the adapters are composed for."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Literal

from torch import Tensor

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.composition import COMPOSITIONS, Composition, CompositionData, register

Objective = Callable[[Sequence[float]], float]


class Searched(Composition, ABC):
    """A composition by weights, the weights found in `prepare`."""

    of: ClassVar[str] = "weighted_sum"
    """The composition that takes them."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._found: Composition | None = None
        self.options: dict[str, float] = {}
        """Those of the composition that takes the weights."""
        self.weights: tuple[float, ...] = ()
        self.value, self.evaluations = float("nan"), 0

    def prepare(self, data: CompositionData) -> None:
        seen: list[tuple[float, tuple[float, ...]]] = []

        def objective(weights: Sequence[float]) -> float:
            seen.append((self.objective(data, tuple(map(float, weights))), tuple(map(float, weights))))
            return seen[-1][0]

        self.search(objective)
        self.value, self.weights = min(seen) if seen else (float("nan"), (0.0,) * len(self.names))
        self.evaluations, self._found = len(seen), self.with_weights(self.weights)

    def objective(self, data: CompositionData, weights: tuple[float, ...]) -> float:
        """The number that the weights are to make small."""
        return data.loss(self.with_weights(weights))

    @abstractmethod
    def search(self, objective: Objective) -> None:
        """Call `objective` with one weight for each name; the best that it was called with are taken."""

    def with_weights(self, weights: Sequence[float]) -> Composition:
        made: Callable[..., Composition] = COMPOSITIONS.find(self.of)
        return made(self.names, weights=weights, **self.options)

    @property
    def found(self) -> Composition:
        if self._found is None:
            raise ValueError(f"{self.name} looks at data: prepare it before it is used")
        return self._found

    def leaves(self, name: str) -> bool:
        return self.found.leaves(name)

    def matrix(self, W_OI: Tensor, adapters: Mapping[str, Adapter], place: str) -> Tensor:
        return self.found.matrix(W_OI, adapters, place)

    def combine(self, base: Tensor, changed: Mapping[str, Tensor], place: str) -> Tensor:
        return self.found.combine(base, changed, place)

    def notes(self) -> list[str]:
        own = ", ".join(f"{w:.4g} of {name}" for name, w in zip(self.names, self.weights, strict=True))
        return [
            f"weights {own} (objective {self.value:.4g}, the best of {self.evaluations})",
            *self.found.notes(),
        ]


class Hub(Searched):
    """LoRAHub's search: min over |w_i| <= bound of the loss + penalty · mean|w_i|, from w = 0.

    `optimizer`: NGOpt of nevergrad, as the authors (`pip install "lora_zoo[lorahub]"`), or Nelder and Mead's
    simplex of scipy. The best weights that were tried are taken; at budget 0 it is the base.
    """

    examples, looks_at = "train", 5

    def __init__(
        self,
        names: Sequence[str],
        *,
        budget: int = 40,
        bound: float = 1.5,
        penalty: float = 0.05,
        optimizer: Literal["nevergrad", "scipy"] = "nevergrad",
        seed: int = 42,
    ) -> None:
        super().__init__(names)
        if budget < 0 or bound <= 0:
            raise ValueError(f"budget must be at least 0 and bound above 0; got {budget} and {bound}")
        self.budget, self.bound, self.penalty, self.seed = budget, bound, penalty, seed
        self.minimise = {"nevergrad": by_nevergrad, "scipy": by_simplex}[optimizer]

    def objective(self, data: CompositionData, weights: tuple[float, ...]) -> float:
        return super().objective(data, weights) + self.penalty * sum(map(abs, weights)) / len(weights)

    def search(self, objective: Objective) -> None:
        if self.budget:
            self.minimise(objective, len(self.names), self.bound, self.budget, self.seed)


@register("lorahub")
class LoRAHub(Hub):
    """LoRAHub (Huang et al., 2023), arXiv:2307.13269, on ΔW: a few examples of a new task choose weights."""

    equation = "W' = W + Σ w_i ΔW_i, w by black-box search"


@register("lorahub_of_factors")
class LoRAHubOfFactors(Hub):
    """LoRAHub as published: the weights are on A and on B, so that there are cross terms B_i A_j."""

    equation = "W' = W + (Σ w_i s_i B_i)(Σ w_i A_i), w by black-box search"
    of_outputs, of_factors = False, True
    of = "sum_of_factors"


@register("lorahub_of_compeft")
class LoRAHubOfComPEFT(Hub):
    """LoRAHub's search over adapters as ComPEFT keeps them: signs, zeros and one number each."""

    equation = "W' = W + Σ w_i scale std(ΔW_i) sign(top_density(ΔW_i)), w by black-box search"
    of_outputs = False
    of = "compeft"

    def __init__(
        self, names: Sequence[str], *, density: float = 0.2, scale: float = 1.0, **hyper: Any
    ) -> None:
        super().__init__(names, **hyper)
        self.options = {"density": density, "scale": scale}


@register("controlpe")
class ControlPE(Searched):
    """ControlPE (Sun et al., 2023), arXiv:2311.09773: one weight for all, the best of a grid on validation.

    The grid has `points` from 0 to `bound`; the paper turns the weight by hand, so that a grid is ours.
    """

    equation = "W' = W + w Σ ΔW_i, w by a grid"
    examples, looks_at = "validation", 64

    def __init__(self, names: Sequence[str], *, bound: float = 1.5, points: int = 16) -> None:
        super().__init__(names)
        if points < 2:
            raise ValueError(f"points must be at least 2; got {points}")
        self.grid = [bound * point / (points - 1) for point in range(points)]

    def search(self, objective: Objective) -> None:
        for weight in self.grid:
            objective([weight] * len(self.names))


def by_nevergrad(objective: Objective, n: int, bound: float, budget: int, seed: int) -> None:
    """NGOpt on n numbers from 0 in [-bound, bound]. ValueError where nevergrad is not installed."""
    try:
        nevergrad = import_module("nevergrad")
    except ImportError as error:
        raise ValueError(
            "optimizer=nevergrad is not installed: pip install 'lora_zoo[lorahub]', or use optimizer=scipy"
        ) from error
    space = nevergrad.p.Array(init=[0.0] * n, lower=-bound, upper=bound)
    space.random_state.seed(seed)
    nevergrad.optimizers.NGOpt(parametrization=space, budget=budget).minimize(objective)


def by_simplex(objective: Objective, n: int, bound: float, budget: int, seed: int) -> None:
    """Nelder and Mead's simplex, which draws nothing: its first corners are 0 and bound/2 on each axis."""
    start = [0.0] * n
    corners = [start, *([bound / 2 * (other == axis) for other in range(n)] for axis in range(n))]
    options = {"maxfev": budget, "initial_simplex": corners, "xatol": 1e-3, "fatol": 1e-6}
    bounds = [(-bound, bound)] * n
    minimize = import_module("scipy.optimize").minimize
    minimize(objective, start, method="Nelder-Mead", bounds=bounds, options=options)

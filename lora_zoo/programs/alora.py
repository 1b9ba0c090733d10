"""ALoRA: Allocating Low-Rank Adaptation for Fine-tuning Large Language Models (Liu et al., NAACL 2024)."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import islice
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_zoo.core.adapter import Variant
from lora_zoo.core.components import inherit, masked, tensors_of
from lora_zoo.core.init import find_init
from lora_zoo.core.program import ProgramContext, Stage, register
from lora_zoo.core.train_eval import in_mode
from lora_zoo.core.variants import VARIANTS
from lora_zoo.programs.rounds import lengths, stage_seed


class Component(NamedTuple):
    """The component of this number in the adapter of a matrix."""

    matrix: str
    number: int


@register("alora")
def alora(
    context: ProgramContext,
    *,
    first: float = 1 / 3,
    rounds: int = 8,
    moved: float = 0.125,
    examples: int = 32,
) -> Generator[Stage, Any, None]:
    """Training by rounds, each of which moves ranks from where they matter least; their sum never changes.

    `first` is the share of the steps before the first round, the others share the rest (the paper's epoch and
    8 quarters). A round prunes the share `moved` of all components (the paper: one of 8 a matrix), those that
    matter least on `examples` training examples, where the paper takes validation examples, and gives as many
    new ones to matrices that lost none. Each round has new moments and a schedule of its own. Raises
    ValueError for numbers that do not fit, and for a variant whose ranks cannot move.

    No source settles these: the sum of ranks goes on where every matrix has lost some (all that are left take
    part), a matrix without a component left has no adapter any more, and new ones go in turns to the matrices
    in the order of their mean importance, up to the smaller side of each.
    """
    if not (0 < first < 1 and 1 <= rounds < context.steps and 0 < moved < 1 and examples >= 1):
        needs = f"needs 0 < first < 1, 1 <= rounds < {context.steps} steps, 0 < moved < 1 and examples >= 1"
        raise ValueError(f"alora: {needs}; got {first}, {rounds}, {moved} and {examples}")
    _refuse_unfit(context)
    start = context.steps_of(first, left=rounds)
    learned = yield Stage(start, then="discard")
    for number, steps in enumerate(lengths(context.steps - start, rounds), start=1):
        scores = importances(learned, [*islice(context.examples(), examples)])
        kept, ranks = reallocated(scores, round(moved * len(scores)), _limits(learned))
        learned = yield Stage(
            steps,
            {"seed": stage_seed("alora", context, number), **_sizes(learned, ranks)},
            then="discard" if number < rounds else "keep",
            start=_taking_over(learned, kept),
        )


def _refuse_unfit(context: ProgramContext) -> None:
    variant, init = VARIANTS.find(context.variant), context.hyper.get("init", "auto")
    able = [name for name, cls in VARIANTS.items() if _has_plain_components(cls)]
    if variant.name not in able:
        raise ValueError(f"alora moves ranks, and those of {variant.name} cannot; can: {', '.join(able)}")
    if init != "auto" and not find_init(init).zero:
        raise ValueError(f"alora: new components must begin at zero, and init={init} does not; use kaiming")


def _has_plain_components(variant: type[Variant]) -> bool:
    """True if its components are LoRA's: columns of B and rows of A alone."""
    return getattr(variant, "components", None) is getattr(VARIANTS.find("lora"), "components", 0)


@torch.no_grad()
def importances(learned: Any, examples: Sequence[Mapping[str, Tensor]]) -> dict[Component, float]:
    """The paper's IS(r) = S(M) - S(M∖r) + S(M_r), S minus the mean loss of the examples.

    M∖r lacks the component r, M_r has no other one. Components that are zero score S of the base, all alike.
    """
    adapters = learned.adapters
    sizes = {name: adapter.components() for name, adapter in adapters.items()}

    def score() -> float:
        return -math.fsum(float(learned.model(**example).loss) for example in examples) / len(examples)

    def without(keep: Callable[[Component], bool]) -> float:
        masks = {n: torch.tensor([keep(Component(n, i)) for i in range(R)]) for n, R in sizes.items()}
        with masked(adapters, masks):
            return score()

    every = [Component(name, number) for name, R in sizes.items() for number in range(R)]
    with in_mode(learned.model, training=False):
        whole = score()
        return {own: whole - without(own.__ne__) + without(own.__eq__) for own in every}


def reallocated(
    scores: Mapping[Component, float], pruned: int, limits: Mapping[str, int]
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """The components that each matrix keeps, and the rank that it then has; the sum of ranks stays.

    Of equal scores the last components of their matrices go first, in the order of the matrices. One is left
    at least. `limits` are the matrices' greatest ranks.
    """
    order = sorted(scores, key=lambda own: (scores[own], -own.number))  # a stable sort
    gone = set(order[: min(pruned, len(order) - 1)])
    kept: dict[str, list[int]] = {}
    for own in scores:
        if own not in gone:
            kept.setdefault(own.matrix, []).append(own.number)
    losers = {own.matrix for own in gone}
    best = sorted(kept, key=lambda name: -fmean(scores[Component(name, n)] for n in kept[name]))
    takers = [name for name in best if name not in losers]
    ranks, left = {name: len(numbers) for name, numbers in kept.items()}, len(gone)
    for name in takers * left + best * left:
        if left and ranks[name] < limits[name]:
            ranks[name], left = ranks[name] + 1, left - 1
    return kept, ranks


def _limits(learned: Any) -> dict[str, int]:
    return {name: min(matrix.shape) for name, matrix in learned.matrices.items()}


def _sizes(learned: Any, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Arguments of `inject` for these ranks: the scale of each matrix stays as it is."""
    of = learned.adapters
    alphas = {name: of[name].scale / of[name].scaling(1.0, rank) for name, rank in ranks.items()}
    exact = {"target_modules": list(ranks), "layers": None, "budget": None}
    return {**exact, "rank_pattern": dict(ranks), "alpha_pattern": alphas}


def _taking_over(learned: Any, kept: Mapping[str, Sequence[int]]) -> Callable[[Any], None]:
    """The function that puts what is kept of the adapters into the first places of greater ones."""
    before = {
        name: {key: tensor.detach().clone() for key, tensor in tensors_of(learned.adapters[name]).items()}
        for name in kept
    }

    def take_over(stage: Any) -> None:
        for name, adapter in stage.adapters.items():
            inherit(adapter, before[name], torch.tensor(kept[name]))

    return take_over

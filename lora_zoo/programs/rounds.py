"""Rounds: trainings of equal length, each of which settles and begins anew (ReLoRA, COLA, XGBLoRA)."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.program import ProgramContext, Stage
from lora_zoo.core.seeding import derived_seed
from lora_zoo.core.variants import VARIANTS


def of_rank(who: str, context: ProgramContext, rank: int) -> dict[str, Any]:
    """Arguments of a stage of this rank, at the run's scale: alpha goes with it where it is a number.

    ValueError, in the name of `who`, for a variant without a rank.
    """
    if "rank" not in hyperparameters(VARIANTS.find(context.variant)):
        raise ValueError(f"{who} gives each stage a rank, and {context.variant} has none")
    alpha, usual = context.hyper.get("alpha"), context.hyper.get("rank")
    own: dict[str, Any] = {"rank": rank, "budget": None, "rank_pattern": {}}
    return own | ({"alpha": alpha * rank / usual} if isinstance(alpha, (int, float)) and usual else {})


def lengths(steps: int, rounds: int) -> list[int]:
    """`steps` divided among `rounds`, as evenly as whole numbers allow."""
    cuts = [steps * number // rounds for number in range(rounds + 1)]
    return [end - start for start, end in pairwise(cuts)]


def stage_seed(who: str, context: ProgramContext, number: int) -> int:
    """A seed for the stage of this number, from 1, of the program `who`."""
    return derived_seed(who, context.seed, number) % 2**32


def in_rounds(
    who: str,
    context: ProgramContext,
    rounds: int,
    *,
    inject: Callable[[int], Mapping[str, Any]] = lambda _: {},
    first: int = 0,
    name: str = "rounds",
    **each: Any,
) -> Iterator[Stage]:
    """`rounds` stages of new factors over the run's steps from `first` on; the last one is kept.

    The first has the run's seed, the others seeds of their own. `inject` gives arguments of a round by its
    number, from 1; `each` holds fields of every stage. ValueError, in the name of `who`, where a round would
    have no step (`name` is the key of their number), and for a variant that adapts nothing.
    """
    left = context.steps - first
    if not 1 <= rounds <= left:
        raise ValueError(f"{who}: {name} must lie between 1 and the {left} steps; got {rounds}")
    variant = VARIANTS.find(context.variant)
    if not variant.adapts:
        raise ValueError(f"{who} settles adapters, and {variant.name} adapts no matrix")
    for number, steps in enumerate(lengths(left, rounds), start=1):
        seed = stage_seed(who, context, number) if number > 1 else context.seed
        then = "settle" if number < rounds else "keep"
        yield Stage(steps, {"seed": seed, **inject(number)}, then=then, **each)  # type: ignore[arg-type]

"""AutoLoRA: Automatically Tuning Matrix Ranks in Low-Rank Adaptation Based on Meta Learning (Zhang et al.,
NAACL 2024).
"""

from collections.abc import Generator
from typing import Any, Literal

from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.program import ProgramContext, Stage, register
from lora_zoo.core.variants import VARIANTS

SEARCH = "autolora_search"


@register("autolora")
def autolora(
    context: ProgramContext, *, search: float = 0.5, search_rank: int | Literal["auto"] = "auto"
) -> Generator[Stage, Any, None]:
    """A search finds the rank of each matrix; then it is discarded, and the run's variant trains anew.

    `search` is the first stage's share of the steps. `search_rank` is the rank r that it starts from: auto is
    twice the run's, as about half of the weights lie above their mean 1/r. The rank of a matrix is the number
    of its weights that do; the official code counts the raw variables above their own mean, which are as many
    or more. As there, one alpha is divided by the rank of each. Raises ValueError for a share
    that is none, and for a variant without a rank.
    """
    steps = context.steps
    if not 0 < search < 1 or steps < 2 or (search_rank != "auto" and search_rank < 1):
        given = f"got {search}, {steps} and {search_rank}"
        raise ValueError(f"autolora: 0 < search < 1, steps >= 2 and search_rank >= 1 are needed; {given}")
    variant = VARIANTS.find(context.variant)
    if not variant.adapts or "rank" not in hyperparameters(variant):
        raise ValueError(f"autolora finds ranks of matrices, and {variant.name} has none")
    if search_rank == "auto" and "rank" not in context.hyper:
        raise ValueError("autolora: search_rank=auto is twice the run's rank; give rank= and no budget=")
    first = context.steps_of(search)
    rank = 2 * int(context.hyper["rank"]) if search_rank == "auto" else search_rank
    learned = yield Stage(first, {"rank": rank, "budget": None}, SEARCH, then="discard")
    found = {name: int(adapter.selected().sum()) for name, adapter in learned.adapters.items()}
    yield Stage(steps - first, {"rank_pattern": found, "budget": None}, then="keep")

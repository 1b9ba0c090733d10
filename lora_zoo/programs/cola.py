"""COLA, Chain of LoRA: Efficient Fine-tuning of Language Models via Residual Learning (Xia et al., 2024).

Not ColA (collaborative adaptation), nor GLUE's CoLA.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from lora_zoo.core.program import ProgramContext, Stage, register
from lora_zoo.programs.rounds import in_rounds


@register("cola")
def cola(
    context: ProgramContext, *, knots: int = 2, ranks: Sequence[int] = ()
) -> Generator[Stage, Any, None]:
    """§3: tune, tie the knot (ΔW settles), extend the chain by new factors: ΔW = Σ s_m B_m A_m, `knots` of them.

    All see the same data, each with a new optimiser and the trainer's schedule for itself; the paper does
    not say whether its linear decay begins again. `ranks` gives a rank to each (the paper steps down from 8),
    with the run's alpha. A chain of one is the plain run. Raises ValueError where a knot would have no step,
    and for ranks that are not one a knot.
    """
    if ranks and len(ranks) != knots:
        raise ValueError(f"cola: ranks must name one rank for each of {knots} knots; got {list(ranks)}")

    def rank_of(knot: int) -> Mapping[str, Any]:
        return {"rank": ranks[knot - 1], "budget": None} if ranks else {}

    yield from in_rounds("cola", context, knots, rank_of, name="knots")

"""COLA, Chain of LoRA: Efficient Fine-tuning of Language Models via Residual Learning (Xia et al., 2024).

Not ColA (collaborative adaptation), nor GLUE's CoLA.
"""

from collections.abc import Generator, Sequence
from typing import Any

from lora_zoo.core.program import ProgramContext, Stage, register
from lora_zoo.programs.rounds import in_rounds, of_rank


@register("cola")
def cola(
    context: ProgramContext, *, knots: int = 2, ranks: Sequence[int] = ()
) -> Generator[Stage, Any, None]:
    """§3: tune, tie the knot (ΔW settles), extend the chain by new factors: ΔW = Σ s B_m A_m over the knots.

    All see the same data, each with a new optimiser and the trainer's schedule for itself: no source settles
    if the paper's linear decay begins again. `ranks` gives each a rank (the paper steps down from 8) at the
    run's scale. A chain of one is the plain run. Raises ValueError where a knot would have no step, and for
    ranks that are not one a knot.
    """
    if ranks and len(ranks) != knots:
        raise ValueError(f"cola: ranks must name one rank for each of {knots} knots; got {list(ranks)}")

    own = [of_rank("cola", context, rank) for rank in ranks] or [{}] * knots
    yield from in_rounds("cola", context, knots, inject=lambda knot: own[knot - 1], name="knots")

"""XGBLoRA, Less is More: Extreme Gradient Boost Rank-1 Adaption for Efficient Finetuning of LLMs (2024)."""

from collections.abc import Generator
from typing import Any

from lora_zoo.core.program import ProgramContext, Stage, register
from lora_zoo.programs.rounds import in_rounds, of_rank


@register("xgblora")
def xgblora(
    context: ProgramContext, *, rounds: int = 8, layers: int = 0, rank: int = 1
) -> Generator[Stage, Any, None]:
    """Boosting: ΔW = Σ s b_t a_t, each round a learner of rank 1 in `layers` layers drawn at random.

    The ΔW of a matrix is of no higher rank than there are rounds that drew its layer. 0 layers stand for all;
    the paper's best is 11 of 32. A round takes few steps (κ = steps / rounds, which no source settles), at
    the run's scale, and its learner is added with step 1. The paper's penalty of the factors' norms is
    trainer.weight_decay. Raises ValueError where a round would have no step.
    """
    if layers < 0 or rank < 1:
        raise ValueError(f"xgblora: layers >= 0 and rank >= 1 are needed; got {layers} and {rank}")

    own = of_rank("xgblora", context, rank) | ({"layers": f"random:{layers}"} if layers else {})
    yield from in_rounds("xgblora", context, rounds, inject=lambda _: own)

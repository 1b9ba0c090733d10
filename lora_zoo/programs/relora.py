"""ReLoRA: High-Rank Training Through Low-Rank Updates (Lialin et al., ICLR 2024)."""

from collections.abc import Generator
from itertools import pairwise
from typing import Any

from lora_zoo.core.program import ProgramContext, Stage, register
from lora_zoo.core.seeding import derived_seed


@register("relora")
def relora(context: ProgramContext, *, rounds: int = 4) -> Generator[Stage, Any, None]:
    """ΔW = Σ s B_t A_t over rounds of new factors, so that rank(ΔW) <= rounds * r.

    Each round has new moments and warms up again; the schedule within it is the trainer's, where the paper's
    follows one cosine over all rounds. Raises ValueError where a round would have no step.
    """
    if not 1 <= rounds <= context.steps:
        raise ValueError(f"relora: rounds must lie between 1 and the {context.steps} steps; got {rounds}")
    cuts = [context.steps * number // rounds for number in range(rounds + 1)]
    for number, (start, end) in enumerate(pairwise(cuts), start=1):
        seed = derived_seed("relora", context.seed, number) % 2**32 if number > 1 else context.seed
        yield Stage(end - start, {"seed": seed}, then="settle" if number < rounds else "keep")

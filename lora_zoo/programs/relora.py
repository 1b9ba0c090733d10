"""ReLoRA: High-Rank Training Through Low-Rank Updates (Lialin et al., ICLR 2024)."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any, Literal

from lora_zoo.core.program import ProgramContext, Pruning, Stage, register
from lora_zoo.programs.rounds import in_rounds


@register("relora")
def relora(
    context: ProgramContext,
    *,
    rounds: int = 4,
    schedule: Literal["own", "jagged"] = "own",
    rewarm_steps: int = 10,
    reset: Literal["full", "magnitude", "random"] = "full",
    pruned: float = 0.9,
    warm_start: float = 0.0,
    warm_start_rate: float = 0.5,
) -> Generator[Stage, Any, None]:
    """ΔW = Σ s B_t A_t over rounds of new factors, so that rank(ΔW) <= rounds * r.

    `schedule=own`: each round has the trainer's schedule for itself. `jagged`, as in the paper: all rounds
    follow one, with the trainer's warm-up before it, and after each cut the rate rises from 0 to it in
    `rewarm_steps`. The paper's ends at a tenth of the rate (lr_scheduler_type=cosine_with_min_lr).
    `reset=full` gives each round a new optimiser. With `magnitude` or `random` the moments of the factors go
    on, less the share `pruned` of the smallest entries or of a draw; Adam's count of steps goes on with them.
    The official code has .999 at random, .8 or .9 of the smallest.
    `warm_start` is the share of the steps that full fine-tuning takes first, at `warm_start_rate` times the
    rate (the paper's 5,000 of 20,000 steps, at about half). What it learns has no low rank: the run's adapter
    then is every parameter.
    Raises ValueError where a round would have no step, or no more than its warm-up, and for shares of none.
    """
    if not 0 <= warm_start < 1 or not 0 < pruned < 1 or not warm_start_rate > 0:
        raise ValueError(
            "relora: 0 <= warm_start < 1, 0 < pruned < 1 and warm_start_rate > 0 are needed; "
            f"got {warm_start}, {pruned} and {warm_start_rate}"
        )
    first = min(max(round(warm_start * context.steps), 1), context.steps - 1) if warm_start else 0
    jagged = schedule == "jagged"
    left = Pruning(reset, pruned) if reset != "full" else None
    following = in_rounds("relora", context, rounds, first=first, pruned=left)
    stages = list(following)
    if first:
        stages.insert(0, Stage(first, {"budget": None}, "full", rate=warm_start_rate))
    if jagged and not 0 <= rewarm_steps < min(stage.steps for stage in stages):
        least = min(stage.steps for stage in stages)
        raise ValueError(
            f"relora: rewarm_steps must lie between 0 and the {least} steps of a round, less one; "
            f"got {rewarm_steps}"
        )
    for number, stage in enumerate(stages):
        warm = (rewarm_steps if number else 0) if jagged else None
        yield replace(stage, rewarm=warm)

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
    reset: Literal["new", "magnitude", "random"] = "new",
    pruned: float = 0.9,
    warm_start: float = 0.0,
    warm_start_rate: float = 0.5,
) -> Generator[Stage, Any, None]:
    """ΔW = Σ s B_t A_t over rounds of new factors, so that rank(ΔW) <= rounds * r.

    `schedule=own`: each round has the trainer's schedule for itself. `jagged`, as in the paper: all rounds
    follow one, with the trainer's warm-up before it, and after each cut the rate rises from 0 to it in
    `rewarm_steps`, fewer than a round has. The paper's ends at a tenth of the rate (cosine_with_min_lr).
    `reset=new` gives each round a new optimiser. With `magnitude` or `random` the moments of the factors go
    on, less the share `pruned` of the smallest entries or of a draw; Adam's count of steps goes on with them.
    The official code has .999 at random, .8 or .9 of the smallest.
    `warm_start` is the share of the steps that full fine-tuning takes first, at `warm_start_rate` times the
    rate (the paper's 5,000 of 20,000 steps, at about half). What it learns has no low rank: the run's adapter
    then is every parameter.
    Raises ValueError where a round would have no step after its warm-up, and for shares that are none.
    """
    first = context.steps_of(warm_start) if warm_start else 0
    left = Pruning(reset, pruned) if reset != "new" else None
    stages = list(in_rounds("relora", context, rounds, first=first, pruned=left))
    if first:
        stages.insert(0, Stage(first, {"budget": None}, "full", rate=warm_start_rate))
    least = min((stage.steps for stage in stages[1:]), default=rewarm_steps + 1)
    if not 0 <= warm_start < 1 or not 0 < pruned < 1 or not warm_start_rate > 0:
        needs = "0 <= warm_start < 1, 0 < pruned < 1 and warm_start_rate > 0"
        raise ValueError(f"relora needs {needs}; got {warm_start}, {pruned} and {warm_start_rate}")
    if schedule == "jagged" and not 0 <= rewarm_steps < least:
        raise ValueError(f"relora: rewarm_steps must lie between 0 and {least - 1}; got {rewarm_steps}")
    for number, stage in enumerate(stages):
        warm = rewarm_steps if number else 0
        yield replace(stage, rewarm=warm if schedule == "jagged" else None)

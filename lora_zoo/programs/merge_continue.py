"""Merge, then continue: one adapter on a first data set, a new one beside it on a second, with replay."""

from collections.abc import Generator
from typing import Any

import torch

from lora_zoo.core.program import ProgramContext, Rows, Stage, register
from lora_zoo.core.seeding import generator
from lora_zoo.programs.rounds import stage_seed


@register("merge_continue")
def merge_continue(
    context: ProgramContext,
    *,
    by: str = "",
    split: float = 0.5,
    first: float = 0.5,
    replay: float = 0.05,
    start: str = "",
    start_rate: float = 1.0,
) -> Generator[Stage, Any, None]:
    """ΔW = ΔW₁ + ΔW₂: the first learns from D₁ and settles, the second from D₂ and a share of D₁.

    D₁ are the training examples with the value that the first of them has in the column `by`; without one,
    the share `split` of them that comes first. `first` is D₁'s share of the steps, `replay` the share of its
    examples, drawn by the seed, that are in D₂ as well. `start` is another variant for D₁, at `start_rate`
    times the run's rate: with full fine-tuning, the run's adapter is every parameter. Raises ValueError for
    shares that are none, a column that the data lack, and where D₁ or D₂ would be empty.
    """
    if not (0 < first < 1 and 0 < split < 1 and 0 <= replay <= 1 and start_rate > 0 and context.steps > 1):
        needs = "0 < split < 1, 0 < first < 1, 0 <= replay <= 1, start_rate > 0 and two steps"
        given = f"{split}, {first}, {replay}, {start_rate} and {context.steps}"
        raise ValueError(f"merge_continue needs {needs}; got {given}")

    def replayed(rows: Rows) -> list[int]:
        old, new = _divided(rows, by, split)
        order = torch.randperm(len(old), generator=generator("replay", context.seed)).tolist()
        return new + [old[place] for place in order[: round(replay * len(old))]]

    steps = context.steps_of(first)
    seed = stage_seed("merge_continue", context, 2)
    own: dict[str, Any] = {"budget": None} if start else {}
    yield Stage(
        steps, own, start or None, rate=start_rate, examples=lambda rows: _divided(rows, by, split)[0]
    )
    yield Stage(context.steps - steps, {"seed": seed}, then="keep", examples=replayed)


def _divided(rows: Rows, by: str, split: float) -> tuple[list[int], list[int]]:
    """The numbers of the examples of D₁ and of D₂."""
    if by and by not in rows[0]:
        raise ValueError(f"merge_continue: by={by} is no column of the data: {', '.join(rows[0])}")
    size = round(split * len(rows))
    old = [n for n, row in enumerate(rows) if (row[by] == rows[0][by] if by else n < size)]
    new = sorted({*range(len(rows))} - {*old})
    if not old or not new:
        raise ValueError(f"merge_continue: of {len(rows)} examples, {len(old)} are D₁: none may be empty")
    return old, new

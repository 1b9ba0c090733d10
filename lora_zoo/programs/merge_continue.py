"""Merge, then continue: one adapter on a first data set, a new one beside it on a second, with replay."""

from collections.abc import Generator
from typing import Any

import torch

from lora_zoo.core.program import ProgramContext, Rows, Stage, register
from lora_zoo.core.seeding import derived_seed, generator


@register("merge_continue")
def merge_continue(
    context: ProgramContext,
    *,
    by: str = "",
    split: float = 0.5,
    first: float = 0.5,
    replay: float = 0.05,
) -> Generator[Stage, Any, None]:
    """ΔW = ΔW₁ + ΔW₂: the first learns from D₁ and settles, the second from D₂ and a share of D₁.

    D₁ are the training examples with the value that the first of them has in the column `by`; without one,
    the share `split` of them that comes first. `first` is D₁'s share of the steps, `replay` the share of its
    examples, drawn by the seed, that are in D₂ as well. Raises ValueError for shares that are none, a column
    that the data lack, and where nothing is left for D₂.
    """
    if not 0 < first < 1 or not 0 < split < 1 or not 0 <= replay <= 1 or context.steps < 2:
        needs = "0 < split < 1, 0 < first < 1, 0 <= replay <= 1 and two steps are needed"
        given = f"{split}, {first}, {replay} and {context.steps}"
        raise ValueError(f"merge_continue: {needs}; got {given}")

    def in_first(rows: Rows) -> list[bool]:
        if not by:
            return [number < round(split * len(rows)) for number in range(len(rows))]
        if by not in rows[0]:
            raise ValueError(f"merge_continue: by={by} is no column of the data: {', '.join(rows[0])}")
        return [row[by] == rows[0][by] for row in rows]

    def of_first(rows: Rows) -> list[int]:
        return [number for number, inside in enumerate(in_first(rows)) if inside]

    def of_second(rows: Rows) -> list[int]:
        old = of_first(rows)
        new = [number for number, inside in enumerate(in_first(rows)) if not inside]
        if not old or not new:
            raise ValueError(f"merge_continue: of {len(rows)} examples, {len(old)} are D₁: none may be empty")
        order = torch.randperm(len(old), generator=generator("replay", context.seed)).tolist()
        return new + [old[place] for place in order[: round(replay * len(old))]]

    steps = min(max(round(first * context.steps), 1), context.steps - 1)
    seed = derived_seed("merge_continue", context.seed, 2) % 2**32
    yield Stage(steps, examples=of_first)
    yield Stage(context.steps - steps, {"seed": seed}, then="keep", examples=of_second)

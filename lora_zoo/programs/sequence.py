"""A sequence of tasks: continual learning with one stage a task, at equal steps."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

import torch

from lora_zoo.core.adapter import Variant
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.program import ProgramContext, Rows, Stage, register
from lora_zoo.core.seeding import generator
from lora_zoo.core.variants import VARIANTS
from lora_zoo.programs.rounds import lengths, stage_seed


@register("sequence")
def sequence(
    context: ProgramContext,
    *,
    tasks: Sequence[str],
    by: str = "task",
    adapter: Literal["auto", "same", "new", "more"] = "auto",
    replay: float = 0.0,
) -> Generator[Stage, Any, None]:
    """Learn `tasks`, the values of the column `by`, in this order.

    | adapter | the next task |
    |---|---|
    | same | goes on with the adapter, or with all parameters, of the one before |
    | new | has a new adapter; those of earlier tasks settle and stay (a chain of merges, O-LoRA) |
    | auto | what the variant is made for: more where it has `tasks`, new where it is about priors, or same |
    | more | adds its own LoRA to those in the variant's adapter, which stay as they are (`tasks` of it) |

    Each has new moments and a schedule of its own. `replay` is the share of every earlier task's examples,
    drawn by the seed, that are seen again. Raises ValueError where a task would have no step or no example,
    for a share that is none, and for a variant that cannot do what `adapter` asks for.
    """
    if not 1 <= len(set(tasks)) == len(tasks) <= context.steps or not 0 <= replay <= 1:
        needs = f"from one to {context.steps} different tasks (steps) and 0 <= replay <= 1"
        raise ValueError(f"sequence needs {needs}; got {list(tasks)} and {replay}")
    if adapter == "auto":
        adapter = _usual(VARIANTS.find(context.variant))
    _refuse_unfit(context, adapter)
    start: Callable[[Any], None] | None = None
    for number, steps in enumerate(lengths(context.steps, len(tasks)), start=1):
        last = number == len(tasks)
        own: dict[str, Any] = {"seed": stage_seed("sequence", context, number)} if number > 1 else {}
        learned = yield Stage(
            steps,
            own | ({"tasks": list(tasks[:number])} if adapter == "more" else {}),
            then="keep" if last else "settle" if adapter == "new" else "discard",
            start=start,
            examples=_examples(tasks[:number], by, replay, context.seed),
            name=tasks[number - 1],
        )
        if adapter != "new" and not last:
            start = (_going_on if adapter == "same" else _growing)(learned)


def _usual(variant: type[Variant]) -> Literal["same", "new", "more"]:
    if "tasks" in hyperparameters(variant):
        return "more"
    return "new" if variant.hooks.over_priors else "same"


def _refuse_unfit(context: ProgramContext, adapter: str) -> None:
    variant = VARIANTS.find(context.variant)
    grows = [name for name, cls in VARIANTS.items() if "tasks" in hyperparameters(cls)]
    if adapter == "more" and variant.name not in grows:
        text = f"needs an adapter with place for a LoRA a task: use {', '.join(grows)}"
        raise ValueError(f"sequence: adapter=more {text}; got {variant.name}")
    if adapter != "more" and variant.name in grows:
        raise ValueError(f"sequence: {variant.name} holds a LoRA for each task: use program.adapter=more")
    if adapter == "new" and not variant.adapts:
        raise ValueError(f"sequence: adapter=new settles adapters, and {variant.name} has none: use same")


def _examples(tasks: Sequence[str], by: str, replay: float, seed: int) -> Callable[[Rows], list[int]]:
    """The function that finds the examples of the last of `tasks`, with a share of those of the others."""

    def chosen(rows: Rows) -> list[int]:
        if by not in rows[0]:
            raise ValueError(f"sequence: by={by} is no column of the data: {', '.join(rows[0])}")
        of: dict[str, list[int]] = {task: [] for task in tasks}
        for number, row in enumerate(rows):
            if row[by] in of:
                of[row[by]].append(number)
        if empty := [task for task, own in of.items() if not own]:
            known = ", ".join(dict.fromkeys(row[by] for row in rows))
            raise ValueError(f"sequence: no example is of {empty[0]!r}; the column {by} holds {known}")
        found = list(of[tasks[-1]])
        for task in tasks[:-1]:
            order = torch.randperm(len(of[task]), generator=generator("replay", seed, task)).tolist()
            found += [of[task][place] for place in order[: round(replay * len(order))]]
        return found

    return chosen


def _going_on(learned: Any) -> Callable[[Any], None]:
    """The function that gives an adapter the tensors that another of the same shapes has now."""
    before = {name: tensor.clone() for name, tensor in learned.state_dict().items()}

    def go_on(stage: Any) -> None:
        stage.load_state_dict(before)

    return go_on


def _growing(learned: Any) -> Callable[[Any], None]:
    """The function that puts the LoRAs of earlier tasks beside the new one of each matrix."""

    def tensors(module: Any) -> Mapping[str, Any]:
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    before = {name: tensors(adapter) for name, adapter in learned.adapters.items()}
    shared = tensors(learned.shared) if learned.shared is not None else {}

    def grow(stage: Any) -> None:
        for name, adapter in stage.adapters.items():
            adapter.succeed(before[name])
        if stage.shared is not None:
            stage.shared.succeed(shared)

    return grow

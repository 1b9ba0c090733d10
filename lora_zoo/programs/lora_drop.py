"""LoRA-drop: Efficient LoRA Parameter Pruning based on Output Evaluation (Zhou et al., COLING 2025)."""

from collections.abc import Generator, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lora_zoo.core.init import find_init
from lora_zoo.core.program import ProgramContext, Stage, register
from lora_zoo.core.train_eval import in_mode
from lora_zoo.core.variants import VARIANTS


@register("lora_drop")
def lora_drop(
    context: ProgramContext, *, probe: float = 0.1, threshold: float = 0.9, share: bool = True
) -> Generator[Stage, Any, None]:
    """A short training of all matrices says which matter; they get a LoRA anew, the others share one.

    `probe` is the first training's share of the steps, on the run's own data, where the paper draws a
    stratified sample. With `share=false` the others stay as they are: descriptions of the method differ.
    Raises ValueError for shares that are none, and for a variant that cannot be weighed or shared.
    """
    if not 0 < probe < 1 or not 0 <= threshold <= 1:
        raise ValueError(
            f"lora_drop: 0 < probe < 1 and 0 <= threshold <= 1 are needed; got {probe}, {threshold}"
        )
    _refuse_unfit(context)
    shared = _shared_form(context) if share else None
    first = context.steps_of(probe)
    learned = yield Stage(first, then="discard")
    names = list(learned.adapters)
    kept = most_important(importances(learned, context.examples()), threshold)
    asked: dict[str, Any] = {"target_modules": names if share else kept, "budget": None}
    if not asked["target_modules"]:
        raise ValueError(f"lora_drop: threshold={threshold} keeps no matrix, and share=false shares none")
    sizes = {key: learned.hyper[key] for key in ("rank", "alpha") if key in learned.hyper}
    for key, values in learned.patterns.items():
        asked[f"{key}_pattern"] = {name: values[name] for name in asked["target_modules"] if name in values}
    more = {"kept": kept} if share else {}
    yield Stage(context.steps - first, asked | sizes | more, shared, then="keep")


def _refuse_unfit(context: ProgramContext) -> None:
    variant = VARIANTS.find(context.variant)
    variant.require_weight("weighed by lora_drop")
    if not variant.adapts:
        raise ValueError(f"lora_drop chooses among adapted matrices, and {variant.name} adapts none")


def _shared_form(context: ProgramContext) -> str:
    """The variant in which matrices that do not matter share one adapter. ValueError where there is none."""
    shared, init = VARIANTS.find(context.variant).shared_form, context.hyper.get("init", "none")
    if not (shared and VARIANTS.find(shared).accepts_init(find_init(init))):
        asked_for = f"variant={context.variant} and init={init}"
        raise ValueError(f"lora_drop: {asked_for} cannot be shared by matrices; give program.share=false")
    return shared


@torch.no_grad()
def importances(learned: Any, examples: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """The paper's g_i = Σ ‖ΔW_i x_i‖² over all positions of the examples, divided by the sum over matrices.

    x is what a matrix sees in the adapted model. ValueError for a matrix that no pass reaches, and where
    nothing was learned.
    """
    energy: dict[str, float] = {}
    updates = {name: dW_OI for name, _, dW_OI in learned if name in learned.adapters}

    def see(name: str, _: Any, given: tuple[Any, ...]) -> None:
        x, host = given
        y = host.times(x, updates[name].to(host.matrix().dtype))
        energy[name] = energy.get(name, 0.0) + float(y.double().square().sum())

    hooks = [a.register_forward_pre_hook(partial(see, name)) for name, a in learned.adapters.items()]
    try:
        with in_mode(learned.model, training=False):
            for example in examples:
                learned.model(**example)
    finally:
        for hook in hooks:
            hook.remove()
    if unseen := [name for name in learned.adapters if name not in energy]:
        raise ValueError(f"lora_drop: no pass over the examples calls {unseen[0]}; exclude_modules leaves it")
    total = sum(energy.values())
    if not 0 < total < float("inf"):
        how = "changed no output" if not total else f"changed outputs by {total:g}"
        raise ValueError(f"lora_drop: the first stage {how}; give it other steps with program.probe, or lr")
    return {name: value / total for name, value in energy.items()}


def most_important(shares: Mapping[str, float], threshold: float) -> list[str]:
    """The smallest set whose shares add up to `threshold`, in the order of `shares`; all of them for 1."""
    kept: set[str] = set()
    reached: float = 0
    for name in sorted(shares, key=lambda name: -shares[name]):
        if reached >= threshold and threshold < 1:
            break
        kept.add(name)
        reached += shares[name]
    return [name for name in shares if name in kept]

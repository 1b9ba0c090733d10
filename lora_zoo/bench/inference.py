"""Passes without gradients: the evaluation of a batch, a prompt, and tokens generated from a cache."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.bench import peft
from lora_zoo.bench.options import Options
from lora_zoo.bench.paths import adapted, shared_copy
from lora_zoo.bench.report import Measurement, Values
from lora_zoo.bench.shapes import REFERENCE, Shape
from lora_zoo.bench.timing import Timed, summary, texts

ABOUT = """\
Passes in evaluation mode and without gradients, on all linear layers, r = 8 (VeRA: 256), as multiples of the
*frozen* model's: *evaluation* of rows of 128 tokens; a *prompt* of 64 tokens a row, whose keys and values are
kept; a *token*, one of 16 that follow it, each a pass. *lean* is the variant as it is, *effective* the same
inside `with adapters_of(model).effective():`, *PEFT* its adapter with the same settings and tensors, not
merged. Medians over rounds with quartiles; ratios are taken within a round."""
TIMES = (
    Timed("frozen, ms", "frozen_ms", "frozen", unit=1e3, digits=".2f"),
    Timed("lean / frozen", "lean", "lean", "frozen"),
    Timed("effective / frozen", "effective", "effective", "frozen"),
    Timed("PEFT / frozen", "peft", "peft", "frozen"),
    Timed("lean / PEFT", "lean_over_peft", "lean", "peft"),
)
LABELS = {"lean": "lean (as it is)", "effective": "effective weight", "peft": "PEFT"}
EVALUATION, PROMPT, TOKENS = 128, 64, 16
BATCHES = (1, 4)
Run = Callable[[], object]


def measure(options: Options) -> Measurement:
    rows = [row for case in options.cases(REFERENCE, options.adapters) for row in measure_one(*case, options)]
    keys = ("shape", "variant", "pass", "batch")
    about = ("inference", "Without gradients", ABOUT)
    return Measurement(*about, keys, texts(TIMES), rows, "time / frozen model", LABELS)


@torch.no_grad()
def measure_one(shape: Shape, base: nn.Module, variant: str, options: Options) -> Iterator[Values]:
    """A row for each kind of pass and number of rows."""
    lean, kept = adapted(base, variant), adapted(base, variant)
    models: dict[str, Any] = {"frozen": shared_copy(base), "lean": lean.model, "effective": kept.model}
    if peft.has(lean):
        models["peft"] = peft.aligned(lean, shared_copy(base)).model
    models = {name: model.eval() for name, model in models.items()}
    with kept.effective():
        for kind, prepare in PASSES.items():
            for batch in BATCHES:
                ids = torch.randint(3, 256, (batch, EVALUATION), device=options.device)
                times = options.stopwatch().interleave(
                    {name: partial(prepare, model, ids) for name, model in models.items()}
                )
                case = {"shape": shape.name, "variant": variant, "pass": kind, "batch": batch}
                yield case | summary(TIMES, times)


def evaluation(model: nn.Module, ids: Tensor) -> Run:
    return partial(model, ids)


def prompt(model: nn.Module, ids: Tensor) -> Run:
    return partial(model, ids[:, :PROMPT], use_cache=True)


def tokens(model: nn.Module, ids: Tensor) -> Run:
    """The passes of `TOKENS` tokens after the prompt, whose own is off the clock."""
    cache = model(ids[:, :PROMPT], use_cache=True).past_key_values

    def run() -> None:
        known = cache
        for position in range(PROMPT, PROMPT + TOKENS):
            known = model(
                ids[:, position : position + 1], past_key_values=known, use_cache=True
            ).past_key_values

    return run


PASSES = {"evaluation": evaluation, "prompt": prompt, "token": tokens}

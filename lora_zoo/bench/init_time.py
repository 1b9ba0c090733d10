"""Seconds to put adapters into a model, for each variant and each init of the factors."""

import copy
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from unittest.mock import patch

import torch
from torch import nn

from lora_zoo.bench import peft
from lora_zoo.bench.options import Options
from lora_zoo.bench.paths import adapts_matrices, inject_linear
from lora_zoo.bench.report import Measurement, Values
from lora_zoo.bench.shapes import Shape
from lora_zoo.bench.timing import Prepare, Run, Timed, summary, texts
from lora_zoo.core import init as inits
from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import Injection

ABOUT = """\
Seconds of `inject` on all linear layers, r = 8 (VeRA: 256), and of `get_peft_model` with the same settings.
*again*: the same model a second time in the same process, as the second job of a sweep does. Each init is on
weights of its own, with a cache of its own that is empty at first."""
TIMES = (
    Timed("first, s", "first_s", "first"),
    Timed("again, s", "again_s", "again"),
    Timed("PEFT, s", "peft_s", "peft"),
    Timed("again / first", "again_over_first", "again", "first"),
    Timed("first / PEFT", "first_over_peft", "first", "peft"),
)
PLOTTED = {"first_s": "first", "again_s": "again, same model", "peft_s": "PEFT"}
FAST = ("pissa_niter_16", "pissa_halko_16")
ROUNDS = 5


def measure(options: Options, only: Sequence[str] = ()) -> Measurement:
    """`only` these inits, or all."""
    with tempfile.TemporaryDirectory() as empty, patch.dict(os.environ, LORA_ZOO_CACHE=empty):
        rows = [
            measure_one(shape, base, variant, init, options)
            for shape, base, variant in options.cases(("llama-768",), options.variants)
            for init in inits_of(variant)
            if not only or init in only
        ]
    keys = ("shape", "variant", "init")
    return Measurement("init", "Initialisation", ABOUT, keys, texts(TIMES), rows, "seconds", PLOTTED)


def inits_of(variant: str) -> Iterator[str]:
    """A variant's default; plain LoRA with every init of W alone, PiSSA with the fast ones; no baseline's."""
    if not adapts_matrices(variant):
        return
    known = hyperparameters(VARIANTS.find(variant))
    default = str(known["init"].default) if "init" in known else "-"
    accepts = VARIANTS.find(variant).accepts_init
    of_weights = inits.init_names(lambda init: not init.needs and accepts(init))
    more = {"lora": of_weights, "pissa": FAST}.get(variant, ())
    yield from dict.fromkeys((default, *more))


def measure_one(shape: Shape, base: nn.Module, variant: str, init: str, options: Options) -> Values:
    times = options.stopwatch(at_most=ROUNDS).interleave(runs(base, variant, init))
    return {"shape": shape.name, "variant": variant, "init": init} | summary(TIMES, times)


def runs(base: nn.Module, variant: str, init: str) -> dict[str, Prepare]:
    """The calls to time: on new weights, on the same model again, and PEFT's where it has the init."""

    def put(model: nn.Module) -> Injection:
        return inject_linear(model, variant, init=init)

    def first() -> Run:
        return partial(put, fresh(base))

    def again() -> Run:
        model = fresh(base)
        put(model).remove()
        return partial(put, model)

    found: dict[str, Prepare] = {"first": first, "again": again}
    if (word := peft.init_word(variant, init)) and peft.has(adapted := put(copy.deepcopy(base))):
        config = peft.config(adapted, word)
        found["peft"] = lambda: partial(peft.wrap, fresh(base), copy.deepcopy(config))
    return found


_DRAWN = itertools.count()


@torch.no_grad()
def fresh(base: nn.Module) -> nn.Module:
    """A copy of `base` with weights that have not been seen before."""
    model, g = copy.deepcopy(base), torch.Generator().manual_seed(10_000 + next(_DRAWN))
    for parameter in model.parameters():
        parameter.add_(1e-3 * torch.randn(parameter.shape, generator=g).to(parameter))
    return model

"""A step's time by DropBP's rate: what is saved where the backward passes of sub-layers are dropped."""

import itertools
from collections.abc import Callable
from functools import partial

from torch import nn

from lora_zoo.bench.options import Options
from lora_zoo.bench.paths import StepPath, adapted, fused
from lora_zoo.bench.report import Measurement, Values
from lora_zoo.bench.shapes import Shape
from lora_zoo.bench.timing import Timed, summary, texts
from lora_zoo.core.hooks import Progress
from lora_zoo.training.dropbp import BackwardDropper

ABOUT = """\
Forward, loss and backward of a llama of 8 layers, adapters (r = 8) on all linear layers. Each sub-layer's
backward pass is dropped with the same probability; the ratio is to a step in which none is. A sample is the
mean of steps with draws of their own. Forward passes are whole at each rate: their share is the least."""
RATES = (0.0, 0.25, 0.5, 0.75, 0.875)
TIMES = (
    Timed("step, ms", "step_ms", "own", unit=1e3, digits=".1f"),
    Timed("step / without", "ratio", "own", "without"),
)
SHAPE = Shape("llama-192, 8 layers", 192, 512, 8, 6, 4, 128)
DRAWS = 4
"""Steps of a sample."""


def measure(options: Options) -> Measurement:
    base = SHAPE.model(options.dtype, options.device)
    names = options.named or ("lora",)
    rows = [row for name in names for row in measure_one(SHAPE, base, name, options)]
    keys, columns = ("variant", "rate"), texts(TIMES)
    return Measurement(
        "dropbp", "DropBP", ABOUT, keys, columns, rows, "step / step without", {"ratio": "a step"}
    )


def measure_one(shape: Shape, base: nn.Module, variant: str, options: Options) -> list[Values]:
    """A row for each rate."""
    path = fused(adapted(base, variant), shape.batch(options.device))
    times = options.stopwatch().interleave({rate: partial(_steps, path, rate) for rate in RATES})
    return [
        {"variant": variant, "shape": shape.name, "rate": rate}
        | summary(TIMES, {"own": [s / DRAWS for s in seconds], "without": [s / DRAWS for s in times[0.0]]})
        for rate, seconds in times.items()
    ]


_DRAWN = itertools.count(1)


def _steps(path: StepPath, rate: float) -> Callable[[], None]:
    dropper = BackwardDropper(path.model, rate, warmup=0.0, uniform=True, seed=0)

    def run() -> None:
        for step in itertools.islice(_DRAWN, DRAWS):
            with dropper.dropping(Progress(step, step)):
                path.step()

    return run

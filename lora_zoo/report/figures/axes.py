"""Axes: labels, units, scales and ticks, of the columns of a frame; and rows as Vega-Lite's data."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from lora_zoo.runs import metric_facts

Spec = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """The quantity along an axis, and its unit ("" for a number of things)."""

    label: str
    unit: str = ""
    log: bool = False
    range: tuple[float, float] | None = None
    """The least and the greatest value that can be, beyond which the axis does not go."""

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def encoding(self, numbers: Sequence[float], ticks: Sequence[float] = ()) -> Spec:
        """Type, scale and ticks for these numbers; `ticks` are the only values to mark, if any."""
        ruler: Spec = {"title": self.title}
        scale: Spec = {"type": "linear", "zero": False}
        if max(map(abs, numbers), default=0) >= 2e4:
            ruler["format"] = "~s"
        if self.range and numbers and not self.log:
            scale |= {"domain": self.bounded(numbers), "nice": False}
        if all(float(number).is_integer() for number in numbers):
            ruler["tickMinStep"] = 1
        if self.log:
            ends = self.domain(numbers)
            scale = {"type": "log", "domain": [*map(rounded, ends)]}
            ruler = {"format": ".6~g", "values": log_ticks(*ends)} | ruler
        if ticks:
            ruler |= {"format": ".6~g", "values": ticks}
        return {"type": "quantitative", "scale": scale, "axis": ruler}

    def bounded(self, numbers: Sequence[float]) -> list[float]:
        """The round ends of a linear axis for these numbers, within its range."""
        least, most = self.range or (-math.inf, math.inf)
        low, high = max(least, min(numbers)), min(most, max(numbers))
        span = (high - low) or abs(high) or 1.0
        step = 10.0 ** math.floor(math.log10(span / 2))
        step *= 5 if span / step > 50 else 2 if span / step > 25 else 1
        ends = math.floor(low / step - 0.2) * step, math.ceil(high / step + 0.2) * step
        return [rounded(max(least, ends[0])), rounded(min(most, ends[1]))]

    def domain(self, numbers: Sequence[float]) -> tuple[float, float]:
        """The ends of a logarithmic axis: what is positive, and a little more."""
        positive = [value for value in numbers if value > 0] or [1.0, 10.0]
        more = (max(positive) / min(positive)) ** 0.03
        return min(positive) / more, max(positive) * more


AXES = {
    "rank": Axis("rank r"),
    "alpha": Axis("α"),
    "lr": Axis("learning rate", log=True),
    "task_lr": Axis("learning rate", log=True),
    "lora_dropout": Axis("dropout"),
    "budget": Axis("budget", "trainable parameters", log=True),
    "trainable": Axis("trainable parameters", log=True),
    "saved_bytes": Axis("activation memory", "bytes", log=True),
    "adapter_bytes": Axis("adapter on disk", "bytes", log=True),
    "load_seconds": Axis("time before the first step", "s"),
    "step_seconds": Axis("time of a step, median", "s"),
    "train_seconds": Axis("training time", "s"),
    "total_seconds": Axis("time of the whole run", "s"),
    "peak_memory": Axis("peak memory", "bytes"),
    "forgetting": Axis("rise of the loss on held-out text", "nats a token"),
    "bits": Axis("bits learned"),
    "bits_per_parameter": Axis("bits learned per trainable parameter"),
    "retention_after": Axis("held-out LM loss after training", "nats a token"),
    "test_nll": Axis("-log p(reference), test", "nats an example"),
    "validation_nll": Axis("-log p(reference), validation", "nats an example"),
    "seconds": Axis("training time", "s"),
    "step": Axis("optimiser step"),
    "loss": Axis("training loss", log=True),
    "grad_norm": Axis("gradient norm", log=True),
    "target_modules": Axis("target matrices"),
}


def axis_of(column: str) -> Axis:
    """Label and unit of a column of the frame."""
    return AXES.get(column, Axis(column.rpartition(".")[2].replace("_", " ")))


def value_axis(runs: pd.DataFrame, value: str) -> Axis:
    """Label and unit of a column of outcomes: the test split's exact match, say."""
    if value not in ("test", "validation", "zero_shot_test", "zero_shot_validation"):
        return axis_of(value)
    metrics = sorted({str(name) for name in runs["metric"].dropna()}) or ["metric"]
    label = f"{' or '.join(metrics)}, {value}".replace("_", " ")
    ranges = {metric_facts(runs, name).range for name in metrics}
    bounds = ranges.pop() if len(ranges) == 1 else None
    return Axis(label, "share" if bounds == (0.0, 1.0) else "", range=bounds)


def spanning(runs: pd.DataFrame, x: str) -> Axis:
    """The axis of x, logarithmic where the values span about a decade or more, and none is zero."""
    values = pd.to_numeric(runs[x])
    wide = values.min() > 0 and values.max() / values.min() >= 8
    return replace(axis_of(x), log=bool(wide))


def log_ticks(least: float, most: float) -> list[float]:
    """The decades, and 2 and 5 of each where there are few."""
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    digits = (1, 2, 5) if most / least <= 100 else (1,)
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    return [tick for tick in ticks if least <= tick <= most]


def values(rows: pd.DataFrame) -> Spec:
    """The rows as Vega-Lite's data: six digits are more than any plot shows, and JSON has no NaN."""
    return {"values": json.loads(rows.to_json(orient="records", double_precision=15), parse_float=rounded)}


def rounded(number: float | str) -> float:
    return float(f"{float(number):.6g}")

"""Directions of the outcomes of runs: whether more of a column is better.

A metric declares its own, which the runs record; what the framework itself measures is declared here.
"""

import pandas as pd

from lora_zoo.metrics import MetricFacts, facts
from lora_zoo.runs.frame import PATHS

HIGHER_IS_BETTER = dict.fromkeys(
    (
        *("loss", "train_loss", "eval_loss", "eval_nll", "retention_before", "retention_after", "forgetting"),
        *(f"{of}{split}_nll" for of in ("", "zero_shot_") for split in ("validation", "test")),
        *("trainable", "total", "adapter_bytes", "saved_bytes", "peak_memory"),
        *("load_seconds", "step_seconds", "train_seconds", "total_seconds"),
    ),
    False,
)
HIGHER_IS_BETTER |= dict.fromkeys(("cpu_share", "bits", "bits_per_parameter"), True)
HIGHER_IS_BETTER |= dict.fromkeys(("average_accuracy", "learning_accuracy"), True)
HIGHER_IS_BETTER |= dict.fromkeys(("backward_transfer", "forward_transfer"), True) | {
    "task_forgetting": False
}
_JUDGED = tuple(f"{of}{split}" for of in ("", "zero_shot_", "majority_") for split in ("validation", "test"))


def metric_facts(frame: pd.DataFrame, name: str) -> MetricFacts:
    """The facts of a metric as the runs recorded them; of older runs, as the metrics of today declare them.

    ValueError where runs recorded opposite directions.
    """
    recorded = {
        MetricFacts.of((record or {}).get("metric_facts", {}).get(name, {}))
        for record in frame.get("record", ())
    }
    if {True, False} <= {known.higher_is_better for known in recorded}:
        raise ValueError(f"the runs were judged by different metrics called {name}, of opposite directions")
    return max(recorded - {MetricFacts()}, key=lambda known: known.range is not None, default=facts(name))


def higher_is_better(frame: pd.DataFrame, column: str) -> bool | None:
    """The direction of a column of outcomes; None where nothing declares it.

    ValueError for a column of several metrics, of which some are better high and some low.
    """
    if column in _JUDGED:
        names = sorted(set(frame["metric"].dropna())) if "metric" in frame else []
    elif column.startswith(("metrics.", "zero_shot.", "majority.")):
        names = [column.split(".", 2)[-1]]
    elif column.startswith(("likelihood.", "zero_shot_likelihood.")):
        return None if column.endswith((".items", ".tokens")) else False
    else:
        return HIGHER_IS_BETTER.get(next((c for c, path in PATHS.items() if path == column), column))
    found = {metric_facts(frame, name).higher_is_better for name in names}
    if {True, False} <= found:
        raise ValueError(f"of the metrics {', '.join(names)} some are better high and some low")
    return found.pop() if len(found) == 1 else None

"""Metrics as `evaluate` modules, one folder each, and the facts that they declare.

load("accuracy").compute(predictions=[0, 1], references=[0, 0])    # {"accuracy": 0.5}; needs no network
facts("accuracy")    # MetricFacts(higher_is_better=True, range=(0.0, 1.0)); imports no library

A new metric is a folder `<name>/<name>.py` here, or an entry point `lora_zoo.metric` of another distribution:

    @METRICS.register("accuracy")
    class Accuracy(evaluate.Metric):
        higher_is_better = True
        range = (0.0, 1.0)

A metric with `reads = "nll"` is given, as predictions, the negative log-likelihood of each reference, and as
references its number of tokens; one that reads a judgement of the task's (`execution`) is given that.

A module that is loaded by its path or from the Hub declares the same two on its class, without registering.
"""

import ast
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from lora_zoo.core.errors import reason, unknown
from lora_zoo.core.registry import Registry

HOME = Path(__file__).parent


class Metric(Protocol):
    """The part of `evaluate.Metric` that is used; `kwargs` are the metric's own, such as f1's `average`."""

    def compute(
        self, *, predictions: Any = None, references: Any = None, **kwargs: Any
    ) -> dict[str, Any]: ...


class MetricFacts(NamedTuple):
    """The declared direction and bounds of a metric; None where it declares none."""

    higher_is_better: bool | None = None
    range: tuple[float, float] | None = None

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "MetricFacts":
        """The facts in a class or a run's record. ValueError for what is no direction or no range."""
        higher, bounds = said.get("higher_is_better"), said.get("range")
        if not (higher is None or isinstance(higher, bool)):
            raise ValueError(f"higher_is_better must be True or False; got {higher!r}")
        if bounds is None:
            return cls(higher)
        try:
            low, high = map(float, bounds)
        except (TypeError, ValueError):
            low, high = 0.0, 0.0
        if not low < high:
            raise ValueError(f"range must be two numbers (low, high), low < high; got {bounds!r}")
        return cls(higher, (low, high))


METRICS: "Registry[type[Any]]" = Registry("metric", "lora_zoo.metrics")


def facts(name: str) -> MetricFacts:
    """The facts of a registered metric, of our own without importing it; unknown for other names."""
    if name not in METRICS:
        return MetricFacts()
    file = HOME / name / f"{name}.py"
    return _in_source(file) if file.is_file() else declared(METRICS.find(name))


def declared(metric: Any) -> MetricFacts:
    """The facts that a metric, or its class, declares."""
    return MetricFacts.of({key: getattr(metric, key, None) for key in MetricFacts._fields})


def reads(metric: Any) -> str:
    """The part of each outcome that a metric is given: its `prediction`, or the `nll` of its reference."""
    return str(getattr(metric, "reads", "prediction"))


@functools.cache
def _in_source(file: Path) -> MetricFacts:
    classes = (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef))
    assigned = (node for made in classes for node in made.body if isinstance(node, ast.Assign))
    values = {ast.unparse(node.targets[0]): node.value for node in assigned}
    return MetricFacts.of({k: ast.literal_eval(v) for k, v in values.items() if k in MetricFacts._fields})


def load(name: str, *, trust_remote_code: bool = False) -> Metric:
    """Load a registered metric, or a module of the user's own by its path or name on the Hub ("owner/name").

    A module is code: one of the Hub is run only where the user trusts it, ValueError otherwise. The inputs
    stay in memory, so that any number of processes may load and compute at once.
    """
    if name not in METRICS and not _is_elsewhere(name):
        message = unknown("metric", name, METRICS)
        raise ValueError(f"{message}; or the path of an evaluate module, or owner/name on the Hub")
    of_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists()
    if of_hub and not trust_remote_code:
        raise ValueError(
            f"metric {name!r} is no file here, and on the Hub a metric is code: model.trust_remote_code=true "
            "runs it"
        )
    try:
        metric = _made(name)
        declared(metric)
        return metric
    except (FileNotFoundError, ConnectionError) as missing:
        raise ValueError(
            f"metric {name!r} is neither a file or folder here nor a module that the Hub gives out: {missing}"
        ) from missing
    except Exception as broken:  # a module of the user's own may raise anything
        raise ValueError(f"metric {name!r} cannot be loaded: {_reason(broken)}") from broken


def _made(name: str) -> Metric:
    import evaluate

    if name not in METRICS:
        return cast(Metric, evaluate.load(name, keep_in_memory=True))
    metric = METRICS.find(name)(keep_in_memory=True)
    metric.download_and_prepare()
    return cast(Metric, metric)


def try_out(
    name: str, metric: Metric, predictions: list[Any], references: list[Any], what: str, **arguments: Any
) -> dict[str, MetricFacts]:
    """Compute the metric once, with its own `arguments`. ValueError where it cannot judge such answers.

    Returns the facts of each value that it gives.
    """
    try:
        values = metric.compute(predictions=predictions, references=references, **arguments)
    except Exception as refused:  # a module of the user's own may raise anything
        raise ValueError(
            f"metric {name!r} cannot judge the answers of {what}, such as {predictions[0]!r}: "
            f"{_reason(refused)}"
        ) from refused
    if not isinstance(values, dict) or not all(hasattr(value, "__float__") for value in values.values()):
        raise ValueError(f"metric {name!r} gives no {{name: number}}; got {values!r}")
    check_values(values, what)
    return dict.fromkeys(values, declared(metric))


def check_values(values: Mapping[str, Any], what: str) -> None:
    """ValueError where a metric is NaN or inf, which ranks no two runs."""
    for name, value in values.items():
        if not math.isfinite(float(value)):
            raise ValueError(f"the metric {name} of {what} is {float(value)}, which is no number")


def _reason(error: BaseException) -> str:
    return reason(error)[:200]


def _is_elsewhere(name: str) -> bool:
    return "/" in name or "\\" in name or name.endswith(".py") or Path(name, f"{name}.py").is_file()


__all__ = [
    "METRICS",
    "Metric",
    "MetricFacts",
    "check_values",
    "declared",
    "facts",
    "load",
    "reads",
    "try_out",
]

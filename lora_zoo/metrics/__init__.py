"""Metrics as local `evaluate` modules, one folder each: loading one needs no network.

load("accuracy").compute(predictions=[0, 1], references=[0, 0])    ->    {"accuracy": 0.5}

A new metric is a folder `<name>/<name>.py` with one `evaluate.Metric` in it, found because it is there.
"""

import re
from pathlib import Path
from typing import Any, Protocol, cast

from lora_zoo.core.errors import reason, unknown

HOME = Path(__file__).parent


class Metric(Protocol):
    """What `evaluate.Metric` is to its callers; `kwargs` are the metric's own, such as f1's `average`."""

    def compute(
        self, *, predictions: Any = None, references: Any = None, **kwargs: Any
    ) -> dict[str, Any]: ...


def names() -> list[str]:
    """The metrics that come with the package, in alphabetical order."""
    return sorted(folder.name for folder in HOME.iterdir() if (folder / f"{folder.name}.py").is_file())


def load(name: str, *, trust_remote_code: bool = False) -> Metric:
    """One of `names()`, or a module of the user's own: its path, or its name on the Hub ("owner/name").

    A module is code: one of the Hub is run only where the user trusts it, ValueError otherwise. The inputs
    stay in memory, so that any number of processes may load and compute at once.
    """
    own = name in names()
    if not own and not _is_elsewhere(name):
        message = unknown("metric", name, names())
        raise ValueError(f"{message}; or the path of an evaluate module, or owner/name on the Hub")
    of_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).exists()
    if of_hub and not trust_remote_code:
        raise ValueError(
            f"metric {name!r} is no file here, and on the Hub a metric is code: model.trust_remote_code=true "
            "runs it"
        )
    import evaluate

    try:
        return cast(Metric, evaluate.load(str(HOME / name) if own else name, keep_in_memory=True))
    except (FileNotFoundError, ConnectionError) as missing:
        raise ValueError(
            f"metric {name!r} is neither a file or folder here nor a module that the Hub gives out: {missing}"
        ) from missing
    except Exception as broken:  # a module of the user's own may raise anything
        raise ValueError(f"metric {name!r} cannot be loaded: {_reason(broken)}") from broken


def try_out(name: str, metric: Metric, predictions: list[Any], references: list[Any], kind: str) -> None:
    """Compute the metric once, on answers as a task of that kind gives them. ValueError where it cannot."""
    try:
        values = metric.compute(predictions=predictions, references=references)
    except Exception as refused:  # a module of the user's own may raise anything
        raise ValueError(
            f"metric {name!r} cannot judge the answers of type={kind}, such as {predictions[0]!r}: "
            f"{_reason(refused)}"
        ) from refused
    if not isinstance(values, dict) or not all(hasattr(value, "__float__") for value in values.values()):
        raise ValueError(f"metric {name!r} gives no {{name: number}}; got {values!r}")


def _reason(error: BaseException) -> str:
    return reason(error)[:200]


def _is_elsewhere(name: str) -> bool:
    return "/" in name or "\\" in name or name.endswith(".py") or Path(name, f"{name}.py").is_file()


__all__ = ["Metric", "load", "names", "try_out"]

"""The space of a search, from overrides as Hydra's grammar writes them.

| override | searched among |
|---|---|
| `lr=interval(1e-4,1e-1)` | real numbers, ends included |
| `lr=tag(log,interval(1e-4,1e-1))` | the same, by their logarithm |
| `rank=int(interval(2,64))` | whole numbers |
| `rank=range(2,17,2)` | 2, 4, …, 16 |
| `lr=range(0.1,0.6,0.2)` | 0.1, 0.3, 0.5 |
| `variant=choice(lora,dora)` | the words |

Values in a plain list (`variant=lora,dora`) are not searched but compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep

LOG = "log"
"""The tag of numbers that are searched by their logarithm."""


class Dimension(Protocol):
    """One key of the space; `suggest` asks an Optuna trial for its value."""

    @property
    def key(self) -> str: ...

    def suggest(self, trial: Any) -> float | int | str: ...


@final
@dataclass(frozen=True)
class Choice:
    """One of the values, as overrides write them."""

    key: str
    values: tuple[str, ...]

    def suggest(self, trial: Any) -> str:
        return str(trial.suggest_categorical(self.key, self.values))


@final
@dataclass(frozen=True)
class Real:
    """A real number from `low` to `high`: any, or low, low + step, …, high."""

    key: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    def suggest(self, trial: Any) -> float:
        return float(trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log))


@final
@dataclass(frozen=True)
class Whole:
    """A whole number: low, low + step, …, high."""

    key: str
    low: int
    high: int
    log: bool = False
    step: int = 1

    def suggest(self, trial: Any) -> int:
        return int(trial.suggest_int(self.key, self.low, self.high, step=self.step, log=self.log))


def is_searched(override: Override) -> bool:
    """True for choice(…), interval(…) and range(…); False for a plain list, whose values are compared."""
    value = override.value()
    return override.is_sweep_override() and not (isinstance(value, ChoiceSweep) and value.simple_form)


def samples(override: Override) -> list[str]:
    """The values of a searched override by which it is checked: of numbers the least and the greatest."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return list(override.sweep_string_iterator())
    low, high = _ends(override, value)
    return [str(low), str(high)]


def dimension(override: Override) -> Dimension:
    """The dimension of a searched override. ValueError where it is empty, or its tag means nothing."""
    key, line = override.get_key_element(), override.input_line
    value: Any = override.value()
    if strange := value.tags - {LOG}:
        raise ValueError(f"{line}: unknown tag {min(strange)!r}; the only one is {LOG}")
    log = LOG in value.tags
    if isinstance(value, ChoiceSweep):
        if log:
            raise ValueError(f"{line}: words have no logarithm; tag(log,…) is for an interval or a range")
        return Choice(key, tuple(override.sweep_string_iterator()))
    low, high = _ends(override, value)
    if log and low <= 0:
        raise ValueError(f"{line}: a logarithm needs numbers above 0, and it begins at {low}")
    step = abs(value.step) if isinstance(value, RangeSweep) else None
    if log and step not in (None, 1):
        raise ValueError(f"{line}: a search by logarithm has no steps of {step}; give an interval, or no tag")
    if isinstance(low, int) and isinstance(high, int):
        return Whole(key, low, high, log, int(step or 1))
    return Real(key, low, high, log, step)


def _ends(override: Override, value: Any) -> Sequence[Any]:
    if isinstance(value, RangeSweep):
        numbers: list[Any] = list(value.range())
        ends = sorted((numbers[0], numbers[-1])) if numbers else [1, 0]
    else:
        ends = [value.start, value.end]
    if not ends[0] < ends[1]:
        raise ValueError(f"{override.input_line} holds fewer than two values")
    return ends

"""The cells of a sweep, by their overrides."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from lora_zoo.config.spec import RunSpec

Overrides = Sequence[str]


class Launch(Protocol):
    def __call__(self, jobs: list[Overrides], later: int = 0, /) -> None:
        """Run jobs by their overrides; so many more are to come, as far as is known."""


Specify = Callable[[Overrides], RunSpec | None]
"""A job's run; None where it cannot be run as given."""


def keys_of(cells: Sequence[Overrides], apart: Sequence[str] = ()) -> list[dict[str, str]]:
    """The overrides in which the cells differ, the seed and the keys `apart` aside."""
    given = [{key_of(o): o.partition("=")[2] for o in cell} for cell in cells]
    names = [n for n in dict.fromkeys(n for one in given for n in one) if n not in ("seed", *apart)]
    differing = [name for name in names if len({one.get(name) for one in given}) > 1]
    return [{name: one[name] for name in differing if name in one} for one in given]


def check_seed(cells: Sequence[Overrides], key: str, seed: int) -> None:
    """Raise ValueError where the seed of the trials, given by `key`, is one of the results' too."""
    if any(o.lstrip("+") == f"seed={seed}" for cell in cells for o in cell):
        raise ValueError(f"{key}={seed} is a seed of the results, too: give trials a seed of their own")


def with_keys(cell: Overrides, given: Mapping[str, object]) -> list[str]:
    """The cell with these keys, each in the place of what it gives for them."""
    return [*without_keys(cell, given), *(f"{key}={value}" for key, value in given.items())]


def without_keys(cell: Overrides, keys: Mapping[str, object] | Sequence[str]) -> list[str]:
    return [o for o in cell if key_of(o) not in keys]


def key_of(override: str) -> str:
    return override.lstrip("+").partition("=")[0]

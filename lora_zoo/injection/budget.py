"""`budget=300k`: the rank that comes closest to a number of trainable parameters."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_zoo.core.hyperparameters import hyperparameters

if TYPE_CHECKING:
    from lora_zoo.core.adapter import Variant

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def parameters(number: int | float | str) -> int:
    """A number of parameters: 300000, "300k", "1.5M". ValueError for what is none."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\+?\d+)?)([kmb]?)", str(number).strip().lower())
    if not match or not float(match[1]) > 0:
        raise ValueError(f"budget={number} is no number of parameters; write for example 300k, 1.5M or 20000")
    return round(float(match[1]) * _UNITS[match[2]])


def rank_within(
    budget: int | str,
    cls: "type[Variant]",
    sizes: Sequence[tuple[tuple[int, int], Mapping[str, Any]]],
    hyper: Mapping[str, Any],
    kinds: Sequence[str],
    *,
    beside: Callable[[Mapping[str, Any]], int] = lambda hyper: 0,
) -> int:
    """The size (`sized_by`: the rank) whose parameters come closest to `budget` and do not exceed it.

    `sizes` are each adapted matrix's (O, I) and the hyperparameters of its own, which it keeps, `kinds` those
    of its layer, and `beside` counts what belongs to no matrix. A size that the variant refuses is passed
    over for a smaller one. Adapters count, fully trained parameters do not. Raises ValueError where size 1 is
    too much already, or where the variant has no such hyperparameter or its number of parameters does not
    grow with it; warns where the matrices are too small to use the budget.
    """
    key = cls.sized_by
    if key not in hyperparameters(cls):
        raise ValueError(f"budget={budget}: {cls.name} has no {key} that could meet it")
    limit = parameters(budget)

    def needed(size: int) -> int:
        of_matrices = [(shape, {**hyper, key: size, **own}) for shape, own in sizes]
        return cls.trainable_count(of_matrices) + beside({**hyper, key: size})

    def refused(size: int) -> bool:
        complete = (cls.complete({**hyper, key: size, **own}) for _, own in sizes)
        return any(map(cls.refusal, kinds, (shape for shape, _ in sizes), complete))

    bounds = [cls.largest_rank(shape, hyper) for shape, own in sizes if key not in own]
    most = min((bound for bound in bounds if bound is not None), default=limit)
    _check_grows(f"budget={budget}: {cls.name}", key, limit, needed(1), needed(most) if most > 1 else None)
    low, high = 1, min(most, limit) + 1  # needed(low) fits; rank `high` is too much or impossible
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) <= limit else (low, middle)
    if low == most and needed(low) < limit:
        warnings.warn(
            f"budget={budget}: the smallest matrix allows {key} {low} at most, {needed(low):,} parameters",
            stacklevel=3,
        )
    return next((size for size in range(low, 0, -1) if not refused(size)), low)


def _check_grows(who: str, key: str, limit: int, least: int, greatest: int | None) -> None:
    """Raise ValueError where size 1 is too much, or the number of parameters does not grow with the size."""
    if greatest is not None and greatest < least:
        raise ValueError(f"{who} has fewer parameters the greater its {key}: give {key}= instead")
    if least > limit:
        raise ValueError(f"{who} at {key} 1 has {least:,} trainable parameters here")
    if greatest == least:
        raise ValueError(f"{who} has {least:,} parameters here, whatever its {key}")

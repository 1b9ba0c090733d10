"""Power of comparisons over seeds: what n seeds can see, and the seeds that a difference needs.

`sd` is the standard deviation, over seeds, of the paired difference; a pilot of five seeds knows it to a
factor of about two, so that the answers are orders of size, not promises. The test is the two-sided paired t.
"""

import numpy as np
from statsmodels.stats.power import TTestPower

MOST = 10_000


def power_of(difference: float, sd: float, n: int, level: float = 0.05) -> float:
    """The chance that `n` seeds show a true `difference` at `level`."""
    _check(sd, level)
    if n < 2:
        return 0.0
    effect = abs(difference) / sd
    right, wrong = (TTestPower().power(effect, n, level / 2, alternative=a) for a in ("larger", "smaller"))
    return float(right + np.nan_to_num(wrong))  # scipy's tail on the wrong side is nan where it is next to 0


def seeds_needed(difference: float, sd: float, power: float = 0.8, level: float = 0.05) -> int:
    """The fewest seeds that show a true `difference` with the chance `power`.

    ValueError for a difference of zero, and where more than 10,000 seeds would be needed.
    """
    if not difference:
        raise ValueError("difference is 0: no number of seeds shows it; give the smallest that matters")
    _check(sd, level, power)
    few, many = 1, 2
    while power_of(difference, sd, many, level) < power:
        few, many = many, 2 * many
        if few >= MOST:
            raise ValueError(f"a difference of {difference:g} with sd {sd:g} needs more than {MOST} seeds")
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if power_of(difference, sd, middle, level) >= power else (middle, many)
    return many


def seeds_for(difference: float, sd: float, level: float = 0.05) -> float:
    """`seeds_needed` of what was measured: inf above 10,000, nan where nothing varies or is known."""
    if not (sd > 0 and np.isfinite(sd) and np.isfinite(difference)):
        return float("nan")
    try:
        return seeds_needed(difference, sd, level=level)
    except ValueError:
        return float("inf")


def detectable(n: int, sd: float, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest true difference that `n` seeds show with the chance `power`; infinite for one seed."""
    _check(sd, level, power)
    if n < 2:
        return float("inf")
    low, high = 0.0, 1.0
    while power_of(high, 1.0, n, level) < power:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(middle, 1.0, n, level) >= power else (middle, high)
    return high * sd


def _check(sd: float, level: float, power: float = 0.5) -> None:
    if not sd > 0:
        raise ValueError(f"sd must be above 0; got {sd}")
    for name, share in (("level", level), ("power", power)):
        if not 0 < share < 1:
            raise ValueError(f"{name} must lie between 0 and 1; got {share}")

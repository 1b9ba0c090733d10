"""Critical values of Student's t that hold together at every number of seeds: a group-sequential boundary.

Looks come after each of the seeds FIRST, FIRST+1, …, `most`. The share ((n - 2) / (most - 2))^1.5 of the
error is spent by n (the power family of Kim & DeMets 1987; spending: Lan & DeMets 1983), and each critical
value is found from the exact law of the t statistics of one growing sample, not from normal scores.

Notation: T_n = (x_1 + … + x_n) / sqrt(x_1² + … + x_n²), a function of t_n. Under a mean of 0 the direction of
(x_1 … x_n) is uniform and independent of its length, so that T is a Markov chain, whatever the variance:
T_{n+1} = T_n cos φ + sin φ, where sqrt(n) tan φ has Student's law of n degrees of freedom. The recursion of
Armitage, McPherson & Rowe (1969) over this chain is exact up to the width of its bins.
"""

from functools import lru_cache

import numpy as np
from scipy import optimize, special

FIRST = 3
"""The first number of seeds after which a comparison is looked at."""
POWER = 1.5
_BINS = 120


def spent(n: int, most: int) -> float:
    """The share of the error that may be used up by `n` seeds of at most `most`."""
    return min(1.0, (n - FIRST + 1) / (most - FIRST + 1)) ** POWER


@lru_cache(maxsize=64)
def critical(level: float, most: int) -> tuple[float, ...]:
    """|t| that n seeds must reach, for n = FIRST … `most`: one of them is reached by chance at `level`.

    Any subset of the looks, whatever chooses it, keeps the error below `level`.
    """
    found, due = [], level * spent(FIRST, most)
    edges = _edges(FIRST, level, bound := float(special.stdtrit(FIRST - 1, 1 - due / 2)))
    beyond = 2 * special.stdtr(FIRST - 1, -edges)
    found.append(bound)
    for n in range(FIRST + 1, most + 1):
        T = _self_normalised(edges, n - 1)
        before = (n, (T[1:] + T[:-1]) / 2, -np.diff(beyond))
        due = level * (spent(n, most) - spent(n - 1, most))
        alone = float(special.stdtrit(n - 1, 1 - due / 2))  # what it would be with no look before
        bound = optimize.brentq(
            lambda t, due, *law: _beyond(t, *law) - due, 0.1, 1.01 * alone, (due, *before)
        )
        found.append(bound)
        edges = _edges(n, level, bound)
        beyond = _beyond(edges, *before)
    return tuple(found)


def _edges(n: int, level: float, bound: float) -> np.ndarray:
    """|t_n| from 0 to `bound`, closer together in the tail."""
    tail = 1 - np.geomspace(0.1, level / 1000, _BINS // 2)
    share = np.concatenate([np.linspace(0, 0.9, _BINS // 2, endpoint=False), tail])
    t = special.stdtrit(n - 1, (1 + share) / 2)
    return np.append(t[t < bound], bound)


def _self_normalised(t: np.ndarray, n: int) -> np.ndarray:
    return t * np.sqrt(n / (n - 1 + t * t))


def _beyond(t: np.ndarray | float, n: int, middles: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """P(|t_n| > t, no look before has crossed), of |T_{n-1}| with `mass` at `middles`."""
    T = _self_normalised(np.asarray(t, dtype=float), n)
    m = middles.reshape(-1, *[1] * T.ndim)
    return np.tensordot(mass, _above(n - 1, m, T) + _above(n - 1, -m, T), axes=1)


def _above(n: int, T: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """P(T_{n+1} > bound | T_n = T): sin(φ + atan T) > bound / sqrt(1 + T²), between two angles."""
    angle = np.arcsin(np.clip(bound / np.sqrt(1 + T * T), -1, 1))
    low, high = (np.clip(a - np.arctan(T), -np.pi / 2, np.pi / 2) for a in (angle, np.pi - angle))
    return special.stdtr(n, np.sqrt(n) * np.tan(high)) - special.stdtr(n, np.sqrt(n) * np.tan(low))

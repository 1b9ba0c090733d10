"""Compare rules that decide a paired difference while its seeds come in, by simulation.

Each path is 20 differences in units of their standard deviation; every rule looks after each of the seeds 3
to 20. Printed per rule and true difference: the share of paths decided, and the mean number of seeds.
The second table gives the false verdicts of `lora_zoo.analysis.sequential` where differences are not normal,
the third those of families.
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy import special

from lora_zoo.analysis.boundaries import FIRST, critical
from lora_zoo.analysis.sequential import decide

MOST = 20
N = np.arange(FIRST, MOST + 1)
EFFECTS = (0.0, 0.5, 1.0, 2.0)


def statistics(X_PN: np.ndarray) -> np.ndarray:
    """|t| of paths x looks; nan where all differences are equal."""
    n = np.arange(1, X_PN.shape[1] + 1)
    mean = X_PN.cumsum(1) / n
    variance = ((X_PN**2).cumsum(1) - n * mean**2) / np.maximum(n - 1, 1)
    variance[variance < 1e-12] = np.nan
    return np.abs(mean / np.sqrt(variance / n))[:, FIRST - 1 :]


def every_look(level: float) -> np.ndarray:
    return special.stdtrit(N - 1, 1 - level / 2)


def at_the_end(level: float) -> np.ndarray:
    return np.where(N == MOST, every_look(level), np.inf)


def mixture(level: float, spread: float) -> np.ndarray:
    """The t of the anytime-valid test with a normal mixture of `spread` over the effect size.

    Its e-process is (1 + n g²)^(-1/2) ((1 + t²/ν) / (1 + t²/(ν (1 + n g²))))^(n/2), ν = n - 1, and decides at
    1 / level (Lai 1976; Wang & Ramdas 2023).
    """
    k = 1 + N * spread**2
    ratio = (k / level**2) ** (1 / N)
    with np.errstate(invalid="ignore", divide="ignore"):
        square = np.where(ratio < k, (ratio - 1) / (1 - ratio / k), np.inf)
    return np.sqrt(square * (N - 1))


RULES: dict[str, Callable[[float], np.ndarray]] = {
    "t boundary, spending (n/most)^1.5": lambda level: np.array(critical(level, MOST)),
    **{f"mixture e-process, spread {g:g}": (lambda level, g=g: mixture(level, g)) for g in (0.5, 1.0, 2.0)},
    "t test once, at 20 seeds": at_the_end,
    "t test after every seed (wrong)": every_look,
}
LAWS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda g, shape: g.standard_normal(shape),
    "uniform": lambda g, shape: g.uniform(-1, 1, shape),
    "Student's t of 3 degrees": lambda g, shape: g.standard_t(3, shape),
    "ties: -1, 0 or 1": lambda g, shape: g.integers(-1, 2, shape).astype(float),
    "a coin: -1 or 1": lambda g, shape: g.choice([-1.0, 1.0], shape),
    "ten items: a binomial minus another": lambda g, shape: (
        g.binomial(10, 0.9, shape) * 1.0 - g.binomial(10, 0.9, shape)
    ),
    "skewed: exponential - 1": lambda g, shape: g.exponential(size=shape) - 1,
    "a rare crash: 1, or -9 in one of ten": lambda g, shape: np.where(g.random(shape) < 0.1, -9.0, 1.0),
}


def power(level: float, paths: int, source: np.random.Generator) -> None:
    print(
        f"\nlevel {level:.4g}: decided (mean seeds)\n\n| rule | "
        + " | ".join(f"{d:g} sd" for d in EFFECTS)
        + " |"
    )
    print("|---" * (len(EFFECTS) + 1) + "|")
    noise = source.standard_normal((paths, MOST))
    for name, rule in RULES.items():
        cells = []
        for effect in EFFECTS:
            hit = statistics(noise + effect) >= rule(level)
            seeds = np.where(hit.any(1), hit.argmax(1) + FIRST, MOST)
            cells.append(f"{hit.any(1).mean():.3f} ({seeds.mean():.1f})")
        print(f"| {name} | {' | '.join(cells)} |")


def other_laws(paths: int, source: np.random.Generator) -> None:
    print("\n| differences, of mean 0 | false verdicts at level 0.05 | at 0.05 / 6 |\n|---|---|---|")
    for name, law in LAWS.items():
        X_PN = law(source, (paths, MOST))
        wrong = [
            np.mean([decide(x, level=level, most=MOST).after is not None for x in X_PN])
            for level in (0.05, 0.05 / 6)
        ]
        print(f"| {name} | {wrong[0]:.4f} | {wrong[1]:.4f} |")


def families(paths: int, source: np.random.Generator) -> None:
    print("\n| family, of one true mean | any false verdict at level 0.05 |\n|---|---|")
    for variants in (3, 6, 9):
        scores = source.standard_normal((variants, paths, MOST))
        ones = [(0, j) for j in range(1, variants)]
        pairs = [(i, j) for i in range(variants) for j in range(i + 1, variants)]
        for name, asked in (
            (f"{variants - 1} variants against one", ones),
            (f"all {len(pairs)} pairs of {variants}", pairs),
        ):
            bound = np.array(critical(0.05 / len(asked), MOST))
            wrong = np.zeros(paths, dtype=bool)
            for i, j in asked:
                wrong |= (statistics(scores[i] - scores[j]) >= bound).any(1)
            print(f"| {name} | {wrong.mean():.4f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    source = np.random.default_rng(options.seed)
    for level in (0.05, 0.05 / 6, 0.05 / 36):
        power(level, options.paths, source)
    other_laws(options.paths // 20, source)
    families(options.paths // 5, source)


if __name__ == "__main__":
    main()

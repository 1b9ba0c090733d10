"""The guard: no variant's forward may become slower, beside its own definition, than was last recorded.

The ratio of both in one process is much the same on any machine, which a time is not. What looks slower is
measured again: only what is slower in each of three separate measurements counts.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_zoo.benchmark.contenders import adapts_matrices, contenders
from lora_zoo.benchmark.options import DROPOUT, Options
from lora_zoo.benchmark.shapes import llama
from lora_zoo.benchmark.timing import Prepare, Spread, ratio
from lora_zoo.core.variants import VARIANTS

REFERENCE = Path(__file__).with_name("reference.json")
SHAPE = llama(
    "guard", "hidden 192, 1 layer, 512 tokens",
    hidden=192, intermediate=512, layers=1, heads=6, sequences=4, length=128,
)  # fmt: skip
CONFIRMATIONS = 3
ROUNDS = 9
SESSIONS = 5
"""Measurements behind a reference; how far they lie apart says what is noise."""
FLOOR = 0.12
"""The least that counts as slower: processors differ by that much."""
Measure = Callable[[Sequence[str]], Mapping[str, float]]
"""The ratios fused / plain of some variants, by what is measured: "lora", "lora, dropout 0.05"."""


class Allowed(NamedTuple):
    """A recorded ratio, and the share by which a measured one may exceed it."""

    ratio: float
    tolerance: float

    @property
    def most(self) -> float:
        return self.ratio * (1 + self.tolerance)


class Slower(NamedTuple):
    what: str
    measured: Sequence[float]
    allowed: Allowed

    def __str__(self) -> str:
        seen = ", ".join(f"{value:.2f}" for value in self.measured)
        return (
            f"{self.what}: fused / plain was {self.allowed.ratio:.2f} and may be {self.allowed.most:.2f}; "
            f"measured {seen}"
        )


def ratios(options: Options, variants: Iterable[str]) -> dict[str, float]:
    """What `variants` cost beside their definitions: a median for each, and one with dropout where it is."""
    base, found = SHAPE.model(options.dtype, options.device), {}
    for variant in variants:
        paths = contenders(SHAPE, base, variant, device=options.device, dropouts=(0.0, DROPOUT), rivals=False)
        steps: dict[tuple[str, float], Prepare] = {key: _step(c) for key, c in paths.items()}
        times = options.stopwatch(at_most=ROUNDS).alternate(steps)
        for path, dropout in times:
            if path == "fused":
                what = f"{variant}, dropout {dropout:g}" if dropout else variant
                found[what] = ratio(times[path, dropout], times["plain", 0.0]).median
    return found


def _step(contender: Any) -> Prepare:
    return lambda: contender.step


def guarded(options: Options) -> list[str]:
    """The variants that have a forward pass of their own to guard."""
    return [name for name in options.variants if adapts_matrices(VARIANTS.find(name))]


def compare(allowed: Mapping[str, Allowed], variants: Sequence[str], measure: Measure) -> list[Slower]:
    """What is slower than allowed in each of `CONFIRMATIONS` measurements; suspects alone are repeated."""
    seen: dict[str, list[float]] = {}
    suspects = list(variants)
    for _ in range(CONFIRMATIONS):
        found = measure(suspects)
        over = {
            what: value for what, value in found.items() if what in allowed and value > allowed[what].most
        }
        first = not seen
        seen = {what: [*seen.get(what, []), value] for what, value in over.items() if first or what in seen}
        if not seen:
            return []
        suspects = list(dict.fromkeys(what.partition(",")[0] for what in seen))
    return [Slower(what, values, allowed[what]) for what, values in seen.items()]


def record(variants: Sequence[str], measure: Measure) -> dict[str, Allowed]:
    """Ratios over `SESSIONS` measurements, with a tolerance from how far these lie apart."""
    sessions = [measure(variants) for _ in range(SESSIONS)]
    return {what: _allowed([session[what] for session in sessions]) for what in sessions[0]}


def _allowed(values: Sequence[float]) -> Allowed:
    middle, low, high = Spread.of(values)
    return Allowed(round(middle, 4), round(max(FLOOR, 2 * (high - low) / middle), 4))


def read(path: Path = REFERENCE) -> dict[str, Allowed]:
    """The recorded ratios. ValueError where there are none."""
    if not path.is_file():
        raise ValueError("no reference is recorded; write one with python -m lora_zoo.bench --guard --write")
    return {what: Allowed(**values) for what, values in json.loads(path.read_text())["ratios"].items()}


def write(allowed: Mapping[str, Allowed], origin: Mapping[str, Any], path: Path = REFERENCE) -> None:
    """Record `allowed`; what was recorded of other variants stays."""
    known = read(path) if path.is_file() else {}
    merged = {what: value._asdict() for what, value in sorted((known | dict(allowed)).items())}
    path.write_text(json.dumps({"origin": dict(origin), "ratios": merged}, indent=1) + "\n")


def run(options: Options, origin: Mapping[str, Any], path: Path = REFERENCE) -> int:
    """Compare, or with `--write` record; what is found is printed. The exit code."""
    variants = guarded(options)

    def measure(names: Sequence[str]) -> Mapping[str, float]:
        return ratios(options, names)

    if options.write:
        write(record(variants, measure), origin, path)
        print(f"the reference of {len(variants)} variants is in {path.name}")
        return 0
    allowed = read(path)
    slower = compare(allowed, variants, measure)
    for name in variants:
        if name not in allowed:
            print(f"{name} has no reference yet: python -m lora_zoo.bench --guard --write --variants {name}")
    for one in slower:
        print(f"slower: {one}")
    if not slower:
        print(f"no variant of {len(variants)} is slower, beside its definition, than recorded")
    return int(bool(slower))

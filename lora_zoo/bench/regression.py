"""The regression test: no variant's forward may become slower, beside its own definition, than recorded.

The ratio of both in one process is much the same on any machine, which a time is not. What looks slower is
measured again: only what is slower in each of three separate measurements counts.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lora_zoo.bench.options import DROPOUT, Options
from lora_zoo.bench.paths import paths
from lora_zoo.bench.shapes import Shape
from lora_zoo.bench.timing import quartiles, ratios
from lora_zoo.core.variants import VARIANTS

REFERENCE = Path(__file__).with_name("reference.json")
SHAPE = Shape("guard", 192, 512, layers=1, heads=6, sequences=4, length=128)
CONFIRMATIONS = 3
ROUNDS = 9
SESSIONS = 5
"""Measurements behind a reference; how far they lie apart is the noise."""
FLOOR = 0.12
"""The least that counts as slower: processors differ by that much."""
Measure = Callable[[Sequence[str]], Mapping[str, float]]
"""The ratios fused / plain of some variants, by what is measured: "lora", "lora, dropout 0.05"."""


class RecordedRatio(NamedTuple):
    """A recorded ratio, and the share by which a measured one may exceed it."""

    ratio: float
    tolerance: float

    @property
    def most(self) -> float:
        return self.ratio * (1 + self.tolerance)


def run(options: Options, provenance: Mapping[str, Any], path: Path = REFERENCE) -> int:
    """Compare, or with `--write` record, and print the outcome. Returns the exit code."""
    names = [name for name in options.adapters if VARIANTS.find(name).pointwise]  # others have no definition
    measure = partial(measured, options)
    if options.write:
        write(record(names, measure), provenance, path)
        print(f"the reference of {len(names)} variants is in {path.name}")
        return 0
    recorded = read(path)
    known = [name for name in names if name in recorded]
    slower = compare(recorded, known, measure)
    if new := ",".join(name for name in names if name not in recorded):
        print(f"no reference yet: python -m lora_zoo.bench --guard --write --variants {new}")
    for what, values in slower.items():
        was, seen = recorded[what], ", ".join(f"{value:.2f}" for value in values)
        print(f"slower: {what}: fused / plain was {was.ratio:.2f} and may be {was.most:.2f}; measured {seen}")
    if not slower:
        print(f"no variant of {len(known)} is slower, beside its definition, than recorded")
    return int(bool(slower))


def measured(options: Options, variants: Iterable[str]) -> dict[str, float]:
    """The median ratio fused / plain of each variant, and one with dropout where it takes that."""
    base, found = SHAPE.model(options.dtype, options.device), {}
    for variant in variants:
        own = paths(SHAPE, base, variant, device=options.device, dropouts=(0.0, DROPOUT), own=True)
        times = options.stopwatch(at_most=ROUNDS).interleave({k: path.prepare for k, path in own.items()})
        for dropout in (p for name, p in times if name == "fused"):
            what = f"{variant}, dropout {dropout:g}" if dropout else variant
            found[what] = quartiles(ratios(times["fused", dropout], times["plain", 0.0]))[1]
    return found


def compare(
    recorded: Mapping[str, RecordedRatio], variants: Sequence[str], measure: Measure
) -> dict[str, list[float]]:
    """The ratios of what is slower in each of `CONFIRMATIONS` measurements; suspects alone are repeated."""
    slower: dict[str, list[float]] = {what: [] for what in recorded}
    suspects = list(variants)
    for _ in range(CONFIRMATIONS):
        found = measure(suspects)
        over = [what for what in slower if found.get(what, 0.0) > recorded[what].most]
        slower = {what: [*slower[what], found[what]] for what in over}
        suspects = list(dict.fromkeys(what.partition(",")[0] for what in over))
        if not suspects:
            break
    return slower


def record(variants: Sequence[str], measure: Measure) -> dict[str, RecordedRatio]:
    """Ratios over `SESSIONS` measurements, with a tolerance from how far these lie apart."""
    sessions = [measure(variants) for _ in range(SESSIONS)]
    recorded = {}
    for what in sessions[0]:
        low, median, high = quartiles([session[what] for session in sessions])
        tolerance = max(FLOOR, 2 * (high - low) / median)
        recorded[what] = RecordedRatio(round(median, 4), round(tolerance, 4))
    return recorded


def read(path: Path = REFERENCE) -> dict[str, RecordedRatio]:
    """The recorded ratios. ValueError where there are none."""
    if not path.is_file():
        raise ValueError("no reference is recorded; write one with python -m lora_zoo.bench --guard --write")
    return {what: RecordedRatio(**values) for what, values in json.loads(path.read_text())["ratios"].items()}


def write(recorded: Mapping[str, RecordedRatio], provenance: Mapping[str, Any], path: Path) -> None:
    """Record the ratios; those of other variants stay."""
    known = (read(path) if path.is_file() else {}) | dict(recorded)
    merged = {what: known[what]._asdict() for what in sorted(known)}
    path.write_text(json.dumps({"origin": dict(provenance), "ratios": merged}, indent=1) + "\n")

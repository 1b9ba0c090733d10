"""The ratios to reach, and what was measured beside each."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from lora_zoo.bench import init_time, memory, step
from lora_zoo.bench.options import DROPOUT, Options
from lora_zoo.bench.report import Measurement, Values
from lora_zoo.bench.shapes import REFERENCE

ABOUT = """\
Ratios of medians that are to be *at most* what stands beside them, in the two reference settings (Llama, all
linear roles, r = 8, VeRA's 256): 1,536 tokens x hidden 192 (`llama-192`), 512 x hidden 768 (`llama-768`).
How each is measured is said in the tables of steps, memory and initialisation."""
COLUMNS = {"at most": "{at_most:.2f}", "measured": "{measured:.2f}", "met": "{met}"}
VARIANTS = ("adalora", "dora", "lora", "lora_fa", "lora_plus", "milora", "pissa", "rslora", "vera")
FAMILY = ("lora", "lora_fa", "lora_plus", "milora", "pissa", "rslora")
OVER = {"fused": "the frozen baseline", "fused_over_peft": "PEFT's"}
STEPS: tuple[tuple[tuple[str, ...], float, str, tuple[float, float]], ...] = (
    (VARIANTS, 0.0, "fused_over_peft", (1.0, 1.0)),
    (FAMILY, 0.0, "fused", (1.15, 1.08)),
    (("lora",), DROPOUT, "fused", (1.30, 1.12)),
    (("dora",), 0.0, "fused", (1.22, 1.12)),
    (("dora",), DROPOUT, "fused", (2.00, 2.00)),
    (("adalora",), 0.0, "fused", (1.20, 1.10)),
    (("vera",), 0.0, "fused", (1.45, 1.45)),
)
"""Variants, dropout, the ratio of a row of steps, and at most what in each reference setting."""
FAST = "pissa_niter_16"


class Target(NamedTuple):
    """`key` in the row of `measurement` that has the values of `where`: at most `at_most`.

    `over` changes some of `where`: the value is then a multiple of that row's.
    """

    figure: str
    at_most: float
    measurement: str
    key: str
    where: Mapping[str, Any]
    over: Mapping[str, Any] = {}

    def measured(self, done: Mapping[str, Measurement]) -> float | None:
        """None where it was not measured."""
        rows = done[self.measurement].rows if self.measurement in done else []

        def value(where: Mapping[str, Any]) -> float | None:
            return next((row.get(self.key) for row in rows if where.items() <= row.items()), None)

        one = value(self.where)
        other = value({**self.where, **self.over}) if self.over else 1.0
        return one / other if one is not None and other else None


def targets() -> Iterator[Target]:
    for setting, shape in enumerate(REFERENCE):
        for variants, dropout, key, at_most in STEPS:
            with_dropout = f" with dropout {dropout:g}" if dropout else ""
            for variant in variants:
                where = {"shape": shape, "variant": variant, "dropout": dropout}
                figure = f"{variant}{with_dropout}, step / {OVER[key]}"
                yield Target(figure, at_most[setting], "step", key, where)
    wide = {"shape": REFERENCE[-1]}
    fast = wide | {"variant": "pissa", "init": FAST}
    smaller = "lora_fa, adapter's activation bytes / lora's"
    yield Target(smaller, 0.10, "memory", "fused_own", wide | {"variant": "lora_fa"}, {"variant": "lora"})
    yield Target(f"pissa, init={FAST}, time / PEFT's", 1.0, "init", "first_over_peft", fast)
    yield Target("the same, second job of a sweep / first", 0.05, "init", "again_over_first", fast)


def measure(options: Options, done: Mapping[str, Measurement]) -> Measurement:
    """The table; what `done` lacks is measured first, on the reference settings alone."""
    missing: dict[str, Callable[[], Measurement]] = {
        "step": lambda: step.measure(_narrowed(options, REFERENCE, VARIANTS)),
        "memory": lambda: memory.measure(_narrowed(options, REFERENCE[-1:], ("lora", "lora_fa"))),
        "init": lambda: init_time.measure(_narrowed(options, REFERENCE[-1:], ("pissa",)), only=(FAST,)),
    }
    known = dict(done) | {name: make() for name, make in missing.items() if name not in done}
    rows: list[Values] = []
    for target in targets():
        value = target.measured(known)
        rows.append(
            {"figure": target.figure, "setting": target.where["shape"], "at_most": target.at_most}
            | {"measured": value, "met": None if value is None else value <= target.at_most}
        )
    verdicts = [row["met"] for row in rows if row["met"] is not None]
    note = f"Met: {sum(verdicts)} of {len(verdicts)} measured, {len(rows)} in all."
    return Measurement("targets", "Figures to reach", ABOUT, ("figure", "setting"), COLUMNS, rows, note=note)


def _narrowed(options: Options, shapes: tuple[str, ...], variants: tuple[str, ...]) -> Options:
    """On `shapes`; on those of `variants` that were asked for."""
    chosen = tuple(name for name in variants if name in options.variants)
    return dataclasses.replace(options, shapes=shapes, variants=chosen)

"""The figures to reach, and what was measured beside each."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from lora_zoo.benchmark import memory, starts, step
from lora_zoo.benchmark.options import DROPOUT, Options
from lora_zoo.benchmark.report import Report, Row
from lora_zoo.benchmark.shapes import REFERENCE, find_shape

ABOUT = """\
Ratios of medians that are to be *at most* what stands beside them, in the two reference settings (Llama, all
linear roles, r = 8, VeRA's 256): 1,536 tokens x hidden 192 (`llama-192`), 512 x hidden 768 (`llama-768`).
How each is measured is said in the tables of steps, memory and initialisation."""
COLUMNS = {
    "figure": "figure",
    "setting": "setting",
    "at_most": "at most",
    "measured": "measured",
    "met": "met",
}
CARD = ("adalora", "dora", "lora", "lora_fa", "lora_plus", "milora", "pissa", "rslora", "vera")
FAST = "pissa_niter_16"
Measured = Mapping[str, Report]


@dataclass(frozen=True)
class Goal:
    """`key` of the row of `report` that has the values of `where`, at most `at_most`."""

    figure: str
    at_most: float
    report: str
    key: str
    where: Row

    def measured(self, reports: Measured) -> float | None:
        """None where it was not measured."""
        rows = reports[self.report].rows if self.report in reports else []
        fits = (row for row in rows if all(row.get(k) == v for k, v in self.where.items()))
        return next((row.get(self.key) for row in fits), None)


def goals() -> Iterator[Goal]:
    for shape, to_limit in zip(REFERENCE, (1.20, 1.12), strict=True):

        def stepped(
            variant: str, other: str, at_most: float, dropout: float = 0.0, shape: str = shape
        ) -> Goal:
            with_dropout = f" with dropout {dropout:g}" if dropout else ""
            beside = "the frozen limit" if other == "fused" else "PEFT's"
            where = {"shape": shape, "variant": variant, "dropout": dropout}
            return Goal(f"{variant}{with_dropout}, step / {beside}", at_most, "step", other, where)

        yield from (stepped(variant, "fused_over_peft", 1.0) for variant in CARD)
        yield from (stepped(variant, "fused", to_limit) for variant in ("lora", "rslora", "pissa"))
        yield stepped("lora", "fused_over_peft", 0.70, DROPOUT)
        yield stepped("dora", "fused_over_peft", 0.65)
        yield stepped("dora", "fused_over_peft", 0.50, DROPOUT)
        yield stepped("vera", "fused_over_peft", 0.75)
        yield stepped("adalora", "fused_over_peft", 0.85)
    widest = {"shape": REFERENCE[-1]}
    less = "lora_fa, adapter's activation bytes / lora's"
    yield Goal(less, 0.10, "memory", "own_over_lora", widest | {"variant": "lora_fa"})
    fast = widest | {"variant": "pissa", "init": FAST}
    yield Goal(f"pissa, init={FAST}, time / PEFT's", 1.0, "init", "first_over_peft", fast)
    yield Goal("the same, second job of a sweep / first", 0.05, "init", "again_over_first", fast)


def measure(options: Options, reports: Measured) -> Report:
    """The page; what `reports` lack is measured first, on the reference settings alone."""
    missing: dict[str, Callable[[Options], Report]] = {
        "step": lambda o: step.measure(_narrowed(o, REFERENCE, CARD)),
        "memory": lambda o: memory.measure(_narrowed(o, REFERENCE[-1:], ("lora", "lora_fa"))),
        "init": lambda o: starts.measure(_narrowed(o, REFERENCE[-1:], ("pissa",)), only=(FAST,)),
    }
    known = dict(reports) | {name: make(options) for name, make in missing.items() if name not in reports}
    rows = []
    for goal in goals():
        value = goal.measured(known)
        rows.append(
            {"figure": goal.figure, "setting": goal.where["shape"], "at_most": goal.at_most}
            | {"measured": value, "met": None if value is None else value <= goal.at_most}
        )
    return report(rows)


def _narrowed(options: Options, shapes: tuple[str, ...], variants: tuple[str, ...]) -> Options:
    """On `shapes`; on those of `variants` that were asked for."""
    chosen = tuple(name for name in variants if name in options.variants)
    return dataclasses.replace(options, shapes=tuple(map(find_shape, shapes)), variants=chosen)


def report(rows: list[Row]) -> Report:
    words = {True: "yes", False: "no", None: "not measured"}
    cells = [
        row
        | {"at_most": f"{row['at_most']:.2f}", "met": words[row["met"]]}
        | {"measured": None if row["measured"] is None else f"{row['measured']:.2f}"}
        for row in rows
    ]
    met, known = (
        sum(row["met"] is True for row in rows),
        sum(row["met"] is not None for row in rows),
    )
    notes = [f"Met: {met} of {known} measured, {len(rows)} in all."]
    return Report("targets", "Figures to reach", ABOUT, COLUMNS, rows, cells, notes=notes)

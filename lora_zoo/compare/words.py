"""Verdicts in words: the sentences with which the page and the terminal begin."""

import math
from collections.abc import Iterator, Sequence

from lora_zoo.analysis.power import MOST
from lora_zoo.analysis.sequential import Decision
from lora_zoo.analysis.statistics import Interval
from lora_zoo.compare.contenders import Comparison
from lora_zoo.compare.judging import FEWEST, CellRuns, Ruling, Standing, more_seeds


def verdict(ruling: Ruling) -> str:
    """better, worse or not distinguishable, by how much, at which size: one sentence."""
    mine, other = ruling.candidate.cell.label, ruling.reference.cell.label
    numbers, reasons = (
        f"{_scores(ruling)}, a difference of {amount(ruling.difference)}",
        "; ".join(ruling.reasons),
    )
    if ruling.finding == Standing.NONE:
        so_far = f"; so far {numbers}" if ruling.difference.n else ""
        return f"{size(ruling)}, there is no verdict on {mine} against {other}: {reasons}{so_far}."
    found = f"{ruling.finding} {'from' if ruling.finding == Standing.OPEN else 'than'} {other}"
    return f"{size(ruling)}, {mine} is {found}: {numbers}{f' ({reasons})' if reasons else ''}."


def size(ruling: Ruling) -> str:
    """`At equal rank (8)`, or what the two have instead."""
    mine, other = ruling.candidate.cell, ruling.reference.cell
    if ruling.at == "rank":
        if mine.rank == other.rank is not None:
            return f"At equal rank ({mine.rank})"
        return f"At their own ranks ({_rank(ruling.candidate)}, {_rank(ruling.reference)})"
    if mine.adapter == other.adapter:
        return f"At equal parameters ({mine.adapter:,})"
    share = mine.adapter / other.adapter - 1
    count = f"{mine.label} {mine.adapter:,}, {other.label} {other.adapter:,}: {share:+.1%}"
    return f"At parameters as equal as whole ranks allow ({count})"


def _rank(side: CellRuns) -> str:
    return f"{side.cell.label} {'has none' if side.cell.rank is None else side.cell.rank}"


def _scores(ruling: Ruling) -> str:
    runs = ruling.candidate.runs if len(ruling.candidate.runs) else ruling.reference.runs
    metric = str(runs["metric"].iloc[0]) if len(runs) and "metric" in runs else "score"
    common = ruling.candidate.scores.index.intersection(ruling.reference.scores.index)
    mine, other = (side.scores.loc[common].mean() for side in (ruling.candidate, ruling.reference))
    return f"{metric} {mine:.4f} against {other:.4f}"


def amount(found: Decision) -> str:
    """An estimate with its interval, where there is one."""
    known = math.isfinite(found.low) and math.isfinite(found.high)
    bounds = f" [{found.low:+z.4f}, {found.high:+z.4f}]" if known else ""
    return f"{found.estimate:+z.4f}{bounds}"


def likelihood(ruling: Ruling) -> str:
    """The second score in one sentence; "" where runs keep none."""
    found = ruling.likelihood
    if ruling.finding == Standing.NONE or found.n < FEWEST:
        return ""
    word = "not distinguishable" if found.is_open else found.verdict
    return (
        f"By the likelihood of the test references {ruling.candidate.cell.label} is {word}: "
        f"{amount(found)} nats a reference (less is better)."
    )


def cost(ruling: Ruling) -> str:
    """Time and memory as ratios: one sentence."""
    mine, other = ruling.candidate.cell.label, ruling.reference.cell.label
    parts = []
    if not math.isnan(ruling.time.estimate):
        doubt = f" ({ruling.busy})" if ruling.busy else ""
        parts.append(f"a step takes {ratio(ruling.time)} times as long{doubt}")
    if not math.isnan(ruling.memory):
        parts.append(f"training keeps {ruling.memory:.2f} times the memory")
    return f"Cost of {mine} against {other}: {', and '.join(parts)}." if parts else ""


def ratio(found: Interval) -> str:
    bounds = "" if math.isnan(found.low) else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.estimate:.2f}{bounds}"


def sureness(rulings: Sequence[Ruling], plans: int) -> str:
    """Level, correction, seeds, items and tuning: two sentences for the page."""
    seeds, first = sorted({r.difference.n for r in rulings}), rulings[0]
    several = f", so that all {len(rulings)} verdicts hold together with 95 %" if len(rulings) > 1 else ""
    again = f"; the plan was changed after a look, {plans} plans share the error" if plans > 1 else ""
    return (
        f"Intervals are of paired differences over {_range(seeds)} common seeds of at most "
        f"{first.difference.most}, at {100 * (1 - first.difference.level):.4g} %{several}, and hold whenever "
        f"one stops{again}{_items(first)}. "
        "The learning rate of each was chosen by validation, never by test, in the same steps for all."
    )


def _items(ruling: Ruling) -> str:
    runs = ruling.candidate.runs
    if "data.test.size" not in runs or runs["data.test.size"].isna().all():
        return ""
    return f"; each score is over {runs['data.test.size'].iloc[0]:,.0f} test items"


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def to_know(ruling: Ruling, pair_seconds: float) -> str:
    """The seeds and hours that an open comparison would take; "" for one that is decided.

    `pair_seconds` are those of a seed of both on this machine.
    """
    if ruling.finding in (Standing.BETTER, Standing.WORSE):
        return ""
    wanted, least = more_seeds(ruling)
    d = ruling.difference
    if math.isnan(least):
        return (
            "The difference is the same in every seed, so it does not show how many more would decide."
            if d.n > 1
            else ""
        )
    sees = f"{d.n} seeds detect a difference of {least:.4f} with 80 % power"
    if math.isinf(wanted):
        return f"{sees}; one as small as the measured takes more than {MOST:,} seeds."
    if wanted <= d.n:
        return f"{sees}."
    more = duration((wanted - d.n) * pair_seconds)
    return (
        f"{sees}; if the true difference is the measured {abs(d.estimate):.4f}, about {wanted} seeds would "
        f"show it, about {more} more on this machine."
    )


def duration(seconds: float) -> str:
    """Seconds in words: minutes below two hours."""
    return f"{seconds / 60:.2g} minutes" if seconds < 7200 else f"{seconds / 3600:.2g} hours"


def absences(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Sentences on contenders that cannot be had at a size."""
    for comparison in comparisons:
        for said in comparison.absent:
            yield f"Not compared at equal {comparison.at}: {said}."

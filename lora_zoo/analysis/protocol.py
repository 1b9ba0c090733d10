"""The protocol of a table: from runs to cells that may be compared.

    table = cells(frame, by=["variant"], tune=["task.lr"])
    table.rule; table.warnings; [(str(cell), cell.mean, cell.n) for cell in table.tied()]

A cell is one configuration over several seeds. Tuned axes are chosen for each cell by its mean validation
score and by nothing else (its likelihood, where that is compared); every try has to have all seeds of the
cell, so that no survivor is chosen. Learning rates that lr=auto has found are no axes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import pandas as pd

from lora_zoo.analysis.columns import (
    format_key,
    format_value,
    join_names,
    plain,
    replicates,
    texts,
    varying,
)
from lora_zoo.analysis.comparison import Cell, Cells, undeclared
from lora_zoo.analysis.integrity import Finding, sound
from lora_zoo.analysis.rounds import Plan
from lora_zoo.analysis.sequential import interval_at_stop
from lora_zoo.analysis.statistics import Interval, interval
from lora_zoo.runs.directions import higher_is_better
from lora_zoo.runs.keys import column, searched


def cells(
    frame: pd.DataFrame,
    by: Sequence[str],
    value: str = "test",
    tune: Sequence[str] = (),
    judge: str = "",
    *,
    found: Sequence[Finding] | None = None,
) -> Cells:
    """The cells of `frame` by the axes `by`, compared in the column `value`.

    An axis is a column or a key of the command line; `judge` is the column that tuned ones are chosen by,
    where it does not follow from `value`; `found` are the frame's findings, where they are known. ValueError
    for an axis that is not there, and where runs of one cell differ in an axis that is named in neither `by`
    nor `tune`: their mean would be of two things.
    """
    axes, tuned = {a: column(frame, a) for a in by}, {a: column(frame, a) for a in tune}
    judged, counted = column(frame, value), sound(frame, found)
    judge, found_before = judge or chosen_by(counted, value), searched(counted)
    tuned = {axis: name for axis, name in tuned.items() if name not in found_before}
    counted = counted.assign(**{_REPLICATE: replicates(counted)})
    diverged = frame[frame["state"] == "diverged"]
    tries = pd.concat([counted, diverged]) if len(diverged) else counted
    differing = varying(counted)
    made, noted = [], _doubts(frame, counted, value, bool(tuned))
    for key, mine in _groups(tries, axes):
        group = mine[mine["state"] == "done"]
        if group.empty:
            noted.append(f"{format_key(key)}: every run diverged, so that it has no cell")
            continue
        chosen, runs, notes = _chosen(group, mine, tuned, judge)
        _one_configuration(key, runs, differing)
        lost = _like(mine[mine["state"] == "diverged"], chosen, tuned)
        if len(lost):
            notes.append(f"{len(lost)} seeds diverged, and the mean is of those that did not")
        if absent := int(runs[judged].isna().sum()):
            notes.append(f"{absent} done runs have no {value} and are not counted")
        noted += [f"{format_key(key)}: {note}" for note in notes]
        made.append(_cell(key, chosen, _tried(mine, tuned), runs[runs[judged].notna()], judged))
    plan = plan_of(counted, axes)
    made = [replace(cell, plan=plan) for cell in made]
    rule = _rule(value, tuned, plan, judge, found_of(counted))
    return Cells(made, list(axes), value, _direction(counted, value), rule, tuple(noted), plan)


def plan_of(frame: pd.DataFrame, axes: Mapping[str, str] | None = None) -> Plan | None:
    """The plan by which a sweep with seed=auto added the seeds of these runs, None where it did not.

    Of several, the one of most seeds. `axes` are a table's: axis: column.
    """
    columns = {f.name: f"{_PLAN}{f.name}" for f in fields(Plan) if f"{_PLAN}{f.name}" in frame}
    known = frame[frame[f"{_PLAN}most"].notna()] if "most" in columns else frame.iloc[:0]
    if known.empty:
        return None
    row = known.sort_values(f"{_PLAN}most").iloc[-1]
    plan = Plan(**{name: plain(row[column_]) for name, column_ in columns.items()})
    axis, is_, value = plan.against.partition("=")
    own = [name for name, of in (axes or {}).items() if is_ and of == column(frame, axis)]
    return replace(plan, against=f"{own[0]}={value}" if own else plan.against)


class FoundSettings(NamedTuple):
    """Settings that were found for each cell: their keys, how, and words for each sweep's cells."""

    keys: str
    how: str
    found: tuple[str, ...]


def found_of(frame: pd.DataFrame) -> FoundSettings | None:
    """The settings that lr=auto or a search has found for these runs; None where any was given its own."""
    for how, names in _FOUND_BY.items():
        if not frame.empty and names[0] in frame and frame[names[0]].notna().all():
            plans = frame[names].drop_duplicates().itertuples(index=False)
            told = tuple(f"{_SPENT[how].format(spent)}: {found}" for _, spent, found in plans)
            return FoundSettings(", ".join(frame[names[0]].unique()), how, told)
    return None


_FOUND_BY = {
    "successive halving": ["config.rates.key", "config.rates.budget", "config.rates.found"],
    "a search": ["config.search.keys", "config.search.n_trials", "config.search.found"],
}
"""How settings are found: the columns of their keys, of what was spent on each cell, and of the outcome."""
_SPENT = {
    "successive halving": "{:,.0f} steps of trials for each cell",
    "a search": "{:,.0f} trials for each cell",
}


def chosen_by(frame: pd.DataFrame, value: str) -> str:
    """The column that settings are chosen by where `value` is compared: what it is on validation."""
    name = "validation_nll"
    kept = value.endswith("nll") and name in frame and frame[name].notna().all()
    return name if kept else "validation"


def interval_of(runs: pd.DataFrame, value: str, level: float = 0.95) -> Interval:
    """The interval for the mean over seeds, by the plan of the runs where they have one."""
    values, plan = runs[value].astype(float), plan_of(runs)
    return interval_at_stop(values, plan.most, level) if plan else interval(values, level)


_REPLICATE = "replicate"
_PLAN = "config.seeds."
SMALL = 100
"""Below so many test items, a warning says how far one of them moves a score."""


def _doubts(frame: pd.DataFrame, counted: pd.DataFrame, value: str, tuned: bool) -> list[str]:
    found = []
    if len(counted) < len(frame):
        found.append(f"{len(frame) - len(counted)} of {len(frame)} runs are not counted; findings say why")
    split = value.removesuffix("_nll")
    if tuned and split == "validation":
        found.append("tuned axes were chosen on the very examples that are compared, which flatters them")
    size = f"data.{split}.size"
    items = counted[size].min() if size in counted else SMALL
    if items < SMALL:
        found.append(f"the {split} set has {items:.0f} items: one of them moves a score by {1 / items:.2g}")
    return found


def _like(runs: pd.DataFrame, chosen: dict, tuned: dict[str, str]) -> pd.DataFrame:
    """Of `runs`, those of the chosen setting."""
    alike = [runs[name].map(plain) == chosen[axis] for axis, name in tuned.items()]
    return runs[pd.concat(alike, axis=1).all(axis=1)] if alike else runs


def _groups(frame: pd.DataFrame, axes: dict[str, str]) -> Iterator[tuple[dict, pd.DataFrame]]:
    """The rows of each value of the axes, in the order in which they come."""
    for _, group in frame.groupby(texts(frame, axes.values()), sort=False):
        yield {axis: plain(group[name].iloc[0]) for axis, name in axes.items()}, group


def _chosen(
    group: pd.DataFrame, tries: pd.DataFrame, tuned: dict[str, str], judge: str
) -> tuple[dict, pd.DataFrame, list[str]]:
    """The setting of the tuned axes with the best mean validation score, its runs, and doubts about it."""
    if not tuned:
        return {}, group, []
    if judge not in group or group[judge].isna().all():
        raise ValueError(f"tuning {', '.join(tuned)} needs validation scores; evaluate with eval_splits")
    plan = plan_of(group)
    settings = list(_groups(group[group["seed"] < plan.first] if plan else group, tuned))
    seeds = [int(runs[judge].notna().sum()) for _, runs in settings]
    whole = [one for one, n in zip(settings, seeds, strict=True) if n == max(seeds)]
    sign = 1 if better(group, judge) == "higher" else -1
    key, _ = max(whole, key=lambda one: sign * one[1][judge].mean())
    partial = [f"{format_key(k)} ({n})" for (k, _), n in zip(settings, seeds, strict=True) if n < max(seeds)]
    notes = [f"not eligible, for want of all {max(seeds)} seeds: {join_names(partial)}"] if partial else []
    return key, _like(group, key, tuned), [*notes, *_edges(key, tries, tuned)]


def _edges(chosen: dict, tries: pd.DataFrame, tuned: dict[str, str]) -> Iterator[str]:
    for axis, name in tuned.items():
        values = pd.to_numeric(tries[name], errors="coerce").dropna().unique()
        if len(values) > 2 and chosen[axis] in (values.min(), values.max()):
            side = "least" if chosen[axis] == values.min() else "greatest"
            value = format_value(chosen[axis])
            yield f"the {axis} chosen ({value}) is the {side} tried: a better may lie beyond"


def _tried(tries: pd.DataFrame, tuned: dict[str, str]) -> tuple[str, ...]:
    keys = [key for key, _ in _groups(tries, tuned)] if tuned else []
    return tuple(sorted({format_key(key) for key in keys}))


def _one_configuration(key: dict, runs: pd.DataFrame, differing: Sequence[str]) -> None:
    """Raise ValueError for runs that differ in one of the settings `differing` in the whole frame."""
    if others := varying(runs, differing):
        values = {name: join_names(sorted(set(map(format_value, runs[name]))), 4) for name in others}
        text = "; ".join(f"{name} ({value})" for name, value in values.items())
        raise ValueError(
            f"the runs of {format_key(key)} differ in {text}: name it in `by` or `tune`, or filter"
        )


def _cell(key: dict, chosen: dict, tried: tuple[str, ...], runs: pd.DataFrame, judged: str) -> Cell:
    by_seed = runs.set_index(pd.Index(runs[_REPLICATE], name="seed")).sort_index()
    validation = by_seed.get("validation", pd.Series(float("nan"), by_seed.index))
    trainable = float(runs["trainable"].median()) if "trainable" in runs else float("nan")
    names = [str(run) for run in by_seed["run"]]
    values, validation = by_seed[judged].astype(float), validation.astype(float)
    return Cell(key, values, validation, names, chosen, tried, trainable)


def better(frame: pd.DataFrame, value: str) -> str:
    """higher or lower, as the column's metric declares it. ValueError where it declares nothing."""
    if not (direction := _direction(frame, value)):
        raise ValueError(undeclared(value))
    return direction


def _direction(frame: pd.DataFrame, value: str) -> str:
    return {True: "higher", False: "lower", None: ""}[higher_is_better(frame, column(frame, value))]


def _rule(
    value: str, tuned: dict[str, str], plan: Plan | None, judge: str, found: FoundSettings | None
) -> str:
    over = f"its first {plan.first} seeds" if plan else "seeds"
    how = [f"{', '.join(tuned)} chosen for each cell by its mean {judge} over {over}, never by test; "]
    how = how if tuned else []
    if found:
        how.append(f"{found.keys} found for each cell by {found.how} on validation; ")
    tuning = "".join(how)
    if plan:
        return (
            f"mean {value} over seeds, of which seed=auto added up to {plan.most} until comparisons were "
            f"decided; ± is the sequential 95 % interval, which holds at any stop; "
            f"{tuning}compared by the sequential t boundary over common seeds, corrected by "
            "Bonferroni for all pairs"
        )
    return (
        f"mean {value} over seeds with the 95 % t interval; {tuning}compared by the paired "
        "t test over common seeds, p corrected by Holm for all pairs"
    )

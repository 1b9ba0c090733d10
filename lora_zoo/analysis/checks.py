"""The checks of `integrity`, one for each sort of mistake. Of copies the first that is not stale counts."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

import pandas as pd

from lora_zoo.analysis.columns import (
    format_key,
    format_value,
    join_names,
    plain,
    replicates,
    settings,
    text_column,
    texts,
    varying,
)


class Finding(NamedTuple):
    """A mistake or a doubt: `rows` of the frame are not to be counted for it; none: it is a warning."""

    kind: str
    runs: list[str]
    said: str
    rows: tuple[Any, ...] = ()


def _warning(kind: str, runs: pd.DataFrame, said: str, rows: Iterable[Any] = ()) -> Finding:
    """The finding about `runs`, by identity, or by label where a frame has none; `rows` are not counted."""
    return Finding(kind, list(map(str, runs.get("run", runs.index))), said, tuple(rows))


def _left_out(kind: str, rows: pd.DataFrame, said: str) -> Finding:
    return _warning(kind, rows, said, rows.index)


def _format_runs(frame: pd.DataFrame) -> str:
    """`lora-r8-qv-pocket-pocket-sql-s0-8937c46d is`: at most three runs, by folder, else by name."""
    labels = [_label(row) for _, row in frame.iterrows()]
    return f"{join_names(labels, 3)} {'is' if len(frame) == 1 else 'are'}"


def _label(row: pd.Series) -> str:
    """The last part of the folder; of a run that has none, out of an archive, its name and identity."""
    if isinstance(folder := row.get("folder"), str) and folder:
        return PurePath(folder).name
    return "-".join(str(row[c]) for c in ("name", "run") if c in row) or f"row {row.name}"


def _unfinished(frame: pd.DataFrame) -> Iterator[Finding]:
    advice = {
        "diverged": "it counts as tried, and a smaller lr may help",
        "running": "wait for it, or run the sweep's command again if its process is gone",
    }
    for state, group in frame[frame["state"] != "done"].groupby("state", sort=False):
        said = f"{_format_runs(group)} {state}: not in the means; {advice.get(str(state), _AGAIN)}"
        yield _left_out("unfinished", group, said)


_AGAIN = "the sweep's command runs what is missing"


def _contradictory(frame: pd.DataFrame) -> Iterator[Finding]:
    for row in frame.index[text_column(frame, "contradiction") != ""]:
        who, why = _format_runs(frame.loc[[row]]), frame.at[row, "contradiction"]
        said = f"{who} contradictory: {why}; delete the folder and run it again"
        yield _left_out("label", frame.loc[[row]], said)


def _repeated(frame: pd.DataFrame) -> Iterator[Finding]:
    """The same settings and seeds more than once: the first counts."""
    frame = _freshest_first(frame)
    seeds = [c for c in ("seed", "data_seed") if c in frame]
    keys = [texts(frame, [*settings(frame), *seeds]), *(frame[c] for c in ("run",) if c in frame)]
    again = pd.concat([key.duplicated() for key in keys], axis=1).any(axis=1)
    for row in frame.index[again]:
        same = pd.concat([key == key[row] for key in keys], axis=1).any(axis=1)
        said = (
            f"{_format_runs(frame[same])} one run, found {int(same.sum())} times: it is counted once; give "
            "each folder to the report only once, and delete copies"
        )
        yield _left_out("repeated", frame.loc[[row]], said)


def _copied(frame: pd.DataFrame) -> Iterator[Finding]:
    """Different seeds, same curve to the last digit: no second run has been made.

    Where nothing was logged, the same weights. Beside different curves they are no proof: what starts at
    A = B = 0 ends there, whatever it sees.
    """
    frame = _freshest_first(frame)
    curves = frame.get("history", pd.Series([None] * len(frame), frame.index)).map(_curve)
    for outcome in (curves, text_column(frame, "adapter.sha256").where(curves == "", "")):
        known = outcome[frame.index]
        known = known[known != ""]
        same = texts(frame.loc[known.index], settings(frame)) + known
        again = same[same.duplicated(keep=False)]
        for _, group in frame.loc[again.index].groupby(again, sort=False):
            seeds = join_names([plain(seed) for seed in group["seed"]])
            said = (
                f"{_format_runs(group)} identical to the last digit under the seeds {seeds}: one "
                "run is counted. If a folder was copied, delete it and run that seed. Otherwise neither "
                "seed nor data_seed changes anything here, and more seeds add no evidence"
            )
            yield _warning("duplicated seed", group, said, group.index[1:])
        frame = frame.drop(index=same.index[same.duplicated()])


def _freshest_first(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.loc[(text_column(frame, "stale") != "").sort_values(kind="stable").index]


def _curve(history: Any) -> str:
    """Losses and gradient norms of a training as text; "" where none was logged."""
    kept = ("step", "loss", "grad_norm", "train_loss")
    entries = [[entry.get(k) for k in kept] for entry in history] if isinstance(history, list) else []
    learnt = [entry for entry in entries if any(number is not None for number in entry[1:])]
    return repr(learnt) if learnt else ""


def _stale(frame: pd.DataFrame) -> Iterator[Finding]:
    """Warn where all runs of a variant are of the same old source; leave out old runs among newer ones."""
    alike = []
    for _, group in frame.groupby("variant", sort=False):
        old = group[text_column(group, "stale") != ""]
        if old.empty:
            continue
        if len(old) == len(group) and _of_one_source(group):
            alike.append(old)
        else:
            text = f"{_format_runs(old)} stale, and others of the variant are not: {_why(old)}; {_AGAIN}"
            yield _left_out("stale", old, text)
    if alike:
        old = pd.concat(alike)
        text = f"{_format_runs(old)} stale: {_why(old)}; they are counted, since each variant's runs have one"
        yield _warning("stale", old, f"{text} source; {_AGAIN}")


def _of_one_source(group: pd.DataFrame) -> bool:
    """True for one text of the source, or one clean commit: what a run is made of may go by its init."""
    source = [c for c in ("stale", "made_of.source", "commit") if c in group][:2]
    if texts(group, source).nunique() == 1:
        return True
    known = "commit" in group and "dirty" in group and (group["dirty"] == False).all()  # noqa: E712
    return known and group["commit"].nunique(dropna=False) == 1 and text_column(group, "stale").nunique() == 1


def _why(old: pd.DataFrame) -> str:
    return join_names(sorted(set(old["stale"])), 2)


def _data(frame: pd.DataFrame) -> Iterator[Finding]:
    """One configuration of the data, several contents: the commonest counts, of equals the latest."""
    prints = [c for c in frame if str(c).startswith("data.") and str(c).endswith(".sha256")]
    contents, started = texts(frame, prints), text_column(frame, "started")
    asked = [c for c in settings(frame) if c.startswith("config.task.") and c not in _OF_TRAINING]
    for _, group in frame.groupby(texts(frame, ["task", *asked]), sort=False):
        found = contents[group.index]
        latest = started[group.index].groupby(found).max()
        counts = found.value_counts()
        kept = max(counts.index, key=lambda content: (counts[content], latest[content]))
        if len(counts) > 1:
            said = (
                f"{_format_runs(group[found != kept])} of other data than the {counts[kept]} runs that "
                "are counted, with the same task settings; run them again, or report them separately"
            )
            yield _left_out("data", group[found != kept], said)
            frame = frame.drop(index=group.index[found != kept])
    for judged in (c for c in prints if c in ("data.test.sha256", "data.validation.sha256")):
        for task, group in frame.groupby("task", sort=False):
            if (sets := group[judged].nunique()) > 1:
                split = judged.split(".")[1]
                said = f"task {task}: the runs were evaluated on {sets} {split} sets, by their settings"
                yield _warning("data", group, f"{said}; compare only runs on the same items")


_OF_TRAINING = tuple(
    f"config.task.{key}" for key in ("lr", "steps", "epochs", "batch_size", "eval_batch_size")
)


def _code(frame: pd.DataFrame) -> Iterator[Finding]:
    commits = frame["commit"].dropna().unique() if "commit" in frame else []
    if len(commits) > 1:
        hashes = join_names([str(commit)[:10] for commit in commits])
        said = f"the runs were made by {len(commits)} commits ({hashes}); run all by one before publishing"
        yield _warning("commit", frame, said)
    unsaved = frame[frame["dirty"] == True] if "dirty" in frame else frame.iloc[:0]  # noqa: E712
    if len(unsaved):
        said = f"{_format_runs(unsaved)} made by code with uncommitted changes; commit, and run them again"
        yield _warning("commit", unsaved, said)


def _seeds(frame: pd.DataFrame) -> Iterator[Finding]:
    """Configurations that lack seeds which others of the same task have; with seed=auto, seeds in between."""
    axes = varying(frame)
    seed = replicates(frame)
    places = [c for c in ("task", "experiment") if c in frame]
    for _, runs in frame.groupby(texts(frame, places), sort=False):
        wanted = set(seed[runs.index])
        for _, group in runs.groupby(texts(runs, settings(runs)), sort=False):
            own = set(seed[group.index])
            ended = "config.seeds.most" in group and group["config.seeds.most"].notna().all()
            missing = sorted((s for s in wanted - own if not (ended and s > max(own))), key=str)
            if missing:
                key = {axis: plain(group[axis].iloc[0]) for axis in dict.fromkeys(("task", *axes))}
                who = format_key(key)
                said = f"{who}: no run for seed {join_names(missing)}, which others have; {_AGAIN}"
                yield _warning("seeds", group, said)


def _degenerate(frame: pd.DataFrame) -> Iterator[Finding]:
    """Results that are none, and seeds between which nothing varies. They are counted, as results."""
    told = text_column(frame, "degenerate")
    setting = texts(frame, settings(frame))
    for (text, same), runs in frame[told != ""].groupby([told, setting], sort=False):
        every = int((setting == same).sum())
        said = f"{_format_runs(runs)} degenerate, {len(runs)} of {every} runs of these settings: {text}"
        yield _warning("degenerate", runs, said + _majority(runs))
    trained = frame[frame["trainable"] != 0] if "trainable" in frame else frame
    for _, runs in trained.groupby(texts(trained, settings(trained)), sort=False):
        if len(runs) > 1 and runs["test"].nunique(dropna=False) == 1 and runs["test"].notna().all():
            score = format_value(runs["test"].iloc[0])
            said = f"{_format_runs(runs)} equal: all {len(runs)} seeds reach {score}"
            yield _warning("equal seeds", runs, f"{said}; ± 0 does not mean precision{_majority(runs)}")


def _majority(runs: pd.DataFrame) -> str:
    known = runs["majority_test"].dropna().unique() if "majority_test" in runs else []
    values = join_names([format_value(value) for value in known])
    return f"; the commonest class alone reaches {values}" if values else ""


Check = Callable[[pd.DataFrame], Iterable[Finding]]
MISTAKES: tuple[Check, ...] = (_unfinished, _contradictory, _repeated, _copied, _stale, _data)
"""These leave runs out."""
DOUBTS: tuple[Check, ...] = (_code, _seeds, _degenerate)
"""These warn only."""

"""Which runs may be counted: planted or honest mistakes are found, named, and kept out of every table.

Checks run one after the other, each on what the ones before have left: a copy is not judged for its age.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from lora_zoo.analysis.runs import described, listed, plain, replicates, settings, texts, varying


class Finding(NamedTuple):
    """A mistake or a doubt: `rows` of the frame are not to be counted for it; none: it is a warning."""

    kind: str
    runs: list[str]
    said: str
    rows: tuple[Any, ...] = ()


def findings(frame: pd.DataFrame) -> list[Finding]:
    """All that is wrong with the runs of a frame, worst first. The frame's index must be unique."""
    if not frame.index.is_unique:
        raise ValueError("the frame's index has a label twice; give it a new one with reset_index(drop=True)")
    found: list[Finding] = []
    for check in _CHECKS:
        if frame.empty:
            break
        new = list(check(frame))
        found += new
        frame = frame.drop(index=[row for finding in new for row in finding.rows])
    return found


def sound(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that may be counted: done, at one with themselves, each once, all on the same data."""
    return frame.drop(index=[row for finding in findings(frame) for row in finding.rows])


def _unfinished(frame: pd.DataFrame) -> Iterator[Finding]:
    advice = {
        "diverged": "it counts as tried, and a smaller lr may help",
        "running": "wait for it, or run the sweep's command again if its process is gone",
    }
    for state, group in frame[frame["state"] != "done"].groupby("state", sort=False):
        said = f"{_named(group)} {state}: not in the means; {advice.get(str(state), _AGAIN)}"
        yield _left_out("unfinished", group, said)


_AGAIN = "the sweep's command does what is missing"


def _labels(frame: pd.DataFrame) -> Iterator[Finding]:
    for row in frame.index[_told(frame, "contradiction") != ""]:
        why = frame.at[row, "contradiction"]
        said = f"{_named(frame.loc[[row]])} contradicts itself: {why}; delete the folder and run it again"
        yield _left_out("label", frame.loc[[row]], said)


def _stale(frame: pd.DataFrame) -> Iterator[Finding]:
    """A variant whose runs are all of one old source is at one with itself: a warning. A mixture is not."""
    origin = [c for c in ("stale", "made_of.source", "commit") if c in frame][:2]
    for _, group in frame.groupby("variant", sort=False):
        old = group[_told(group, "stale") != ""]
        if old.empty:
            continue
        why = listed(sorted(set(old["stale"])), 2)
        if len(old) == len(group) and texts(group, origin).nunique() == 1:
            said = f"{_named(old)} stale: {why}; they are counted, being all alike; {_AGAIN}"
            yield Finding("stale", _runs(old), said)
        else:
            said = f"{_named(old)} stale among runs that are not alike: {why}; {_AGAIN}"
            yield _left_out("stale", old, said)


def _repeated(frame: pd.DataFrame) -> Iterator[Finding]:
    """The same settings and seeds more than once: the first counts."""
    keys = [texts(frame, [*settings(frame), "seed", *_there(frame, "data_seed")])]
    keys += [frame["run"]] if "run" in frame else []
    again = pd.concat([key.duplicated() for key in keys], axis=1).any(axis=1)
    for row in frame.index[again]:
        same = pd.concat([key == key[row] for key in keys], axis=1).any(axis=1)
        said = (
            f"{_named(frame[same])} one run, found {int(same.sum())} times: it is counted once; give every "
            "folder to the report only once, and delete copies"
        )
        yield _left_out("repeated", frame.loc[[row]], said)


def _copies(frame: pd.DataFrame) -> Iterator[Finding]:
    """Different seeds, same weights or same curve to the last digit: no second run has been made."""
    for outcome in (_weights, _curves):
        known = outcome(frame)
        known = known[known != ""]
        same = texts(frame.loc[known.index], settings(frame)) + known
        for _, group in frame.loc[known.index].groupby(same, sort=False):
            if len(group) > 1:
                seeds = listed([plain(seed) for seed in group["seed"]])
                said = (
                    f"{_named(group)} the same outcome to the last digit under the seeds {seeds}: one run is "
                    "counted. A copied folder: delete it and run that seed. Otherwise neither seed nor "
                    "data_seed changes anything here, and more seeds are no more evidence"
                )
                yield _left_out("duplicated seed", group.iloc[1:], said, of=group)
        frame = frame.drop(index=same.index[same.duplicated()])


def _weights(frame: pd.DataFrame) -> pd.Series:
    return _told(frame, "adapter.sha256")


def _curves(frame: pd.DataFrame) -> pd.Series:
    """Losses and gradient norms of a training as text; "" where none was logged."""
    if "history" not in frame:
        return pd.Series("", index=frame.index, dtype=object)
    return frame["history"].map(_curve)


def _curve(history: Any) -> str:
    kept = ("step", "loss", "grad_norm", "train_loss")
    entries = [[entry.get(k) for k in kept] for entry in history] if isinstance(history, list) else []
    learnt = [entry for entry in entries if any(number is not None for number in entry[1:])]
    return repr(learnt) if learnt else ""


def _data(frame: pd.DataFrame) -> Iterator[Finding]:
    """One configuration of the data, several contents: the commonest counts, of equals the latest."""
    prints = [c for c in frame if str(c).startswith("data.") and str(c).endswith(".sha256")]
    contents, started = texts(frame, prints), _told(frame, "started")
    asked = [c for c in settings(frame) if c.startswith("config.task.") and c not in _OF_TRAINING]
    for _, group in frame.groupby(texts(frame, ["task", *asked]), sort=False):
        found = contents[group.index]
        latest = started[group.index].groupby(found).max()
        counts = found.value_counts()
        kept = max(counts.index, key=lambda content: (counts[content], latest[content]))
        if len(counts) > 1:
            said = (
                f"{_named(group[found != kept])} of other data than the {counts[kept]} runs that count, "
                "under the same settings of the task; run them again, or report them apart"
            )
            yield _left_out("data", group[found != kept], said)
            frame = frame.drop(index=group.index[found != kept])
    for judged in (c for c in prints if c in ("data.test.sha256", "data.validation.sha256")):
        for task, group in frame.groupby("task", sort=False):
            if (sets := group[judged].nunique()) > 1:
                split = judged.split(".")[1]
                said = f"task {task}: the runs were judged on {sets} {split} sets, as their settings ask"
                yield Finding("data", _runs(group), f"{said}; compare only what was judged on the same items")


_OF_TRAINING = tuple(
    f"config.task.{key}" for key in ("lr", "steps", "epochs", "batch_size", "eval_batch_size")
)


def _code(frame: pd.DataFrame) -> Iterator[Finding]:
    commits = frame["commit"].dropna().unique() if "commit" in frame else []
    if len(commits) > 1:
        names = listed([str(commit)[:10] for commit in commits])
        said = f"the runs were made by {len(commits)} commits ({names}); run all by one before publishing"
        yield Finding("commit", _runs(frame), said)
    unsaved = frame[frame["dirty"] == True] if "dirty" in frame else frame.iloc[:0]  # noqa: E712
    if len(unsaved):
        said = f"{_named(unsaved)} made by code with uncommitted changes; commit, and run them again"
        yield Finding("commit", _runs(unsaved), said)


def _seeds(frame: pd.DataFrame) -> Iterator[Finding]:
    """Configurations that lack seeds which others of the same task have."""
    axes = varying(frame)
    seed = replicates(frame)
    for _, runs in frame.groupby(texts(frame, ["task", *_there(frame, "experiment")]), sort=False):
        wanted = set(seed[runs.index])
        for _, group in runs.groupby(texts(runs, settings(runs)), sort=False):
            missing = sorted(wanted - set(seed[group.index]), key=str)
            if missing:
                key = {axis: plain(group[axis].iloc[0]) for axis in dict.fromkeys(("task", *axes))}
                said = f"{described(key)}: no run for seed {listed(missing)}, which others have; {_AGAIN}"
                yield Finding("seeds", _runs(group), said)


_CHECKS: tuple[Callable[[pd.DataFrame], Iterable[Finding]], ...] = (
    *(_unfinished, _labels, _stale, _repeated, _copies),
    *(_data, _code, _seeds),
)


def _left_out(kind: str, rows: pd.DataFrame, said: str, of: pd.DataFrame | None = None) -> Finding:
    return Finding(kind, _runs(rows if of is None else of), said, tuple(rows.index))


def _runs(frame: pd.DataFrame) -> list[str]:
    return [str(run) for run in frame["run"]] if "run" in frame else [str(row) for row in frame.index]


def _named(frame: pd.DataFrame) -> str:
    """`lora-r8-qv-pocket-pocket-sql-s0 (8937c46d) is`: at most three runs, the folder where it says more."""
    column = next(c for c in ("folder", "name", "run") if c in frame)
    names = [str(name).replace("\\", "/").rstrip("/").rpartition("/")[2] for name in frame[column]]
    return f"{listed(names, 3)} {'is' if len(frame) == 1 else 'are'}"


def _told(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of texts; "" where it or a value is missing."""
    if column not in frame:
        return pd.Series("", index=frame.index, dtype=object)
    return frame[column].fillna("").astype(str)


def _there(frame: pd.DataFrame, column: str) -> list[str]:
    return [column] if column in frame else []

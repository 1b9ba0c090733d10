"""Which runs may be counted: planted or honest mistakes are found, named, and kept out of every table.

Checks run one after the other, each on what the ones before have left: a copy is not judged for its age.
"""

from collections.abc import Callable, Iterable, Iterator

import pandas as pd

from lora_zoo.analysis.columns import described, listed, plain, replicates, settings, texts, varying
from lora_zoo.analysis.copies import copied, repeated
from lora_zoo.analysis.finding import Finding, left_out, named, names, there, told


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
    """The runs that may be counted: done, at one with themselves, each once, all on the same data.

    The frame is marked in its `attrs`, which pandas hands on to its parts: they are not looked through again.
    """
    if frame.attrs.get(_SOUND):
        return frame
    kept = frame.drop(index=[row for finding in findings(frame) for row in finding.rows])
    kept.attrs[_SOUND] = True
    return kept


_SOUND = "lora_zoo: sound"


def _unfinished(frame: pd.DataFrame) -> Iterator[Finding]:
    advice = {
        "diverged": "it counts as tried, and a smaller lr may help",
        "running": "wait for it, or run the sweep's command again if its process is gone",
    }
    for state, group in frame[frame["state"] != "done"].groupby("state", sort=False):
        said = f"{named(group)} {state}: not in the means; {advice.get(str(state), _AGAIN)}"
        yield left_out("unfinished", group, said)


_AGAIN = "the sweep's command does what is missing"


def _labels(frame: pd.DataFrame) -> Iterator[Finding]:
    for row in frame.index[told(frame, "contradiction") != ""]:
        why = frame.at[row, "contradiction"]
        said = f"{named(frame.loc[[row]])} at odds with itself: {why}; delete the folder and run it again"
        yield left_out("label", frame.loc[[row]], said)


def _stale(frame: pd.DataFrame) -> Iterator[Finding]:
    """A variant whose runs are all of one old source is at one with itself: a warning. A mixture is not."""
    origin = [c for c in ("stale", "made_of.source", "commit") if c in frame][:2]
    for _, group in frame.groupby("variant", sort=False):
        old = group[told(group, "stale") != ""]
        if old.empty:
            continue
        why = listed(sorted(set(old["stale"])), 2)
        if len(old) == len(group) and texts(group, origin).nunique() == 1:
            said = f"{named(old)} stale: {why}; they are counted, being all alike; {_AGAIN}"
            yield Finding("stale", names(old), said)
        else:
            said = f"{named(old)} stale among runs that are not alike: {why}; {_AGAIN}"
            yield left_out("stale", old, said)


def _data(frame: pd.DataFrame) -> Iterator[Finding]:
    """One configuration of the data, several contents: the commonest counts, of equals the latest."""
    prints = [c for c in frame if str(c).startswith("data.") and str(c).endswith(".sha256")]
    contents, started = texts(frame, prints), told(frame, "started")
    asked = [c for c in settings(frame) if c.startswith("config.task.") and c not in _OF_TRAINING]
    for _, group in frame.groupby(texts(frame, ["task", *asked]), sort=False):
        found = contents[group.index]
        latest = started[group.index].groupby(found).max()
        counts = found.value_counts()
        kept = max(counts.index, key=lambda content: (counts[content], latest[content]))
        if len(counts) > 1:
            said = (
                f"{named(group[found != kept])} of other data than the {counts[kept]} runs that count, "
                "under the same settings of the task; run them again, or report them apart"
            )
            yield left_out("data", group[found != kept], said)
            frame = frame.drop(index=group.index[found != kept])
    for judged in (c for c in prints if c in ("data.test.sha256", "data.validation.sha256")):
        for task, group in frame.groupby("task", sort=False):
            if (sets := group[judged].nunique()) > 1:
                split = judged.split(".")[1]
                said = f"task {task}: the runs were judged on {sets} {split} sets, as their settings ask"
                yield Finding("data", names(group), f"{said}; compare only what was judged on the same items")


_OF_TRAINING = tuple(
    f"config.task.{key}" for key in ("lr", "steps", "epochs", "batch_size", "eval_batch_size")
)


def _code(frame: pd.DataFrame) -> Iterator[Finding]:
    commits = frame["commit"].dropna().unique() if "commit" in frame else []
    if len(commits) > 1:
        hashes = listed([str(commit)[:10] for commit in commits])
        said = f"the runs were made by {len(commits)} commits ({hashes}); run all by one before publishing"
        yield Finding("commit", names(frame), said)
    unsaved = frame[frame["dirty"] == True] if "dirty" in frame else frame.iloc[:0]  # noqa: E712
    if len(unsaved):
        said = f"{named(unsaved)} made by code with uncommitted changes; commit, and run them again"
        yield Finding("commit", names(unsaved), said)


def _seeds(frame: pd.DataFrame) -> Iterator[Finding]:
    """Configurations that lack seeds which others of the same task have."""
    axes = varying(frame)
    seed = replicates(frame)
    for _, runs in frame.groupby(texts(frame, ["task", *there(frame, "experiment")]), sort=False):
        wanted = set(seed[runs.index])
        for _, group in runs.groupby(texts(runs, settings(runs)), sort=False):
            missing = sorted(wanted - set(seed[group.index]), key=str)
            if missing:
                key = {axis: plain(group[axis].iloc[0]) for axis in dict.fromkeys(("task", *axes))}
                said = f"{described(key)}: no run for seed {listed(missing)}, which others have; {_AGAIN}"
                yield Finding("seeds", names(group), said)


_CHECKS: tuple[Callable[[pd.DataFrame], Iterable[Finding]], ...] = (
    *(_unfinished, _labels, repeated, copied),
    *(_stale, _data, _code, _seeds),
)


__all__ = ["Finding", "findings", "sound"]

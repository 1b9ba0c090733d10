"""Runs that are no run of their own: repetitions, and copies under another seed.

Of runs that are one, the first that is not stale is counted.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from lora_zoo.analysis.columns import listed, plain, settings, texts
from lora_zoo.analysis.finding import Finding, left_out, named, there, told


def repeated(frame: pd.DataFrame) -> Iterator[Finding]:
    """The same settings and seeds more than once: the first counts."""
    frame = _freshest_first(frame)
    keys = [texts(frame, [*settings(frame), "seed", *there(frame, "data_seed")])]
    keys += [frame["run"]] if "run" in frame else []
    again = pd.concat([key.duplicated() for key in keys], axis=1).any(axis=1)
    for row in frame.index[again]:
        same = pd.concat([key == key[row] for key in keys], axis=1).any(axis=1)
        said = (
            f"{named(frame[same])} one run, found {int(same.sum())} times: it is counted once; give every "
            "folder to the report only once, and delete copies"
        )
        yield left_out("repeated", frame.loc[[row]], said)


def copied(frame: pd.DataFrame) -> Iterator[Finding]:
    """Different seeds, same curve to the last digit: no second run has been made.

    Where nothing was logged, the same weights. Beside different curves they are no proof: what starts at
    A = B = 0 ends there, whatever it sees.
    """
    frame = _freshest_first(frame)
    for outcome in (_curves, _weights):
        known = outcome(frame)
        known = known[known != ""]
        same = texts(frame.loc[known.index], settings(frame)) + known
        for _, group in frame.loc[known.index].groupby(same, sort=False):
            if len(group) > 1:
                seeds = listed([plain(seed) for seed in group["seed"]])
                said = (
                    f"{named(group)} the same outcome to the last digit under the seeds {seeds}: one run is "
                    "counted. A copied folder: delete it and run that seed. Otherwise neither seed nor "
                    "data_seed changes anything here, and more seeds are no more evidence"
                )
                yield left_out("duplicated seed", group.iloc[1:], said, of=group)
        frame = frame.drop(index=same.index[same.duplicated()])


def _freshest_first(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.loc[(told(frame, "stale") != "").sort_values(kind="stable").index]


def _weights(frame: pd.DataFrame) -> pd.Series:
    """The hash of the adapter, for runs that logged no curve."""
    return told(frame, "adapter.sha256").where(_curves(frame) == "", "")


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

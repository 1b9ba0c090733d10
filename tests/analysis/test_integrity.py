"""Planted mistakes: each is found, named with its runs, and kept out; an honest study passes untouched."""

import math

import pandas as pd
import pytest

from lora_zoo.analysis.columns import settings
from lora_zoo.analysis.integrity import Finding, findings, sound
from lora_zoo.analysis.protocol import cells
from tests.analysis.made_frames import run, study

HONEST = study({"lora": 0.7, "dora": 0.8})


def of_kind(frame: pd.DataFrame, kind: str) -> list[Finding]:
    found = findings(frame)
    assert {finding.kind for finding in found} <= {kind, "seeds"}, found
    return [finding for finding in found if finding.kind == kind]


def planted(*rows: dict, frame: pd.DataFrame = HONEST) -> pd.DataFrame:
    return pd.concat([frame, pd.DataFrame(rows)], ignore_index=True)


def test_an_honest_study_is_sound() -> None:
    assert findings(HONEST) == []
    assert sound(HONEST).equals(HONEST)
    assert findings(HONEST.iloc[:0]) == [] and sound(HONEST.iloc[:0]).empty


@pytest.mark.parametrize("state", ["diverged", "failed", "interrupted", "running"])
def test_unfinished_runs_are_left_out(state: str) -> None:
    frame = HONEST.copy()
    frame.loc[[1, 3], "state"] = state
    (finding,) = of_kind(frame, "unfinished")
    assert finding.rows == (1, 3) and state in finding.said
    assert finding.runs == frame.loc[[1, 3], "run"].tolist()
    assert list(sound(frame).index) == [0, 2, 4, 5, 6, 7, 8, 9]


def test_a_run_that_contradicts_itself_is_left_out() -> None:
    frame = HONEST.copy()
    frame.loc[6, "contradiction"] = "its record says variant=lora, its configuration variant=dora"
    (finding,) = of_kind(frame, "label")
    assert finding.rows == (6,) and "variant=lora" in finding.said and "run it again" in finding.said
    assert 6 not in sound(frame).index


def test_a_copied_folder_under_another_seed_is_one_run() -> None:
    """The copy has the weights of the original to the last bit."""
    copy = HONEST.iloc[4].to_dict() | {"seed": 5, "data_seed": 5, "run": "copied", "folder": "runs/copied"}
    frame = planted(copy)
    (finding,) = of_kind(frame, "duplicated seed")
    assert finding.rows == (10,) and finding.runs == [HONEST["run"][4], "copied"]
    assert "seeds 4, 5" in finding.said and "delete it and run that seed" in finding.said
    lora, _ = cells(frame, by=["variant"]).cells
    assert lora.n == 5 and 5 not in lora.values.index


def test_equal_curves_are_one_run_where_no_weights_were_kept() -> None:
    frame = HONEST.drop(columns="adapter.sha256")
    curves = [[{"step": 10, "loss": 1 + i / 7, "grad_norm": 0.1}] for i in range(10)]
    assert findings(frame.assign(history=curves)) == []
    (finding,) = of_kind(frame.assign(history=[*curves[:7], curves[6], *curves[8:]]), "duplicated seed")
    assert finding.rows == (7,)
    assert findings(frame.assign(history=[curves[0]] * 5 + [[]] * 5))[0].rows == (1, 2, 3, 4)


def test_equal_weights_that_were_trained_on_other_batches_are_no_copy() -> None:
    """A = B = 0 stays there: five honest seeds with one adapter."""
    curves = [[{"step": 1, "loss": 1 + number / 100, "grad_norm": 0.0}] for number in range(len(HONEST))]
    frame = HONEST.assign(history=curves, **{"adapter.sha256": "zeros"})
    assert not of_kind(frame, "duplicated seed") and len(sound(frame)) == len(HONEST)


def test_equal_scores_alone_are_no_copy() -> None:
    """On few items two seeds often score alike; a run that trains nothing always does."""
    found = findings(HONEST.assign(test=0.5, validation=0.5))
    assert [(f.kind, f.rows) for f in found] == [("equal seeds", ()), ("equal seeds", ())]
    assert all("all 5 seeds reach 0.5; ± 0 does not mean precision" in f.said for f in found)
    still = HONEST.assign(**{"adapter.sha256": None}, history=[[]] * 10)
    assert findings(still) == []


def test_equal_weights_of_different_settings_are_no_copy() -> None:
    """LoRA+ with ratio 1 is LoRA, to the bit."""
    frame = HONEST.copy()
    frame.loc[5:, "adapter.sha256"] = frame.loc[:4, "adapter.sha256"].to_numpy()
    assert findings(frame) == []


def test_the_same_run_twice_counts_once() -> None:
    frame = planted(HONEST.iloc[2].to_dict() | {"folder": "elsewhere/run"})
    (finding,) = of_kind(frame, "repeated")
    assert finding.rows == (10,) and "found 2 times" in finding.said
    rerun = planted(HONEST.iloc[2].to_dict() | {"run": "another", "adapter.sha256": "other"})
    assert of_kind(rerun, "repeated")[0].rows == (10,)  # same settings and seed, whatever its identity says


@pytest.mark.parametrize("row", [2, 10])
def test_of_a_stale_run_and_its_repetition_the_fresh_one_counts(row: int) -> None:
    frame = planted(HONEST.iloc[2].to_dict() | {"run": "again", "adapter.sha256": "other"})
    frame.loc[row, "stale"] = "the source of lora has changed since"
    assert of_kind(frame, "repeated")[0].rows == (row,)
    copy = planted(HONEST.iloc[2].to_dict() | {"run": "copied", "seed": 6})
    copy.loc[row, "stale"] = "its settings have another identity today"
    assert of_kind(copy, "duplicated seed")[0].rows == (row,)


def test_stale_runs_among_fresh_ones_are_left_out() -> None:
    frame = HONEST.copy()
    frame.loc[8, "stale"] = "the source of dora has changed since"
    frame.loc[8, "made_of.source"] = "old"
    (finding,) = of_kind(frame, "stale")
    assert finding.rows == (8,) and "source of dora has changed" in finding.said
    assert 8 not in sound(frame).index


def test_runs_that_are_all_stale_alike_are_counted_with_a_warning() -> None:
    frame = HONEST.copy()
    frame.loc[5:, ["stale", "made_of.source"]] = ["the source of dora has changed since", "old"]
    (finding,) = of_kind(frame, "stale")
    assert finding.rows == () and len(sound(frame)) == 10 and len(finding.runs) == 5
    whole = frame.copy()
    whole.loc[:4, ["stale", "made_of.source"]] = ["the source of lora has changed since", "older"]
    (finding,) = of_kind(whole, "stale")  # one line for all variants
    assert finding.rows == () and "of dora" in finding.said and "of lora" in finding.said
    frame.loc[9, "made_of.source"] = "older still"
    assert of_kind(frame, "stale")[0].rows == (), "its init has a source of its own, of one commit"
    for change in ({"commit": "another"}, {"dirty": True}):
        mixed = frame.copy()
        mixed.loc[9, [*change]] = [*change.values()]
        assert of_kind(mixed, "stale")[0].rows == (5, 6, 7, 8, 9)


def test_the_runs_that_one_goes_on_from_may_go_by_its_seed() -> None:
    frame = HONEST.copy()
    frame["config.prior"] = [[f"style-s{seed}", "of-10"] for seed in frame["seed"]]
    assert "config.prior" not in settings(frame)
    frame.at[9, "config.prior"] = ["style-s40", "of-10"]
    assert "config.prior" in settings(frame)


def test_other_data_under_the_same_settings_is_left_out() -> None:
    frame = HONEST.copy()
    frame.loc[[0, 5], "data.test.sha256"] = "changed"
    (finding,) = of_kind(frame, "data")
    assert finding.rows == (0, 5) and "other data than the 8 runs" in finding.said


def test_of_two_data_sets_as_common_the_latest_counts() -> None:
    frame = HONEST.copy()
    frame.loc[frame["seed"] < 2, "data.test.sha256"] = "new"
    frame = frame[frame["seed"] < 4]
    frame.loc[frame["seed"] < 2, "started"] = "2026-02-01T00:00:00+00:00"
    assert of_kind(frame, "data")[0].rows == (2, 3, 7, 8)


def test_other_data_by_setting_is_a_warning() -> None:
    """A study of the size of the test set asks for several: they stay, and the reader is told."""
    frame = HONEST.copy()
    frame["config.task.sizes.test"] = [50] * 5 + [500] * 5
    frame.loc[5:, "data.test.sha256"] = "larger"
    (finding,) = of_kind(frame, "data")
    assert finding.rows == () and "2 test sets" in finding.said


def test_two_commits_and_uncommitted_changes_are_said() -> None:
    frame = HONEST.copy()
    frame.loc[9, ["commit", "dirty"]] = ["deadbeef", True]
    found = of_kind(frame, "commit")
    assert [finding.rows for finding in found] == [(), ()]
    assert "2 commits (c0ffee, deadbeef)" in found[0].said
    assert "uncommitted" in found[1].said and found[1].runs == [frame["run"][9]]


def test_missing_seeds_are_named() -> None:
    frame = HONEST.drop(index=[6, 8])
    (finding,) = findings(frame)
    assert finding.kind == "seeds" and "variant=dora: no run for seed 1, 3, which others have" in finding.said
    assert finding.rows == () and len(finding.runs) == 3


def test_tasks_and_experiments_have_seeds_of_their_own() -> None:
    other = study({"lora": 0.7}, seeds=[0, 1], task="nli", noise=0.02)
    assert findings(pd.concat([HONEST, other], ignore_index=True)) == []
    more = study({"vera": 0.7}, seeds=[0, 1], experiment="other")
    assert findings(pd.concat([HONEST, more], ignore_index=True)) == []


def test_a_mistake_is_blamed_once() -> None:
    """A doctored copy contradicts itself; it does not cost the original its place."""
    doctored = {"seed": 5, "run": "copied", "contradiction": "its name is not of seed 5"}
    copy = HONEST.iloc[4].to_dict() | doctored
    (finding,) = findings(planted(copy))
    assert finding.kind == "label" and finding.rows == (10,)
    diverged = HONEST.iloc[4].to_dict() | {"seed": 5, "state": "diverged", "stale": "old"}
    assert [f.kind for f in findings(planted(diverged))] == ["unfinished"]


def test_a_frame_without_the_optional_columns_is_judged_by_the_rest() -> None:
    bare = HONEST[["run", "state", "variant", "task", "seed", "test", "validation"]]
    assert findings(bare) == [] and len(sound(bare)) == 10
    assert [cell.n for cell in cells(bare, by=["variant"]).cells] == [5, 5]
    missing = HONEST.assign(stale=math.nan, contradiction=None)
    assert findings(missing) == []


def test_labels_of_rows_must_tell_them_apart() -> None:
    with pytest.raises(ValueError, match="reset_index"):
        findings(pd.concat([HONEST, HONEST]))


def test_a_finding_names_the_folders() -> None:
    frame = planted(run(9, state="failed", test=None, validation=None, folder="/a/b/lora-s9-01234567/"))
    assert "lora-s9-01234567 is failed" in findings(frame)[0].said
    frame.loc[10, ["folder", "name", "run"]] = [None, "lora-s9", "76543210"]  # out of an archive
    assert "lora-s9-76543210 is failed" in findings(frame)[0].said

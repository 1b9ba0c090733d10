"""Runs in one frame: what its columns mean, whichever way a run ended."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lora_zoo import runs as results
from lora_zoo.runs.directions import higher_is_better
from lora_zoo.runs.frame import COLUMNS, LEFT_OUT, OUTCOMES
from tests.recorded import COMMIT, history, recorded, update, written


def test_a_run_is_a_row_of_what_it_was_and_what_came_out(tmp_path: Path) -> None:
    folder = written(tmp_path, recorded("rank=4", "seed=2", test=0.75))
    (row,) = results.load(tmp_path).to_dict("records")
    assert list(row)[: len(COLUMNS)] == list(COLUMNS)
    expected = {
        **{"variant": "lora", "rank": 4, "target_modules": "q,v", "init": "kaiming", "lora_dropout": 0.0},
        **{"lr": 0.02, "task_lr": 0.02, "weight_decay": 0.0, "batch_size": 16, "steps": 200, "seed": 2},
        **{"data_seed": 2, "model": "pocket", "task": "pocket-sql", "metric": "exact_match", "state": "done"},
        **{"test": 0.75, "validation": 0.75, "zero_shot_test": 0.125, "zero_shot_validation": 0.0},
        **{"trainable": 1000, "total": 945_920, "adapted": 8, "adapter_bytes": 4000, "saved_bytes": 2000},
        **{"step_seconds": 0.25, "train_seconds": 50.0, "total_seconds": 60.0, "peak_memory": 10**9},
        **{"loss": 1 / 6 + 2 / 7, "commit": COMMIT, "dirty": False, "stale": "", "contradiction": ""},
        **{"folder": str(folder), "experiment": "", "experiment_about": {}},
        **{"config.trainer.warmup_steps": 0.06, "metrics.test.exact_match": 0.75},
        **{"config.eval_splits": "validation,test", "variant.hyperparameters.rank": 4},
    }
    assert {key: row[key] for key in expected} == expected
    assert math.isnan(row["budget"]) and math.isnan(row["retention_after"]) and row["layers"] is None


def test_what_the_adapters_lack_is_missing_and_not_the_setting(tmp_path: Path) -> None:
    written(tmp_path, recorded("variant=full"))
    written(tmp_path, recorded("variant=vera"))
    frame = results.load(tmp_path).set_index("variant")
    assert frame.loc["full", ["rank", "alpha", "init", "target_modules", "budget"]].isna().all()
    assert frame.loc["vera", "rank"] == 256 and math.isnan(frame.loc["vera", "alpha"])


def test_a_budget_is_a_number_and_the_rank_the_one_that_it_found(tmp_path: Path) -> None:
    record = recorded("budget=8.2k")
    record["variant"]["hyperparameters"]["rank"] = 4
    written(tmp_path, record)
    (row,) = results.load(tmp_path).to_dict("records")
    assert (row["budget"], row["rank"], row["config.rank"]) == (8200, 4, 8)


def test_runs_that_ended_early_are_rows_too(tmp_path: Path) -> None:
    gone = dict.fromkeys(
        ("variant", "metrics", "zero_shot", "history", "updates", "parameters", "timings", "memory", "metric")
    )
    written(
        tmp_path, recorded("rank=4", "seed=1", state="failed", error={"type": "E", "message": "m"}, **gone)
    )
    written(tmp_path, recorded(test="nan", state="diverged", history=[{"loss": "inf", "step": 5}]))
    frame = results.load(tmp_path).set_index("state")
    assert frame.loc["failed", "rank"] == 4 and frame.loc["failed", "metric"] == "exact_match"
    assert frame.loc["failed", ["test", "loss", "trainable", "step_seconds"]].isna().all()
    assert frame.loc["failed", "error.message"] == "m" and frame.loc["failed", "history"] == []
    assert math.isnan(frame.loc["diverged", "test"]) and frame.loc["diverged", "loss"] == math.inf
    assert math.isnan(frame.loc["diverged", "metrics.test.exact_match"])
    assert results.histories(frame.reset_index())["loss"].tolist() == [math.inf]


def test_epochs_give_the_steps_that_were_made(tmp_path: Path) -> None:
    record = recorded("epochs=2")
    record["timings"]["steps"] = 321
    written(tmp_path, record)
    assert list(results.load(tmp_path)["steps"]) == [321]


def test_each_file_is_read_once_and_the_order_does_not_hang_on_the_place(tmp_path: Path) -> None:
    for place, seeds in (("b", (0, 1)), ("a", (2,))):
        for seed in seeds:
            written(tmp_path / place / "deep", recorded(f"seed={seed}"))
    (tmp_path / "link").symlink_to(tmp_path / "b")
    frame = results.load(tmp_path / "b", tmp_path, tmp_path / "link", tmp_path / "a")
    assert list(frame["seed"]) == [0, 1, 2] and frame.index.is_unique


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"schema": 1, "con', "is no record of a run"),
        ('{"accuracy": 1}', r"\(schema 1, with its config\)"),
        ('{"schema": 2, "config": {}}', r"\(schema 1, with its config\)"),
        ("[]", "is no record of a run"),
        ("\x80", "cannot be read"),
    ],
)
def test_a_file_that_is_no_record_is_named_and_left_out(tmp_path: Path, content: str, said: str) -> None:
    written(tmp_path, recorded())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_bytes(content.encode("latin-1"))
    frame = results.load(tmp_path)
    (why,) = frame.attrs[LEFT_OUT]
    assert len(frame) == 1 and re.search(rf"other/result\.json.*{said}", why)
    with pytest.raises(ValueError, match=rf"other/result\.json.*{said}"):
        results.load(tmp_path / "other")


def test_a_folder_without_runs_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no result\.json.*under.*nowhere \(there is no such folder\)"):
        results.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no result\.json"):
        results.load(tmp_path)


def test_a_run_whose_data_or_settings_changed_is_stale_or_contradicts_itself(tmp_path: Path) -> None:
    record = recorded("seed=1")
    record["made_of"]["source"] = "another"
    written(tmp_path, record)
    swapped = recorded("seed=2")
    swapped["config"]["lr"] = 0.5
    written(tmp_path, swapped)
    frame = results.load(tmp_path).set_index("seed")
    assert "source of lora has changed" in frame.loc[1, "stale"]
    assert frame.loc[2, "stale"] == "" and "not the one that it ran with" in frame.loc[2, "contradiction"]


@pytest.mark.parametrize(
    ("axis", "name"),
    [
        ("rank", "rank"),
        ("task.lr", "task_lr"),
        ("trainer.weight_decay", "weight_decay"),
        ("variant.loraplus_lr_ratio", "variant.hyperparameters.loraplus_lr_ratio"),
        ("++task.sizes.train", "config.task.sizes.train"),
        ("variant", "variant"),
        ("task.name", "task"),
        ("metrics.test.exact_match", "metrics.test.exact_match"),
    ],
)
def test_an_axis_is_found_by_its_key(tmp_path: Path, axis: str, name: str) -> None:
    written(tmp_path, recorded("variant=lora_plus"))
    written(tmp_path, recorded())
    assert results.column(results.load(tmp_path), axis) == name


def test_an_unknown_axis_is_told_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, recorded())
    with pytest.raises(ValueError, match=r"no axis 'trainer\.warmup'.*config\.trainer\.warmup_steps"):
        results.column(results.load(tmp_path), "trainer.warmup")


@pytest.mark.parametrize(
    ("runs", "axes"),
    [
        ([()], []),
        ([("seed=0",), ("seed=1", "out=elsewhere", "threads=1")], []),
        ([("rank=2",), ("rank=4",)], ["rank"]),  # alpha follows
        ([("rank=2", "alpha=1"), ("rank=2", "alpha=2"), ("rank=4", "alpha=1")], ["rank", "alpha"]),
        ([("variant=full",), ("variant=lora",)], ["variant"]),  # so do lr, rank and targets
        ([("variant=full",), ("variant=full", "task.lr=1e-3")], ["task_lr"]),
        ([("lr=1e-3",), ("lr=1e-2",)], ["lr"]),
        ([("task=pocket-nli",), ("task=pocket-sql",)], ["task"]),
        ([("trainer.max_grad_norm=2",), ()], ["config.trainer.max_grad_norm"]),
        ([("trainer.save_steps=2",), ()], []),
        ([("target_modules=[q]", "budget=2k"), ("target_modules=[q,v]", "budget=2k")], ["target_modules"]),
    ],
    ids=str,
)
def test_axes_are_what_differs_and_follows_from_nothing_else(
    tmp_path: Path, runs: list[tuple[str, ...]], axes: list[str]
) -> None:
    for overrides in runs:
        written(tmp_path, recorded(*overrides))
    assert results.axes(results.load(tmp_path)) == axes


def test_axes_are_those_of_finished_runs(tmp_path: Path) -> None:
    written(tmp_path, recorded("rank=2"))
    written(tmp_path, recorded("rank=4", state="failed"))
    frame = results.load(tmp_path)
    assert results.axes(frame) == [] and results.axes(frame[frame["state"] == "failed"]) == []


def test_histories_are_a_row_a_step(tmp_path: Path) -> None:
    entry = {"eval_loss": 0.5, "eval_runtime": 1.0, "epoch": 0.1, "step": 2}
    written(tmp_path, recorded(history=[*history(3), entry]))
    written(tmp_path, recorded("variant=zero_shot", history=None))
    table = results.histories(results.load(tmp_path))
    assert list(table["step"]) == [1, 2, 3] and table["run"].nunique() == 1
    assert list(table.columns[:2]) == ["run", "step"] and "train_runtime" not in table
    assert list(table["loss"]) == pytest.approx([1 / 4, 1 / 5, 1 / 6])
    assert table["eval_loss"].tolist()[1] == 0.5 and table["eval_loss"].isna().tolist() == [True, False, True]
    assert results.histories(results.load(tmp_path).query("variant == 'zero_shot'")).empty


def test_ranks_are_a_row_a_change_and_no_columns(tmp_path: Path) -> None:
    name = "model.layers.11.self_attn.v_proj"
    written(tmp_path, recorded(ranks={name: [[0, 6], [40, 5]], "lm_head": [[0, 0.5]]}))
    written(tmp_path, recorded("seed=1"))
    frame = results.load(tmp_path)
    table = results.ranks(frame)
    assert list(table.columns) == ["run", "step", "name", "role", "layer", "rank"]
    told = [[0, "head", 0.5], [0, "v", 6], [40, "v", 5]]
    assert table[["step", "role", "rank"]].to_numpy().tolist() == told
    assert table["layer"].tolist()[1:] == [11, 11] and pd.isna(table["layer"].tolist()[0])
    assert not [column for column in frame if "ranks" in column]
    assert results.ranks(frame[frame["seed"] == 1]).empty
    kept = results.load(results.archive(frame, tmp_path / "a.jsonl.gz"))
    assert results.ranks(kept).equals(table)


def test_routing_is_a_row_an_expert_and_in_no_column(tmp_path: Path) -> None:
    name = "model.layers.11.self_attn.v_proj"
    written(tmp_path, recorded(routing={"test": {name: {"load": [0.25, 0.75], "entropy": 0.5}}}))
    written(tmp_path, recorded("seed=1"))
    frame = results.load(tmp_path)
    table = results.routing(frame)
    assert table[["split", "role", "layer", "expert", "load", "entropy"]].to_numpy().tolist() == [
        ["test", "v", 11, 0, 0.25, 0.5],
        ["test", "v", 11, 1, 0.75, 0.5],
    ]
    assert not [column for column in frame if "routing" in column]
    kept = results.load(results.archive(frame, tmp_path / "a.jsonl.gz"))
    assert results.routing(kept).equals(table)


def test_updates_are_a_row_a_matrix_with_role_and_layer(tmp_path: Path) -> None:
    rows = [update("model.layers.11.self_attn.v_proj", 2.0), update("lm_head", 0.0)]
    rows[1]["singular_values"] = [0.0, 0.0]
    written(tmp_path, recorded(updates=rows))
    table = results.updates(results.load(tmp_path))
    assert table["role"].tolist() == ["v", "head"] and table["layer"].tolist()[0] == 11
    assert pd.isna(table["layer"].tolist()[1])
    assert table["numerical_rank"].tolist() == [2, 0] and table["shape"].tolist() == [(6, 4)] * 2
    assert results.updates(results.load(tmp_path).iloc[:0]).empty


def test_examples_are_items_by_runs(tmp_path: Path) -> None:
    a, b = recorded("seed=0"), recorded("seed=1")
    written(tmp_path, a, {"test": {0: 1.0, 2: 0.0}, "validation": {0: 0.5}})
    written(tmp_path, b, {"test": {2: 1.0, 1: 0.0}})
    frame = results.load(tmp_path)
    table = results.examples(frame)
    assert table.index.tolist() == [0, 1, 2] and set(table.columns) == {a["identity"], b["identity"]}
    assert table[a["identity"]].tolist()[::2] == [1.0, 0.0] and math.isnan(table[a["identity"]][1])
    assert results.examples(frame, "validation").shape == (1, 1)
    with pytest.raises(ValueError, match=r"none of the 2 runs kept the score of .* 'train'"):
        results.examples(frame, "train")


def test_results_are_offered_without_pandas() -> None:
    code = "import sys, lora_zoo.runs as r; assert 'pandas' not in sys.modules; print(r.axes.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "axes\n"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        results.lode  # noqa: B018


def test_the_facts_of_a_metric_are_those_that_the_runs_recorded(tmp_path: Path) -> None:
    """Of runs from before facts were recorded, those of today's metric; of a stranger's, none."""
    mine = {"higher_is_better": False, "range": ["-inf", 0.5]}
    written(tmp_path / "new", recorded("seed=1", metric_facts={"mine": mine, "exact_match": {}}))
    written(tmp_path / "old", recorded("seed=2", metric_facts=None))
    frame = results.load(tmp_path / "new", tmp_path / "old")
    assert results.metric_facts(frame, "mine") == (False, (-math.inf, 0.5))
    assert results.metric_facts(frame, "exact_match") == (True, (0.0, 1.0))
    assert results.metric_facts(frame, "strange") == (None, None)
    results.archive(frame, tmp_path / "runs.jsonl.gz")
    assert results.metric_facts(results.load(tmp_path / "runs.jsonl.gz"), "mine") == (False, (-math.inf, 0.5))


def test_the_directions_of_columns() -> None:
    frame = pd.DataFrame({"metric": ["exact_match"]})
    higher = ("test", "zero_shot_validation", "metrics.test.bleu", "zero_shot.test.f1")
    lower = (
        "loss",
        "step_seconds",
        "saved_bytes",
        "retention_after",
        "timings.step_median",
        "retention.before",
    )
    assert {higher_is_better(frame, column) for column in higher} == {True}
    assert {higher_is_better(frame, column) for column in lower} == {False}
    assert {higher_is_better(frame, column) for column in ("adapted", "rank", "metrics.test.mine")} == {None}
    outcomes = {c for c in OUTCOMES if higher_is_better(frame, c) is None}
    assert outcomes == {"adapted"}, "every other outcome has a direction"

"""Archives: the same frame from a small file that says nothing of the machine."""

import gzip
import itertools
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_zoo import runs as results
from lora_zoo.core.variants import VARIANTS
from lora_zoo.runs.archives import thinned, without_places
from lora_zoo.runs.frame import LEFT_OUT
from lora_zoo.runs.identity import identified_as
from tests.recorded import history, recorded, update, written

OBJECTS = ["history", "updates", "record"]
PLACES = ["folder", "command", "config.out", "tracking"]

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
scores = st.dictionaries(
    st.sampled_from(["test", "validation"]),
    st.one_of(
        st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40).map(lambda v: dict(enumerate(v))),
        st.dictionaries(st.integers(0, 99), numbers, min_size=1, max_size=20),
    ),
)
logs = st.lists(
    st.fixed_dictionaries(
        {"step": st.integers(1, 999), "epoch": numbers},
        optional={"loss": st.one_of(numbers, st.just("nan")), "grad_norm": numbers, "eval_accuracy": numbers},
    ),
    max_size=250,
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[tuple[str, ...], dict[str, Any], dict[str, dict[int, float]]]:
    """Arguments of `recorded` for a whole run or one that ended early, and scores of its examples."""
    variant, rank = draw(st.sampled_from([("lora", 2), ("lora", 8), ("dora", 4), ("full", 8)]))
    overrides = (
        f"variant={variant}",
        f"rank={rank}",
        f"seed={draw(st.integers(0, 1))}",
        "out=/somewhere/else",
    )
    parts = ("metrics", "zero_shot", "variant", "parameters", "timings", "updates", "memory", "made_of")
    changes = dict.fromkeys(draw(st.sets(st.sampled_from(parts), max_size=3)))
    changes |= {
        "test": draw(st.one_of(numbers, st.just("nan"))),
        "history": draw(logs),
        "state": draw(st.sampled_from(["done", "diverged", "failed", "running"])),
        "started": f"2026-01-0{draw(st.integers(1, 9))}",
    }
    return overrides, changes, draw(scores)


def frames(made: list[Any], root: Path) -> tuple[pd.DataFrame, pd.DataFrame, bytes]:
    for overrides, changes, kept in made:
        written(root / "runs", recorded(*overrides, **changes), kept)
    frame = results.load(root / "runs")
    path = results.archive(frame, root / "packed" / "results.jsonl.gz")
    return frame, results.load(path), path.read_bytes()


@few
@given(st.lists(runs(), min_size=1, max_size=4, unique_by=lambda run: (run[0], run[1]["started"])))
def test_the_frame_of_an_archive_is_that_of_the_folders(made: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as root:
        frame, again, content = frames(made, Path(root))
        assert again["folder"].isna().all() and "config.out" not in again and root.encode() not in content
        there = [column for column in frame if column not in (*OBJECTS, *PLACES)]
        pd.testing.assert_frame_equal(frame[there], again[there], check_dtype=False)
        for split in ("test", "validation"):
            if any(split in kept for *_, kept in made):
                pd.testing.assert_frame_equal(
                    results.examples(frame, split), results.examples(again, split), check_exact=True
                )
        pd.testing.assert_frame_equal(results.updates(frame), results.updates(again), rtol=1e-3, atol=1e-30)
        short = frame[[len(logs) <= 50 for logs in frame["history"]]]
        same = again.loc[short.index]
        pd.testing.assert_frame_equal(results.histories(short), results.histories(same), rtol=1e-5)


@few
@given(st.lists(runs(), min_size=1, max_size=3))
def test_an_archive_of_an_archive_has_the_same_bytes(made: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as root:
        _, again, content = frames(made, Path(root))
        assert results.archive(again, Path(root) / "b.jsonl.gz").read_bytes() == content
        backwards = results.archive(again.iloc[::-1], Path(root) / "other-name.jsonl.gz")
        assert backwards.read_bytes() == content


def test_an_archive_is_small(tmp_path: Path) -> None:
    names = [f"model.layers.{n}.self_attn.{role}_proj" for n in range(4) for role in "qkvo"]
    rows = [update(name, 1.0 + len(name) / 7) for name in names]
    for row in rows:
        row["singular_values"] = [1 / (n + 1.37) ** 1.5 for n in range(64)]
    for seed in range(5):
        bits = {i: float(i * i % (7 + seed) < 3) for i in range(600)}
        written(tmp_path, recorded(f"seed={seed}", updates=rows, history=history(20, seed)), {"test": bits})
    path = results.archive(results.load(tmp_path), tmp_path / "results.jsonl.gz")
    assert path.stat().st_size / 5 < 3000


PLACED = {
    "out=/home/me/runs": "",
    "task.data_dir=/home/me/my-data": "task.data_dir=my-data",
    "task.data_files={train: /home/me/a.csv, test: b/c.csv}": "task.data_files={train: a.csv, test: b/c.csv}",
}


def test_an_archive_names_no_place_of_the_machine(tmp_path: Path) -> None:
    record = recorded("rank=4", state="failed")
    record["config"] |= {"out": "/home/me/runs"}
    record["config"]["task"] |= {"data_dir": "/home/me/my-data", "data_files": {"train": "/home/me/a.csv"}}
    record["config"]["model"]["path"] = "~/models/tiny"
    record["tracking"] = "wandb sync /home/me/runs/x"
    record["error"] = {"type": "OSError", "message": "cannot open '/home/me/my-data/a.csv': gone (1/2)"}
    record["command"] = "python -m lora_zoo.run " + " ".join(f"'{word}'" for word in PLACED)
    written(tmp_path, record)
    path = results.archive(results.load(tmp_path), tmp_path / "results.jsonl.gz")
    text = gzip.decompress(path.read_bytes()).decode()
    assert "/home" not in text and str(tmp_path) not in text and "~/" not in text
    (row,) = results.load(path).to_dict("records")
    assert row["error.message"] == "cannot open 'a.csv': gone (1/2)"
    assert row["config.task.data_dir"] == "my-data" and row["config.model.path"] == "tiny"
    for kept in filter(None, PLACED.values()):
        assert kept in row["command"]


@pytest.mark.parametrize(
    "text",
    ["W' = W + (α/r) B A", "https://arxiv.org/abs/2106.09685", "a/b/c", "1/2", "/", "pocket"],
)
def test_what_is_no_absolute_path_stays(text: str) -> None:
    assert without_places({"a": [text, 3]}) == {"a": [text, 3]}


def test_places_taken_out_of_the_settings_accuse_nobody(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "t.csv").write_text("prompt,target\na,b\n")
    data = f"task.data_dir={tmp_path}/data"
    made = recorded("task=causal_lm", "task.dataset=csv", data, "task.data_files={train: t.csv}")
    old = {**recorded("task=causal_lm", "task.dataset=csv", data, "task.data_files={train: t.csv}", "seed=1")}
    del old["made_of"]
    old["identity"] = identified_as(old, VARIANTS["lora"])[0]
    for record in (made, old):
        written(tmp_path / "runs", record)
    frame = results.load(tmp_path / "runs")
    again = results.load(results.archive(frame, tmp_path / "results.jsonl.gz"))
    for one in (frame, again):
        assert one["stale"].tolist() == ["", ""] and one["contradiction"].tolist() == ["", ""]


def test_what_was_known_against_a_run_is_kept(tmp_path: Path) -> None:
    old, swapped = recorded("seed=1"), recorded("seed=2")
    old["made_of"]["source"] = "another"
    swapped["name"] = swapped["name"].replace("lora", "dora")
    for record in (old, swapped):
        written(tmp_path / "runs", record)
    frame = results.load(tmp_path / "runs")
    again = results.load(results.archive(frame, tmp_path / "results.jsonl.gz"))
    for column in ("stale", "contradiction"):
        assert frame[column].tolist() == again[column].tolist() and any(again[column])


def test_a_long_history_keeps_its_ends_and_its_evaluations() -> None:
    logs = [{"loss": n / 7, "step": n} for n in range(1, 1001)]
    judged = [{"eval_loss": 1.0, "step": n} for n in range(100, 1001, 100)]
    kept = thinned([*logs, *judged])
    assert len(kept) == 160 and kept[-10:] == judged
    assert kept[0]["step"] == 1 and kept[149] == logs[-1]  # to the last digit
    gaps = {b["step"] - a["step"] for a, b in itertools.pairwise(kept[:150])}
    assert gaps <= {6, 7}
    assert len(thinned([{"eval_loss": 1.0, "step": n} for n in range(99)] + logs)) == 200


def test_a_folder_of_archives_is_a_source_and_one_of_runs_does_not_count_them_twice(tmp_path: Path) -> None:
    written(tmp_path / "sweep", recorded())
    frame = results.load(tmp_path / "sweep")
    results.archive(frame, tmp_path / "experiments" / "one" / "results.jsonl.gz")
    results.archive(frame, tmp_path / "sweep" / "results.jsonl.gz")
    assert len(results.load(tmp_path / "experiments")) == 1
    assert len(results.load(tmp_path / "sweep")) == 1


def test_an_archive_has_a_name_by_which_it_is_known_and_replaces_another(tmp_path: Path) -> None:
    written(tmp_path / "runs", recorded())
    frame = results.load(tmp_path / "runs")
    with pytest.raises(ValueError, match=r"ends in \.jsonl\.gz.*got results\.json"):
        results.archive(frame, tmp_path / "results.json")
    results.archive(pd.concat([frame, frame]), tmp_path / "a.jsonl.gz")
    results.archive(frame, tmp_path / "a.jsonl.gz")
    assert len(results.load(tmp_path / "a.jsonl.gz")) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl.gz", "runs"]


@pytest.mark.parametrize("damage", ["cut", "text", "line"])
def test_a_damaged_archive_is_named(tmp_path: Path, damage: str) -> None:
    written(tmp_path / "runs", recorded())
    path = results.archive(results.load(tmp_path / "runs"), tmp_path / "a.jsonl.gz")
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "text": b"{}", "line": whole + gzip.compress(b"{}\n")}[damage]
    )
    said = r"a\.jsonl\.gz(, line 2 is no record| cannot be read)"
    if damage == "line":
        (why,) = results.load(path).attrs[LEFT_OUT]
        assert re.search(said, why)
        return
    with pytest.raises(ValueError, match=said):
        results.load(path)


def test_scores_that_are_no_bits_come_back_to_the_last_digit(tmp_path: Path) -> None:
    kept = {"test": {3: -1 / 3, 1: 0.0, 2: math.pi}}
    written(tmp_path / "runs", recorded(), kept)
    path = results.archive(results.load(tmp_path / "runs"), tmp_path / "a.jsonl.gz")
    table = results.examples(results.load(path))
    assert table.iloc[:, 0].to_dict() == {1: 0.0, 2: math.pi, 3: -1 / 3}
    (line,) = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert json.loads(line)["scores"]["test"]["items"] == [3, 1, 2]

"""Records, archives and adapters from strangers: one line each, and one row of what was left out."""

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_zoo import runs as results
from lora_zoo.analysis.integrity import LISTED
from lora_zoo.report.report import Report
from lora_zoo.report.save_experiment import save_experiment
from lora_zoo.runs.frame import LEFT_OUT
from lora_zoo.runs.loading import kept_adapter
from tests.recorded import recorded, written

DEEP = "[" * 900 + "]" * 900
DAMAGE: dict[str, Callable[[dict[str, Any]], str]] = {
    "cut": lambda r: json.dumps(r)[:200],
    "empty": lambda r: "",
    "a list as its config": lambda r: json.dumps(r | {"config": []}),
    "a text as its task": lambda r: json.dumps(r | {"config": r["config"] | {"task": "x"}}),
    "deep": lambda r: json.dumps(r)[:-1] + f', "x": {DEEP}}}',
    "very deep": lambda r: DEEP * 200,
    "metrics by number": lambda r: json.dumps(r | {"metrics": {"test": 0.5}}),
    "history of numbers": lambda r: json.dumps(r | {"history": [1, 2]}),
    "ranks without steps": lambda r: json.dumps(r | {"ranks": {"q": [4, 3]}}),
    "a load that is no list": lambda r: json.dumps(
        r | {"routing": {"test": {"q": {"load": 1, "entropy": 0}}}}
    ),
    "a seed that is a list": lambda r: json.dumps(r | {"config": r["config"] | {"seed": [1]}}),
    "a variant without a name": lambda r: json.dumps(r | {"config": r["config"] | {"variant": {}}}),
    "hyperparameters": lambda r: json.dumps(r | {"variant": {"name": "lora"}}),
    "a budget": lambda r: json.dumps(r | {"config": r["config"] | {"budget": "many"}}),
    "a long number": lambda r: json.dumps(r)[:-1] + f', "x": {"9" * 5000}}}',
    "a name that leads away": lambda r: json.dumps(r | {"name": "../../evil"}),
    "an identity that leads away": lambda r: json.dumps(r | {"identity": "x/../../../evil"}),
}


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    for seed in (0, 1, 2):
        written(tmp_path, recorded(f"seed={seed}"))
    return tmp_path


def test_a_damaged_record_is_one_row_of_what_was_left_out(sound: Path) -> None:
    for damage, made in DAMAGE.items():
        (sound / damage).mkdir()
        (sound / damage / "result.json").write_text(made(recorded("seed=3")))
    frame = results.load(sound)
    left_out = frame.attrs[LEFT_OUT]
    assert sorted(frame["seed"]) == [0, 1, 2] and len(left_out) == len(DAMAGE) <= LISTED
    for damage in DAMAGE:
        (why,) = [sentence for sentence in left_out if f"/{damage}" in sentence]
        assert "\n" not in why and len(why) < 600
    report = Report(frame)
    (note,) = [note for note in report.tables[0].notes if note.startswith("left out (damaged)")]
    assert report.findings[0].said == "; ".join(left_out) and report.findings[0].said in note


def test_a_pipe_does_not_hang_the_report(sound: Path) -> None:
    (sound / "pipe").mkdir()
    os.mkfifo(sound / "pipe" / "result.json")
    frame = results.load(sound)
    assert len(frame) == 3 and "no regular file" in frame.attrs[LEFT_OUT][0]


def test_a_damaged_line_of_an_archive_costs_no_other(sound: Path) -> None:
    path = results.archive(results.load(sound), sound / "a.jsonl.gz")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join([lines[0], "{", DEEP, "\0", *lines[1:]]).encode()))
    frame = results.load(path)
    assert len(frame) == 3 and len(frame.attrs[LEFT_OUT]) == 3
    path.write_bytes(gzip.compress(b"{\n" * 10_000))
    with pytest.raises(ValueError, match="line 1 is no record"):
        results.load(path)


def test_an_archives_name_leads_nowhere(tmp_path: Path) -> None:
    """Where it became the path of a kept adapter, it would be read from and written to elsewhere."""
    experiment = {"name": "e", "title": "E", "question": "?", "grid": {}, "rows": ["seed"], "adapters": True}
    evil = recorded("seed=0", experiment=experiment) | {"name": "../../evil"}
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "results.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(evil).encode()))
    with pytest.raises(ValueError, match="is no name of a folder"):
        results.load(path)
    with pytest.raises(ValueError, match="is no name of a folder"):
        kept_adapter(tmp_path / "a", evil)
    frame = results.load(written(tmp_path / "runs", recorded("seed=0", experiment=experiment)))
    frame.at[0, "record"]["name"] = "../../evil"
    frame.at[0, "adapter"] = str(tmp_path)
    with pytest.raises(ValueError, match="is no name of a folder"):
        save_experiment(frame, Report(frame).tables[0], [], tmp_path / "kept")
    assert not list(tmp_path.rglob("evil*"))


def paths(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place inside a record."""
    for key, inner in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*at, key)
        if isinstance(inner, (dict, list)):
            yield from paths(inner, (*at, key))


JUNK = [None, [], {}, "x", -1, True, [[1]], {"a": []}, 10**30, "nan", "../x"]


def test_whatever_stands_at_any_place_of_a_record_it_is_read_or_left_out() -> None:
    """A property: 100 places and values drawn from a seed; none raises anything but ValueError."""
    from lora_zoo.runs.frame import frame_of
    from lora_zoo.runs.loading import Found, checked

    draw, whole = random.Random(0), recorded("seed=0", "budget=20k")
    places = list(paths(whole))
    for _ in range(100):
        record = json.loads(json.dumps(whole))
        place, junk = draw.choice(places), draw.choice(JUNK)
        held = record
        for key in place[:-1]:
            held = held[key]
        held[place[-1]] = junk
        try:
            frame_of([Found(checked(record, "here"), None)])
        except ValueError as refusal:
            assert "here is no record" in str(refusal) or "is no record of a run" in str(refusal), place

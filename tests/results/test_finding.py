"""A run is found by what it is: by later sweeps, and with a reason where it is not found."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from lora_zoo import runs as results
from lora_zoo.config import command_line, compose
from lora_zoo.config.spec import RunSpec
from lora_zoo.runs.finding import finished, link, why_anew
from lora_zoo.runs.identity import specify
from lora_zoo.runs.provenance import contradiction
from lora_zoo.runs.record import RESULT, write_atomically
from lora_zoo.runs.weights import model_digest
from lora_zoo.training import runner
from tests.recorded import recorded


def spec_of(*overrides: str) -> RunSpec:
    return specify(compose.check(command_line.rewritten(list(overrides)), multirun=False)[0], overrides)


def written(sweep: Path, *overrides: str, **more: object) -> Path:
    """The folder of a run of a sweep, as the runner makes it."""
    record = recorded(*overrides, **more)
    folder = sweep / f"{record['name']}-{record['identity']}"
    folder.mkdir(parents=True)
    (folder / RESULT).write_text(json.dumps(record))
    return folder


def run_in(sweep: Path, *overrides: str) -> int:
    return runner.run(spec_of(*overrides, f"out={sweep.parent}"), str(sweep))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that would have been trained, by name."""
    names: list[str] = []
    monkeypatch.setattr(
        runner, "_kept", lambda experiment: names.append(experiment.record.content["name"]) or 0
    )
    monkeypatch.setattr(Console, "print", lambda self, *a, **k: None)
    return names


def test_a_later_sweep_trains_only_what_is_not_there(tmp_path: Path, trained: list[str]) -> None:
    for rank in (2, 4):
        written(tmp_path / "first", f"rank={rank}")
    for rank in (2, 4, 8):
        assert run_in(tmp_path / "second", f"rank={rank}") == 0
    assert [name.split("-")[1] for name in trained] == ["r8"]
    assert sorted(p.name.split("-")[1] for p in (tmp_path / "second").iterdir()) == ["r2", "r4", "r8"]
    found = results.load(tmp_path / "second")
    assert sorted(found[found["state"] == "done"]["rank"]) == [2, 4]
    assert len(results.load(tmp_path)) == 3, "each run once, wherever it is referred to"
    again = tmp_path / "second" / next(iter(tmp_path.glob("first/*"))).name
    assert again.is_symlink() and again.resolve().parent == (tmp_path / "first").resolve()


def test_a_preset_finds_the_run_of_its_variant(tmp_path: Path, trained: list[str]) -> None:
    written(tmp_path / "first", "variant=lora", "init=pissa")
    assert run_in(tmp_path / "second", "variant=pissa") == 0 and trained == []


def test_a_folder_is_not_believed_by_its_name(tmp_path: Path) -> None:
    folder, other = written(tmp_path / "first", "rank=2"), spec_of("rank=4").identity
    folder.rename(folder.with_name(f"renamed-{other}"))
    assert finished(tmp_path, other) is None


@pytest.mark.parametrize("state", ["failed", "interrupted", "running"])
def test_what_is_not_finished_serves_nobody_else(tmp_path: Path, trained: list[str], state: str) -> None:
    folder = written(tmp_path / "first", "rank=2", state=state)
    assert finished(tmp_path, folder.name.rpartition("-")[2]) is None
    run_in(tmp_path / "second", "rank=2")
    assert len(trained) == 1


def test_a_run_of_another_sweep_is_one_of_this_experiment(tmp_path: Path) -> None:
    folder = written(tmp_path / "first", "rank=2")
    (tmp_path / "second").mkdir()
    link(folder, tmp_path / "second", {"name": "mine", "rows": ["rank"]})
    (row,) = results.load(tmp_path / "second").to_dict("records")
    assert row["experiment"] == "mine" and row["contradiction"] == ""
    assert list(results.load(tmp_path)["experiment"]) == [""]


@pytest.mark.parametrize(
    ("earlier", "asked", "says"),
    [
        (["lr=0.01"], ["lr=0.02"], "lr was 0.01 and is 0.02"),
        (["trainer.weight_decay=0.1"], [], "trainer.weight_decay was 0.1 and is 0.0"),
        (["rank=2"], ["rank=4"], "no run called lora-r4-"),
    ],
)
def test_a_run_that_starts_anew_says_why(tmp_path: Path, earlier: list, asked: list, says: str) -> None:
    written(tmp_path, *earlier)
    assert says in why_anew(tmp_path, spec_of(*asked))


def test_changed_source_and_data_are_reasons(tmp_path: Path) -> None:
    spec = spec_of("rank=2")
    made = spec.made_of | {"source": "another", "data": {"train": "a"}}
    written(tmp_path, "rank=2", made_of=made)
    told = why_anew(tmp_path, RunSpec(**vars(spec) | {"made_of": spec.made_of | {"data": {"train": "b"}}}))
    assert "the source of lora has changed" in told and "train: the content has changed" in told


def base_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    return folder


def test_a_base_that_is_written_anew_makes_another_run(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    first = spec_of(f"model={base}")
    shutil.copytree(base, tmp_path / "copied")
    assert model_digest(tmp_path / "copied") == model_digest(base), "the content counts and not the place"
    (base / "README.md").write_text("what people say of it")
    assert spec_of(f"model={base}").identity == first.identity
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    os.utime(weights, ns=(1, 1))
    second = spec_of(f"model={base}")
    assert second.identity != first.identity
    assert second.made_of["data"].keys() == {"generated examples", "the base model"}


def test_an_identity_does_not_hang_on_what_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    first = spec_of("rank=2")
    monkeypatch.setenv("MY_API_KEY", "exact_match")  # a word that stands in every configuration
    assert spec_of("rank=2").identity == first.identity
    masked = recorded("rank=2")
    masked["config"]["task"]["metrics"] = ["***"]
    assert contradiction(masked) == ""


def test_a_file_that_many_write_at_once_is_always_whole(tmp_path: Path) -> None:
    """Workers of a sweep that find their runs elsewhere all write the sweep's experiment."""
    path = tmp_path / ".experiment.json"
    contents = [json.dumps({"name": str(n) * 500}) for n in range(4)]
    with ThreadPoolExecutor(4) as workers:
        for _ in workers.map(lambda n: write_atomically(path, contents[n % 4]), range(60)):
            assert path.read_text() in contents
    assert [*tmp_path.iterdir()] == [path]

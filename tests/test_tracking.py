"""Tracking of a run, read back from the file that `wandb sync` uploads."""

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_zoo.core import processes
from lora_zoo.core.processes import Several
from lora_zoo.runs import tracking, wandb_session
from lora_zoo.runs.tracking import Tracker, open_tracker

wandb = pytest.importorskip("wandb")

TRACKING = {
    "backend": "wandb",
    "project": "zoo",
    "entity": None,
    "mode": "offline",
    "log_adapter": True,
    "tags": ["mine"],
    "notes": "a note",
}
RESULT = {
    "state": "done",
    "metrics": {"test": {"accuracy": 0.75}},
    "parameters": {"trainable": 12, "in_full": ["head"]},
    "timings": {"train": 1.5},
    "history": [{"step": 1}],
}
ROW = {
    "name": "layer.q",
    "shape": [6, 4],
    "norm": 2.0,
    "relative_norm": None,
    "stable_rank": 1.5,
    "effective_rank": 1.8,
    "singular_values": [1.5, 0.5],
}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings, login or open run of anyone else."""
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    yield
    assert wandb.run is None, "the tracker left its run open"


def opened(folder: Path, config: dict[str, Any] | None = None, **changes: Any) -> Tracker:
    return open_tracker(
        TRACKING | changes,
        directory=folder,
        name="lora r8",
        config={"rank": 8, "task": {"name": "nli"}} if config is None else config,
        group="sweep",
        tags=["lora", "t" * 80],
    )


def records(folder: Path, run: int = 0) -> list[Any]:
    """The records of the `run`-th run in the folder, once wandb's service has written its end (it lags)."""
    file = sorted(folder.glob("wandb/*run-*/run-*.wandb"))[run]
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = parsed(file.read_bytes())
        if of_kind(found, "exit"):
            return found
        time.sleep(0.02)
    raise AssertionError(f"the run in {file} has no end")


def parsed(data: bytes) -> list[Any]:
    """LevelDB's log: blocks of 32 KiB of pieces with a checksum, a length and a kind (1 whole, 2-4 parts)."""
    from wandb.proto.wandb_internal_pb2 import Record

    assert data[:4] == b":W&B"
    found, part, at = [], b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece = data[at + 7 : at + 7 + length]
        if len(piece) < length:  # being written just now
            break
        assert zlib.crc32(data[at + 6 : at + 7] + piece) == int.from_bytes(data[at : at + 4], "little")
        part = piece if kind in (1, 2) else part + piece
        if kind in (1, 4):
            found.append(Record.FromString(part))
        at += 7 + length
    return found


def of_kind(found: list[Any], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def items(updates: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def config_of(found: list[Any]) -> dict[str, Any]:
    (run,) = of_kind(found, "run")[:1]
    config = items(run.config.update)
    for update in of_kind(found, "config"):
        config |= items(update.update)
    return config


def summary_of(found: list[Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for update in of_kind(found, "summary"):
        summary |= items(update.update)
    return summary


def history_of(found: list[Any]) -> list[dict[str, Any]]:
    return [items(row.item) for row in of_kind(found, "history")]


def exit_code(found: list[Any]) -> int:
    (ended,) = of_kind(found, "exit")
    return ended.exit_code


def test_an_offline_run_holds_all_that_it_was_given(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter.safetensors").write_bytes(b"weights")
    with opened(tmp_path) as tracker:
        for step in (5, 10):
            tracker.log({"train/loss": 1 / step}, step)
        tracker.finish(RESULT, adapter, [ROW, ROW | {"name": "layer.v", "singular_values": [0.1] * 20}])
    found = records(tmp_path)
    (run,) = of_kind(found, "run")[:1]
    assert (run.project, run.display_name, run.run_group, run.notes) == ("zoo", "lora r8", "sweep", "a note")
    assert list(run.tags) == ["mine", "lora", "t" * 64]
    assert {"rank": 8, "task": {"name": "nli"}}.items() <= config_of(found).items()
    curves = [(row[tracking.STEP], row["train/loss"]) for row in history_of(found) if "train/loss" in row]
    assert curves == [(5, 0.2), (10, 0.1)]
    wanted = {
        "state": "done",
        "metrics/test/accuracy": 0.75,
        "parameters/trainable": 12,
        "timings/train": 1.5,
    }
    assert wanted.items() <= summary_of(found).items()
    assert exit_code(found) == 0
    model = next(a for a in of_kind(found, "artifact") if a.type == "model")
    assert model.name == "lora-r8"
    assert [(e.path, e.size) for e in model.manifest.contents] == [("adapter.safetensors", 7)]
    assert [e.local_path for e in model.manifest.contents] == [str(adapter / "adapter.safetensors")]
    assert tracker.where.startswith("wandb sync ") and str(tmp_path) in tracker.where


def test_the_spectra_are_a_table_of_one_row_a_matrix(tmp_path: Path) -> None:
    with opened(tmp_path) as tracker:
        tracker.finish(RESULT, None, [ROW, ROW | {"name": "layer.v", "singular_values": [0.1] * 20}])
    rows = [row for row in history_of(records(tmp_path)) if row.get("spectra/_type") == "table-file"]
    (file,) = tmp_path.glob(f"wandb/*run-*/files/{rows[-1]['spectra/path']}")
    table = json.loads(file.read_text())
    assert table["columns"] == list(tracking.COLUMNS)
    assert table["data"] == [
        ["layer.q", 6, 4, 2.0, None, 1.5, 1.8, [1.5, 0.5]],
        ["layer.v", 6, 4, 2.0, None, 1.5, 1.8, [0.1] * tracking.TOP],
    ]


@pytest.mark.parametrize("changes", [{"backend": "none"}, {"mode": "disabled"}], ids=str)
def test_no_tracker_writes_nothing(tmp_path: Path, changes: dict[str, str]) -> None:
    with opened(tmp_path, **changes) as tracker:
        tracker.log({"x": 1.0}, 1)
        tracker.finish(RESULT, tmp_path, [ROW])
    assert tracker.report_to == [] and tracker.where == "" and not list(tmp_path.iterdir())


def test_other_ranks_of_a_distributed_run_open_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_HERE", [Several(1, 2, "")])
    assert opened(tmp_path).report_to == []


def test_an_exception_closes_the_run_and_the_next_is_a_fresh_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as tracker:
        tracker.log({"x": 1.0}, 1)
        raise KeyboardInterrupt
    assert wandb.run is None and "WANDB_LOG_MODEL" not in os.environ
    with opened(tmp_path, config={"rank": 9}) as tracker:
        tracker.finish(RESULT | {"state": "diverged"}, None, [])
    files = sorted(tmp_path.glob("wandb/*run-*/run-*.wandb"))
    assert len(files) == 2
    ended = {config_of(records(tmp_path, run))["rank"]: exit_code(records(tmp_path, run)) for run in (0, 1)}
    assert ended == {8: 1, 9: 1}


def test_a_run_that_someone_left_open_is_not_continued(tmp_path: Path) -> None:
    wandb.init(
        project="other", mode="offline", dir=str(tmp_path / "other"), settings=wandb.Settings(silent=True)
    )
    with opened(tmp_path / "ours") as tracker:
        tracker.log({"x": 1.0}, 1)
    assert exit_code(records(tmp_path / "other")) == 0 and not history_of(records(tmp_path / "other"))
    assert len(history_of(records(tmp_path / "ours"))) == 1


def test_secrets_and_code_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    config = {
        "hub_token": "abc",
        "list": [{"api_key": "def"}, "hf_0123456789"],
        "pad_token": "<pad>",
        "out": Path("x"),
    }
    with opened(tmp_path, config=config):
        pass
    got = config_of(records(tmp_path))
    assert got["hub_token"] == "***" and got["list"] == [{"api_key": "***"}, "***"]
    assert got["pad_token"] == "<pad>" and got["out"] == "x"
    for name in ("*.patch", "*.py", "*.ipynb"):
        assert not list(tmp_path.rglob(name))
    assert not any(row.git.commit for row in of_kind(records(tmp_path), "run"))


def test_neither_the_command_line_nor_anything_said_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["run.py", "trainer.hub_token=TypedSecret", "rank=8"]
    monkeypatch.setattr(sys, "argv", words)
    notes = {"notes": "see https://me:UrlSecret@host", "tags": ["api_key=TagSecret"]}
    with opened(tmp_path, **notes) as tracker:
        tracker.finish(RESULT | {"state": "password=StateSecret"}, None, [])
    assert sys.argv is words
    (file,) = tmp_path.glob("wandb/*run-*/run-*.wandb")
    assert exit_code(records(tmp_path)) == 1
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"Secret" not in path.read_bytes(), path
    assert b"rank=8" in file.read_bytes(), "wandb keeps no command line any more"
    with pytest.warns(UserWarning, match=r"https://\*\*\*@host"):
        wandb_session.warn("failed", OSError("no route to https://me:UrlSecret@host"))


def test_wandb_is_silent_and_writes_under_its_folder(tmp_path: Path) -> None:
    """In a process of its own: wandb's service starts once, and its log lies where the first run is."""
    home = tmp_path / "home"
    home.mkdir()
    program = (
        "from pathlib import Path; from tests.test_tracking import *\n"
        "m = opened(Path('run')); m.log({'x': 1}, 1); "
        "m.finish(RESULT, Path(__import__('tests').test_tracking.__file__), [ROW])\n"
        "assert 'wandb.sdk.launch' not in sys.modules, 'a third of its start, for nothing'"
    )
    environment = os.environ | {
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout + ran.stderr == ""
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["wandb"]
    assert not list(home.rglob("*wandb*")) and {p.name for p in tmp_path.iterdir()} <= {"home", "run"}


@pytest.mark.parametrize("name", ["runner", "dry_run"])
def test_transformers_does_not_say_that_wandb_is_offline(name: str) -> None:
    """It prints this when its trainer is imported, by whichever module of ours comes first."""
    code = f"import lora_zoo.training.{name}, sys; assert 'transformers.trainer' in sys.modules"
    environment = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_auto_is_online_only_with_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb.teardown()
    assert not wandb_session.logged_in() and not wandb_session.goes_online("auto")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40)
    assert wandb_session.goes_online("auto") and not wandb_session.goes_online("offline")
    (tmp_path / "netrc").write_text("machine example.org login user password " + "0" * 40)
    assert not wandb_session.logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_session.goes_online("online")


@pytest.mark.parametrize(
    ("asked", "environment", "meant"),
    [
        ("auto", None, "auto"),
        ("auto", "offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("offline", "online", "offline"),
    ],
)
def test_wandb_mode_decides_where_auto_was_asked(
    asked: str, environment: str | None, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    assert wandb_session.mode(asked) == meant


def test_unknown_words_are_refused_with_the_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"backend 'wandbb'.*Did you mean 'wandb'"):
        opened(tmp_path, backend="wandbb")
    with pytest.raises(ValueError, match=r"mode 'ofline'.*Did you mean 'offline'"):
        opened(tmp_path, mode="ofline")
    monkeypatch.setenv("WANDB_MODE", "never")
    with pytest.raises(ValueError, match="WANDB_MODE 'never'"):
        opened(tmp_path, mode="auto")


def test_online_without_a_login_or_a_network_becomes_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.teardown()
    with pytest.warns(UserWarning, match="no login"), opened(tmp_path / "a", mode="online") as tracker:
        assert tracker.where.startswith("wandb sync")
    wandb.teardown()
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setitem(tracking.LIMITS, "init_timeout", 1.0)
    with pytest.warns(UserWarning, match="not reached"), opened(tmp_path / "b", mode="auto") as tracker:
        assert tracker.where.startswith("wandb sync")
        tracker.finish(RESULT, None, [])
    assert summary_of(records(tmp_path / "b"))["state"] == "done"
    wandb.teardown()


def test_a_folder_that_cannot_be_made_costs_the_tracker_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="tracks nothing"), opened(tmp_path / "file") as tracker:
        assert tracker.report_to == []


def test_an_adapter_that_is_not_there_costs_the_artifact_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as tracker, pytest.warns(UserWarning, match="did not take the adapter"):
        tracker.finish(RESULT, tmp_path / "missing", [])
    assert summary_of(records(tmp_path))["state"] == "done" and exit_code(records(tmp_path)) == 0


def test_the_death_of_wandb_costs_neither_this_run_nor_the_next_ones_tracker(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as tracker:
        for child in children():
            os.kill(child, signal.SIGKILL)
        with pytest.warns(UserWarning, match="stopped taking the curves"):
            first, until = wandb.run, time.monotonic() + 10
            while wandb.run is first and time.monotonic() < until:
                wandb.log({"x": 1.0})  # as transformers' callback does
                time.sleep(0.01)
        wandb.run.summary["x"] = 1
        tracker.finish(RESULT, None, [ROW])
    with opened(tmp_path / "b") as tracker:
        tracker.finish(RESULT, None, [])
    assert summary_of(records(tmp_path / "b"))["state"] == "done"


def children() -> list[int]:
    """The wandb services that this process started."""
    tasks = Path("/proc/self/task").glob("*/children")
    pids = {int(pid) for task in tasks for pid in task.read_text().split()}
    return [pid for pid in pids if "wandb" in Path(f"/proc/{pid}/comm").read_text()]


def test_transformers_callback_logs_into_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import Trainer, TrainingArguments

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.slope * x - labels).square().mean()}

    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    rows = [{"x": float(i), "labels": 2.0 * i} for i in range(6)]
    with opened(tmp_path, config={"seed": "ours"}) as tracker:
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "out"),
            run_name="another",
            max_steps=3,
            logging_steps=1,
            save_steps=1,
            per_device_train_batch_size=2,
            report_to=tracker.report_to,
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(Line(), arguments, train_dataset=rows).train()
        tracker.log({"eval/accuracy": 0.5}, 3)
        tracker.finish(RESULT, None, [])
    assert os.environ["WANDB_LOG_MODEL"] == "checkpoint"
    assert len(list(tmp_path.glob("wandb/*run-*/run-*.wandb"))) == 1
    found = records(tmp_path)
    losses = [row for row in history_of(found) if "train/loss" in row]
    assert [row[tracking.STEP] for row in losses] == [1, 2, 3]
    assert {row.display_name for row in of_kind(found, "run")} == {"lora r8"}
    assert [row[tracking.STEP] for row in history_of(found) if "eval/accuracy" in row] == [3]
    config = config_of(found)
    assert config["seed"] == "ours" and config["max_steps"] == 3
    assert not of_kind(found, "artifact")

"""Sweeps side by side in processes: `hydra/launcher=joblib`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lora_zoo.launchers import joblib
from lora_zoo.launchers.base import LAUNCHERS, Launcher, launcher
from lora_zoo.launchers.joblib import Joblib
from lora_zoo.training.signals import Stopped

pytestmark = pytest.mark.xdist_group("joblib")  # one after the other: each takes all cores
QUICK = (
    "batch_size=4", "tracking=none", "task.sizes={train: 24, validation: 6, test: 6}",
    "task.max_new_tokens=4", "eval_before_training=false", "eval_splits=[test]",
)  # fmt: skip
SIDE_BY_SIDE = "hydra/launcher=joblib"


def begin(*arguments: str, at: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lora_zoo.run", "-m", *arguments, *QUICK], cwd=at, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def sweep(*arguments: str, at: Path) -> tuple[int, str]:
    process = begin(*arguments, at=at)
    said, _ = process.communicate()
    return process.returncode, said


def results(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    found = [(path, json.loads(path.read_text())) for path in folder.rglob("result.json")]
    return {(r["config"]["variant"]["name"], r["seed"]): r | {"folder": path.parent} for path, r in found}


def adapters(folder: Path) -> dict[tuple[Any, ...], bytes]:
    return {k: (r["folder"] / "adapter/adapter.safetensors").read_bytes() for k, r in results(folder).items()}


def processes_in(folder: Path) -> list[int]:
    """Processes whose working directory is `folder`: front, workers and their helpers."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve() == folder.resolve() and "Z" not in (entry / "stat").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_sweep_side_by_side_is_the_sweep_one_after_the_other(tmp_path: Path) -> None:
    words = ("+variant=lora,vera,dora", "seed=0,1", "init=kaiming,olora", "steps=3", "threads=1")
    ended = sweep(SIDE_BY_SIDE, "hydra.launcher.n_jobs=2", *words, at=tmp_path)
    assert ended[0] == 1, ended[1]  # vera takes no olora
    assert "vera cannot start from init=olora" in ended[1]
    assert "12 runs" in ended[1] and "\x1b" not in ended[1] and "━" not in re.sub(r"┏.*┓|┡.*┩", "", ended[1])
    assert len([line for line in ended[1].splitlines() if line.startswith("done: ")]) == 10
    (folder,) = (tmp_path / "runs").iterdir()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    other = tmp_path / "other"
    other.mkdir()
    assert sweep(*words, at=other)[0] == 1
    (own,) = (other / "runs").iterdir()
    assert own.name == folder.name, "the launcher changes no result, so the sweep goes on in the same folder"
    alone = {p.parent.parent.name: p.read_bytes() for p in own.glob("*/adapter/adapter.safetensors")}
    side = {p.parent.parent.name: p.read_bytes() for p in folder.glob("*/adapter/adapter.safetensors")}
    assert len(side) == 10 and side == alone
    code, said = sweep(SIDE_BY_SIDE, *words, at=tmp_path)
    assert code == 1 and said.count("done already") == 10


@pytest.mark.parametrize("given, expected", [
    ((), 1),
    (("threads=2",), 2),
    (("hydra.launcher.n_jobs=1",), None),  # no worker is made: torch's own choice
])  # fmt: skip
def test_threads_and_processes_share_the_cores_unless_told(
    given: tuple[str, ...], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # what a machine's profile says of single programs
    code, said = sweep(SIDE_BY_SIDE, "+variant=zero_shot", "seed=0,1", *given, at=tmp_path)
    assert code == 0, said
    if expected is None:
        ask = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
        expected = int(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)
    assert [r["environment"]["threads"] for r in results(tmp_path).values()] == [expected] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("whom", ["front", "terminal"])
def test_told_to_stop_every_worker_saves_and_leaves(whom: str, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal's group, `kill` the one in front alone."""
    words = ("+variant=lora", "seed=0,1,2", "steps=4000", "threads=1", "hydra.launcher.n_jobs=2")
    process = begin(SIDE_BY_SIDE, *words, at=tmp_path)
    wait_for(lambda: len(trains(tmp_path)) == 2)
    if whom == "front":
        process.send_signal(signal.SIGTERM)
    else:
        os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == (143 if whom == "front" else 130), said
    wait_for(lambda: not processes_in(tmp_path))
    stopped = results(tmp_path)
    assert [r["state"] for r in stopped.values()] == ["interrupted"] * 2, said
    for result in stopped.values():
        assert list(result["folder"].glob("checkpoints/checkpoint-*/manifest.json"))
    assert "Traceback" not in said


def test_an_interrupted_sweep_goes_on_to_the_bit(tmp_path: Path) -> None:
    words, two = ("+variant=lora", "seed=0,1", "steps=150", "threads=1"), "hydra.launcher.n_jobs=2"
    process = begin(SIDE_BY_SIDE, two, *words, at=tmp_path)
    wait_for(lambda: len(trains(tmp_path)) == 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert sweep(SIDE_BY_SIDE, two, *words, at=tmp_path)[0] == 0
    whole = tmp_path / "whole"
    whole.mkdir()
    assert sweep(*words, at=whole)[0] == 0
    assert any("resumed" in r for r in results(tmp_path / "runs").values())
    assert adapters(tmp_path / "runs") == adapters(whole)


def test_a_mark_that_a_killed_sweep_has_left_stops_nothing(tmp_path: Path) -> None:
    left, launcher = tmp_path / ".stop", Joblib(tmp_path)
    left.write_text("15")
    assert not launcher.stopped()
    with pytest.raises(Stopped) as stop, launcher.around():
        assert not launcher.stopped()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert launcher.stopped() and launcher.received == signal.SIGUSR2
        assert launcher.run(lambda: 0, None) is None, "no further run begins"
    assert stop.value.number == signal.SIGUSR2
    assert not left.exists()


def test_a_worker_whose_front_has_died_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(joblib.FRONT, str(os.getppid()))
    assert joblib.is_worker() and not Joblib(tmp_path).stopped()
    monkeypatch.setenv(joblib.FRONT, "1999999999")
    assert Joblib(tmp_path).stopped()


def test_a_launcher_is_found_by_its_file_and_any_other_is_basic(tmp_path: Path) -> None:
    assert set(LAUNCHERS) == {"basic", "joblib"}
    assert launcher("joblib") is Joblib and launcher("packed") is launcher("submitit_slurm") is Launcher
    basic = Launcher(tmp_path)
    with basic.around():
        assert basic.run(lambda: 3, None) == 3


def test_a_worker_that_dies_is_said_in_a_line_and_the_sweep_can_go_on(tmp_path: Path) -> None:
    words = ("+variant=lora", "seed=0,1", "steps=4000", "threads=1", "hydra.launcher.n_jobs=2")
    process = begin(SIDE_BY_SIDE, *words, at=tmp_path)
    wait_for(lambda: len(trains(tmp_path)) == 2)
    worker = next(tmp_path.rglob(".worker-*"))
    os.kill(int(worker.name.rpartition("-")[2]), signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "the same command does what is missing" in said
    assert "Traceback" not in said


def trains(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("run.log") if "step 10:" in p.read_text() or "step 20:" in p.read_text()]


def wait_for(condition: Any, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.1)

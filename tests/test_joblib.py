"""Sweeps side by side in processes: `hydra/launcher=joblib`."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from lora_zoo.launchers import joblib
from lora_zoo.launchers.base import LAUNCHERS, Launcher, launcher
from lora_zoo.launchers.joblib import Joblib
from lora_zoo.training.signals import Stopped
from tests.processes import Running, start

pytestmark = pytest.mark.xdist_group("joblib")  # one after the other: each takes all cores
QUICK = (
    "batch_size=4", "tracking=none", "task.sizes={train: 24, validation: 2, test: 2}",
    "task.max_new_tokens=2", "eval_before_training=false", "eval_splits=[test]", "forgetting_text=null",
)  # fmt: skip
SIDE_BY_SIDE = "hydra/launcher=joblib"
FORKED = (
    "import warnings\n"
    "from joblib.externals.loky.backend import context\n"
    "warnings.filterwarnings('ignore', '.fork. start method')\n"
    "context.set_start_method('fork', force=True)\n"
)
"""Workers as forks of the front. New interpreters, six CPU seconds each, are those of `test_outside`."""


def begin(*arguments: str, at: Path, **env: str) -> Running:
    return start("-m", *arguments, *QUICK, at=at, merged=True, **env)


def sweep(*arguments: str, at: Path, **env: str) -> tuple[int, str]:
    process = begin(*arguments, at=at, **env)
    said, _ = process.communicate()
    return process.wait(), said


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
    words = ("+variant=lora,dora,vera", "seed=1", "init=olora", "steps=3")
    forks = {"PYTHONPATH": holding(tmp_path)}
    ended = sweep(SIDE_BY_SIDE, "hydra.launcher.n_jobs=2", "threads=1", *words, at=tmp_path, **forks)
    assert ended[0] == 1, ended[1]  # vera takes no olora
    assert "vera cannot start from init=olora" in ended[1]
    assert "3 runs" in ended[1] and "\x1b" not in ended[1] and "━" not in re.sub(r"┏.*┓|┡.*┩", "", ended[1])
    assert len([line for line in ended[1].splitlines() if line.startswith("done: ")]) == 2
    (folder,) = (tmp_path / "runs").iterdir()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    other = tmp_path / "other"
    other.mkdir()
    assert sweep("threads=1", *words, at=other)[0] == 1
    (own,) = (other / "runs").iterdir()
    assert own.name == folder.name, "the launcher changes no result, so the sweep goes on in the same folder"
    alone = {p.parent.parent.name: p.read_bytes() for p in own.glob("*/adapter/adapter.safetensors")}
    side = {p.parent.parent.name: p.read_bytes() for p in folder.glob("*/adapter/adapter.safetensors")}
    assert len(side) == 2 and side == alone
    missing = results(other)["lora", 1]["folder"]
    shutil.rmtree(missing)
    code, said = sweep(SIDE_BY_SIDE, "hydra.launcher.n_jobs=1", *words, at=other)
    assert code == 1 and said.count("done already") == 1
    result = json.loads((missing / "result.json").read_text())
    assert result["state"] == "done"
    assert result["environment"]["threads"] == 1, "by the work of a step: no worker"


@pytest.mark.parametrize("cores, jobs, expected", [(8, 2, 4), (8, 3, 2), (2, 4, 1), (8, -1, 1)])
def test_workers_share_the_cores(
    cores: int, jobs: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner in ("joblib", "joblib.parallel", "joblib._parallel_backends"):
        monkeypatch.setattr(f"{owner}.cpu_count", lambda *_, **__: cores)
    monkeypatch.setattr("os.setpgid", lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv(joblib.FRONT, str(os.getppid()))
    before = torch.get_num_threads()
    try:
        with mock.patch.dict(os.environ):
            found: list[int] = []
            run = lambda **_: found.append(torch.get_num_threads()) or 0  # noqa: E731
            assert Joblib(tmp_path).run(run, SimpleNamespace(n_jobs=jobs)) == 0
    finally:
        torch.set_num_threads(before)
    assert found == [expected]


def holding(folder: Path, *steps: int, first: str = FORKED) -> str:
    """A folder for PYTHONPATH: workers mark that they are in one of the steps, and wait for `go`."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(
        f"{first}\n"
        "import os, pathlib, time\n"
        "from lora_zoo.training import trainer\n"
        "plain = trainer.ZooTrainer.training_step\n"
        f"here = pathlib.Path({str(folder)!r})\n"
        "def training_step(self, *given, **more):\n"
        f"    if self.state.global_step + 1 in {steps}:\n"
        "        (here / f'held-{os.getpid()}').touch()\n"
        "        until = time.monotonic() + 120\n"
        "        while not (here / 'go').exists() and time.monotonic() < until: time.sleep(0.01)\n"
        "    return plain(self, *given, **more)\n"
        "trainer.ZooTrainer.training_step = training_step\n"
    )
    return str(folder / "site")


def held(folder: Path) -> list[Path]:
    return list(folder.glob("held-*"))


def let_go(folder: Path) -> None:
    for mark in held(folder):
        mark.unlink()
    (folder / "go").touch()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_told_to_stop_every_worker_saves_and_leaves(tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal's group; the third run never begins."""
    profile = "import torch; torch.set_num_threads(3)"  # as a machine's profile says
    words = ("+variant=lora", "seed=0,1,2", "steps=4000", "hydra.launcher.n_jobs=2")
    process = begin(
        SIDE_BY_SIDE, *words, at=tmp_path, PYTHONPATH=holding(tmp_path, 3, first=FORKED + profile)
    )
    wait_for(lambda: len(held(tmp_path)) == 2)
    os.killpg(process.pid, signal.SIGINT)
    let_go(tmp_path)
    stopped = has_stopped(process, 130, tmp_path)
    assert [r["state"] for r in stopped.values()] == ["interrupted"] * 2
    assert [r["environment"]["threads"] for r in stopped.values()] == [1] * 2
    for result in stopped.values():
        assert list(result["folder"].glob("checkpoints/checkpoint-*/manifest.json"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interrupted_sweep_goes_on_to_the_bit(tmp_path: Path) -> None:
    """`kill` reaches the process in front alone."""
    words, two = ("+variant=lora", "seed=0,1", "steps=6", "threads=1"), "hydra.launcher.n_jobs=2"
    process = begin(SIDE_BY_SIDE, two, *words, at=tmp_path, PYTHONPATH=holding(tmp_path, 4))
    wait_for(lambda: len(held(tmp_path)) == 2)
    process.send_signal(signal.SIGTERM)
    let_go(tmp_path)
    stopped = has_stopped(process, 143, tmp_path)
    assert [r["state"] for r in stopped.values()] == ["interrupted"] * 2
    assert sweep(SIDE_BY_SIDE, two, *words, at=tmp_path, PYTHONPATH=str(tmp_path / "site"))[0] == 0
    whole = tmp_path / "whole"
    whole.mkdir()
    assert sweep(*words, at=whole)[0] == 0
    assert [r["resumed"][0]["step"] for r in results(tmp_path / "runs").values()] == [4, 4]
    assert adapters(tmp_path / "runs") == adapters(whole)


def has_stopped(process: Running, code: int, at: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The results of a sweep that leaves with `code`, and of whose processes none is left."""
    said, _ = process.communicate(timeout=30)
    assert process.returncode == code, said
    wait_for(lambda: not processes_in(at))
    assert "Traceback" not in said
    return results(at)


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
    assert set(LAUNCHERS) == {"basic", "joblib", "ray", "submitit_local", "submitit_slurm"}
    assert launcher("joblib") is Joblib and launcher("packed") is launcher("of_a_plugin") is Launcher
    basic = Launcher(tmp_path)
    with basic.around():
        assert basic.run(lambda: 3, None) == 3


def test_a_worker_that_dies_is_said_in_a_line_and_the_sweep_can_go_on(tmp_path: Path) -> None:
    words = ("+variant=lora", "seed=0,1", "steps=4000", "threads=2", "hydra.launcher.n_jobs=2")
    process = begin(SIDE_BY_SIDE, *words, at=tmp_path, PYTHONPATH=holding(tmp_path, 1))
    wait_for(lambda: len(held(tmp_path)) == 2)
    assert [r["environment"]["threads"] for r in results(tmp_path).values()] == [2] * 2, "as told"
    worker = next(tmp_path.rglob(".worker-*"))
    os.kill(int(worker.name.rpartition("-")[2]), signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "the same command runs what is missing" in said
    assert "Traceback" not in said


def wait_for(condition: Any, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.1)

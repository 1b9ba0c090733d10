"""Sweeps in tasks of a cluster: `hydra/launcher=ray`, `submitit_local`, `submitit_slurm`."""

import os
import signal
from pathlib import Path

import pytest

from lora_zoo.config.choices import TYPED
from lora_zoo.launchers import on_submitit, tasks
from lora_zoo.launchers.tasks import STOP, Ray, SubmititLocal, SweepTask, launched
from lora_zoo.runs.identity import specify
from lora_zoo.training import runner
from lora_zoo.training.signals import Stopped
from tests.recorded import settings
from tests.test_search import MadeUp


def specs(*seeds: int, **more: str) -> list:
    given = [f"{key}={value}" for key, value in more.items()]
    return [specify(settings(f"seed={seed}", *given), [f"seed={seed}"]) for seed in seeds]


@pytest.fixture
def made(monkeypatch) -> list[tuple[int, str]]:
    """The seed and the working directory of each run that the runner was asked for."""
    found: list[tuple[int, str]] = []

    def run(spec, sweep, *, progress) -> int:
        assert not progress
        found.append((spec.settings.seed, str(Path.cwd())))
        return {3: 130, 4: 1}.get(spec.settings.seed, 0)

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(runner, "is_over", lambda spec, sweep: spec.settings.seed == 1)
    return found


def test_what_is_missing_is_made_in_tasks_of_one_base(tmp_path, made, capsys):
    given = [*specs(0, 1), None, *specs(2, dry_run="true"), *specs(5, task="pocket-nli"), *specs(6, 7, 4)]
    seen: list[list[int]] = []

    def run(own):
        seen.extend([held.seed for _, held, _ in task.runs] for task in own)
        return [RuntimeError("the node went away"), *(task() for task in own[1:])]

    codes = launched(given, tmp_path, 2, run)
    assert seen == [[0, 6], [7, 4], [5]]
    assert codes == {0: 1, 5: 1, 6: 0, 7: 1, 4: 0} and [seed for seed, _ in made] == [7, 4, 5]
    said = capsys.readouterr()
    text = said.out + said.err
    assert "5 of 8 runs are missing: 3 tasks of at most 2" in text
    assert "a task was lost: the node went away; the same command runs what is missing" in text
    assert launched(specs(1), tmp_path, 2, run) == {}


def task(folder: Path, *seeds: int, identity: str = "") -> SweepTask:
    runs = [(identity or spec.identity, spec.settings, spec.overrides) for spec in specs(*seeds)]
    return SweepTask(str(folder), runs, folder=str(folder), typed='{"a": "b"}')


def test_a_task_ends_with_a_run_that_was_stopped_and_where_the_sweep_is(tmp_path, made, monkeypatch, capsys):
    monkeypatch.chdir("/")
    monkeypatch.setenv(TYPED, "{}")
    assert task(tmp_path, 0, 3, 5)() == [0, 130] and made == [(0, str(tmp_path)), (3, str(tmp_path))]
    assert os.environ[TYPED] == '{"a": "b"}'
    assert task(tmp_path, 0, identity="00000000")() == [2]
    said = capsys.readouterr()
    assert "this machine has other sources" in said.out + said.err
    (tmp_path / STOP).touch()
    assert task(tmp_path, 0)() == [] and len(made) == 2


def test_a_signal_stops_the_tasks_and_the_next_sweep_begins_anew(tmp_path):
    (tmp_path / STOP).touch()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM"), Ray(tmp_path).around():
        assert not (tmp_path / STOP).exists()
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 1)
    assert (tmp_path / STOP).exists() and signal.getsignal(signal.SIGTERM) == before


def test_a_sweep_goes_through_its_launcher_and_tells_the_sweeper(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SubmititLocal, "check", lambda *_: None)
    given: list = []

    def run(own, *, cluster, sweep, parameters):
        given.append((cluster, parameters, [len(task.runs) for task in own]))
        return [task() for task in own]

    monkeypatch.setattr(on_submitit, "run", run)
    made = MadeUp(monkeypatch)
    words = ("variant=lora", "lr=0.01,0.1", "seed=0", "hydra.launcher.runs_per_task=3")
    assert made.typed("hydra/launcher=submitit_local", *words) == 0
    assert given == [("local", {"timeout_min": 60, "cpus_per_task": 1}, [2])]
    assert made.returned == [1.0, 0.75]
    assert made.typed("hydra/launcher=submitit_local", *words) == 0 and len(given) == 1
    assert made.typed("hydra/launcher=submitit_local", *words[:-1], "hydra.launcher.runs_per_task=0") == 2
    assert "runs_per_task must be at least 1; got 0" in capsys.readouterr().err


@pytest.mark.parametrize("name, package", [("ray", "ray"), ("submitit_slurm", "submitit")])
def test_without_its_package_a_launcher_says_what_to_install(name, package, monkeypatch):
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=rf"{name} needs {package}: pip install 'lora_zoo\[{package}\]'"):
        tasks.LAUNCHERS.find(name).check({}, 1)


def test_submitit_gives_back_what_tasks_return_and_what_broke_them(tmp_path):
    pytest.importorskip("submitit", reason="needs the extra lora_zoo[submitit]")
    whole, broken = (
        SweepTask(str(tmp_path), []),
        SweepTask(str(tmp_path), [], folder=str(tmp_path / "nowhere")),
    )
    how = {"cluster": "local", "sweep": tmp_path, "parameters": {"timeout_min": 2}}
    ended = on_submitit.run([whole, broken], **how)
    assert ended[0] == [] and "nowhere" in str(ended[1])

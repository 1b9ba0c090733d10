"""Nothing is lost when a run dies: what is saved, when, and how a run goes on from it."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lora_zoo.runs.record import Busy, claimed
from lora_zoo.training import checkpoints
from tests.processes import Running
from tests.processes import start as begin

QUICK = (
    "task.sizes={train: 80, validation: 4, test: 4}",
    "task.max_new_tokens=2",
    "eval_splits=[validation]",
    "batch_size=8",
    "threads=1",
    "tracking=none",
    "eval_before_training=false",
    "forgetting_text=null",
)


start = functools.partial(begin, merged=True)
pytestmark = pytest.mark.endurance


def run(*arguments: str, at: Path, **env: str) -> tuple[int, str]:
    ended = start(*arguments, at=at, **env)
    said = ended.communicate(timeout=300)[0]
    return ended.returncode, said


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("result.json"))]


def wait_for(what: Any, running: Running, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline and running.poll() is None, running.communicate()[0]
        time.sleep(0.02)


def trains(folder: Path) -> bool:
    return any("training from step" in path.read_text() for path in folder.rglob("run.log"))


def saved(folder: Path, step: int) -> bool:
    found = folder.rglob(f"checkpoint-{step}/{checkpoints.MANIFEST}")
    return any(".unfinished" not in path.parts for path in found)


def weights(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("adapter/adapter.safetensors")
    return load_file(path)


def assert_equal_to_the_bit(one: Path, other: Path) -> None:
    (first,), (second,) = one.rglob("adapter/adapter.safetensors"), other.rglob("adapter/adapter.safetensors")
    assert first.read_bytes() == second.read_bytes()


# --- a checkpoint is whole or not there --------------------------------------------------------------------


def made(root: Path, *steps: int) -> Path:
    for step in steps:
        with checkpoints.staged(root, step) as folder:
            (folder / "weights").write_bytes(bytes(range(100)) * step)
            (folder / "state.json").write_text(f'{{"step": {step}}}')
    return root


def newest(root: Path) -> str:
    found = checkpoints.newest(root)
    return found.name if found else ""


DAMAGE = {
    "truncated": lambda f: (f / "weights").write_bytes((f / "weights").read_bytes()[:-7]),
    "empty": lambda f: (f / "weights").write_bytes(b""),
    "one bit": lambda f: (f / "weights").write_bytes(b"\x01" + (f / "weights").read_bytes()[1:]),
    "gone": lambda f: (f / "state.json").unlink(),
    "no manifest": lambda f: (f / checkpoints.MANIFEST).unlink(),
    "half a manifest": lambda f: (f / checkpoints.MANIFEST).write_text('{"files": {"weig'),
    "a deep manifest": lambda f: (f / checkpoints.MANIFEST).write_text("[" * 10**5),
    "another manifest": lambda f: (f / checkpoints.MANIFEST).write_text("[]"),
    "an empty manifest": lambda f: (f / checkpoints.MANIFEST).write_text('{"files": {}}'),
    "a manifest that looks elsewhere": lambda f: (f / checkpoints.MANIFEST).write_text(
        '{"files": {"../../x": {"bytes": 1, "sha256": ""}}}'
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = made(tmp_path, 5, 20, 100)
    assert newest(root) == "checkpoint-100" and not caplog.messages
    DAMAGE[damage](root / "checkpoint-100")
    assert newest(root) == "checkpoint-20"
    assert len(caplog.messages) == 1 and "checkpoint-100 is damaged" in caplog.messages[0]
    DAMAGE[damage](root / "checkpoint-20")
    DAMAGE[damage](root / "checkpoint-5")
    assert newest(root) == ""


def test_a_checkpoint_from_which_no_run_can_go_on_is_not_used(tmp_path: Path) -> None:
    root = made(tmp_path, 5)
    assert checkpoints.newest(root, needs=["weights"]) and not checkpoints.newest(
        root, needs=["optimizer.pt"]
    )


def test_what_is_not_finished_is_not_there(tmp_path: Path) -> None:
    root = made(tmp_path, 5)
    with pytest.raises(KeyboardInterrupt), checkpoints.staged(root, 10) as folder:
        (folder / "weights").write_bytes(b"half")
        assert newest(root) == "checkpoint-5"
        raise KeyboardInterrupt
    assert [path.name for path in root.iterdir()] == ["checkpoint-5"]
    (root / ".unfinished" / "checkpoint-11").mkdir(parents=True)  # a process that was killed leaves this
    assert newest(root) == "checkpoint-5"
    made(root, 12)
    assert sorted(path.name for path in root.iterdir()) == ["checkpoint-12", "checkpoint-5"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:595] . PytorchStreamWriter failed writing file"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_refuses_costs_this_checkpoint_alone(error: Exception, tmp_path: Path) -> None:
    root = made(tmp_path, 5)
    with (
        pytest.raises(checkpoints.Unsaved, match="step 10 could not be written: "),
        checkpoints.staged(root, 10),
    ):
        raise error
    assert [path.name for path in root.iterdir()] == ["checkpoint-5"]
    with pytest.raises(RuntimeError, match="a bug"), checkpoints.staged(root, 10):
        raise RuntimeError("a bug")  # which is no disk's


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    root = made(tmp_path, 5, 20, 100, 3)
    checkpoints.rotate(root, None)
    assert len(list(root.iterdir())) == 4
    checkpoints.rotate(root, 2, best=str(root / "checkpoint-3"))
    assert sorted(p.name for p in root.iterdir()) == ["checkpoint-100", "checkpoint-20", "checkpoint-3"]


# --- one process a run -------------------------------------------------------------------------------------


def test_a_run_s_folder_is_one_process_s_own(tmp_path: Path) -> None:
    with claimed(tmp_path, "run", resume=True) as claim:
        assert not claim.before and not claim.finished
        (claim.folder / "result.json").write_text('{"schema": 1, "state": "running"}')
        said = rf"in use by another process \(process {os.getpid()} on "
        with pytest.raises(Busy, match=said), claimed(tmp_path, "run", resume=True):
            pass
        with claimed(tmp_path, "run", resume=False) as other:
            assert other.folder.name == "run-2"
    with claimed(tmp_path, "run-2", resume=True) as claim:
        assert not list(claim.folder.glob("result.json"))
    shutil.rmtree(tmp_path / "run-2")
    with claimed(tmp_path, "run", resume=True) as claim:
        assert claim.before["state"] == "running"
        (claim.folder / "result.json").write_text('{"schema": 1, "state": "done"}')
    with claimed(tmp_path, "run", resume=False) as claim:
        assert claim.folder.name == "run-2"
    with claimed(tmp_path, "run", resume=True) as claim:
        assert claim.folder.name == "run" and claim.finished, "the finished one counts, not the latest"


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from lora_zoo.runs.record import claimed\n"
        "with claimed(sys.argv[1], 'run', resume=True): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(Busy, match=f"process {holder.pid} on"), claimed(tmp_path, "run", resume=True):
        pass
    holder.kill()
    holder.wait()
    with claimed(tmp_path, "run", resume=True) as claim:
        assert claim.folder.name == "run"


# --- killed, stopped, resumed ------------------------------------------------------------------------------

LONG = ("+variant=adalora", "rank=2", "lora_dropout=0.1", "steps=16", "trainer.save_steps=4", *QUICK)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    code, said = run(*LONG, at=folder)
    assert code == 0, said
    return folder


def same_run(one: Path, other: Path) -> None:
    assert_equal_to_the_bit(one, other)
    (a,), (b,) = results(one), results(other)
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
    plain = [[{k: v for k, v in e.items() if k not in timed} for e in r["history"]] for r in (a, b)]
    assert plain[0] == plain[1]
    assert all(a[key] == b[key] for key in ("metrics", "likelihood", "updates"))
    assert b["timings"]["steps"] == 16 and b["state"] == "done"


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """What a run leaves that is killed in step 14 of 16."""
    running = start(*LONG, at=tmp_path, PYTHONPATH=str(held_in(tmp_path, 14)))
    wait_for((tmp_path / "held").exists, running)
    running.kill()
    running.wait()
    return tmp_path


def test_a_killed_run_goes_on_to_the_same_adapter(whole: Path, killed: Path) -> None:
    tmp_path = killed
    (before,) = results(tmp_path)
    assert before["state"] == "running" and "adapter" not in before
    code, said = run(*LONG, "resume=true", at=tmp_path)
    assert code == 0 and "resuming from step" in said, said
    same_run(whole, tmp_path)
    (result,) = results(tmp_path)
    assert result["resumed"][0]["step"] == 12
    code, said = run(*LONG, "resume=true", at=tmp_path)
    assert code == 0 and "done already" in said
    anew = start(*LONG, at=tmp_path)  # as it does without resume=true
    wait_for(lambda: len(results(tmp_path)) == 2, anew)
    anew.kill()
    anew.wait()


def test_killed_after_its_last_checkpoint_a_run_takes_no_step_more(whole: Path, tmp_path: Path) -> None:
    """All that a kill between the last checkpoint and the end of training leaves."""
    shutil.copytree(whole / "runs", tmp_path / "runs")
    (path,) = tmp_path.rglob("result.json")
    result = json.loads(path.read_text())
    for later in ("history", "adapter", "metrics", "likelihood", "updates", "ended", "memory"):
        del result[later]
    path.write_text(json.dumps(result | {"state": "running", "timings": {"load": 1.0}}))
    shutil.rmtree(path.parent / "adapter")
    code, said = run(*LONG, "resume=true", at=tmp_path)
    assert code == 0 and "resuming from step 16" in said, said
    same_run(whole, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_within_seconds_with_a_checkpoint(
    number: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    held = str(held_in(tmp_path, 11))
    running = start(*LONG, "trainer.save_steps=0", "threads=1", at=tmp_path, PYTHONPATH=held)
    wait_for((tmp_path / "held").exists, running)
    (log,) = (tmp_path / "runs").iterdir()
    told = time.monotonic()
    running.send_signal(number)
    (tmp_path / "held").unlink()
    said = running.communicate(timeout=30)[0]
    assert time.monotonic() - told < 10
    assert running.returncode == 128 + number, said
    assert "Traceback" not in said and "resume=true continues" in said
    (result,) = results(tmp_path)
    assert result["state"] == "interrupted" and number.name in result["error"]["message"]
    assert [path.name for path in log.glob("checkpoints/checkpoint-*")] == ["checkpoint-11"]
    code, said = run(*LONG, "trainer.save_steps=0", "resume=true", at=tmp_path)
    assert code == 0, said
    same_run(whole, tmp_path)
    assert not (log / "checkpoints").exists(), "nobody asked for checkpoints; they go when the run is done"


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    running = start("+variant=lora", "steps=100000", *QUICK, at=tmp_path)
    wait_for(lambda: trains(tmp_path), running)
    running.send_signal(signal.SIGINT)
    running.send_signal(signal.SIGINT)
    told = time.monotonic()
    running.communicate(timeout=30)
    assert running.returncode == 130 and time.monotonic() - told < 3
    code, said = run("+variant=lora", "steps=100000", "resume=true", "dry_run=true", *QUICK, at=tmp_path)
    assert code == 0, said


def test_a_stop_while_nothing_trains_leaves_at_once(tmp_path: Path) -> None:
    slow = (
        "task.sizes={train: 40, test: 4000}",
        "eval_splits=[test]",
        "eval_before_training=true",
        "threads=1",
        "tracking=none",
    )
    running = start("+variant=lora", *slow, at=tmp_path)
    wait_for(lambda: any("load" in r.get("timings", {}) for r in results(tmp_path)), running)
    running.send_signal(signal.SIGTERM)
    told = time.monotonic()
    said = running.communicate(timeout=30)[0]
    assert running.returncode == 143 and time.monotonic() - told < 5, said
    assert "from the start, as it had no checkpoint yet" in " ".join(said.split())
    assert results(tmp_path)[0]["state"] == "interrupted"


def test_slurm_s_signal_puts_the_job_into_the_queue_again(tmp_path: Path) -> None:
    """A stand-in for Slurm's `scontrol` notes what it is asked."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    more = {"PATH": path, "SLURM_JOB_ID": "4711", "PYTHONPATH": str(held_in(tmp_path, 3))}
    running = start("+variant=lora", "steps=100000", *QUICK, at=tmp_path, **more)
    wait_for((tmp_path / "held").exists, running)
    running.send_signal(signal.SIGUSR1)
    (tmp_path / "held").unlink()
    said = running.communicate(timeout=30)[0]
    assert running.returncode == 138, said
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert [path.name for path in tmp_path.rglob("checkpoint-*")] == ["checkpoint-3"]


def test_a_damaged_checkpoint_costs_a_warning_and_no_more(whole: Path, killed: Path) -> None:
    tmp_path = killed
    last = max(tmp_path.rglob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    state = last / "optimizer.pt"
    state.write_bytes(state.read_bytes()[:-100])
    code, said = run(*LONG, "resume=true", at=tmp_path)
    assert code == 0, said
    same_run(whole, tmp_path)
    (log,) = tmp_path.rglob("run.log")
    assert f"{last.name} is damaged and not used: optimizer.pt is not what was written" in log.read_text()
    assert f"{last.name} is damaged" in " ".join(said.split())


def test_a_run_in_the_hands_of_another_process_is_refused(tmp_path: Path) -> None:
    running = start(*LONG, "steps=100000", at=tmp_path)
    wait_for(lambda: saved(tmp_path, 4), running)
    code, said = run(*LONG, "steps=100000", "resume=true", at=tmp_path)
    assert code == 2 and f"in use by another process (process {running.pid} on" in " ".join(said.split())
    assert running.poll() is None
    running.kill()
    running.communicate()


def test_evaluations_and_logs_are_the_same_after_a_stop(tmp_path: Path) -> None:
    """Stopped at a step that is due to be evaluated and not to be logged."""
    asked = (
        *("+variant=dora", "rank=2", "lora_dropout=0.2", "steps=6", "trainer.logging_steps=2"),
        *("trainer.eval_steps=3", "trainer.gradient_accumulation_steps=2", *QUICK, "++task.sizes.train=40"),
    )
    code, said = run(*asked, at=tmp_path / "whole" if (tmp_path / "whole").mkdir() is None else tmp_path)
    assert code == 0, said
    (tmp_path / "stopped").mkdir()
    code, said = run(*asked, at=tmp_path / "stopped", PYTHONPATH=str(stopping_at(tmp_path, 3)))
    assert code == 143, said
    code, said = run(*asked, "resume=true", at=tmp_path / "stopped")
    assert code == 0, said
    assert_equal_to_the_bit(tmp_path / "whole", tmp_path / "stopped")
    (a,), (b,) = results(tmp_path / "whole"), results(tmp_path / "stopped")
    told = [
        [(e["step"], e.get("loss"), e.get("eval_exact_match"), e.get("train_loss")) for e in r["history"]]
        for r in (a, b)
    ]
    assert told[0] == told[1] and b["resumed"][0]["step"] == 3


EPOCHS = ("+variant=lora", "rank=2", "steps=6", "trainer.save_steps=3", "+trainer.eval_strategy=epoch")
EPOCHS += (*QUICK, "++task.sizes.train=24")


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("epochs")
    code, said = run(*EPOCHS, at=folder)
    assert code == 0, said
    return folder


@pytest.mark.parametrize("step", [3, 6])
def test_the_evaluation_at_an_epoch_s_end_is_made_up_for(step: int, two_epochs: Path, tmp_path: Path) -> None:
    """Killed after the checkpoint of an epoch's last step and before its evaluation."""
    shutil.copytree(two_epochs / "runs", tmp_path / "runs")
    (path,) = tmp_path.rglob("result.json")
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in whole.items() if k != "adapter"} | {"state": "running"}))
    shutil.rmtree(path.parent / "adapter")
    if step < 6:
        shutil.rmtree(path.parent / "checkpoints" / "checkpoint-6")
    code, said = run(*EPOCHS, "resume=true", at=tmp_path)
    assert code == 0 and f"resuming from step {step}" in said, said
    told = [
        [(e["step"], e.get("loss"), e.get("eval_exact_match")) for e in r["history"]]
        for r in (whole, *results(tmp_path))
    ]
    assert told[0] == told[1] and sum(e[2] is not None for e in told[0]) == 2


def acting_in(folder: Path, step: int, act: str) -> Path:
    """A folder for PYTHONPATH that makes a process do `act` in the middle of a step, once."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(
        "import os, pathlib, signal, time\n"
        "from lora_zoo.training import trainer\n"
        "plain = trainer.ZooTrainer.training_step\n"
        "def training_step(self, *given, **more):\n"
        f"    if self.state.global_step + 1 == {step} and not getattr(self, 'told', False):\n"
        "        self.told = True\n"
        f"        {act}\n"
        "    return plain(self, *given, **more)\n"
        "trainer.ZooTrainer.training_step = training_step\n"
    )
    return folder / "site"


def stopping_at(folder: Path, step: int) -> Path:
    """The process sends SIGTERM to itself."""
    return acting_in(folder, step, "os.kill(os.getpid(), signal.SIGTERM)")


def held_in(folder: Path, step: int) -> Path:
    """The process makes the file `folder`/held, and waits until it is gone."""
    held = f"held, until = pathlib.Path({str(folder / 'held')!r}), time.monotonic() + 120; held.touch()"
    wait = "while held.exists() and time.monotonic() < until: time.sleep(0.01)"
    return acting_in(folder, step, f"{held}\n        {wait}")


# --- sweeps ------------------------------------------------------------------------------------------------


def test_a_sweep_does_only_what_is_missing(tmp_path: Path) -> None:
    sweep = ("-m", "+variant=lora,vera", "rank=4", "steps=2", *QUICK)
    running = start(*sweep, at=tmp_path)
    wait_for(lambda: sum(r["state"] == "done" for r in results(tmp_path)) >= 1, running)
    running.kill()
    running.communicate()
    ended = {r["identity"]: r["ended"] for r in results(tmp_path) if r["state"] == "done"}
    code, said = run(*sweep, "threads=null", "out=./runs", at=tmp_path)
    assert code == 0, said
    found = results(tmp_path)
    assert len(found) == 2 and all(r["state"] == "done" for r in found)
    assert all(r["ended"] == ended[r["identity"]] for r in found if r["identity"] in ended)
    assert said.count("done already: ") == len(ended) and "2 runs" in said
    assert len(list((tmp_path / "runs").iterdir())) == 1
    code, said = run(*sweep, at=tmp_path)
    assert code == 0 and said.count("done already: ") == 2
    assert [r["ended"] for r in results(tmp_path)] == [r["ended"] for r in found]
    code, said = run(*sweep, "resume=false", at=tmp_path)
    assert code == 0 and len(results(tmp_path)) == 4


def test_failed_jobs_run_again_and_a_divergence_names_step_and_layer_and_does_not(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(
        "type: causal_lm\ndataset: json\ndata_files: {train: d.json, test: d.json}\nmetrics: [exact_match]\n"
        "columns: {prompt: prompt, target: target}\nlr: 1e-2\nsteps: 6\nstop: ';'\n"
    )
    rows = [{"prompt": f"select name from player where age is {n}", "target": "a ;"} for n in range(40)]
    (tmp_path / "d.json").write_text("\n".join(map(json.dumps, rows)))
    sweep = (
        "-m",
        "+variant=full",
        "lr=1e-3,1e-4,1e30",
        "task=task.yaml",
        "trainer.max_grad_norm=0",
        *QUICK[1:],
    )
    code, said = run(*sweep, "task.validation_fraction=0.5", at=tmp_path)
    states = {r["config"]["lr"]: r["state"] for r in results(tmp_path)}
    assert code == 1 and states == {1e-3: "done", 1e-4: "done", 1e30: "diverged"}, said
    (result,) = [r for r in results(tmp_path) if r["state"] == "diverged"]
    about, message = result["diverged"], result["error"]["message"]
    assert 1 <= about["step"] < 6 and about["layers"]
    assert f"at step {about['step']} " in message and about["layers"][0] in message and "lr=1e+30" in message
    assert f"diverged: at step {about['step']}" in " ".join(said.split())
    (failed,) = [p for p in tmp_path.rglob("result.json") if json.loads(p.read_text())["state"] == "done"][:1]
    content = json.loads(failed.read_text())
    failed.write_text(json.dumps(content | {"state": "failed"}))
    shutil.rmtree(failed.parent / "adapter")
    code, said = run(*sweep, "task.validation_fraction=0.5", at=tmp_path)
    again = {r["config"]["lr"]: r["state"] for r in results(tmp_path)}
    assert code == 1 and again == states, "a divergence is a finding, and still no success"
    assert said.count("done already: ") == said.count("diverged already: ") == 1


def test_a_finished_run_is_judged_on_a_split_that_is_asked_for_later(tmp_path: Path) -> None:
    asked = ("+variant=dora", "steps=2", *QUICK)
    assert run(*asked, "eval_splits=[validation]", at=tmp_path)[0] == 0
    (first,) = results(tmp_path)
    code, said = run(*asked, "eval_splits=[validation,test]", "resume=true", "merge=true", at=tmp_path)
    assert code == 0, said
    (second,) = results(tmp_path)
    assert set(first["metrics"]) == {"validation"} and set(second["metrics"]) == {"validation", "test"}
    assert second["metrics"]["validation"] == first["metrics"]["validation"]
    assert second["history"] == first["history"] and second["timings"]["steps"] == 2
    assert list(tmp_path.rglob("merged/model.safetensors"))


# --- a full disk -------------------------------------------------------------------------------------------


@pytest.fixture(params=["1500k", "600k", "300k"])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """A file system on which some checkpoints fit, and on which the adapter does not fit beside them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here: that needs the right to mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_costs_checkpoints_and_lets_training_end(small_disk: Path, tmp_path: Path) -> None:
    """LoRA's checkpoints take a fifth of a megabyte each, and all are kept."""
    asked = ("+variant=lora", "steps=12", "trainer.save_steps=1", f"out={small_disk}", *QUICK)
    code, said = run(*asked, at=tmp_path)
    assert "could not be written: No space left on device" in said and "training continues" in said
    assert "Traceback" not in said
    (folder,) = small_disk.iterdir()
    kept = sorted(folder.glob("checkpoints/checkpoint-*"))
    assert 0 < len(kept) < 12 and not any(checkpoints.flaw(path) for path in kept)
    assert "12/12" in said, "training went on to its end"
    if code:
        last = [line for line in said.splitlines() if line.startswith("lora_zoo: failed: ")]
        assert code == 1 and len(last) == 1 and "No space left on device" in last[0]
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    code, said = run(*asked, "resume=true", at=tmp_path)
    assert code == 0 and results(small_disk)[0]["state"] == "done", said


# --- numbers that are none ---------------------------------------------------------------------------------


def test_a_run_that_skips_a_bad_step_is_resumed_to_the_bit(tmp_path: Path) -> None:
    """At steps 2 and 5 the loss is made infinite."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "from lora_zoo.training import trainer\n"
        "plain = trainer.ZooTrainer.compute_loss\n"
        "def compute_loss(self, *given, **more):\n"
        "    bad = self.state.global_step + 1 in (2, 5)\n"
        "    return plain(self, *given, **more) * (float('inf') if bad else 1)\n"
        "trainer.ZooTrainer.compute_loss = compute_loss\n"
    )
    asked = (
        "+variant=adalora",
        "rank=2",
        "steps=8",
        "trainer.logging_steps=1",
        "trainer.save_steps=3",
        *QUICK,
    )
    patch = {"PYTHONPATH": str(tmp_path / "site")}
    (tmp_path / "stop").mkdir()
    code, said = run(*asked, at=tmp_path / "stop", **patch)
    (result,) = results(tmp_path / "stop")
    assert code == 1 and result["state"] == "diverged" and result["diverged"]["step"] == 2, said
    asked = (*asked, "on_nonfinite=skip")
    (tmp_path / "whole").mkdir()
    code, said = run(*asked, at=tmp_path / "whole", **patch)
    (result,) = results(tmp_path / "whole")
    assert code == 0 and result["skipped"] == [2, 5], said
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    assert "warning: step 2 is skipped: " in said
    (folder,) = (tmp_path / "killed" / "runs").iterdir()
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
    content = json.loads((folder / "result.json").read_text())
    del content["adapter"], content["skipped"]
    (folder / "result.json").write_text(json.dumps(content | {"state": "running"}))
    code, said = run(*asked, "resume=true", at=tmp_path / "killed", **patch)
    assert code == 0 and results(tmp_path / "killed")[0]["skipped"] == [2, 5], said
    assert_equal_to_the_bit(tmp_path / "whole", tmp_path / "killed")

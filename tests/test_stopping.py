"""A process that is told to stop has left in time, whatever it is doing; nothing outlives its front."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from lora_zoo.launchers.packed.job import PackedJob
from lora_zoo.launchers.packed.scheduler import Pack
from lora_zoo.launchers.packed.signals import SharedSignalHandler
from lora_zoo.runs import record
from lora_zoo.runs.record import Busy, claimed
from lora_zoo.training.interrupt import StopOnSignal
from lora_zoo.training.signals import SIGNALS, SignalHandler

LONG_OPERATION = """
import hashlib
from lora_zoo.training import watchdog
from lora_zoo.training.signals import SignalHandler
watchdog.WITHIN = 0.5
with SignalHandler().listening() as signals, signals.defer():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"x", {rounds})   # during which Python calls no handler
print("lived on", flush=True)
"""


def busy(rounds: int) -> "subprocess.Popen[str]":
    heard = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # whatever started the tests
    code = heard + LONG_OPERATION.format(rounds=rounds)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "busy\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_long_operation_does_not_hold_a_stop_up(number: signal.Signals) -> None:
    process, told = busy(60_000_000), time.monotonic()
    process.send_signal(number)
    assert process.wait(20) == 128 + number and time.monotonic() - told < 5


def test_without_a_signal_nobody_leaves_and_nothing_watches_on() -> None:
    process = busy(900_000)
    assert process.wait(20) == 0 and process.stdout and process.stdout.read() == "lived on\n"


def test_nohup_keeps_a_run_alive() -> None:
    code = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + LONG_OPERATION
    words = [sys.executable, "-c", code.format(rounds=2_000_000)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0


def test_a_closed_terminal_is_as_sigterm() -> None:
    assert signal.SIGHUP in SIGNALS and signal.SIGTERM in SIGNALS


STOPPED = """
import os, signal, time
from lora_zoo.training import watchdog
from lora_zoo.training.signals import SignalHandler, Stopped, live_on
watchdog.WITHIN = 3.0
try:
    with SignalHandler().listening():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(9)
except Stopped:
    {then}
time.sleep(4)
"""


@pytest.mark.parametrize(("then", "code"), [("live_on()", 0), ("pass", 128 + signal.SIGTERM)])
def test_a_worker_lives_on_after_a_run_that_was_stopped(then: str, code: int) -> None:
    assert subprocess.call([sys.executable, "-c", STOPPED.format(then=then)]) == code


WATCHED = """
import os, signal
from lora_zoo.training.watchdog import Watchdog
signal.signal(signal.SIGTERM, lambda *_: None)
for turn in range({turns}):
    dog = Watchdog((signal.SIGTERM,))
    dog.start()
    os.kill(os.getpid(), signal.SIGTERM)   # the thread reads it while the watch is called off
    dog.stop()
"""


def test_a_watch_is_called_off_while_its_signal_is_read() -> None:
    assert subprocess.call([sys.executable, "-c", WATCHED.format(turns=400)]) == 0


def test_a_worker_goes_with_its_front(tmp_path: Path) -> None:
    worker = (
        "import os, pathlib, time\n"
        "from lora_zoo.launchers import joblib\n"
        "joblib.WITHIN = 0.2\n"
        "os.environ[joblib.FRONT] = str(os.getppid())\n"
        f"joblib.Joblib(pathlib.Path({str(tmp_path)!r}))._enter(1)\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    front = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {worker!r}])\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", front], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z":
                time.sleep(0.1)
                continue
        return
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the worker lives on")


class Control:
    should_evaluate = should_save = should_training_stop = False


@pytest.mark.parametrize("told", range(3, 12))
def test_a_pack_stops_at_one_step(told: int) -> None:
    """The signal comes before turn `told`, between any two members or passes: all stop after one step."""
    signals, ends, turns = SharedSignalHandler(), {}, [0]
    pack = Pack(signals, most=3)

    def body(job: PackedJob) -> None:
        stop = StopOnSignal(type("State", (), {"evaluation_pending": False})(), signals)
        with signals.defer():
            for step in range(1, 20):
                turns[0] += 1
                if turns[0] == told + 1:
                    signals.received = signal.SIGTERM  # as the handler does, without its alarm
                control: Any = Control()
                stop.on_step_end(None, None, control)
                if control.should_training_stop:
                    ends[job.name] = step
                    return
                job.wait(job.waits)

    jobs = pack.run([body] * 3)
    assert not [job.error for job in jobs if job.error] and len(set(ends.values())) == 1, ends
    assert ends["job0"] <= told // 3 + 2


def test_a_signal_of_one_run_is_seen_at_once() -> None:
    signals = SignalHandler()
    assert not signals.stopping
    signals.received = signal.SIGTERM
    assert signals.stopping


@contextlib.contextmanager
def left_behind(folder: Path) -> Iterator[FileLock]:
    lock = FileLock(folder / record.LOCK)
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


def test_a_holder_that_leaves_between_two_looks_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the file away after the lock was refused, before its holder is read."""
    (tmp_path / "run").mkdir()
    with left_behind(tmp_path / "run") as holder:
        acquire = FileLock.acquire

        def leaving(lock: FileLock, *given: Any, **named: Any) -> Any:
            try:
                return acquire(lock, *given, **named)
            finally:
                (tmp_path / "run" / record.LOCK).unlink(missing_ok=True)
                if holder.is_locked:
                    holder.release()

        tries = []

        def once(lock: FileLock, *given: Any, **named: Any) -> Any:
            tries.append(1)
            return (leaving if len(tries) == 1 else acquire)(lock, *given, **named)

        monkeypatch.setattr(FileLock, "acquire", once)
        with claimed(tmp_path, "run", resume=True) as claim:
            assert claim.folder == tmp_path / "run" and len(tries) >= 2


def test_a_lock_on_a_file_without_a_name_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder unlinks the file after the next one has opened it and before that one locks it."""
    (tmp_path / "run").mkdir()
    acquire, tries = FileLock.acquire, []

    def nameless(lock: FileLock, *given: Any, **named: Any) -> Any:
        made = acquire(lock, *given, **named)
        tries.append(1)
        if len(tries) == 1:
            (tmp_path / "run" / record.LOCK).unlink()
        return made

    monkeypatch.setattr(FileLock, "acquire", nameless)
    with claimed(tmp_path, "run", resume=True):
        assert len(tries) == 2
        with pytest.raises(Busy), claimed(tmp_path, "run", resume=True):
            pass

"""`python -m MODULE …` from an interpreter that has the libraries and the project loaded already.

A server beside each test process imports them once and forks for each command (multiprocessing's forkserver):
a run of four steps costs half a CPU second, a new interpreter six more. What an environment variable decides
while a library is imported needs a new interpreter, and so does a folder of PYTHONPATH that holds packages;
both get one. Nothing is written through to the disk, as no test pulls the plug.
"""

import atexit
import contextlib
import functools
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from unittest import mock

LIBRARIES = (
    "torch._dynamo", "transformers.trainer", "transformers.models.llama.modeling_llama", "datasets",
    "evaluate", "hydra.main", "wandb", "pandas", "rich.console", "sklearn.metrics", "scipy.stats", "peft",
    "ipykernel.kernelapp", "tests.preloaded",
)  # fmt: skip
READ_ONCE = ("PYTHON", "HF_H", "HF_MODULES_", "HF_DATASETS_", "OMP_", "MKL_", "TOKENIZERS_", "LD_", "MALLOC_")
"""Variables with these beginnings are read when an interpreter starts or imports a library.

Folders of PYTHONPATH that hold a sitecustomize.py alone are put in front, and it is run, in a fork as well.
"""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(list(LIBRARIES))


@functools.cache
def _compiled() -> tempfile.TemporaryDirectory[str]:
    """The project's bytecode, where this process is told to leave none beside the sources."""
    return tempfile.TemporaryDirectory()


def _command(
    module: str, arguments: list[str], at: str, environment: dict[str, str], files: list[str], compiled: str
) -> None:
    os.setsid()  # a signal to the group of one reaches no other
    sys.modules.pop(module, None)  # it runs as __main__
    gc.freeze()  # a run collects garbage: none of it is the libraries'
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode, sys.pycache_prefix = False, compiled
    for stream, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), stream)
    os.chdir(at)
    os.environ.clear()
    os.environ.update(environment)
    for folder in reversed(environment.get("PYTHONPATH", "").split(os.pathsep)):
        if folder and folder not in sys.path:
            sys.path.insert(0, folder)
            if (first := Path(folder, "sitecustomize.py")).is_file():
                runpy.run_path(str(first))
    sys.path.insert(0, at)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        threading._shutdown()  # in the order of an interpreter that ends: pools of threads and processes
        atexit._run_exitfuncs()  # which a forked process leaves out


_STARTED: list["Forked"] = []


@atexit.register
def _end_what_is_left() -> None:
    """Kill what tests that failed have left running: multiprocessing would wait for it."""
    for forked in _STARTED:
        if forked.returncode is None:
            os.killpg(forked.pid, signal.SIGKILL)


class Forked:
    """A command that runs beside the test, as far as tests use `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(
        self, module: str, arguments: list[str], at: Path, environment: dict[str, str], merged: bool
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        out, err = (str(Path(self._folder.name, name)) for name in ("out", "out" if merged else "err"))
        given = (module, arguments, str(at), environment, [out, err], _compiled().name)
        self._process = _server.Process(target=_command, args=given)
        nothing = types.ModuleType("__main__")  # the child shall not import pytest as its main module
        with mock.patch.dict(sys.modules, {"__main__": nothing}):
            self._process.start()
        with contextlib.suppress(ProcessLookupError):  # it is over already
            while os.getpgid(self.pid) != self.pid:
                time.sleep(0.001)
        _STARTED.append(self)
        self._files, self.args = [out] if merged else [out, err], [module, *arguments]

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, *err = (Path(file).read_text() if Path(file).exists() else "" for file in self._files)
        return out, *(err or [""])


def _holds_packages(folders: str) -> bool:
    found = (path for folder in folders.split(os.pathsep) if folder for path in Path(folder).iterdir())
    return any(path.name not in ("sitecustomize.py", "__pycache__") for path in found)


Running = Forked | subprocess.Popen[str]


def start(
    *arguments: str, at: Path, module: str = "lora_zoo.run", merged: bool = False, **env: str
) -> Running:
    """Begin `python -m module arguments` in the folder `at`; `merged` puts stderr into stdout."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"} | env
    if "PYTHONPATH" in env:  # before what this process was given, not in its place
        environment["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], os.environ.get("PYTHONPATH", "")])
    read_once = any(name.startswith(READ_ONCE) for name in env if name != "PYTHONPATH")
    if not (read_once or _holds_packages(env.get("PYTHONPATH", ""))):
        return Forked(module, list(arguments), at, environment, merged)
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=at, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


SHORT = (
    *("steps=2", "threads=1", "batch_size=8", "eval_before_training=false", "tracking=none"),
    *("task.sizes={train: 64, validation: 4, test: 6}", "task.max_new_tokens=4"),
)
"""The overrides of runs of two steps, to be typed."""


def run(
    *arguments: str, at: Path, module: str = "lora_zoo.run", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` in the folder `at` to its end."""
    running = start(*arguments, at=at, module=module, **env)
    out, err = running.communicate()
    return subprocess.CompletedProcess([module, *arguments], running.returncode or 0, out, err)

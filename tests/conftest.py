"""One thread and a fresh global random stream for every test.

How the suite stays within its time on two cores, for who adds a test:

- A command is run by `tests.processes.run` or `start`: a fork of a process that has the libraries and the
  project loaded, half a CPU second for a run of few steps. `subprocess` with torch takes six more, and is for
  what an interpreter's start decides.
- A run takes the fewest steps, examples and new tokens that show its point; `eval_before_training=false` and
  one of `eval_splits` save a half. What several tests only look at is one module's fixture; a reader
  of records needs no run (`tests.recorded`).
- Tests over the registry grow with every variant. A rule that a variant's tensors and a layer's keep each by
  themselves takes `few_cases()` of lora_zoo.conformance.cases, not `cases()`; where a command runs, take
  `representatives()`, or one sweep for all.
- A case of `parametrize` costs three milliseconds beside its own work: cases of less are a loop, those of a
  variant's layers by `in_a_loop` of lora_zoo.conformance.cases. Nothing is parsed or injected at import.
- A file is one worker's. Tests with a marker of `LONG` are handed out one by one, after all files.
"""

import gc
import os
import sys
from collections.abc import Iterator

import absl.logging
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what the tests start, too
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that only the Hub could know fails at once
os.environ.setdefault("LORA_ZOO_CACHE", "0")  # the user's cache is not a test's

import torch

torch.set_num_threads(1)
os.fsync = lambda fd: None  # no test pulls the plug, and some disks take longer than the test
# rouge_score's absl closes the stream that it logs to, and it would be the one that pytest captures.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


LONG = ("endurance", "notebooks", "slow", "compile", "cli", "chromium")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file is one worker's, as its tests share what they read; the long tests go one by one, at the end.

    Groups are handed out by their number of tests, the largest first, so that single tests fill the ends up.
    """
    alone = {*LONG, "xdist_group"}
    for item in items:
        if alone.isdisjoint(mark.name for mark in item.iter_markers()):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Fifteen thousand items and the libraries: none of it is garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def collected():
    """Runs collect garbage: what earlier modules left is collected once, and then no longer looked at."""
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown() -> None:
    """W&B leaves the address of this process's service to what the process starts, which may outlive it."""
    os.environ.pop("WANDB_SERVICE", None)

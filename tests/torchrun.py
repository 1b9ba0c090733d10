"""`python -m tests.torchrun MODULE WORD … -- MODULE WORD …`: torchrun, whose two processes are its forks.

What its agent sets, watches and sends on is torchrun's; the processes need not import torch anew. Each runs
the commands one after the other and leaves with the last exit code. STOP=R:N has process R stop after step N.
"""

import itertools
import os
import runpy
import signal
import sys
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lora_zoo.training.interrupt import StopOnSignal


def worker(words: list[str]) -> None:
    if stop := os.environ.get("STOP"):
        stop_at(*map(int, stop.split(":")))
    commands = [list(own) for more, own in itertools.groupby(words, lambda word: word != "--") if more]
    for command in commands:
        sys.argv = command
        try:
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        except SystemExit as left:
            if left.code or command is commands[-1]:
                raise


def stop_at(rank: int, step: int) -> None:
    """Have the process of this rank send itself SIGTERM after this step."""
    asked, own = StopOnSignal.on_step_end, int(os.environ["RANK"])

    def on_step_end(self: StopOnSignal, args: Any, state: Any, control: Any, **more: Any) -> None:
        if own == rank and state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        asked(self, args, state, control, **more)

    StopOnSignal.on_step_end = on_step_end  # type: ignore[method-assign]


if __name__ == "__main__":
    how: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "run_id": "test"}
    how |= {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "max_restarts": 0}
    try:
        elastic_launch(LaunchConfig(**how, start_method="fork", monitor_interval=0.05), worker)(sys.argv[1:])
    except ChildFailedError as failed:
        sys.exit(failed.get_first_failure()[1].exitcode)

"""Tasks by submitit: in processes of this machine, or in a job array of Slurm."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_zoo.launchers.tasks import Ended, SweepTask
from lora_zoo.training.watchdog import WITHIN

LOGS = ".submitit"
"""The folder in a sweep's for submitit's own files: what each task was given, and what it wrote."""


def run(
    tasks: Sequence[SweepTask], *, cluster: str, sweep: Path, parameters: Mapping[str, Any]
) -> list[Ended]:
    """Wait for the tasks. ValueError for more tasks on this machine than it has GPUs, if it has any."""
    import submitit

    executor = submitit.AutoExecutor(folder=sweep / LOGS, cluster=cluster)
    executor.update_parameters(**parameters)
    if cluster == "local":
        jobs = [_local(executor, task, number, len(tasks)) for number, task in enumerate(tasks)]
    else:
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    try:
        return [_ended(job) for job in jobs]
    except KeyboardInterrupt:
        for job in jobs:
            job.cancel()
        until = time.monotonic() + WITHIN
        while not all(job.done() for job in jobs) and time.monotonic() < until:
            time.sleep(0.2)
        raise


def _local(executor: Any, task: SweepTask, number: int, tasks: int) -> Any:
    """Submit the task to this machine, where each needs a GPU of its own, if there is any."""
    import torch

    if devices := torch.cuda.device_count():
        if tasks > devices:
            raise ValueError(
                f"{tasks} tasks would share {devices} GPU{'s' if devices > 1 else ''}: give a greater "
                "hydra.launcher.runs_per_task"
            )
        executor.update_parameters(gpus_per_node=1, local_visible_gpus=(number,))
    return executor.submit(task)


def _ended(job: Any) -> Ended:
    try:
        found: list[int] = job.result()
    except Exception as lost:  # of submitit's own, or what broke the task
        return lost
    return found

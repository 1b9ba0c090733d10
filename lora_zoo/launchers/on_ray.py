"""Tasks of a Ray cluster."""

from collections.abc import Sequence

from lora_zoo.launchers.tasks import Ended, SweepTask
from lora_zoo.training.watchdog import WITHIN


def run(tasks: Sequence[SweepTask], *, address: str, cpus: float, gpus: float | None) -> list[Ended]:
    """Wait for the tasks, each with so many processors and GPUs of its own; gpus=None: one, if there is any.

    A task that is stopped writes the checkpoint of the run in hand.
    """
    import ray
    from ray.exceptions import RayError

    if not ray.is_initialized():
        ray.init(**({"address": address} if address else {}))
    if gpus is None:
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0))
    # Ray ends a worker after one call that has a GPU, unless told otherwise: the base would be loaded anew.
    call = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=0)(_made)
    calls = [call.remote(task) for task in tasks]
    ended: list[Ended] = []
    try:
        for begun in calls:
            try:
                ended.append(ray.get(begun))
            except RayError as lost:
                ended.append(lost)
    except KeyboardInterrupt:
        for begun in calls:
            ray.cancel(begun)
        ray.wait(calls, num_returns=len(calls), timeout=WITHIN)
        raise
    return ended


def _made(task: SweepTask) -> list[int]:
    return task()

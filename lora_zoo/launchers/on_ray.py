"""Tasks of a Ray cluster."""

from collections.abc import Sequence
from functools import partial

from lora_zoo.launchers.tasks import Ended, Task
from lora_zoo.training.watchdog import WITHIN


def run(tasks: Sequence[Task], *, address: str, cpus: float, gpus: float | None) -> list[Ended]:
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
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=0)
    calls = [remote(partial(Task.__call__, task)).remote() for task in tasks]
    ended: list[Ended] = []
    try:
        for call in calls:
            try:
                ended.append(ray.get(call))
            except RayError as lost:
                ended.append(lost)
    except KeyboardInterrupt:
        for call in calls:
            ray.cancel(call)
        ray.wait(calls, num_returns=len(calls), timeout=WITHIN)
        raise
    return ended

"""The processes and threads of a run: one process, one device, threads that wait without spinning."""

import os
import sys
from collections.abc import Mapping

_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Variables in which torchrun, MPI and Slurm tell a process how many of its kind there are."""
_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


def refuse_several(environment: Mapping[str, str] = os.environ) -> None:
    """Raise ValueError where a launcher has started this command several times over."""
    for name in _SIZES:
        size = environment.get(name, "")
        if size.isdigit() and int(size) > 1:
            raise ValueError(
                f"{name}={size}: the command was started {size} times over, and one process trains one run; "
                "start it once, and let -m hydra/launcher=joblib run several side by side"
            )


def wait_passively() -> None:
    """Have OpenMP's threads sleep while they wait, here and in processes begun from here.

    Threads that spin for one another stand still where another process has one of their cores. torch reads
    this while it is imported; what the user has set stays.
    """
    if "torch" not in sys.modules:
        for name, value in _PASSIVE.items():
            os.environ.setdefault(name, value)

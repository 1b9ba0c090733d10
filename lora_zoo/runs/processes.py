"""The processes and threads of a run: one device a process, threads that wait without spinning."""

import os
import sys
import time
from collections.abc import Mapping, MutableMapping

from lora_zoo.core.processes import FSDP, asks, current, join

_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Variables in which torchrun, MPI and Slurm tell a process how many of its kind there are."""
_OTHERWISE = {
    "ACCELERATE_USE_DEEPSPEED": "start accelerate launch --use_fsdp, which divides the frozen base, or plain "
    "DDP (torchrun, --multi_gpu)",
    "FSDP_OFFLOAD_PARAMS": "weights stay on the device; more processes keep less of them each",
    "FSDP_ACTIVATION_CHECKPOINTING": "give trainer.gradient_checkpointing=true",
}
"""Variables of `accelerate launch` that ask for what is not done so, and what would be right."""
PATIENCE = 10
"""Seconds; torchrun ends a process that waits as soon as another has left with an error."""
_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


def refuse_several(environment: Mapping[str, str] = os.environ) -> None:
    """Raise ValueError where a launcher has started this command several times over."""
    for name in _SIZES:
        size = environment.get(name, "")
        if size.isdigit() and int(size) > 1:
            raise ValueError(
                f"{name}={size}: the command was started {size} times over; start it once, and let "
                f"-m hydra/launcher=joblib run several side by side, or torchrun --nproc-per-node {size} "
                f"-m lora_zoo.run … train one on {size} processes"
            )


def take_part(environment: MutableMapping[str, str] = os.environ) -> None:
    """Be one of the processes that torchrun or accelerate has started to train one run, where it has.

    ValueError for another launcher's, and for settings of accelerate's that are given otherwise here.
    """
    for name, instead in _OTHERWISE.items():
        if asks(environment, name):
            raise ValueError(f"{name}=true is not known here: {instead}")
    if (precision := environment.get("ACCELERATE_MIXED_PRECISION") or "no") != "no":
        raise ValueError(
            f"ACCELERATE_MIXED_PRECISION={precision}: the precision is one of the run's settings; start "
            f"accelerate launch --mixed_precision no, and give trainer.{precision}=true"
        )
    join(environment)
    if current().size == 1:
        refuse_several(environment)
        if asks(environment, FSDP):
            raise ValueError(
                f"{FSDP}=true, and one process was started: give accelerate launch --num_processes"
            )


def speaks() -> bool:
    """True for the one process, of those that were started together, whose words the user sees."""
    return current().leads and os.environ.get("RANK", "0") == "0"


def let_speak() -> None:
    """Stay, in a process whose words nobody sees, until the one that speaks has left, or for `PATIENCE`.

    Once one has left with an error, torchrun ends the others, whatever they are about to say.
    """
    if not speaks():
        time.sleep(PATIENCE)


def refuse_sweep() -> None:
    """ValueError where several processes are to train one run."""
    if (size := current().size) > 1:
        raise ValueError(
            f"{size} processes train one run, and a sweep (-m, seed=auto, lr=auto) has many: start it once, "
            "with -m hydra/launcher=joblib for runs side by side, or torchrun once for each run"
        )


def wait_passively() -> None:
    """Have OpenMP's threads sleep while they wait, here and in processes begun from here.

    Threads that spin for one another stand still where another process has one of their cores. torch reads
    this while it is imported; what the user has set stays.
    """
    if "torch" not in sys.modules:
        for name, value in _PASSIVE.items():
            os.environ.setdefault(name, value)

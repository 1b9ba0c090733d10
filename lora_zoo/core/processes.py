"""The processes that train one run together, each on its part of every batch.

torchrun tells each its number in the environment. What a step computes is added up over all of them, once,
when its gradients are whole: it is then what one process finds that has the whole batch, and a variant may
call the model, freeze parameters and read gradients as it does alone.
"""

import atexit
import datetime
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, final

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, and accelerate by it, tell each process; the first three are kept from libraries."""
FSDP = "ACCELERATE_USE_FSDP"
"""The variable by which `accelerate launch --use_fsdp` asks for a divided model; FSDP_… say more of it."""
PATIENCE = datetime.timedelta(days=1)
"""So long a process waits for another, which may be judging; a process that dies is known at once."""


class Processes:
    """One process by itself, which exchanges nothing."""

    rank, size = 0, 1
    fsdp = False
    """True if a launcher has asked that they divide the frozen base among them."""
    divided = False
    """True if they have divided it."""

    @property
    def leads(self) -> bool:
        """True for the one that claims the folder, records, judges and saves."""
        return self.rank == 0

    def part(self, rows: Sequence[T]) -> Sequence[T]:
        """This process's rows of a batch; none where there are fewer rows than processes."""
        return rows

    def add_up(self, tensors: Iterable["Tensor"]) -> None:
        """Set each tensor to its sum over all processes, in place."""

    def add_up_gradients(self, parameters: Iterable["nn.Parameter"]) -> None:
        """Set each gradient to its sum; one that no process has stays None."""

    def greatest(self, number: int) -> int:
        """The greatest of the numbers that the processes give."""
        return number

    def from_first(self, make: Callable[[], T]) -> T:
        """The value of `make` in the process that leads. RuntimeError in the others where it raises."""
        return make()

    def of_passes(self, make: Callable[[], T]) -> T:
        """The value of `make`, which calls the model: of the process that leads, or of all that divide it."""
        return make()

    def check_alike(self, tensors: Mapping[str, "Tensor"], when: str) -> None:
        """RuntimeError, in each process, where a tensor has other bits in one of them."""

    def divide(self, model: "nn.Module", blocks: Iterable["nn.Module"], kept: set["nn.Parameter"]) -> None:
        """Keep a part of each parameter of `model`, but for those `kept`, and gather them for each pass.

        Each of the `blocks` gathers its own. Every process then makes every pass of the model.
        """


@final
class Several(Processes):
    """One of several processes. All of them call each method, in the same order."""

    def __init__(self, rank: int, size: int, address: str, *, fsdp: bool = False) -> None:
        self.rank, self.size, self.address, self.fsdp = rank, size, address, fsdp

    @functools.cached_property
    def group(self) -> Any:
        """torch's group of all processes: gloo between CPUs, NCCL between GPUs."""
        import torch
        from torch import distributed

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        where: dict[str, Any] = {"rank": self.rank, "world_size": self.size, "timeout": PATIENCE}
        distributed.init_process_group(backend, init_method=self.address, **where)
        atexit.register(distributed.destroy_process_group)
        return distributed

    def part(self, rows: Sequence[T]) -> Sequence[T]:
        return rows[self.rank :: self.size]

    def add_up(self, tensors: Iterable["Tensor"]) -> None:
        import torch

        alike: dict[Any, list[Tensor]] = {}
        for tensor in tensors:
            real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            alike.setdefault((real.device, real.dtype), []).append(real)
        for own in alike.values():
            flat = torch.cat([tensor.flatten() for tensor in own])
            self.group.all_reduce(flat)
            for tensor, total in zip(own, flat.split([t.numel() for t in own]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def add_up_gradients(self, parameters: Iterable["nn.Parameter"]) -> None:
        import torch

        every = list(parameters)
        found = torch.tensor([p.grad is not None for p in every], dtype=torch.uint8)
        self.group.all_reduce(found, op=self.group.ReduceOp.MAX)
        learned = [p for p, known in zip(every, found.tolist(), strict=True) if known]
        for p in learned:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self.add_up(cast("Tensor", p.grad) for p in learned)

    def greatest(self, number: int) -> int:
        import torch

        found = torch.tensor(number)
        self.group.all_reduce(found, op=self.group.ReduceOp.MAX)
        return int(found)

    def from_first(self, make: Callable[[], T]) -> T:
        found: list[Any] = [None, ""]
        try:
            if self.leads:
                found[0] = make()
        except Exception as error:
            found[1] = f"the process that leads: {error}"
            raise
        finally:
            self.group.broadcast_object_list(found)
        if found[1]:
            raise RuntimeError(found[1])
        return cast(T, found[0])

    def of_passes(self, make: Callable[[], T]) -> T:
        return make() if self.divided else self.from_first(make)

    def check_alike(self, tensors: Mapping[str, "Tensor"], when: str) -> None:
        found: list[Any] = [None] * self.size
        self.group.all_gather_object(found, {name: digest(tensor) for name, tensor in tensors.items()})
        first = found[0]
        for rank, own in enumerate(found):
            for name in first.keys() | own.keys():
                if first.get(name) != own.get(name):
                    raise RuntimeError(f"{name} of process {rank} is not that of process 0 {when}")

    def divide(self, model: "nn.Module", blocks: Iterable["nn.Module"], kept: set["nn.Parameter"]) -> None:
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        assert self.group.is_initialized()
        mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (self.size,))
        for block in (*blocks, model):
            name = type(block).__name__
            fully_shard(block, mesh=mesh, ignored_params=kept)
            type(block).__name__ = name  # not FSDP…: transformers knows by it how labels stand to tokens
        if hasattr(model, "generate"):  # it calls an encoder by itself
            register_fsdp_forward_method(model, "generate")
        model.to(mesh.device_type)  # what is kept whole
        self.divided = True


def digest(tensor: "Tensor") -> str:
    """The SHA-256 of a tensor's numbers, its dtype and its shape."""
    import torch

    flat = tensor.detach().cpu().contiguous().flatten()
    about = repr((tensor.dtype, tuple(tensor.shape))).encode()
    return hashlib.sha256(about + flat.view(torch.uint8).numpy().tobytes()).hexdigest()


_HERE: list[Processes] = [Processes()]


def current() -> Processes:
    """The processes that train together with this one: alone, unless it has joined others."""
    return _HERE[-1]


def asks(environment: Mapping[str, str], name: str) -> bool:
    """True if a variable that accelerate sets to a truth value is true."""
    return environment.get(name, "").lower() in ("1", "true", "yes")


def join(environment: MutableMapping[str, str]) -> None:
    """Take the variables that a launcher has set, if any, and be one of its processes from now on.

    Libraries that look for them later see one process. ValueError where one of them is missing.
    """
    if int(environment.get("WORLD_SIZE") or 1) < 2:
        return
    if lacking := [name for name in VARIABLES if not environment.get(name)]:
        raise ValueError(
            f"WORLD_SIZE={environment['WORLD_SIZE']} without {lacking[0]}: several processes are started by "
            "torchrun --nproc-per-node N -m lora_zoo.run …"
        )
    rank, size, local, host, port = (environment[name] for name in VARIABLES)
    _take_device(environment, int(local), int(environment.get("LOCAL_WORLD_SIZE") or size))
    fsdp = asks(environment, FSDP)
    for name in (*VARIABLES[:3], *(name for name in environment if name.startswith((FSDP, "FSDP_")))):
        environment.pop(name, None)
    _HERE.append(Several(int(rank), int(size), f"tcp://{host}:{port}", fsdp=fsdp))


def _take_device(environment: MutableMapping[str, str], local: int, size: int) -> None:
    """Show this process one GPU, before CUDA is begun. ValueError where two would share one."""
    import torch

    visible = environment.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    if not torch.cuda.device_count():
        return
    if size > len(names):
        raise ValueError(
            f"{size} processes on this machine would share {len(names)} GPU(s): start one for each GPU, or "
            "train on the CPU with CUDA_VISIBLE_DEVICES= (empty)"
        )
    environment["CUDA_VISIBLE_DEVICES"] = names[local]

"""A run that several processes train: what is divided among them, and what cannot be."""

from dataclasses import replace

from lora_zoo.config.schema import Settings
from lora_zoo.config.spec import RunSpec
from lora_zoo.core.processes import current


def divided(settings: Settings) -> Settings:
    """The settings with the number of processes that train together.

    ValueError where they cannot divide each batch among them, or train what is asked for.
    """
    settings = replace(settings, fsdp=settings.fsdp or current().fsdp)
    size, asked = current().size, settings.processes
    if settings.dry_run and asked:
        return settings
    if asked not in (None, size):
        raise ValueError(
            f"processes={asked}, and there is {size}: start torchrun --nproc-per-node {asked} -m "
            "lora_zoo.run …"
        )
    if settings.fsdp:
        _check_divisible(settings, size)
    if size == 1:
        return replace(settings, processes=None)
    if settings.batch_size % size:
        raise ValueError(
            f"batch_size={settings.batch_size} is of all processes together, and {size} cannot divide it: "
            f"give a multiple of {size}"
        )
    for key in ("program", "dropbp"):
        if given := getattr(settings, key):
            name = given["name"] if key == "program" else given
            raise ValueError(f"{key}={name} is for one process, and {size} were started; start it once")
    return replace(settings, processes=size)


def _check_divisible(settings: Settings, size: int) -> None:
    """ValueError for a base that cannot be divided among processes."""
    if size == 1:
        raise ValueError(
            "fsdp=true divides the base among processes, and there is one: start torchrun --nproc-per-node N "
            "-m lora_zoo.run …"
        )
    model, compiled = settings.model, settings.trainer.get("torch_compile")
    moves = "each process loads the model on the CPU and moves its part to its device"
    for key, given, why in (
        ("model.quantization", model.quantization, "codes are not divided"),
        ("model.device_map", model.device_map, moves),
        ("merge", settings.merge, "run lora-zoo merge RUN OUT afterwards"),
        ("trainer.torch_compile", compiled, "compiled passes do not gather weights"),
    ):
        if given:
            raise ValueError(f"{key}={str(given).lower()} cannot be given with fsdp=true: {why}")


def refuse_divided(spec: RunSpec) -> None:
    """ValueError where several processes are to train a variant that needs whole batches."""
    if spec.settings.processes and (needs := spec.gathers):
        raise ValueError(
            f"variant={spec.variant.name} {needs}, and each of {spec.settings.processes} processes has a "
            "part of the examples; start it once"
        )

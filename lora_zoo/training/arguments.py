"""transformers.TrainingArguments from the settings: flat keys where they exist, `trainer.` keys elsewhere."""

import difflib
import io
import logging
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler

from lora_zoo.config.schema import Settings
from lora_zoo.core.errors import reason, unknown
from lora_zoo.core.hyperparameters import fits, type_words
from lora_zoo.training.optimizers import RunArguments, needs_graph, optimizer_of, split_optim

_log = logging.getLogger("lora_zoo")
_FLAT = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "seed": "seed",
    "data_seed": "data_seed",
    "output_dir": "out",
    "report_to": "tracking",
}


def training_arguments(settings: Settings, folder: Path) -> TrainingArguments:
    """ValueError for a `trainer.` key that TrainingArguments lacks, or that a flat key sets."""
    check_trainer(settings.trainer)
    given = dict(settings.trainer)
    ours = _ours(settings, folder)
    for event in ("eval", "save"):
        ours |= _every(event, given.pop(f"{event}_steps", 0))
    if keeps_best(settings):
        ours |= _best(settings, ours | given)
    try:
        arguments = RunArguments(**split_optim(ours | given))
        _try_out(arguments)
    except Exception as error:  # each optimiser, scheduler and backend refuses in a way of its own
        raise ValueError(f"trainer: {reason(error)}") from error
    return _on_one_device(arguments)


def keeps_best(settings: Settings) -> bool:
    """True for a run whose adapter is that of its best evaluation, not of its last step."""
    asked = settings.trainer.get("load_best_model_at_end")
    return bool(asked) or settings.early_stopping_patience is not None


def _best(settings: Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that keep the best adapter. ValueError where nothing would be compared."""
    patience = settings.early_stopping_patience
    key = f"early_stopping_patience={patience}" if patience else "trainer.load_best_model_at_end=true"
    if patience and settings.trainer.get("load_best_model_at_end") is False:
        raise ValueError(f"{key} keeps the best adapter: drop trainer.load_best_model_at_end=false")
    if given["eval_strategy"] == "no":
        raise ValueError(f"{key} compares evaluations in the middle of training: give trainer.eval_steps=…")
    if settings.program:
        name = settings.program["name"]
        raise ValueError(f"{key}: program={name} has stages, each of which ends with its last step; drop it")
    automatic = {"save_strategy": "best"} if given["save_strategy"] == "no" else {}
    return {"load_best_model_at_end": True} | automatic


def choose_best_by(
    arguments: TrainingArguments, settings: Settings, facts: Mapping[str, Any], first: str, nll: bool
) -> None:
    """Set the value that evaluations are compared by: the task's `first` metric unless one is given.

    `facts` are those of each value that a metric gives; with `nll` there is one, too. ValueError for another
    value, and for a metric that does not say which way is better.
    """
    given = settings.trainer.get("metric_for_best_model")
    watched = arguments.metric_for_best_model if given or not keeps_best(settings) else first
    if watched is None:
        return
    name, known = watched.removeprefix("eval_"), [*facts, *(["nll"] if nll else [])]
    if name not in known:
        raise ValueError(unknown("trainer.metric_for_best_model", watched, known))
    higher = facts[name]["higher_is_better"] if name in facts else False
    arguments.metric_for_best_model = watched
    if settings.trainer.get("greater_is_better") is None and keeps_best(settings):
        if higher is None:
            raise ValueError(
                f"the metric {name} does not say which way is better; add trainer.greater_is_better=…"
            )
        arguments.greater_is_better = higher


def _on_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Have the Trainer use the first of several GPUs: it would split each batch over all of them."""
    if arguments.n_gpu > 1:
        text = "%d GPUs are visible, and a run uses one: %s (CUDA_VISIBLE_DEVICES chooses another)"
        _log.warning(text, arguments.n_gpu, arguments.device)
        arguments._n_gpu = 1
    return arguments


def check_trainer(given: Mapping[str, Any]) -> None:
    """Raise ValueError for a `trainer.` key that is none, is another key's, or cannot hold its value."""
    _check_names(given)
    _check_values(given)


def _ours(settings: Settings, folder: Path) -> dict[str, Any]:
    """The arguments that flat keys set, and those that a user may change with a `trainer.` key."""
    return {
        "output_dir": str(folder / "checkpoints"),
        "learning_rate": settings.lr,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.task.eval_batch_size,
        "seed": settings.seed,
        "data_seed": settings.data_seed,
        "report_to": [],  # the run's tracker brings its callback
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_nan_inf_filter": False,  # a loss that is not finite is an outcome of the run
        **_length(settings),
    }


def _check_names(given: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(TrainingArguments) if f.init]
    for name in given:
        if name in _FLAT:
            raise ValueError(f"trainer.{name} is set by the key {_FLAT[name]}; use {_FLAT[name]}=…")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=8, cutoff=0.3)
            raise ValueError(unknown("key of trainer", name, near) + ", … (transformers.TrainingArguments)")


def _try_out(arguments: RunArguments) -> None:
    """Make the optimiser once, and the schedule where the steps are known, before anything is read."""
    optimizer = _optimizer(arguments)
    if arguments.library_optim:
        _step(optimizer, graph=needs_graph(arguments))
    if arguments.max_steps > 0:
        _follow(arguments, optimizer, arguments.max_steps)


def check_schedule(arguments: TrainingArguments, steps: int) -> None:
    """Raise ValueError where the learning rate's schedule breaks over so many steps."""
    try:
        _follow(arguments, _optimizer(arguments), steps)
    except Exception as error:
        raise ValueError(f"trainer: {reason(error)}") from error


def _optimizer(arguments: TrainingArguments) -> torch.optim.Optimizer:
    """The optimiser, of a matrix and a vector."""
    cls, options = optimizer_of(arguments, torch.nn.Linear(1, 1))
    options = {k: v for k, v in options.items() if k not in ("params", "model", "optimizer_dict")}
    groups = [{"params": [torch.nn.Parameter(torch.ones(shape))]} for shape in ((2, 3), (2,))]
    made: torch.optim.Optimizer = cls(groups, **options)
    return made


def _step(optimizer: torch.optim.Optimizer, *, graph: bool) -> None:
    """Take one step, and write and read the state: some optimisers fail only there."""
    stream = torch.get_rng_state()
    held = [p for group in optimizer.param_groups for p in group["params"]]
    torch.stack([p.square().sum() for p in held]).sum().backward(create_graph=graph)
    optimizer.step()
    optimizer.zero_grad()
    torch.set_rng_state(stream)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    try:
        optimizer.load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:
        kind = type(optimizer).__name__
        raise ValueError(f"{kind} keeps a state that no checkpoint gives back; choose another") from error


def _follow(arguments: TrainingArguments, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Follow the schedule from its first rate to the one after the last step, in `_LOOKS` strides if long."""
    name, warmup = SchedulerType(arguments.lr_scheduler_type).value, arguments.get_warmup_steps(steps)
    schedule = get_scheduler(
        name,
        optimizer=optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs or {},
    )
    looks = {steps * look // _LOOKS for look in range(_LOOKS + 1)} | {warmup - 1, warmup, warmup + 1}
    for factor in getattr(schedule, "lr_lambdas", ()):  # those that watch a metric have none
        for step in sorted(step for step in looks if 0 <= step <= steps):
            try:
                if not 0 <= factor(step) < math.inf:
                    raise ValueError(f"a factor of {factor(step):.4g}")
            except Exception as error:
                raise ValueError(
                    f"lr_scheduler_type={name} gives no rate after step {step} of {steps}, of which {warmup} "
                    f"are warm-up ({reason(error)}); change steps, warmup_steps, or the schedule"
                ) from error


_LOOKS = 1000
_RANGES: dict[str, tuple[float, float]] = {
    "gradient_accumulation_steps": (1, 2**31),
    "logging_steps": (1e-9, 2**31),
    "eval_steps": (0, 2**31),
    "save_steps": (0, 2**31),
    "save_total_limit": (1, 2**31),
    "max_grad_norm": (0, math.inf),
    "weight_decay": (0, math.inf),
    "warmup_steps": (0, 2**31),
    "warmup_ratio": (0, 1),
    "dataloader_num_workers": (0, 256),
    "dataloader_prefetch_factor": (1, 2**16),
    "label_smoothing_factor": (0, 1),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, 1),
    "neftune_noise_alpha": (0, math.inf),
    "torch_empty_cache_steps": (1, 2**31),
}
_WHOLE = (
    "start torchrun --nproc-per-node N -m lora_zoo.run …, and give fsdp=true to divide the frozen base among "
    "the processes"
)
_SUMMED = "processes add their gradients up once a step, in one call, whatever the variant does between"
_NEVER = {
    "push_to_hub": "nothing is uploaded but by tracking=wandb",
    "resume_from_checkpoint": "use resume=true",
    "auto_find_batch_size": "runs would differ in batch_size; give one that fits",
    "group_by_length": "the data order is data_seed's",
    "use_liger_kernel": "it replaces the layers that adapters are in",
    **dict.fromkeys(("deepspeed", "fsdp", "parallelism_config"), _WHOLE),
    **dict.fromkeys(("ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb"), _SUMMED),
    **dict.fromkeys(("ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph"), _SUMMED),
}
_NAMES = ("optim", "lr_scheduler_type", "logging_strategy")


def _check_values(given: Mapping[str, Any]) -> None:
    """Check types and ranges that TrainingArguments accepts and fails on during training."""
    hints = typing.get_type_hints(TrainingArguments)
    for name, value in given.items():
        if name in _NEVER and value:
            raise ValueError(f"trainer.{name} cannot be given: {_NEVER[name]}")
        _check_type(name, value, hints[name])
        low, high = _RANGES.get(name, (-math.inf, math.inf))
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise ValueError(f"trainer.{name} must lie between {low:.10g} and {high:.10g}; got {value}")
    if given.get("fp16") and given.get("bf16"):
        raise ValueError("trainer.fp16=true and trainer.bf16=true exclude each other; give one")
    if given.get("fp16") and not torch.cuda.is_available():
        raise ValueError("trainer.fp16=true needs a GPU, and there is none; bf16=true works on a CPU")


def _check_type(name: str, value: Any, hint: Any) -> None:
    if name in ("eval_steps", "save_steps"):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"trainer.{name} must be a number of steps, 0 for never; got {value!r}")
    elif name in _NAMES:
        if not isinstance(value, str):
            raise ValueError(f"trainer.{name} must be a name; got {value!r}")
    elif (plain := _plain(hint)) and not any(fits(value, part) for part in plain):
        words = ["null" if part is type(None) else type_words(part) for part in plain]
        raise ValueError(f"trainer.{name} must be {' or '.join(words)}; got {value!r}")


def _plain(hint: Any) -> list[Any]:
    """The parts of a type hint where all of them are plain; none where any value may do."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    parts = list(typing.get_args(hint)) if union else [hint]
    return parts if all(part in (int, float, str, bool, type(None)) for part in parts) else []


def _length(settings: Settings) -> dict[str, Any]:
    steps, epochs = settings.steps, settings.epochs
    if steps is None and epochs is None:
        steps, epochs = settings.task.steps, settings.task.epochs
    if steps is not None:
        return {"max_steps": steps}
    if epochs is None:
        raise ValueError(f"task {settings.task.name} has no default length; give steps=… or epochs=…")
    return {"num_train_epochs": epochs}


def _every(event: str, steps: int) -> dict[str, Any]:
    return {f"{event}_strategy": "steps", f"{event}_steps": steps} if steps else {f"{event}_strategy": "no"}

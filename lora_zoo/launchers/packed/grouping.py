"""Groups of a sweep's jobs that can train side by side."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

from lora_zoo.config.schema import Settings
from lora_zoo.config.spec import RunSpec

FREE = (
    *("optim", "optim_args", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("gradient_accumulation_steps", "label_smoothing_factor"),
    *("logging_steps", "logging_strategy", "logging_first_step"),
    *("eval_steps", "eval_delay", "eval_on_start", "save_steps", "save_total_limit"),
)
"""Keys of `trainer` in which the jobs of a pack may differ: they act on one job's own steps."""
NEVER = {
    "torch_compile": "a compiled model is one job's",
    "neftune_noise_alpha": "its noise goes through the embedding that jobs share",
    "load_best_model_at_end": "its adapter is not that of the pack's last step",
    "full_determinism": "it is a setting of the whole process",
}
ALONE = {
    "dry_run": "it trains nothing",
    "program": "it has a program of stages",
    "dropbp": "its backward passes are not those of the layers that jobs share",
    "prior": "it has prior adapters in its model",
    "padding_free": "its batches are one row each",
    "packing": "its rows hold several examples each",
    "replay": "it replays examples of other runs",
    "early_stopping_patience": "it may end before the others",
}
"""Keys of a run that trains by itself where they are set -> why."""


class PackedGroup(NamedTuple):
    """Jobs, by number, that can be in one pack; or, for a `reason`, one after the other."""

    jobs: list[int]
    reason: str


def groups(specs: Sequence[RunSpec | None]) -> list[PackedGroup]:
    """The jobs of a sweep in groups, each in the sweep's order. None: a job that cannot be run as given."""
    packs: dict[str, list[int]] = {}
    apart: dict[str, list[int]] = {}
    seen: set[str] = set()
    for number, spec in enumerate(specs):
        if spec is None:
            apart.setdefault("it cannot be run as given", []).append(number)
        elif reason := _reason(spec.settings, spec.identity in seen):
            apart.setdefault(reason, []).append(number)
        else:
            packs.setdefault(_shared(spec.settings), []).append(number)
        seen |= {spec.identity} if spec else set()
    return [PackedGroup(jobs, "") for jobs in packs.values()] + [
        PackedGroup(jobs, why) for why, jobs in apart.items()
    ]


def _reason(settings: Settings, repeated: bool) -> str:
    found = [why for key, why in ALONE.items() if getattr(settings, key)]
    found += [f"trainer.{key}: {why}" for key, why in NEVER.items() if settings.trainer.get(key)]
    found += ["it is the same run as another one"] if repeated else []
    return next(iter(found), "")


def _shared(settings: Settings) -> str:
    """All that jobs of one pack must have in common: model, task, threads, most keys of the trainer."""
    trainer = {key: value for key, value in settings.trainer.items() if key not in FREE}
    common = {"model": asdict(settings.model), "task": asdict(settings.task), "trainer": trainer}
    return json.dumps(common | {"threads": settings.threads}, sort_keys=True, default=str)

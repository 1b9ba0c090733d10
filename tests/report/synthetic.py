"""Frames of made-up runs, in the columns of `lora_zoo.runs.load`: known numbers, no training."""

import itertools
from typing import Any

import numpy as np
import pandas as pd


def sweep(
    variants: tuple[str, ...] = ("lora", "dora"),
    ranks: tuple[int, ...] = (2, 8),
    targets: tuple[str, ...] = ("q,v",),
    tasks: tuple[str, ...] = ("pocket-sql",),
    seeds: int = 3,
    **changes: Any,
) -> pd.DataFrame:
    """One done run for each combination; a score grows with the rank, and seeds differ by hundredths."""
    rows = [
        _run(number, *setting) | changes
        for number, setting in enumerate(itertools.product(tasks, variants, targets, ranks, range(seeds)))
    ]
    return pd.DataFrame(rows)


def delta_tables(
    variants: tuple[str, ...] = ("lora", "pissa"), ranks: tuple[int, ...] = (4, 8, 64), seeds: int = 3
) -> pd.DataFrame:
    """All columns of the tables of `lora_zoo.updates`, of two layers of q and v (128 x 128) and 3 steps.

    Norms grow with the step; seeds differ by tenths, and v is twice q.
    """
    rows = [
        _matrix(variant, rank, seed, layer, role, step)
        for variant, rank, seed, layer, role, step in itertools.product(
            variants, ranks, range(seeds), range(2), ("q", "v"), (10, 20, 30)
        )
    ]
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def _matrix(variant: str, rank: int, seed: int, layer: int, role: str, step: int) -> dict[str, Any]:
    norm = (1 + seed / 10) * (1 + (role == "v")) * step
    profile = np.full(128, 1 / 128) if variant == "lora" else np.array([1.0] + [0.0] * 127)
    return {
        "run": f"{variant}-r{rank}-s{seed}",
        "variant": variant,
        "rank": float(rank),
        "seed": seed,
        "step": step,
        "name": f"model.layers.{layer}.self_attn.{role}_proj",
        "role": role,
        "layer": layer,
        "norm": norm,
        "relative_norm": norm / 100,
        "stable_rank": 1.5,
        "effective_rank": 2.0 + seed,
        "singular_values": [norm * 0.5**i for i in range(rank)],
        "magnitude_change": norm / 10,
        "direction_change": norm / 20 if variant == "lora" else 1 / norm,
        "directions": rank,
        "own": 2.0 * rank,
        "base": 10.0 * rank,
        "random": 1.0 * rank,
        "factor": norm / (2.0 * rank),
        "top": float(profile[:13].sum()),
        "expected": 13 / 128,
        "profile": profile.tolist(),
        "intruders": 64 // rank + seed,
        "of": 10,
        "floor": 0.28,
    }


def _run(number: int, task: str, variant: str, targets: str, rank: int, seed: int) -> dict[str, Any]:
    score = (
        0.5 + 0.04 * np.log2(rank) + 0.02 * len(targets.split(",")) + 0.01 * seed + 0.05 * (variant == "dora")
    )
    trainable = rank * 1000 * len(targets.split(",")) + 100 * (variant == "dora")
    return {
        "run": f"{number:08x}",
        "name": f"{variant}-r{rank}-{targets.replace(',', '')}-{task}-s{seed}",
        "folder": f"runs/{number}",
        "experiment": "",
        "state": "done",
        "stale": "",
        "variant": variant,
        "rank": rank,
        "alpha": 16.0,
        "init": "kaiming",
        "lora_dropout": 0.0,
        "target_modules": targets,
        "layers": None,
        "budget": None,
        "lr": 0.02,
        "task_lr": 0.02,
        "weight_decay": 0.0,
        "batch_size": 16,
        "steps": 30,
        "seed": seed,
        "data_seed": 0,
        "model": "pocket",
        "task": task,
        "metric": "exact_match" if "sql" in task else "accuracy",
        "validation": score + 0.005,
        "test": score,
        "zero_shot_test": 0.0,
        "loss": 1 / score,
        "trainable": trainable,
        "total": 963_328,
        "adapted": 8,
        "adapter": None,
        "adapter_bytes": trainable * 4.0,
        "saved_bytes": float("nan"),
        "step_seconds": 0.05 + 0.01 * (variant == "dora"),
        "train_seconds": 1.5 + 0.3 * (variant == "dora"),
        "total_seconds": 3.0,
        "peak_memory": 6.7e8,
        "commit": "0123456789abcdef",
        "dirty": False,
        "command": f"python -m lora_zoo.run variant={variant} rank={rank} seed={seed} task={task}",
        "config.trainer.warmup_steps": 0.06,
        "config.task.type": "causal_lm",
        "history": _history(seed),
        "updates": _updates(rank),
        "experiment_about": {},
    }


def _history(seed: int) -> list[dict[str, float]]:
    return [{"step": s, "loss": (2 + seed / 10) / s, "grad_norm": 1.0, "epoch": s / 10} for s in (10, 20, 30)]


def _updates(rank: int) -> list[dict[str, Any]]:
    """Two layers of q and v; singular values halve from one to the next, `rank` of them and a zero."""
    return [
        {
            "name": f"model.layers.{layer}.self_attn.{role}_proj",
            "shape": [128, 128],
            "norm": 1.0,
            "relative_norm": 0.1,
            "stable_rank": 1.5,
            "effective_rank": rank - 0.5 * layer,
            "singular_values": [(layer + 1) * 0.5**i for i in range(rank)] + [0.0],
        }
        for layer in range(2)
        for role in ("q", "v")
    ]

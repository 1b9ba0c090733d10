"""Frames of made-up runs, in the columns of `lora_zoo.results.load`: known numbers, no training."""

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
    }


def histories(frame: pd.DataFrame, steps: tuple[int, ...] = (10, 20, 30)) -> pd.DataFrame:
    rows = [
        {"run": run.run, "step": step, "loss": (2 + run.seed / 10) / step, "eval_exact_match": step / 40}
        for run in frame.itertuples()
        for step in steps
    ]
    return pd.DataFrame(rows)


def updates(frame: pd.DataFrame, layers: int = 2, roles: tuple[str, ...] = ("q", "v")) -> pd.DataFrame:
    """Singular values halve from one to the next; there are as many as the rank."""
    rows = [
        {
            "run": run.run,
            "name": f"model.layers.{layer}.self_attn.{role}_proj",
            "role": role,
            "layer": layer,
            "effective_rank": float(run.rank) - 0.5 * layer,
            "numerical_rank": run.rank,
            "singular_values": [(layer + 1) * 0.5**i for i in range(run.rank)],
        }
        for run in frame.itertuples()
        for layer in range(layers)
        for role in roles
    ]
    return pd.DataFrame(rows)

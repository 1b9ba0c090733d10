"""Examples a second of the same LoRA runs: packed, one after the other, and one after the other with PEFT.

python experiments/perf/packed.py --model ORG/NAME --dtype bfloat16 --jobs 8 --batch 4 --steps 30

Steps are timed (the median of a run's, which leaves the first ones out); a packed run's step is one of all.
The time of the whole command stands beside; PEFT's is without the start of a process. Losses of the first two
ways are compared on the way.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from lora_zoo.config.schema import Model, Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.models.loading import load_model, load_tokenizer
from lora_zoo.tasks.data import load_splits
from lora_zoo.training.timing import StepTimer

SIZES = {"train": 512, "validation": 2}


class Measured(NamedTuple):
    """One way of making all runs: the median step of each, and the seconds of the whole."""

    steps: list[float]
    wall: float


def main() -> None:
    asked = arguments()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {asked.threads} thread(s)"
    print(
        f"{asked.jobs} LoRA runs of {asked.model} ({asked.dtype}) at rank {asked.rank} on {where}; ", end=""
    )
    print(f"batches of {asked.batch}, {asked.steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        alone, alone_losses = swept(asked, Path(folder) / "alone")
        packed, packed_losses = swept(
            asked, Path(folder) / "packed", "hydra/launcher=packed", f"hydra.launcher.max_jobs={asked.jobs}"
        )
    with_peft = peft(asked)
    seconds = {"one after the other": sum(alone.steps), "packed": statistics.median(packed.steps)}
    seconds["PEFT, one after the other"] = sum(with_peft.steps)
    walls = dict(zip(seconds, (alone.wall, packed.wall, with_peft.wall), strict=True))
    print("| way | s for one step of all | examples/s | against one after the other | s in all |")
    print("|---|---|---|---|---|")
    for way, step in seconds.items():
        ratio = seconds["one after the other"] / step
        speed = asked.jobs * asked.batch / step
        print(f"| {way} | {step:.4f} | {speed:.1f} | {ratio:.2f} | {walls[way]:.1f} |")
    pairs = [
        pair for name, own in alone_losses.items() for pair in zip(own, packed_losses[name], strict=True)
    ]
    largest = max(abs(a / b - 1) for a, b in pairs)
    print(f"largest relative difference of a loss, packed against alone: {largest:.1e}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="pocket", help="pocket, a folder, or a name on the Hub")
    parser.add_argument("--dtype", default="float32")
    for name, usual in {"jobs": 4, "rank": 8, "batch": 4, "steps": 20, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    return parser.parse_args()


def swept(asked: argparse.Namespace, out: Path, *more: str) -> tuple[Measured, dict[str, list[float]]]:
    """A sweep over seeds, and the losses of each run by its name."""
    seeds = ",".join(map(str, range(asked.jobs)))
    words = [
        "+variant=lora",
        f"seed={seeds}",
        f"rank={asked.rank}",
        f"steps={asked.steps}",
        f"model={asked.model}",
    ]
    words += [
        f"model.dtype={asked.dtype}",
        f"batch_size={asked.batch}",
        f"out={out}",
        f"threads={asked.threads}",
    ]
    words += [
        "tracking=none",
        "eval_before_training=false",
        "eval_splits=[validation]",
        "trainer.logging_steps=1",
    ]
    words += [f"task.sizes.{split}={size}" for split, size in SIZES.items()]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lora_zoo.run", "-m", *words, *more], check=True, capture_output=True
    )
    wall = time.perf_counter() - began
    found = {path.parent.name: json.loads(path.read_text()) for path in out.rglob("result.json")}
    losses = {name: [e["loss"] for e in r["history"] if "loss" in e] for name, r in found.items()}
    return Measured([result["timings"]["step_median"] for result in found.values()], wall), losses


def peft(asked: argparse.Namespace) -> Measured:
    """The same runs as PEFT and transformers' Trainer make them, each on a base of its own."""
    torch.set_num_threads(asked.threads)
    model = Model(name="base", path=asked.model, dtype=asked.dtype)
    task = Task(name="sql", type="causal_lm", dataset="pocket-sql", sizes=SIZES, stop=";", max_length=128)
    began, medians = time.perf_counter(), []
    for seed in range(asked.jobs):
        tokenizer, splits = load_tokenizer(model), load_splits(task)
        kind = TASK_TYPES[task.type](task, tokenizer, splits)
        base: Any = load_model(model, kind.auto_class, kind.head(), tokenizer, seed).model
        config = LoraConfig(r=asked.rank, lora_alpha=asked.rank, target_modules=["q_proj", "v_proj"])
        counter = StepTimer()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                get_peft_model(base, config),
                TrainingArguments(
                    output_dir=folder,
                    max_steps=asked.steps,
                    per_device_train_batch_size=asked.batch,
                    learning_rate=2e-2,
                    seed=seed,
                    report_to=[],
                    save_strategy="no",
                    logging_steps=1,
                    disable_tqdm=True,
                    remove_unused_columns=False,
                ),
                data_collator=kind.collate,
                train_dataset=kind.encoded(splits["train"]),
                callbacks=[counter],
            )
            trainer.train()
        medians.append(counter.summary()["step_median"])
    return Measured(medians, time.perf_counter() - began)


if __name__ == "__main__":
    main()

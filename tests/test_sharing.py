"""Runs that share a process share their base and data, and are equal to the bit to runs that do not.

This file is also a command: it runs sweeps one after the other in one process, or each job of them in a
process of its own, forked before a base or data were loaded.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import start

pytestmark = pytest.mark.xdist_group("sharing")
QUICK = (
    "steps=3", "batch_size=4", "threads=1", "tracking=none", "trainer.logging_steps=1",
    "task.sizes={train: 24, validation: 6, test: 6}", "target_modules=[q,v]",
    "task.max_new_tokens=4", "eval_before_training=false", "eval_splits=[test]", "forgetting_text=null",
)  # fmt: skip
BRITTLE = """
import datasets
import evaluate


class Brittle(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        if len(predictions) > 5:
            raise RuntimeError("too many")
        return {"brittle": 1.0}
"""
CLASSES = (
    "task=classification", "task.dataset=csv", "task.data_files={train: train.csv, test: test.csv}",
    "task.columns={text: text, label: label}", "task.max_length=16", "epochs=null", "lr=1e-3",
)  # fmt: skip
SWEEPS = [
    ["variant=full,vera", "modules_to_save=[lm_head]", "forgetting_text=auto", "eval_before_training=true"],
    ["variant=dora", "lora_dropout=0.2", "lr=1e30,1e-3", "eval_before_training=true"],  # one diverges
    ["variant=lora", "task.metrics=[brittle.py]"],  # fails when it is judged, adapters in place
    ["variant=adalora", "variant.tinit=0", "variant.tfinal=1", "merge=true"],
    ["variant=lora", "+trainer.bf16=true,false", "trainer.use_cpu=true", "eval_before_training=true",
     "+trainer.gradient_checkpointing=true", "trainer.full_determinism=true"],
    ["variant=lora", "task=pocket-nli", "model.dtype=bfloat16"],
    ["variant=full", *CLASSES, "seed=0,1"],
]  # fmt: skip
"""Each is followed by a run without what it does to a base, its data or the process."""


def words(sweep: list[str]) -> list[str]:
    given = [word for word in sweep if not word.startswith("init=")]
    keys = {word.lstrip("+").partition("=")[0] for word in given}
    return ["-m", *given, *(w for w in QUICK if w.partition("=")[0] not in keys)]


def jobs(sweep: list[str]) -> list[list[str]]:
    """Each job of a sweep as a sweep of one."""
    found: list[list[str]] = [[]]
    for word in words(sweep):
        key, equals, value = word.partition("=")
        values = value.split(",") if equals and "[" not in value and "{" not in value else [value]
        found = [[*job, f"{key}{equals}{v}"] for job in found for v in values]
    return found


def call(arguments: list[str]) -> None:
    from lora_zoo.run import main

    try:
        main(arguments)
    except SystemExit as ended:
        print("exit", ended.code)


def together(order: list[int]) -> None:
    for number in order:
        call([*words(SWEEPS[number]), f"out=together/{number}"])


def alone(order: list[int]) -> None:
    import lora_zoo.training.runner  # noqa: F401

    for number in order:
        for job in jobs(SWEEPS[number]):
            if not (child := os.fork()):
                call([*job, f"out=alone/{number}"])
                sys.stdout.flush()
                os._exit(0)
            os.waitpid(child, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharing")
    (folder / "brittle.py").write_text(BRITTLE)
    for split in ("train", "test"):
        rows = [f"row {n} {word},{word}" for n, word in enumerate(["red", "blue", "green"] * 8)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    caches = {how: str(folder / f"cache-{how}") for how in ("together", "alone")}
    processes = [
        start(how, at=folder, module="tests.test_sharing", merged=True, LORA_ZOO_CACHE=cache)
        for how, cache in caches.items()
    ]
    for how, process in zip(caches, processes, strict=True):
        said, _ = process.communicate()
        assert process.returncode == 0, said[-3000:]
        (folder / f"{how}.log").write_text(said)
    return folder


BEFORE = ("zero_shot", "zero_shot_likelihood")
TIMED = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves behind but times, memory and places."""
    result = json.loads((run / "result.json").read_text())
    kept = {
        key: result.get(key)
        for key in ("identity", "state", "variant", "metrics", *BEFORE, "data", "parameters", "updates")
    }
    kept["history"] = [
        {k: v for k, v in entry.items() if k not in TIMED} for entry in result.get("history", [])
    ]
    kept["error"] = {
        k: str(v).replace("together", "").replace("alone", "") for k, v in result.get("error", {}).items()
    }
    files = [*run.glob("adapter/*.safetensors"), *run.glob("merged/*.safetensors"), *run.glob("examples-*")]
    return kept | {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: outcome(path.parent) for path in sorted(folder.glob("sweep-*/*/result.json"))}


@pytest.mark.parametrize("number", range(len(SWEEPS)))
def test_a_sweep_in_one_process_equals_its_jobs_in_their_own(number: int, folder: Path) -> None:
    shared, own = runs(folder / "together" / str(number)), runs(folder / "alone" / str(number))
    assert shared.keys() == own.keys()
    assert len(shared) == len(jobs(SWEEPS[number]))
    for name, result in own.items():
        assert shared[name] == result, name


def test_what_begins_as_one_function_is_judged_once_before_training(folder: Path) -> None:
    """full and VeRA at one rate, DoRA at two, LoRA under bf16 and without it."""
    every = {
        how: [json.loads(path.read_text()) for path in sorted((folder / how).glob("*/*/*/result.json"))]
        for how in ("together", "alone")
    }
    judged = {how: [r for r in records if r.get("zero_shot")] for how, records in every.items()}
    assert not any("zero_shot_measured_in" in record for record in judged["alone"])
    told = [record.get("zero_shot_measured_in") for record in judged["together"]]
    first = {f"{r['name']}-{r['identity']}" for r in judged["together"] if "zero_shot_measured_in" not in r}
    assert {*filter(None, told)} <= first
    assert len(first) * 2 < len(told) == len(judged["alone"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"together": together, "alone": alone}[sys.argv[1]](list(range(len(SWEEPS))))

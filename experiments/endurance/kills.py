"""Kill runs at random moments, resume them, and compare the results with those of the uninterrupted run.

python experiments/endurance/kills.py --kills 5 --write experiments/endurance/README.md

For every registered variant: one run without a break, then for each kill a new run that SIGKILL ends at a
random moment and the same command with resume=true goes on with; every third is killed twice. A run has
survived if its adapter, its history of losses and its metrics equal the unbroken run's to the bit.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from lora_zoo.core.hyperparameters import hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.runs.environment import environment

ASKED = (
    *(
        "steps=40",
        "trainer.save_steps=4",
        "trainer.logging_steps=3",
        "eval_before_training=false",
        "tracking=none",
    ),
    *("task.sizes.validation=10", "task.sizes.test=10", "threads=1"),
)
TIMED = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")


class Kill(NamedTuple):
    """When SIGKILL came, from where the run went on, and whether the outcome is the same."""

    variant: str
    seconds: list[float]
    steps: list[int]
    survived: bool


def command(variant: str) -> list[str]:
    dropout = ["lora_dropout=0.1"] if "lora_dropout" in hyperparameters(VARIANTS[variant]) else []
    dropout = [] if variant in REFUSE_DROPOUT else dropout
    return [sys.executable, "-m", "lora_zoo.run", f"+variant={variant}", *dropout, *ASKED]


REFUSE_DROPOUT = [
    name
    for name, cls in VARIANTS.items()
    if (init := hyperparameters(cls).get("init")) is not None and init.default in ("pissa", "milora")
]
"""A residual start has no use for dropout."""


def started(variant: str, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command(variant), *more], cwd=folder, env=env, **quiet)


def whole(variant: str, folder: Path) -> float:
    """A run without a break; how long it took, in seconds."""
    began = time.monotonic()
    assert started(variant, folder).wait() == 0, f"{variant} does not run"
    return time.monotonic() - began


def outcome(folder: Path) -> tuple[bytes, Any, Any]:
    """The adapter's bytes, the losses, the metrics and what ΔW looks like."""
    (path,) = folder.rglob("result.json")
    result = json.loads(path.read_text())
    adapters = [p.read_bytes() for p in folder.rglob("adapter/adapter.safetensors")]
    losses = [{k: v for k, v in entry.items() if k not in TIMED} for entry in result.get("history", [])]
    return b"".join(adapters), losses, (result["state"], result.get("metrics"), result.get("updates"))


def killed(variant: str, folder: Path, life: float, number: int) -> Kill:
    """One trial; its moments depend on the variant and the number alone."""
    draw = random.Random(f"{variant}/{number}")
    folder.mkdir()
    moments: list[float] = []
    for again in range(1 + (number % 3 == 2)):
        running = started(variant, folder, *(["resume=true"] if again else []))
        # A quarter of the moments lie anywhere, the others where the run trains, saves and evaluates.
        moments.append(draw.uniform(0 if number % 4 == 0 else 0.55 * life, life))
        time.sleep(moments[-1])
        running.kill()
        running.wait()
    ended = started(variant, folder, "resume=true").wait()
    results = list(folder.rglob("result.json"))
    steps = [e.get("step", 0) for p in results for e in json.loads(p.read_text()).get("resumed", [])]
    same = ended == 0 and len(results) == 1 and outcome(folder) == outcome(folder.parent / "whole")
    return Kill(variant, moments, steps, same)


def trials(variant: str, root: Path, kills: int) -> list[Kill]:
    folder = root / variant
    (folder / "whole").mkdir(parents=True)
    life = whole(variant, folder / "whole")
    return [killed(variant, folder / str(number), life, number) for number in range(kills)]


def report(found: list[Kill], kills: int) -> str:
    about = environment()
    rows = [
        f"| `{name}` | {sum(len(k.seconds) for k in own)} | {sum(k.survived for k in own)} of {len(own)} | "
        f"{', '.join(map(str, sorted(step for k in own for step in k.steps))) or '-'} |"
        for name in VARIANTS
        if (own := [k for k in found if k.variant == name])
    ]
    total = sum(len(k.seconds) for k in found)
    lines = [
        "# Killed at a random moment and resumed",
        "",
        "Is a run that SIGKILL ended at a random moment and that was resumed bitwise identical to an "
        "uninterrupted one?",
        "",
        f"{total} kills in {len(found)} runs; **{sum(k.survived for k in found)} of {len(found)}** equal "
        "the uninterrupted run: the adapter's file, every logged loss, the metrics and the singular values "
        "of ΔW.",
        "",
        "| variant | kills | bitwise identical | steps from which runs resumed |",
        "|---|---|---|---|",
        *rows,
        "",
        "A run has 40 steps with a checkpoint every fourth; 0: there was no checkpoint yet. A run that was "
        "killed before its folder was made, or after it was done, has no such step.",
        "",
        f"Made by `python experiments/endurance/kills.py --kills {kills}` on the pocket, one thread a run; "
        f"torch {about['packages']['torch']}, commit {str(about['commit'])[:10]}"
        + (" with uncommitted changes" if about["dirty"] else "")
        + f"; each run: `python -m lora_zoo.run +variant=… lora_dropout=0.1 {' '.join(ASKED)}`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="runs that are killed, for each variant")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), help="default: all")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side")
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(given.processes) as pool:
        runs = [pool.submit(trials, name, Path(root), given.kills) for name in given.variants]
        found = [kill for run in runs for kill in run.result()]
    text = report(found, given.kills)
    print(text)
    if given.write:
        given.write.write_text(text)
    sys.exit(not all(kill.survived for kill in found))


if __name__ == "__main__":
    main()

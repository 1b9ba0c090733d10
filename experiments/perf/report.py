"""Reading and reporting many runs: processor time and peak memory, by the number of runs.

    python experiments/perf/report.py 980 10000

The runs are those of experiments/bakeoff_rank, each with further seeds, its scores shifted by a little noise.
"""

import copy
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lora_zoo import runs
from lora_zoo.core.variants import VARIANTS
from lora_zoo.report.page import html
from lora_zoo.report.report import Report
from lora_zoo.runs.identity import identified_as

SOURCE = Path(__file__).parents[1] / "bakeoff_rank" / "results.jsonl.gz"


def write(count: int, to: Path) -> None:
    """Write an archive of `count` records."""
    with gzip.open(SOURCE, "rt") as lines:
        kept = [json.loads(line) for line in lines]
    chance = random.Random(0)
    with gzip.open(to, "wt") as archive:
        for number in range(count):
            record, seeds = copy.deepcopy(kept[number % len(kept)]), 1000 * (number // len(kept))
            if seeds:
                _reseed(record, seeds, chance.gauss(0, 0.01))
            archive.write(json.dumps(record) + "\n")


def _reseed(record: dict, by: int, noise: float) -> None:
    for key in ("seed", "data_seed"):
        record["config"][key] += by
    for values in record["metrics"].values():
        values[record["metric"]] += noise
    for entry in (entry for entry in record["history"] if "loss" in entry):
        entry["loss"] += noise
    variant = VARIANTS.find(record["config"]["variant"]["name"])
    record["identity"], record["made_of"] = identified_as(record, variant)


def measured(archive: Path) -> None:
    """Print the processor time of each part, in this process alone."""
    began = time.process_time()
    frame = runs.load(archive)
    loaded = time.process_time()
    text = html(Report(frame))
    done = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    times = f"{loaded - began:.1f} | {done - loaded:.1f}"
    print(f"| {len(frame):,} | {times} | {len(text) / 1e6:.1f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measured(Path(sys.argv[2]))
        sys.exit()
    print(
        "| runs | load (s) | report (s) | page (MB) | peak memory (GB) |\n|---|---|---|---|---|", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, sys.argv[1:]):
            write(count, Path(folder) / "results.jsonl.gz")
            again = [sys.executable, __file__, "--measure", str(Path(folder) / "results.jsonl.gz")]
            subprocess.run(again, check=True)

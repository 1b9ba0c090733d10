"""Print the end of a run and the plans of a sweep, read from the record alone."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lora_zoo.core.bounded_json import read_json
from lora_zoo.core.variants import VARIANTS
from lora_zoo.runs.bits import learned
from lora_zoo.runs.degenerate import finding
from lora_zoo.runs.loading import RATES, SEARCH, SEEDS
from lora_zoo.runs.record import Record


def print_run(record: Record, console: Console) -> None:
    """Metric against zero-shot, size, speed, memory, places, and the next commands worth typing."""
    result = record.content
    table = Table(title=result["name"], show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")  # a path is shown whole
    for row in _rows(result, record.folder):
        table.add_row(*row)
    console.print(table)
    for text in result.get("findings", []):
        console.print(f"note: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print("next:", highlight=False)
    for line in _next(result, record.folder):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _rows(result: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    parameters, timings, memory = result["parameters"], result["timings"], result["memory"]
    rows = [(f"{result['metric']} ({split})", _against(result, split)) for split in result["metrics"]]
    if likelihood := result.get("likelihood"):
        split = next(reversed(likelihood))
        rows.append((f"nll ({split})", _nll(result, split)))
    for view, splits in result.get("views", {}).items():
        rows += [(f"  {view} ({split})", _value(result, values)) for split, values in splits.items()]
    rows += _learned_and_forgotten(result)
    left = f", {parameters['final']:,} left at the end" if "final" in parameters else ""
    share = f"{parameters['total']:,} ({parameters['share']:.2%})"
    rows.append(("trainable", f"{parameters['trainable']:,} of {share}{left}"))
    if scale := scale_of(result):
        used = result["variant"]["hyperparameters"]
        rows.append(("scale", f"{scale} (rank {used.get('rank')}, alpha {used.get('alpha'):g})"))
    if doubt := finding(result):
        rows.append(("finding", doubt))
    if "adapter" in result:
        rows.append(("adapter", f"{readable_bytes(result['adapter']['bytes'])} in {folder / 'adapter'}"))
    if timings.get("steps"):
        rows.append(("steps", f"{timings['steps']} at {timings['step_median']:.3g} s each (median)"))
    if threads := result.get("environment", {}).get("threads"):
        rows.append(("threads", f"{threads} on {os.cpu_count()} cores (threads= sets it)"))
    several = result["config"].get("processes")
    how = ", which have divided the base (FSDP2)" if result["config"].get("fsdp") else ""
    rows += [("processes", f"{several}{how}; times and memory are those of the first")] if several else []
    rows.append(("time", f"{timings['total']:.1f} s, of which training {timings.get('train', 0):.1f} s"))
    peak = memory.get("peak_cuda", memory["peak_rss"])
    rows.append(("peak memory", f"{readable_bytes(peak)}{' on the GPU' if 'peak_cuda' in memory else ''}"))
    rows.append(("written to", str(folder)))
    return [*rows, ("tracking", result["tracking"])] if result.get("tracking") else rows


def _learned_and_forgotten(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Bits of all that there are, and a parameter, of a task that counts them; the loss on held-out text."""
    found, rows = learned(result), list[tuple[str, str]]()
    if (bits := found["bits"]) is not None:
        total = result.get("data", {}).get("train", {}).get("information")
        each = found["bits_per_parameter"]
        of = "" if total is None else f" of {total:,.0f}"
        rows.append(
            ("learned", f"{bits:,.0f} bits{of}" + ("" if each is None else f", {each:.3g} per parameter"))
        )
    text = result.get("retention", {})
    if "before" in text:
        before, after = float(text["before"]), float(text["after"])
        rows.append(("held-out LM loss", f"{after:.4g} nats per token (before training: {before:.4g})"))
    elif "why" in text:
        rows.append(("held-out LM loss", text["why"]))
    return rows


def _against(result: dict[str, Any], split: str) -> str:
    after, before = result["metrics"][split], result.get("zero_shot", {}).get(split)
    return _value(result, after) + (f"   (before training: {_value(result, before)})" if before else "")


def _nll(result: dict[str, Any], split: str) -> str:
    """Of the references, by item and by token, which are one where classes are judged."""
    told, before = result["likelihood"][split], result.get("zero_shot_likelihood", {}).get(split)
    text = f"{told['nll']:.4g} nats, {told['bits_per_token']:.4g} bits per token"
    return text + (f"   (before training: {before['nll']:.4g} nats)" if before else "")


def _value(result: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The metric that counts; of a value that is no number, the record has the name."""
    return f"{float(metrics[result['metric']]):.4g}"


def scale_of(result: dict[str, Any]) -> str:
    """The scale s of the updates, or their scales; "" where there is none."""
    return ", ".join(f"{scale:.4g}" for scale in result.get("variant", {}).get("scales", []))


def _next(result: dict[str, Any], folder: Path) -> list[str]:
    whole = {"variant": "full"} | ({"program": "none"} if result["config"].get("program") else {})
    whole |= {key: "null" for key in ("prior", "start_from") if result["config"].get(key)}
    whole |= {"fsdp": "false"} if result["config"].get("fsdp") else {}  # no part of the base is frozen
    seeds = _with(result["command"], seed="0,1,2").replace("lora_zoo.run ", "lora_zoo.run -m ", 1)
    if result["config"].get("processes"):  # which train no sweep
        of_one = re.sub(r" seed=\S+$", " seed=$seed", _with(result["command"], seed="0"))
        seeds = f"for seed in 0 1 2; do {of_one}; done"
    lines = [
        f"{seeds}   (three seeds)",
        _with(result["command"], **whole) + "   (full fine-tuning)",
    ]
    variant = VARIANTS.find(result["config"]["variant"]["name"])
    by_input = bool(result.get("routing"))  # adapters that are weighed by it have no one weight
    if "adapter" in result and variant.pointwise and not variant.adds_bias and not by_input:
        own = "".join(f" --file {shlex.quote(file)}" for file in result["config"].get("files", ()))
        command = f"python -m lora_zoo.merge {folder} {folder / 'merged'}{own}"
        lines.append(f"{command}   (an ordinary model for transformers)")
    return lines


def _with(command: str, **values: str) -> str:
    """`command` with each key set to its value, and without what belongs to another choice of it."""
    words = [word for word in shlex.split(command) if not re.match(rf"\+*({'|'.join(values)})[=.]", word)]
    return " ".join([shlex.join(words), *(f"{key}={value}" for key, value in values.items())])


def print_line(record: Record, console: Console) -> None:
    """A run of a sweep, in one line."""
    result = record.content
    split = next(reversed(result["metrics"]))
    reached = f"{result['metric']} ({split}) {_against(result, split)}, {result['timings']['total']:.1f} s"
    config, word = result["config"], "done"
    if config["trial"]:
        length = f", {config['steps']} steps" if config["steps"] else ""
        word, reached = "trial", f"lr {config['lr']:g}{length}: {reached}"
    console.print(f"{word}: {result['name']}: {reached}", markup=False, highlight=False, soft_wrap=True)
    if doubt := finding(result):
        console.print(f"finding: {doubt}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_plans(folder: Path) -> None:
    """Print what lr=auto or a search found, and the rule by which seed=auto stopped each cell."""
    console = Console()
    for lines in (_of_rates(folder), _of_search(folder), _of_seeds(folder)):
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _of_rates(folder: Path) -> list[str]:
    rule = "successive halving on validation, {budget:,} steps of trials for each cell"
    return _of_found(folder / RATES, "{key}=auto", rule)


def _of_search(folder: Path) -> list[str]:
    rule = "Optuna's {sampler} on validation, {n_trials:,} trials for each cell"
    return _of_found(folder / SEARCH, "{keys}", rule)


def _of_found(file: Path, key: str, rule: str) -> list[str]:
    """The lines of a plan: what it found for each cell, and its rule; [] where there is no plan."""
    if not file.is_file():
        return []
    plan = read_json(file)
    found = plan.get("found")
    return [
        *(found.split("; ") if found else []),
        f"{key}: {rule if found else 'not found yet'}".format(**plan),
    ]


def _of_seeds(folder: Path) -> list[str]:
    if not (folder / SEEDS).is_file():
        return []
    plan = read_json(folder / SEEDS)
    rule = f"up to {plan['most']} seeds, level {plan['level']:g} for all comparisons of a task"
    line = f"seed=auto: sequential t boundary, {rule}; its intervals hold wherever a cell stopped"
    return [*plan.get("stops", []), line]


def differing(overrides: list[dict[str, str]]) -> list[str]:
    """The keys that the runs' command lines give different values."""
    keys = dict.fromkeys(key for one in overrides for key in one)
    return [key for key in keys if len({one.get(key) for one in overrides}) > 1]


def overrides_of(command: str) -> dict[str, str]:
    """The overrides of a run's command line; of a key that is given twice, the last."""
    words = (word.lstrip("+").partition("=") for word in shlex.split(command) if "=" in word)
    return {key: value for key, _, value in words}


def readable_bytes(size: float) -> str:
    """A size in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"

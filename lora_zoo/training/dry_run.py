"""`dry_run=true`: preview the adapters of a run from the model's configuration alone."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from lora_zoo.config.spec import RunSpec
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.core.init import find_init
from lora_zoo.core.program import Stage, started
from lora_zoo.core.statistics import of_data
from lora_zoo.formats.folders import prior_folders
from lora_zoo.formats.native import load_adapter
from lora_zoo.injection.preview import Preview, PreviewRow, preview
from lora_zoo.injection.targets import head_names
from lora_zoo.models.loading import outline, stored_scheme
from lora_zoo.models.quantization import base_bytes
from lora_zoo.runs.summary import readable_bytes
from lora_zoo.training.experiment import target_arguments
from lora_zoo.training.settling import refuse_unsettled
from lora_zoo.training.stage_record import program_context, stage_spec

T = TypeVar("T")
ADAMW = "adamw_torch"
WIDTH = 110  # a module's name is shown whole, also where the terminal is narrower


def dry_run(spec: RunSpec, console: Console) -> int:
    """Print the table and return the exit code: 0, or 2 for what a run would refuse."""
    try:
        found, parts, held = previewed(spec), spec.parts, in_memory(spec)
    except ValueError as mistake:
        console.print(f"lora_zoo: {mistake}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    print_preview(found, console)
    if not found.unmatched:
        console.print(_memory(spec, held, found.trained_bytes), highlight=False, soft_wrap=True)
        _print_setting(spec, found, parts, console)
    return 2 if found.unmatched else 0


def _print_setting(spec: RunSpec, found: Preview, parts: Mapping[str, float], console: Console) -> None:
    """Print what a run would begin with beside its adapter, and what it would be judged by."""
    if prior := prior_folders(spec.settings.prior or ()):
        console.print(f"under it, frozen: {', '.join(prior)}", markup=False, highlight=False, soft_wrap=True)
    if start := spec.settings.start_from:
        console.print(f"trains on from {start}", markup=False, highlight=False, soft_wrap=True)
    if found.views:
        splits = ", ".join(spec.settings.eval_splits)
        whose = " of the last stage, unless earlier ones settle into it" if spec.settings.program else ""
        text = f"views{whose}: {', '.join(found.views)}, each evaluated on {splits} after training"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if spec.settings.program:
        name = spec.settings.program["name"]
        console.print(f"program {name}: the first of its stages is shown", highlight=False)
    if parts:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in parts.items())
        console.print(f"training examples in parts, each step from one: {shares}", highlight=False)
    if needs := of_data(spec.needs):
        count, text = spec.settings.calibration_examples, ", ".join(needs)
        moved = "; ranks may move across matrices" if find_init(spec.settings.init).allot else ""
        console.print(f"built from {text} of {count} training examples{moved}", highlight=False)


def previewed(spec: RunSpec) -> Preview:
    """Preview the adapters of the run. ValueError for what a run would refuse."""
    settings = spec.settings
    kind = TASK_TYPES[settings.task.type]
    head = kind.outlined_head(settings.task)
    model = outline(settings.model, kind.auto_class, head)
    heads = head_names(model) if kind.has_head else []
    arguments = target_arguments(settings, heads)
    if not settings.program:
        prior = prior_folders(settings.prior or ())
        for name, folder in prior.items():
            load_adapter(model, folder, name=name)
        own = spec.hyperparameters | {"prior": [*prior], "seed": settings.seed}
        return preview(model, spec.variant, **arguments, **own)
    stage = _first_stage(spec)
    first = stage_spec(spec, stage, 1)
    if stage.then == "settle":
        refuse_unsettled(first.variant, f"program {settings.program['name']}")
    own = arguments | first.hyperparameters | stage.arguments
    return preview(model, first.variant, **own, seed=first.settings.seed)


def in_memory(spec: RunSpec) -> float | None:
    """The bytes of the run's base once it is loaded; None where its files say how it is quantised."""
    settings, kind = spec.settings, TASK_TYPES[spec.settings.task.type]
    if stored_scheme(settings.model):
        return None
    model = outline(settings.model, kind.auto_class, kind.outlined_head(settings.task))
    return base_bytes(model, settings.model, head_names(model) if kind.has_head else [])


def _memory(spec: RunSpec, base: float | None, trained: int) -> str:
    """One line: what lies in memory whatever the batch is."""
    optim, of = str(spec.settings.trainer.get("optim", ADAMW)), spec.settings.model
    adamw, size = optim.startswith(ADAMW), readable_bytes
    several = (spec.settings.processes or 1) if spec.settings.fsdp else 1
    divided = f", of {several} processes each its part" if several > 1 else ""
    base = base and base / several
    kind = f"{of.quantization or of.dtype}{divided}"
    parts = [
        "base as its files have it" if base is None else f"base {size(base)} ({kind})",
        f"what trains {size(trained)}, its gradients {size(trained)}",
        f"AdamW's moments {size(2 * trained)}" if adamw else f"the state of {optim}",
        *([f"together {size(base + 4 * trained)}"] if adamw and base is not None else []),
    ]
    return f"memory: {', '.join(parts)}; activations come on top"


def _first_stage(spec: RunSpec) -> Stage:
    """The first stage of the run's program, for a run of many steps where their number is not known yet."""
    settings = spec.settings
    steps = settings.steps or (None if settings.epochs else settings.task.steps) or 10**6
    context = program_context(spec, steps, lambda: iter(()))
    return next(started(settings.program, context))


def print_preview(found: Preview, console: Console) -> None:
    """One line for matrices that differ only in their layer's (or expert's) number."""
    if found.rows:
        Console(file=console.file, width=max(console.width, WIDTH)).print(_table(found))
    for names in _grouped(found.fully_trained, _pattern):
        size = sum(found.fully_trained[name] for name in names)
        console.print(f"fully trained: {_numbered(names)} ({size:,})", highlight=False, soft_wrap=True)
    if found.shared:
        where = "shared by all matrices" if found.rows else "in modules of its own"
        console.print(f"{where}: {found.shared:,} trainable", highlight=False)
    share = found.trainable / found.total
    console.print(
        f"trainable: {found.trainable:,} of {found.total:,} ({share:.4%}) in {len(found.rows)} matrices; "
        f"adapter on disk: {readable_bytes(found.bytes)}",
        highlight=False,
        soft_wrap=True,
    )
    idle = ", ".join(f"{role} x{count}" for role, count in found.idle.items())
    console.print(f"not adapted: {idle or 'no matrix, all are trained'}", highlight=False, soft_wrap=True)
    for sentence in found.unmatched:
        console.print(f"no match: {sentence}", style="red", markup=False, highlight=False, soft_wrap=True)


def _table(found: Preview) -> Table:
    table = Table(title=f"{found.variant} would adapt", title_justify="left", box=box.SIMPLE)
    for column in ("module", "role", "slice", "shape", "rank", "alpha", "scale", "count", "trainable"):
        numeric = column in ("rank", "alpha", "scale", "count", "trainable")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for rows in folded(found.rows):
        first = rows[0]
        table.add_row(
            _numbered([row.tensor for row in rows]),
            first.role or "-",
            _numbered([row.part for row in rows]) or "all",
            "x".join(map(str, first.shape)),
            *("-" if value is None else f"{value:.4g}" for value in (first.rank, first.alpha, first.scale)),
            str(len(rows)),
            f"{sum(row.trainable for row in rows):,}",
        )
    return table


def folded(rows: Iterable[PreviewRow]) -> list[list[PreviewRow]]:
    """The rows in groups that differ in nothing but numbers within their names."""
    return _grouped(
        rows, lambda row: (_pattern(row.name), row.role, row.shape, row.rank, row.alpha, row.trainable)
    )


def _grouped(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    groups: dict[object, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _numbered(names: list[str]) -> str:
    """Names that differ in numbers alone as one: layers.{0-79}.q_proj."""
    words = [re.split(r"(\d+)", name) for name in names]
    columns = [list(dict.fromkeys(column)) for column in zip(*words, strict=True)]
    return "".join(column[0] if len(column) == 1 else f"{{{_ranges(column)}}}" for column in columns)


def _ranges(numbers: list[str]) -> str:
    """0-3,6 for 0, 1, 2, 3, 6."""
    ordered, runs = sorted(map(int, numbers)), list[list[int]]()
    for number in ordered:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)

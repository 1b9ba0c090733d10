"""Tracking of a run in Weights & Biases; the local files are the record and never depend on it.

with open_tracker(tracking, directory=folder, name=name, config=config, group=group, tags=tags) as tracker:
    train(report_to=tracker.report_to)         # transformers' callback logs into the run opened here
    tracker.finish(result, adapter, spectra)

What W&B cannot do (no network, no disk, its process gone) costs a warning, not the training.
"""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, final

from lora_zoo.core.errors import unknown
from lora_zoo.core.processes import current
from lora_zoo.runs import wandb_session
from lora_zoo.runs.record import plain
from lora_zoo.runs.redact import redacted
from lora_zoo.runs.wandb_session import artifact_name, failures, flat, survived

BACKENDS = ("wandb", "none")
STEP = "train/global_step"  # the axis of transformers' callback
TRACKED = (
    *("state", "metrics", "views", "zero_shot", "parameters", "timings", "memory", "retention"),
    *("likelihood", "zero_shot_likelihood", "view_likelihood", "routing", "groups", "zero_shot_groups"),
    *("command", "started", "metric", "metric_facts", "variant", "adapter", "data", "environment", "made_of"),
)
COLUMNS = ("name", "O", "I", "norm", "relative norm", "stable rank", "effective rank", "top singular values")
TOP = 8
LIMITS = {"init_timeout": 60.0, "finish_timeout": 600.0, "finish_timeout_raises": True}  # seconds
QUIET = {"silent": True, "console": "off", "save_code": False, "disable_code": True, "disable_git": True}


class TrackedTable(NamedTuple):
    """A table: in each row a value for each of the columns."""

    columns: list[str | int]
    rows: list[list[Any]]


class Tracker:
    """A run that is tracked nowhere; its methods say what W&B's do.

    Leaving the `with` block closes it whatever happened inside.
    """

    report_to: ClassVar[list[str]] = []
    where: str = ""
    """One line for the user: the address, or the command that uploads an offline run; "" without tracking."""

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """One point of the curves, at optimiser step `step`."""

    def finish(self, result: dict[str, Any], adapter: Path | None, spectra: list[dict[str, Any]]) -> None:
        """Write the outcome and close; exit code 0 only if `result["state"]` is done."""

    def show(self, tables: Mapping[str, TrackedTable], images: Mapping[str, Path]) -> None:
        """Tables and images by their names there."""

    def close(self, exit_code: int) -> None:
        """Close without an outcome; nothing happens where it is closed already."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(0 if kind is None else 1)


@final
class WandbTracker(Tracker):
    """An open W&B run, also `wandb.run`, which transformers' callback uses. `surroundings` end with it."""

    report_to: ClassVar[list[str]] = ["wandb"]

    def __init__(self, surroundings: contextlib.ExitStack, *, keep_adapter: bool, **init: Any) -> None:
        import wandb

        self.wandb, self.keep_adapter, self.config = wandb, keep_adapter, init["config"]
        known = wandb.Settings.model_fields  # wandb grows them from version to version
        settings: dict[str, Any] = {k: v for k, v in (QUIET | LIMITS).items() if k in known}
        wandb_session.without_launch()
        if wandb.run is not None:  # someone's who left it open; other jobs' of a pack are not seen here
            wandb.run.finish()
        self.run: Any = wandb.init(settings=wandb.Settings(**settings), reinit="create_new", **init)
        # What transformers' callback reads; a new run beside others does not claim it.
        wandb.run, wandb.config, wandb.summary = self.run, self.run.config, self.run.summary
        wandb.define_metric, wandb.watch = self.run.define_metric, self.run.watch
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP, step_sync=True)
        wandb.log = self._log  # the callback's way in
        offline = f"wandb sync {shlex.quote(str(self.run.settings.sync_dir))}"
        self.where = offline if init["mode"] == "offline" else str(self.run.url)
        self.surroundings = surroundings.pop_all()

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._log(metrics if step is None else {**metrics, STEP: step})

    def _log(self, *arguments: Any, **options: Any) -> None:
        try:
            self.run.log(*arguments, **options)
        except failures() as error:
            wandb_session.warn("stopped taking the curves", error)
            # all further calls, the callback's too, go to a run that does nothing; the next job starts afresh
            self.run = self.wandb.init(mode="disabled")
            with contextlib.suppress(SystemExit, *failures()):
                self.wandb.teardown()

    def finish(self, result: dict[str, Any], adapter: Path | None, spectra: list[dict[str, Any]]) -> None:
        with survived("did not take the results"):
            self.run.config.update(self.config, allow_val_change=True)  # where the callback wrote over it
            self.run.summary.update(flat(redacted({key: result[key] for key in TRACKED if key in result})))
            if spectra:
                table = self.wandb.Table(columns=list(COLUMNS), data=[_cells(row) for row in spectra])
                self.run.log({"spectra": table})
        with survived("did not take the adapter"):
            if adapter is not None and self.keep_adapter:
                self._keep(adapter)
        self.close(0 if result.get("state") == "done" else 1)

    def show(self, tables: Mapping[str, TrackedTable], images: Mapping[str, Path]) -> None:
        with survived("did not take the tables"):
            made = {
                name: self.wandb.Table(columns=sheet.columns, data=sheet.rows)
                for name, sheet in tables.items()
            }
            self.run.log(made)
        with survived("did not take the figures"):
            self.run.log({name: self.wandb.Image(str(path)) for name, path in images.items()})

    def _keep(self, adapter: Path) -> None:
        artifact = self.wandb.Artifact(artifact_name(self.run.name), type="model")
        add = artifact.add_dir if adapter.is_dir() else artifact.add_file
        add(str(adapter.resolve()), policy="immutable", skip_cache=True)  # uploaded from where it lies
        self.run.log_artifact(artifact)

    def close(self, exit_code: int) -> None:
        with self.surroundings, survived("did not close the run"):
            run, self.run = self.run, None
            if run is not None:
                run.finish(exit_code=exit_code)


def open_tracker(
    tracking: Mapping[str, Any],
    *,
    directory: Path,
    name: str,
    config: dict[str, Any],
    group: str | None,
    tags: Sequence[str],
    job_type: str | None = None,
) -> Tracker:
    """Open the tracker that `tracking` asks for, its files under `directory`/wandb.

    Mode auto is WANDB_MODE if set, else online for a user who is logged in, else offline. An online run that
    cannot be opened becomes an offline one. `job_type` sets runs apart that are no trainings: "report".
    ValueError for a backend or mode that does not exist.
    """
    backend, mode = tracking.get("backend", "wandb"), wandb_session.mode(tracking.get("mode", "auto"))
    if backend not in BACKENDS:
        raise ValueError(unknown("tracking.backend", backend, BACKENDS))
    if backend == "none" or mode == "disabled" or not current().leads:
        return Tracker()
    chosen = {key: tracking.get(key) or None for key in ("project", "entity", "notes")}
    labels = dict.fromkeys(str(tag)[:64] for tag in (*(tracking.get("tags") or ()), *tags) if tag)
    init = redacted(
        chosen
        | {"name": name, "group": group, "job_type": job_type, "tags": list(labels), "config": plain(config)}
    )
    init |= {"dir": str(directory.resolve())}
    with contextlib.ExitStack() as surroundings, survived("tracks nothing of this run"):
        surroundings.enter_context(wandb_session.environment(directory.resolve() / "wandb"))
        keep_adapter = bool(tracking.get("log_adapter", True))
        if wandb_session.goes_online(mode):
            with survived("is not reached, so this run is tracked offline"):
                return WandbTracker(surroundings, keep_adapter=keep_adapter, mode="online", **init)
        return WandbTracker(surroundings, keep_adapter=keep_adapter, mode="offline", **init)
    return Tracker()


def _cells(row: Mapping[str, Any]) -> list[Any]:
    numbers = [row[key] for key in ("norm", "relative_norm", "stable_rank", "effective_rank")]
    return [row["name"], *row["shape"], *numbers, list(row["singular_values"][:TOP])]

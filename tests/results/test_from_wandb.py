"""The frame from W&B: a stand-in for its API serves what our mirror wrote into an offline run."""

import copy
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from transformers.integrations.integration_utils import rewrite_logs

from lora_zoo import runs as results
from lora_zoo.runs import tracking as trackers
from tests.recorded import recorded, update, written
from tests.test_tracking import config_of, history_of, records, summary_of

PROJECT = "team/zoo"
KEPT = [
    "run",
    "name",
    "state",
    "variant",
    "rank",
    "alpha",
    "init",
    "target_modules",
    "lr",
    "seed",
    "steps",
    "task",
]
MEASURED = [
    "metric",
    "validation",
    "test",
    "zero_shot_test",
    "loss",
    "trainable",
    "step_seconds",
    "saved_bytes",
]
MADE = ["commit", "dirty", "stale", "contradiction", "adapter_bytes", "metrics.test.exact_match", "command"]


class Run:
    """A run as `wandb.Api()` has it, from the files of an offline one."""

    def __init__(self, folder: Path, name: str) -> None:
        found = records(folder)
        self.name, self.state = name, "finished"
        self.config, self.rows = config_of(found), history_of(found)
        self.summary_metrics = nested(summary_of(found))
        (self.files,) = folder.glob("wandb/*run-*/files")

    def scan_history(self) -> Iterator[dict[str, Any]]:
        yield from self.rows

    def file(self, name: str) -> Any:
        class File:
            @staticmethod
            def download(root: str, replace: bool) -> StringIO:
                target = Path(root) / name
                target.parent.mkdir(parents=True)
                target.write_text((self.files / name).read_text())
                return StringIO()

        return File


def nested(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary as the API gives it: a logged table is a tree, keys with slashes are not."""
    table = {
        key.removeprefix("spectra/"): value for key, value in summary.items() if key.startswith("spectra/")
    }
    return {key: value for key, value in summary.items() if not key.startswith("spectra/")} | {
        "spectra": table
    }


class Service:
    def __init__(self, *runs: Any) -> None:
        self.given, self.filters = runs, {}

    def runs(self, path: str, filters: dict[str, Any]) -> Iterator[Any]:
        assert path == PROJECT
        self.filters = filters
        return iter(self.given)


RECORD = recorded(
    "variant=dora",
    "rank=4",
    metric_facts={"exact_match": {"higher_is_better": False, "range": [0.0, 1.0]}},
    updates=[update(f"model.layers.{n}.self_attn.q_proj", 2.0) for n in (0, 1)],
)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Run]:
    """The frame of a run's folder, and the run in W&B."""
    root = tmp_path_factory.mktemp("tracked")
    written(root / "runs", RECORD)
    name = f"{RECORD['name']}-{RECORD['identity']}"
    tracking = {"project": "zoo", "mode": "offline", "log_adapter": False}
    with trackers.open_tracker(
        tracking, directory=root, name=name, config=RECORD["config"], group="sweep", tags=[]
    ) as opened:
        for entry in RECORD["history"][:-1]:  # the trainer's last words go to the summary alone
            opened.log(rewrite_logs({k: v for k, v in entry.items() if k != "step"}), entry["step"])
        opened.finish(RECORD, None, RECORD["updates"])
    return results.load(root / "runs"), Run(root, name)


def test_the_frame_is_that_of_the_folder_as_far_as_wandb_goes(
    tracked: tuple[pd.DataFrame, Run],
) -> None:
    frame, run = tracked
    service = Service(run)
    there = results.load_wandb(PROJECT, group="sweep", api=service)
    assert service.filters == {"group": "sweep"}
    columns = [*KEPT, *MEASURED, *MADE]
    pd.testing.assert_frame_equal(frame[columns], there[columns], check_dtype=False)
    assert there["folder"].isna().all()
    pd.testing.assert_frame_equal(results.histories(frame), results.histories(there), check_like=True)
    spectra, tracked_spectra = results.updates(frame), results.updates(there)
    pd.testing.assert_frame_equal(spectra, tracked_spectra, check_like=True)
    assert results.axes(there) == []
    assert results.metric_facts(there, "exact_match").higher_is_better is False  # not today's, which is True


def test_a_run_of_an_older_tracker_says_what_its_settings_say(tracked: tuple[pd.DataFrame, Run]) -> None:
    frame, run = tracked
    older = copy.copy(run)
    added = ("command", "started", "metric", "variant", "adapter", "data", "environment", "made_of")
    older.summary_metrics = {
        key: value for key, value in run.summary_metrics.items() if key.split("/")[0] not in added
    } | {"metrics/test/exact_match": "NaN", "spectra": None}
    there = results.load_wandb(PROJECT, api=Service(older))
    pd.testing.assert_frame_equal(frame[KEPT], there[KEPT], check_dtype=False)
    assert there["test"].isna().all() and there["commit"].isna().all() and results.updates(there).empty


def test_of_a_run_that_was_begun_again_the_last_counts_and_others_are_passed_over(
    tracked: tuple[pd.DataFrame, Run],
) -> None:
    _, run = tracked
    stranger, killed = copy.copy(run), copy.copy(run)
    stranger.config = {"variant": "resnet", "lr": 1}
    killed.state, killed.summary_metrics = "crashed", {}
    assert results.load_wandb(PROJECT, api=Service(stranger, killed, run))["state"].tolist() == ["done"]
    assert results.load_wandb(PROJECT, api=Service(killed))["state"].tolist() == ["interrupted"]
    with pytest.raises(ValueError, match="none of the 1 runs of team/zoo in the group g is one of lora_zoo"):
        results.load_wandb(PROJECT, group="g", api=Service(stranger))


def test_what_wandb_refuses_is_said() -> None:
    class Refusing:
        def runs(self, path: str, filters: dict[str, Any]) -> None:
            raise wandb.errors.CommError("no such\nproject")

    with pytest.raises(ValueError, match="W&B does not give the runs of team/zoo: no such project"):
        results.load_wandb(PROJECT, api=Refusing())

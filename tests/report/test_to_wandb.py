"""The report in W&B, read back from the file that `wandb sync` uploads; its failures cost a warning."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import sweep

from lora_zoo.report import to_wandb
from lora_zoo.report.report import Report
from lora_zoo.report.writing import write_figures
from lora_zoo.runs import tracking as mirrors
from tests.test_tracking import alone, exit_code, history_of, of_kind, records  # noqa: F401  (alone: used by all)

TRACKED = {
    "config.tracking.backend": "wandb",
    "config.tracking.mode": "offline",
    "config.tracking.project": "zoo",
}


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    frame = sweep().assign(**TRACKED)
    return frame.assign(folder=[f"/runs/sweep-1/{name}" for name in frame["name"]])


@pytest.fixture(scope="module")
def report(runs: pd.DataFrame) -> Report:
    made = Report(runs)
    del made.figures.views[1:]
    return made


def table(folder: Path, row: dict[str, Any], name: str) -> dict[str, Any]:
    (file,) = folder.glob(f"wandb/*run-*/files/{row[f'{name}/path']}")
    return json.loads(file.read_text())


def test_tables_figures_and_verdicts_are_in_the_sweeps_group(report: Report, tmp_path: Path) -> None:
    pngs = write_figures(report, tmp_path)
    where = to_wandb.send(report, pngs, tmp_path)
    assert where.startswith("wandb sync ")
    found = records(tmp_path)
    (run,) = of_kind(found, "run")[:1]
    assert (run.project, run.run_group, run.job_type) == ("zoo", "sweep-1", "report")
    assert exit_code(found) == 0
    logged = {key: value for row in history_of(found) for key, value in row.items()}
    cells = table(tmp_path, logged, "tables/runs")
    assert len(cells["data"]) == 4 and "variant" in cells["columns"]
    claims = table(tmp_path, logged, "claims")
    assert len(claims["data"]) == len(report.ledger) > 50
    assert table(tmp_path, logged, "integrity")["columns"] == ["kind", "said", "runs"]
    images = {key.removesuffix("/_type") for key, value in logged.items() if value == "image-file"}
    assert images == {f"figures/{name}" for name in pngs} and len(images) >= 2


def test_runs_that_were_not_mirrored_get_no_report_there(runs: pd.DataFrame, tmp_path: Path) -> None:
    for frame in (runs.assign(**{"config.tracking.backend": "none"}), sweep()):
        assert to_wandb.send(Report(frame), {}, tmp_path) == ""
    assert not list(tmp_path.iterdir())


def test_a_failing_wandb_costs_a_warning(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {"figures": tmp_path / "absent.png"}
    with pytest.warns(UserWarning, match="W&B did not take the figures"):
        to_wandb.send(report, absent, tmp_path)

    def broken(**_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(mirrors, "WandbTracker", lambda *_, **__: broken())
    with pytest.warns(UserWarning, match="tracks nothing of this run"):
        assert to_wandb.send(report, {}, tmp_path / "second") == ""


def test_the_group_is_the_sweep_of_all_runs_or_none(runs: pd.DataFrame) -> None:
    assert to_wandb.group_of(runs) == "sweep-1"
    assert to_wandb.group_of(runs.assign(folder=None)) is None
    mixed = runs.assign(folder=["/runs/a/x", *["/runs/b/x"] * (len(runs) - 1)])
    assert to_wandb.group_of(mixed) is None

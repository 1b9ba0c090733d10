"""The end of a sweep on the terminal: a row a cell, with an interval over its seeds."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from lora_zoo.report.of_sweep import print_sweep
from lora_zoo.runs.record import SCHEMA


def record(variant: str, seed: int, score: float | None, **more: Any) -> dict[str, Any]:
    done = {"metrics": {"test": {"exact_match": score}}} if score is not None else {}
    return {
        "schema": SCHEMA,
        "name": f"{variant}-{seed}",
        "state": "done" if done else "failed",
        "command": f"python -m lora_zoo.run variant={variant} rank=2 seed={seed}",
        "config": {"variant": {"name": variant}, "trial": False},
        "variant": {"name": variant, "hyperparameters": {"rank": 2}, "scales": [2.0]},
        "metric": "exact_match",
        "parameters": {"trainable": 4096},
        "timings": {"step_median": 0.25},
        **done,
        **more,
    }


def printed(folder: Path, capsys: pytest.CaptureFixture[str], *records: dict[str, Any]) -> str:
    for one in records:
        (folder / one["name"]).mkdir()
        (folder / one["name"] / "result.json").write_text(json.dumps(one))
    print_sweep(folder)
    return capsys.readouterr().out


def test_a_cell_of_a_sweep_is_a_row_with_the_t_interval_over_its_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    scores = [0.25, 0.5, 0.75]
    runs = [record("dora", seed, score) for seed, score in enumerate(scores)]
    text = printed(tmp_path, capsys, *runs, record("lora", 0, 0.5), record("lora", 1, None))
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    dora, lora = ([cell.strip() for cell in row] for row in rows)
    half = stats.t.ppf(0.975, 2) * 0.25 / 3**0.5
    assert dora == ["dora", f"0.5 ± {half:.2g}", "3", "2", "2", "4,096", "0.25"]
    assert lora[:3] == ["lora", "0.5", "1 of 2"]
    assert "failed: lora-1: no reason was recorded" in text


def test_a_summary_of_a_sweep_fits_eighty_columns_and_its_paths_are_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(tmp_path, capsys, record("dora", 0, 0.5), record("lora", 0, 0.5))
    assert f"written to {tmp_path}\n" in text
    assert all(len(line) <= 80 or str(tmp_path) in line for line in text.splitlines())

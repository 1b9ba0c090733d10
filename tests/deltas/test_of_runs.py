"""Tables of many runs: as they were recorded, else made of the adapters, with or without records of runs."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from lora_zoo import runs as results
from lora_zoo import updates

KEPT = Path(__file__).parents[2] / "experiments" / "lora_table7"
SETTINGS = ["variant", "rank", "seed"]


@pytest.fixture(scope="module")
def two() -> pd.DataFrame:
    """Two of the committed runs, of ranks 4 and 8, whose adapters and tables were kept."""
    runs = updates.runs(KEPT)
    return runs[(runs["seed"] == 1) & runs["rank"].isin([4, 8])]


def without(runs: pd.DataFrame, **changes: object) -> pd.DataFrame:
    """The same runs, whose records hold no tables."""
    return runs.assign(record=[{**record, "deltas": {}} for record in runs["record"]], **changes)


@pytest.mark.parametrize("table", ["amplification", "intruders"])
def test_what_is_made_of_an_adapter_is_what_was_recorded(two: pd.DataFrame, table: str) -> None:
    recorded, made = updates.of_runs(two, table), updates.of_runs(without(two), table)
    assert len(recorded) == len(made) == 16 and set(made["rank"]) == {4, 8}
    numbers = recorded.select_dtypes("number").columns.drop(["layer"])
    pd.testing.assert_frame_equal(made[numbers], recorded[numbers], check_dtype=False, rtol=1e-3)
    assert made["run"].tolist() == recorded["run"].tolist()


def test_what_was_recorded_outlives_the_adapter(two: pd.DataFrame) -> None:
    gone = updates.of_runs(two.assign(adapter=None), "touched")
    assert gone[["run", "name"]].equals(updates.of_runs(two, "touched")[["run", "name"]])


def test_a_record_alone_tells_spectra_and_changes_and_nothing_else(two: pd.DataFrame) -> None:
    bare = without(two, adapter=None)
    spectra, whole = updates.of_runs(bare, "spectra"), updates.of_runs(two, "spectra")
    assert spectra["effective_rank"].tolist() == pytest.approx(whole["effective_rank"].tolist(), rel=1e-3)
    assert spectra[SETTINGS].drop_duplicates().to_numpy().tolist() == [["lora", 4, 1], ["lora", 8, 1]]
    changes, made = updates.of_runs(bare, "changes"), updates.of_runs(without(two), "changes")
    assert changes["magnitude_change"].tolist() == pytest.approx(made["magnitude_change"].tolist(), rel=1e-3)
    with pytest.raises(ValueError, match="no run has recorded the table 'overlap', and none has an adapter"):
        updates.of_runs(bare, "touched")


def test_a_run_that_failed_is_left_out(two: pd.DataFrame) -> None:
    states = two.assign(state=["done", "failed"])
    assert updates.of_runs(states, "spectra")["run"].unique().tolist() == [two["run"].iloc[0]]


def test_adapters_are_enough(two: pd.DataFrame, tmp_path: Path) -> None:
    for place, adapter in zip(
        ("a", "deep/b", "deep/c"), [*two["adapter"], two["adapter"].iloc[0]], strict=True
    ):
        shutil.copytree(adapter, tmp_path / place)
    found = updates.runs(tmp_path)
    assert found[SETTINGS].to_numpy().tolist() == [["lora", 4, 0], ["lora", 8, 0], ["lora", 4, 1]]
    norms = updates.of_runs(found, "spectra").groupby("run")["norm"].sum()
    read = updates.spectra(updates.read(two["adapter"].iloc[1]))["norm"].sum()
    assert norms[str(tmp_path / "deep" / "b")] == pytest.approx(read)


def test_runs_are_loaded_as_results_are(tmp_path: Path) -> None:
    archive = KEPT / "results.jsonl.gz"
    pd.testing.assert_series_equal(updates.runs(archive)["test"], results.load(archive)["test"])
    with pytest.raises(ValueError, match="holds neither runs nor adapters"):
        updates.runs(tmp_path)

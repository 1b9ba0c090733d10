"""The likelihood of references in records, frames, archives, tables and at the end of a run."""

import gzip
import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from torch import nn

from lora_zoo import runs
from lora_zoo.analysis.protocol import cells
from lora_zoo.analysis.statistics import paired_items
from lora_zoo.core.routing import RoutingRecord
from lora_zoo.metrics import load as load_metric
from lora_zoo.report.tables import main_table
from lora_zoo.runs.curves import kept_of, packed_nll
from lora_zoo.runs.record import Record
from lora_zoo.runs.summary import _rows
from lora_zoo.training.evaluation import Evaluator
from tests.recorded import recorded, written

TESTED = {"nll": 0.5, "nats_per_token": 0.25, "bits_per_example": 0.5 / math.log(2), "items": 3, "tokens": 6}
TESTED |= {"bits_per_token": 0.25 / math.log(2)}
VALUES = {0: 0.123456, 1: 1e-7 / 3, 2: 1234.567}
SCORES = {0: 1.0, 1: 0.0, 2: 1.0}


def of(nll: float) -> dict[str, Any]:
    return {"likelihood": {"test": TESTED | {"nll": nll}}}


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    """Two variants of three seeds, nll beside scores that tell nothing, and a run of an older version."""
    for number, variant in enumerate(("lora", "dora")):
        for seed in range(3):
            nll = {item: value * (1 + number) + seed / 100 for item, value in VALUES.items()}
            record = recorded(f"variant={variant}", f"seed={seed}", **of(0.5 + number + seed / 100))
            written(tmp_path / "runs", record, {"test": SCORES}, {"test": nll})
    written(tmp_path / "runs", recorded("variant=pissa", "seed=0"), {"test": SCORES})
    return runs.load(tmp_path / "runs")


def test_a_frame_has_the_nll_of_runs_that_recorded_it(frame: pd.DataFrame) -> None:
    by_variant = frame.groupby("variant")["test_nll"].mean()
    assert by_variant.to_dict() == pytest.approx({"lora": 0.51, "dora": 1.51, "pissa": math.nan}, nan_ok=True)
    assert frame["zero_shot_test_nll"].isna().all()
    assert frame["likelihood.test.bits_per_token"].notna().sum() == 6
    table = cells(frame, by=["variant"], value="test_nll")
    assert (table.better, str(table.best())) == ("lower", "variant=lora")
    assert "1 done runs have no test_nll" in " ".join(table.warnings)


def test_a_table_by_nll_says_so(frame: pd.DataFrame) -> None:
    newer = frame[frame["variant"] != "pissa"]
    about = [{"name": "mine", "value": "test_nll", "rows": ["variant"]}] * len(newer)
    table = main_table(newer.assign(experiment="mine", experiment_about=about))
    assert "test_nll" in table.columns and "**0.510" in table.markdown()
    table = main_table(newer.assign(test_nll=newer["test_nll"] / 100, experiment_about=about))
    assert "**0.0051" in table.markdown(), "a small nll keeps its digits"


def test_examples_give_their_nll_items_by_runs(frame: pd.DataFrame, tmp_path: Path) -> None:
    found = runs.examples(frame, of="nll")
    assert found.shape == (3, 6), "the older run kept none"
    table = cells(frame[frame["variant"] != "pissa"], by=["variant"])
    scores = {cell.key["variant"]: cell.scores(found) for cell in table.cells}
    difference = paired_items(scores["dora"], scores["lora"])
    assert (difference.estimate, difference.n) == (pytest.approx(sum(VALUES.values()) / 3), 3)
    kept = runs.archive(frame, tmp_path / "a.jsonl.gz")
    again = runs.load(kept)
    pd.testing.assert_frame_equal(runs.examples(again, of="nll"), found, rtol=5e-4, atol=3e-8)
    pd.testing.assert_frame_equal(runs.examples(again), runs.examples(frame))
    records = [json.loads(line) for line in gzip.decompress(kept.read_bytes()).splitlines()]
    assert sum("nll" in record for record in records) == 6, "an older record is as it was"
    assert runs.archive(again, tmp_path / "b.jsonl.gz").read_bytes() == kept.read_bytes()
    great = {"nll": {"test": packed_nll({4: 1e6, 1: 0.5})}, "scores": {}}
    assert kept_of(great, None)["nll"]["test"] == {4: 1e6, 1: 0.5}
    with pytest.raises(ValueError, match="none of the 1 runs kept the nll of examples of the split 'test'"):
        runs.examples(frame[frame["variant"] == "pissa"], of="nll")
    with pytest.raises(ValueError, match="score and nll; got of='bits'"):
        runs.examples(frame, of="bits")


def test_a_view_has_its_own_nll(tmp_path: Path) -> None:
    views = {"rank=1": {"test": {"exact_match": 0.25}}, "rank=2": {"test": {"exact_match": 0.5}}}
    record = recorded("+variant=dylora", "rank=4", **of(0.5), views=views)
    written(tmp_path, record | {"view_likelihood": {"rank=1": {"test": TESTED | {"nll": 3.0}}}})
    rows = runs.by_view(runs.load(tmp_path)).set_index("view")
    assert rows["test_nll"].to_dict() == pytest.approx(
        {"whole": 0.5, "rank=1": 3.0, "rank=2": math.nan}, nan_ok=True
    )
    assert rows["likelihood.test.nll"].equals(rows["test_nll"].rename("likelihood.test.nll"))


def test_an_evaluation_records_the_likelihood(tmp_path: Path) -> None:
    answer = {"prediction": 0, "reference": 0, "score": 1.0, "tokens": 2}
    outcomes = [{"item": item, "nll": nll, **answer} for item, nll in VALUES.items()]
    task, noted = SimpleNamespace(groups=None), lambda: nullcontext(RoutingRecord())
    kind = SimpleNamespace(outcomes=lambda *_: outcomes, metric_arguments=lambda name: {}, task=task)
    record = Record(tmp_path, name="n", config={}, metric="accuracy")
    hooks = SimpleNamespace(views=lambda: {"rank=1": nullcontext()})
    judge = Evaluator(
        SimpleNamespace(model=nn.Linear(1, 1), hooks=hooks, recorded_routing=noted, effective=nullcontext),
        SimpleNamespace(kind=kind, splits={"test": []}),
        {"accuracy": load_metric("accuracy")},
        record=record,
        eval_splits=["test"],
    )
    record.update(**judge.evaluate(keep=True).under("metrics", "likelihood"))
    mean = sum(VALUES.values()) / 3
    told = {"nll": mean, "nats_per_token": mean / 2, "items": 3, "tokens": 6}
    told |= {"bits_per_example": mean / math.log(2), "bits_per_token": mean / 2 / math.log(2)}
    assert record.content["likelihood"]["test"] == pytest.approx(told)
    judge.judge_views()
    assert record.content["views"] == {"rank=1": {"test": {"accuracy": 1.0}}}
    assert record.content["view_likelihood"]["rank=1"]["test"] == pytest.approx(told)
    kind.outcomes = lambda model, split: [answer]
    assert judge.evaluate(keep=False).under("metrics", "likelihood") == {
        "metrics": {"test": {"accuracy": 1.0}}
    }


def test_a_run_ends_with_one_row_of_it(tmp_path: Path) -> None:
    judged = recorded(likelihood={"test": TESTED}, zero_shot_likelihood={"test": TESTED})
    row = "0.5 nats, 0.3607 bits per token   (before training: 0.5 nats)"
    assert dict(_rows(judged, tmp_path))["nll (test)"] == row
    assert not any("nll" in name for name, _ in _rows(recorded(), tmp_path))


def test_the_switch_changes_no_identity_and_is_no_axis(tmp_path: Path) -> None:
    for number, word in enumerate(("true", "false")):
        written(tmp_path, recorded(f"task.likelihood={word}", f"data_seed={number}"))
    assert runs.axes(runs.load(tmp_path)) == []
    one, other = (recorded(f"task.likelihood={word}") for word in ("true", "false"))
    assert one["identity"] == other["identity"] and one["made_of"] == other["made_of"]

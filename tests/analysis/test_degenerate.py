"""Degenerate results: each kind is found in the record, told by findings, tables and terminal, never bold."""

import io
import random
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from lora_zoo import runs as results
from lora_zoo.analysis.integrity import findings
from lora_zoo.core.routing import RoutingRecord
from lora_zoo.metrics import load as load_metric
from lora_zoo.report.tables import main_table
from lora_zoo.runs.degenerate import answers, degenerate
from lora_zoo.runs.record import Record
from lora_zoo.runs.summary import print_line
from lora_zoo.training.evaluation import Evaluator
from tests.recorded import recorded, update, written

SPLIT = {"items": 100, "distinct": 1, "references": 2, "common": 1}
ONE_CLASS = {
    "answers": {"test": SPLIT},
    "majority": {"test": {"exact_match": 0.56}},
}
BELOW_ROUNDING = update("q", 3e-30) | {"norm": 3e-30, "relative_norm": 5e-30}
STILL = {"updates": [update("q", 0.0) | {"norm": 0.0}]}


@pytest.mark.parametrize(
    ("more", "kind", "says"),
    [
        (ONE_CLASS, "one answer", "one class for all 100 items of test"),
        (
            {"answers": {"test": ONE_CLASS["answers"]["test"] | {"common": None}}},
            "one answer",
            "one answer for",
        ),
        (STILL, "nothing moved", "ΔW is 0 in every matrix"),
        ({"updates": [BELOW_ROUNDING]}, "nothing moved", "to W's rounding"),
        ({"test": "nan"}, "no number", "exact_match of validation is NaN or Inf"),
        ({"test": float("inf")}, "no number", "is NaN or Inf"),
    ],
)
def test_each_kind_is_found(more: dict[str, Any], kind: str, says: str) -> None:
    found = degenerate(recorded("rank=4", **more))
    assert set(found) == {kind} and says in found[kind]


@pytest.mark.parametrize(
    "more",
    [
        {"state": "diverged", **ONE_CLASS},
        {"answers": {"test": {"items": 1, "distinct": 1, "references": 1, "common": 0}}},
        {"updates": []},
        {"parameters": {"trainable": 0, "total": 9, "adapted": 0}, **STILL},
    ],
)
def test_what_is_no_such_result_is_left_alone(more: dict[str, Any]) -> None:
    assert degenerate(recorded("rank=4", **more)) == {}


def test_answers_are_counted_for_any_classes() -> None:
    draw = random.Random(0)
    for _ in range(50):
        references = [draw.randrange(3) for _ in range(draw.randrange(1, 30))]
        predictions = [draw.randrange(3) for _ in references]
        told = answers(predictions, references)
        assert told["distinct"] == len(set(predictions)) and told["references"] == len(set(references))
        assert references.count(told["common"]) == max(map(references.count, references))
    same = {"items": 2, "distinct": 1, "references": 2, "common": None, "only": "a"}
    assert answers(["a", "a"], ["b", "c"]) == same


@pytest.mark.parametrize(
    ("predictions", "references", "says"),
    [
        ([1, 1], [0, 1], "one class for all 2 items of test, 'yes'"),
        ([0, 0], [1, 1], "one class for all 2 items of test, 'no'"),  # references that agree hide nothing
        (["", ""], ["a", "a"], "one answer for all 2 items of test, ''"),
        (["", "x"], ["a", "a"], ""),
    ],
)
def test_the_one_answer_is_named(predictions: list[Any], references: list[Any], says: str) -> None:
    names = ["no", "yes"] if isinstance(references[0], int) else None
    told = answers(predictions, references, names)
    assert degenerate({"answers": {"test": told}}).get("one answer", "") == says


def test_an_evaluation_records_what_the_commonest_class_reaches(tmp_path: Path) -> None:
    outcomes = [{"prediction": 0, "reference": r, "score": float(r == 0)} for r in (0, 0, 0, 1)]
    task, noted = SimpleNamespace(groups=None), lambda: nullcontext(RoutingRecord())
    kind = SimpleNamespace(outcomes=lambda *_: outcomes, metric_arguments=lambda name: {}, task=task)
    data = SimpleNamespace(kind=kind, splits={"test": []})
    record = Record(tmp_path, name="n", config={})
    metrics = {"accuracy": load_metric("accuracy")}
    adapted = SimpleNamespace(model=nn.Linear(1, 1), recorded_routing=noted, effective=nullcontext)
    judge = Evaluator(adapted, data, metrics, record=record, eval_splits=["test"])
    assert judge.evaluate(keep=False) == ({"test": {"accuracy": 0.75}}, {}, {})
    assert "answers" not in record.content
    record.update(**judge.evaluate(keep=True).under("metrics", "likelihood"), updates=[])
    record.end("done")
    assert record.content["majority"] == {"test": {"accuracy": 0.75}}
    assert degenerate(record.content) == {"one answer": "one class for all 4 items of test, '0'"}


def test_two_that_predict_one_class_lead_nowhere(tmp_path: Path) -> None:
    for variant in ("lora", "dora"):
        for seed in range(3):
            written(tmp_path, recorded(f"variant={variant}", f"seed={seed}", test=0.56, **ONE_CLASS))
    frame = results.load(tmp_path)
    table = main_table(frame)
    assert "**0.56" not in table.markdown() and "<u>" not in table.markdown()
    assert "commonest class" in table.columns
    notes = "\n".join(table.notes)
    assert "degenerate, 3 of 3 runs of these settings: one class for all 100 items of test" in notes
    assert "the commonest class alone reaches 0.56" in notes and "± 0 does not mean precision" in notes
    assert "share the best mean: none leads" in notes and "leads within" not in notes
    assert {finding.rows for finding in findings(frame)} == {()}, "they are counted"


def test_a_degenerate_best_is_not_bold(tmp_path: Path) -> None:
    for seed in range(3):
        written(tmp_path, recorded("rank=2", f"seed={seed}", test=0.5 + seed / 100))
        written(tmp_path, recorded("rank=4", f"seed={seed}", test=0.7 + seed / 100, **ONE_CLASS))
    assert "**0.7" not in main_table(results.load(tmp_path)).markdown()


def test_the_terminal_says_so(tmp_path: Path) -> None:
    record = Record(tmp_path, recorded("rank=4", **ONE_CLASS))
    record.end("done")
    console = Console(file=io.StringIO(), width=200)
    print_line(record, console)
    told = console.file.getvalue()
    assert "finding: one class for all 100 items of test; the commonest class alone: test 0.56" in told

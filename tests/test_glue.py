"""GLUE's nine tasks from a folder as the Hub has it: parquet by configuration, test labels hidden."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from transformers import PreTrainedTokenizerFast

from lora_zoo import metrics
from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.pocket import HUB
from lora_zoo.tasks.data import load_splits

ROOT = Path(__file__).parents[1]
GLUE: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, float]]] = {
    "cola": (("sentence",), ("unacceptable", "acceptable"), {"matthews_correlation": 1.0}),
    "sst2": (("sentence",), ("negative", "positive"), {"accuracy": 1.0}),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent"), {"accuracy": 1.0, "f1": 1.0}),
    "stsb": (("sentence1", "sentence2"), (), {"pearson": 1.0, "spearman": 1.0}),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate"), {"accuracy": 1.0, "f1": 1.0}),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), {"accuracy": 1.0}),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment"), {"accuracy": 1.0}),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment"), {"accuracy": 1.0}),
    "wnli": (("sentence1", "sentence2"), ("not_entailment", "entailment"), {"accuracy": 1.0}),
}
"""Task -> its texts, its classes in the order of their numbers, and its metrics' best values."""


def split(name: str, of: str, size: int) -> Dataset:
    texts, classes, _ = GLUE[name]
    kind = ClassLabel(names=list(classes)) if classes else Value("float32")
    labels = [n % len(classes) if classes else n / 4 for n in range(size)]
    rows: dict[str, list[Any]] = {text: [f"{of} {text} {n}" for n in range(size)] for text in texts}
    rows |= {"label": [-1] * size if of.startswith("test") else labels, "idx": list(range(size))}
    features = {text: Value("string") for text in texts} | {"label": kind, "idx": Value("int32")}
    return Dataset.from_dict(rows, features=Features(features))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the Hub: a folder and an entry of the card's head for each task."""
    folder, configs = tmp_path_factory.mktemp("hub") / "glue", []
    for name in GLUE:
        judged = ("validation_matched", "validation_mismatched", "test_matched", "test_mismatched")
        others = judged if name == "mnli" else ("validation", "test")
        files = []
        for of in ("train", *others):
            (folder / name).mkdir(parents=True, exist_ok=True)
            split(name, of, 12 if of == "train" else 6).to_parquet(
                folder / name / f"{of}-00000-of-00001.parquet"
            )
            files.append({"split": of, "path": f"{name}/{of}-*"})
        configs.append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n# GLUE\n")
    return folder


def task(name: str, hub: Path, **changes: Any) -> Task:
    known = yaml.safe_load((ROOT / "conf" / "task" / f"{name}.yaml").read_text())
    return Task(**(known | {"dataset": str(hub), "lr": 1e-3, "validation_fraction": 0.25} | changes))


@pytest.mark.parametrize("name", GLUE)
def test_each_is_read_judged_and_measured_as_glue_says(name: str, hub: Path) -> None:
    texts, classes, best = GLUE[name]
    mine = task(name, hub)
    splits = load_splits(mine)
    kind = TASK_TYPES[mine.type](mine, PreTrainedTokenizerFast.from_pretrained(HUB), splits)
    where = {"mnli": "validation_matched"}.get(name, "validation")
    assert kind.asks(mine, splits["test"][1]) == tuple(f"{where} {text} 1" for text in texts)
    references = kind.references(list(splits["test"]))
    assert references == ([n % len(classes) for n in range(6)] if classes else [n / 4 for n in range(6)])
    if classes:
        assert kind.labels == list(classes)
    found: dict[str, Any] = {}
    for metric in mine.metrics:
        found |= metrics.load(metric).compute(predictions=references, references=references)
    assert found == pytest.approx(best)
    sizes = {"mnli": (12, 6, 6)}.get(name, (9, 3, 6))
    assert tuple(len(splits[of]) for of in ("train", "validation", "test")) == sizes


def test_of_mnli_both_validation_sets_are_judged(hub: Path) -> None:
    splits = load_splits(task("mnli", hub))
    assert splits["validation"][0]["text"] == "validation_mismatched premise 0"
    assert splits["test"][0]["text"] == "validation_matched premise 0"


@pytest.mark.parametrize("name", ["rte", "stsb"])
def test_hidden_labels_judge_nothing(name: str, hub: Path) -> None:
    hidden = task(name, hub, splits={"train": "train", "validation": "validation", "test": "test"})
    with pytest.raises(
        ValueError, match=rf"task {name}, test: all its labels are -1, which hides them; name one"
    ):
        load_splits(hidden)
    assert len(load_splits(hidden, judged=["validation"])["test"]) == 6

"""Identity and record: what makes two runs the same, and what is never lost."""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lora_zoo.config import command_line, compose
from lora_zoo.config.schema import Settings, register
from lora_zoo.config.spec import readable_name
from lora_zoo.core.adapter import Variant
from lora_zoo.core.variants import VARIANTS
from lora_zoo.runs import summary
from lora_zoo.runs.identity import identified, specify
from lora_zoo.runs.record import RESULT, SCHEMA, Record, claim_folder, plain

register()


def settings(*overrides: str) -> Settings:
    return compose.check(command_line.rewritten(list(overrides)), multirun=False)[0]


LORA = VARIANTS["lora"]


def identity(chosen: Settings, variant: type[Variant]) -> str:
    return identified(asdict(chosen), variant)[0]


@pytest.mark.parametrize(
    "override",
    [
        "rank=4",
        "alpha=3",
        "init=olora",
        "lr=1e-4",
        "seed=1",
        "target_modules=[q]",
        "task=pocket-nli",
        "steps=3",
    ],
)
def test_whatever_can_change_a_result_changes_the_identity(override: str) -> None:
    assert identity(settings(), LORA) != identity(settings(override), LORA)


@pytest.mark.parametrize(
    "override",
    [
        *("out=elsewhere", "tracking=none", "threads=1", "merge=true", "eval_before_training=false"),
        "forgetting_text=null",
    ],
)
def test_what_cannot_change_a_result_leaves_the_identity(override: str) -> None:
    assert identity(settings(), LORA) == identity(settings(override), LORA)


def test_a_run_that_was_recorded_before_tasks_were_learned_by_heart_is_the_same_run() -> None:
    today = asdict(settings())
    older = {**today, "task": {k: v for k, v in today["task"].items() if k != "by_heart"}}
    del older["forgetting_text"]
    assert identified(older, LORA) == identified(today, LORA)
    facts = [settings("task=pocket-facts", *more) for more in ((), ("task.by_heart=false",))]
    assert identity(facts[0], LORA) != identity(facts[1], LORA)


def test_a_key_that_a_variant_has_no_use_for_leaves_its_identity() -> None:
    full = VARIANTS["full"]
    assert identity(settings("variant=full"), full) == identity(settings("variant=full", "rank=4"), full)
    assert specify(settings("variant=full"), ["rank=4", "lr=1"]).without_effect() == {"rank": "variant=full"}
    assert specify(settings(), ["rank=4"]).without_effect() == {}


def test_local_data_is_part_of_the_identity(tmp_path: Path) -> None:
    found = set()
    for text in ("prompt,target\na,b\n", "prompt,target\na,c\n"):
        (tmp_path / "train.csv").write_text(text)
        files = f"task.data_files={{train: {tmp_path}/train.csv}}"
        found.add(identity(settings("task=causal_lm", "task.dataset=csv", files), LORA))
    assert len(found) == 2


def test_names_are_readable() -> None:
    assert (
        readable_name(settings("rank=4", "seed=2", "target_modules=[q,v]"), LORA)
        == "lora-r4-qv-pocket-pocket-sql-s2"
    )
    assert readable_name(settings("init=olora", "target_modules=all-linear"), LORA).startswith(
        "lora-r8-all-linear-olora-"
    )
    assert readable_name(settings("variant=full"), VARIANTS["full"]) == "full-pocket-pocket-sql-s0"


def test_a_folder_is_never_claimed_twice(tmp_path: Path) -> None:
    names = [claim_folder(tmp_path, "run").name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_a_record_is_complete_after_every_update(tmp_path: Path) -> None:
    record = Record(tmp_path, name="x")
    first = json.loads((tmp_path / RESULT).read_text())
    assert (first["schema"], first["state"], first["name"]) == (SCHEMA, "running", "x")
    record.update(metrics={"test": {"accuracy": 0.5}})
    record.end("done")
    last = json.loads((tmp_path / RESULT).read_text())
    assert (last["state"], last["metrics"]["test"]["accuracy"]) == ("done", 0.5)
    assert [p.name for p in tmp_path.iterdir()] == [RESULT]  # nothing half-written is left behind


def test_a_failed_update_leaves_the_last_record(tmp_path: Path) -> None:
    record = Record(tmp_path, name="x")
    before = (tmp_path / RESULT).read_text()
    with pytest.raises(RecursionError):
        loop: list[object] = []
        loop.append(loop)
        record.update(bad=loop)
    assert (tmp_path / RESULT).read_text() == before


def test_numbers_that_are_none_keep_their_name() -> None:
    assert plain({"a": float("nan"), "b": [float("inf")], "c": Path("x")}) == {
        "a": "nan",
        "b": ["inf"],
        "c": "x",
    }


def test_settings_are_not_changed_by_being_named() -> None:
    one = settings()
    before = copy.deepcopy(one)
    identity(one, LORA)
    readable_name(one, LORA)
    assert one == before


@pytest.mark.parametrize("name", VARIANTS)
def test_merging_is_proposed_where_there_is_a_weight_to_merge(name: str, tmp_path: Path) -> None:
    result: dict[str, Any] = {
        "command": "python -m lora_zoo.run",
        "adapter": {"bytes": 1},
        "config": {"variant": {"name": name}},
    }

    def proposed() -> bool:
        return any("lora_zoo.merge" in line for line in summary._next(result, tmp_path))

    assert proposed() == (VARIANTS[name].pointwise and not VARIANTS[name].adds_bias)
    result["routing"] = {"test": {"all layers": {"load": [0.5, 0.5]}}}
    assert not proposed(), "what weighs adapters by the input has no one weight"

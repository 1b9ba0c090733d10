"""A record against today's code and data, and against itself."""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lora_zoo.config import command_line, compose
from lora_zoo.config.schema import Settings, register
from lora_zoo.config.spec import flat_hyperparameters, readable_name
from lora_zoo.core.hyperparameters import check_hyperparameters
from lora_zoo.core.variants import VARIANTS
from lora_zoo.runs import identity as identities
from lora_zoo.runs.identity import identified, identified_as, specify
from lora_zoo.runs.provenance import changes_results, contradiction, stale
from lora_zoo.runs.record import plain
from lora_zoo.runs.redact import redacted

register()


def settings(*overrides: str) -> Settings:
    return specify(compose.check(command_line.rewritten(list(overrides)), multirun=False)[0]).settings


def recorded(*overrides: str) -> dict[str, Any]:
    """The record of a run of these settings before it trains, as read back from its file."""
    own = settings(*overrides)
    variant = VARIANTS[own.variant["name"]]
    hyper = check_hyperparameters(variant, flat_hyperparameters(own, variant))
    identity, made_of = identified(asdict(own), variant)
    content = {
        "name": readable_name(own, variant),
        "identity": identity,
        "made_of": made_of,
        "command": " ".join(["python -m lora_zoo.run", *overrides]),
        "config": asdict(own),
        "seed": own.seed,
        "data_seed": own.data_seed,
        "variant": {"name": variant.name, "hyperparameters": hyper},
    }
    return json.loads(json.dumps(redacted(plain(content))))


def without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


def as_older(record: dict[str, Any]) -> dict[str, Any]:
    """The record as the first versions made it: without hashes beside an identity of the own files alone."""
    older = without(record, "made_of")
    variant = VARIANTS[record["config"]["variant"]["name"]]
    return older | {"identity": identified_as(older, variant)[0]}


OVERRIDES = [
    *([f"variant={name}"] for name in VARIANTS),
    ["rank=4", "seed=2", "lr=1e-3", "target_modules=[q,k]"],
    ["budget=8k", "variant=vera"],
    ["layers=[0,1]", "rank_pattern={q:4}", "task=pocket-nli", "steps=null", "epochs=1"],
    ["trainer.hub_token=hf_abcdefghijklmnopqrstuvwxyz", "trainer.weight_decay=0.1"],
    ["tracking=none", "out=elsewhere", "threads=1", "merge=true"],
]


@pytest.mark.parametrize("overrides", OVERRIDES, ids=" ".join)
def test_an_honest_record_is_neither_stale_nor_contradictory(overrides: list[str]) -> None:
    record = recorded(*overrides)
    for one in (record, as_older(record)):
        assert (stale(one), contradiction(one)) == ("", "")


@pytest.mark.parametrize("overrides", [["rank=4"], ["variant=full"], ["lr=1e-3", "seed=3"]], ids=str)
def test_a_stored_configuration_suffices_for_the_identity(overrides: list[str]) -> None:
    record = recorded(*overrides)
    variant = VARIANTS[record["variant"]["name"]]
    assert identities.identified(record["config"], variant)[0] == record["identity"]


def test_a_changed_source_is_stale_and_the_variant_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorded("variant=dora")
    older = as_older(record)
    for covers in ("with_imports", "own_files"):
        monkeypatch.setattr(identities, covers, lambda *_: "another source")
    assert stale(record) == "the source of dora has changed since"
    assert "dora" in stale(older) and "changed" in stale(older)
    assert contradiction(record) == ""  # it was no mistake of the person's


def test_changed_data_are_stale_and_absent_data_accuse_nobody(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("prompt,target\na,b\n")
    files = f"task.data_files={{train: {tmp_path}/train.csv, test: {tmp_path}/test.csv}}"
    record = recorded("task=causal_lm", "task.dataset=csv", files)
    older = as_older(record)
    assert stale(record) == stale(older) == ""
    (tmp_path / "test.csv").write_text("prompt,target\na,c\n")
    assert stale(record) == "the data have changed since: test"
    assert stale(older)
    (tmp_path / "test.csv").unlink()
    assert stale(record) == stale(older) == ""


def test_a_variant_that_is_gone_is_stale() -> None:
    record = recorded()
    record["config"]["variant"]["name"] = "lorra"
    assert "no variant 'lorra'" in stale(record)


def edited(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(record)
    node = found
    *above, last = path.split("/")
    for key in above:
        node = node[key]
    assert node[last] != value
    node[last] = value
    return found


@pytest.mark.parametrize("older", [False, True], ids=["made_of", "older"])
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("config/variant/name", "lora", "variant=dora, its configuration variant=lora"),
        ("config/seed", 1, "record says seed=0, its configuration seed=1"),
        ("seed", 1, "record says seed=1, its configuration seed=0"),
        ("config/rank", 4, "rank=8, its configuration rank=4"),
        ("variant/hyperparameters/alpha", 1.5, "alpha=1.5"),
        ("command", "python -m lora_zoo.run variant=dora seed=1 lr=0.01", "command says seed=1"),
        ("name", "dora-r8-qv-pocket-pocket-sql-s3", "not of seed 0"),
        ("name", "lora-r8-qv-pocket-pocket-sql-s0", "not of variant dora"),
    ],
)
def test_labels_that_were_swapped_are_found(path: str, value: Any, said: str, older: bool) -> None:
    record = recorded("variant=dora", "seed=0", "lr=0.01", "rank=8")
    record = as_older(record) if older else record
    assert said in contradiction(edited(record, path, value))


@pytest.mark.parametrize(
    ("path", "value"), [("config/task/max_length", 99), ("config/trainer/weight_decay", 0.3)]
)
def test_an_edited_configuration_is_found_by_its_hash(path: str, value: Any) -> None:
    record = recorded()
    assert "not the one that it ran with" in contradiction(edited(record, path, value))
    assert stale(edited(as_older(record), path, value))  # all that an older record can tell


def test_an_identity_of_another_run_is_found() -> None:
    record = recorded()
    assert "identity 01234567 is not that" in contradiction(edited(record, "identity", "01234567"))


def test_a_doctored_copy_under_another_seed_is_found() -> None:
    """Seed changed in every place but the hashes, which is what a careful hand would do."""
    record = recorded("variant=dora", "seed=0")
    copied = json.loads(json.dumps(record).replace("seed=0", "seed=1").replace("-s0", "-s1"))
    copied["seed"] = copied["data_seed"] = copied["config"]["seed"] = copied["config"]["data_seed"] = 1
    assert contradiction(copied).startswith("its configuration is not the one that it ran with")


def test_what_cannot_change_a_result_may_be_edited() -> None:
    record = recorded()
    assert contradiction(edited(record, "config/out", "elsewhere")) == ""
    assert contradiction(edited(record, "config/trainer/save_steps", 7)) == ""


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"variant": "lora", "seed": 0, "hyperparameters": {"rank": 8}}, "saved adapter says variant=lora"),
        ({"variant": "dora", "seed": 1, "hyperparameters": {"rank": 8}}, "saved adapter says seed=1"),
        ({"variant": "dora", "seed": 0, "hyperparameters": {"rank": 4}}, "saved adapter says rank=4"),
        ({"variant": "dora", "seed": 0, "hyperparameters": {"rank": 8}}, ""),
    ],
)
def test_the_saved_adapter_is_a_witness(tmp_path: Path, about: dict[str, Any], said: str) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter.json").write_text(json.dumps(about))
    found = contradiction(recorded("variant=dora", "rank=8"), tmp_path)
    assert said in found and bool(said) == bool(found)


def test_the_rank_that_a_budget_found_is_no_contradiction() -> None:
    record = recorded("budget=8k")
    record["variant"]["hyperparameters"]["rank"] = 2
    assert contradiction(record) == ""


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        ("rank", True),
        ("seed", True),
        ("trainer.weight_decay", True),
        ("trainer.save_steps", False),
        ("out", False),
        ("tracking.project", False),
    ],
)
def test_keys_that_change_results_are_known(key: str, counts: bool) -> None:
    assert changes_results(key) is counts


def test_an_older_run_of_what_is_a_preset_now_contradicts_nothing() -> None:
    """Its settings were hashed under its own name: identities alone take both names for one."""
    from lora_zoo import runs

    frame = runs.load(Path(__file__).parents[2] / "experiments" / "svd_starts" / "results.jsonl.gz")
    records = [
        record for record in frame["record"] if VARIANTS[record["config"]["variant"]["name"]].preset_of
    ]
    assert records and [contradiction(record) for record in records] == [""] * len(records)

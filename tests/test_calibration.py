"""Runs whose initialisation looks at data: which data, what a resumed run keeps, what a pack does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_zoo.config.spec import RunSpec
from lora_zoo.formats.description import WEIGHTS
from lora_zoo.formats.native import save_adapter
from lora_zoo.injection import inject as injecting
from lora_zoo.injection.inject import Injection
from lora_zoo.runs.identity import specify
from lora_zoo.training.calibration import START, examples, inject_calibrated
from lora_zoo.training.experiment import target_arguments
from lora_zoo.training.resources import FreshResources, TaskData
from tests.processes import start
from tests.test_supply import asked

SMALL = ("calibration_examples=4", "rank=4", "target_modules=[q,v,down]")


def spec_of(*overrides: str) -> RunSpec:
    return specify(asked(*SMALL, *overrides))


def injected(spec: RunSpec, folder: Path, *, trained: bool = False) -> Injection:
    resources = FreshResources()
    data = TaskData(spec.settings)
    model = resources.base(spec.settings, data, 0).model
    arguments = target_arguments(spec.settings, []) | spec.hyperparameters
    return inject_calibrated(
        spec, model, data, arguments, resources=resources, folder=folder, trained=trained
    )


@pytest.fixture
def no_more(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A call after which data may no longer be looked at."""

    def refuse() -> None:
        def collect(model: Any, plan: Any, batches: Any, prior: Any) -> dict[str, Any]:
            assert not plan.needs, "statistics are collected a second time"
            return {}

        monkeypatch.setattr(injecting, "collect", collect)

    return refuse


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_what_goes_on_begins_where_it_began_without_looking_again(
    init: str, tmp_path: Path, no_more: Any
) -> None:
    spec = spec_of(f"init={init}")
    first = injected(spec, tmp_path)
    assert (tmp_path / START).is_dir()
    no_more()
    second = injected(spec, tmp_path)
    assert second.patterns == first.patterns
    state = second.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    save_adapter(first, tmp_path / "adapter")
    trained = injected(spec, tmp_path, trained=True).state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in first.state_dict().items())


def test_other_initialisations_look_at_nothing_and_keep_nothing(tmp_path: Path, no_more: Any) -> None:
    no_more()
    injected(spec_of("init=pissa"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_examples_are_the_data_seed_s_one_at_a_time() -> None:
    def drawn(*overrides: str) -> list[list[int]]:
        spec = spec_of("init=eva", *overrides)
        data = TaskData(spec.settings)
        found = list(examples(spec, torch.nn.Linear(1, 1), data))
        assert all(
            batch["input_ids"].shape[0] == 1 and bool(batch["attention_mask"].all()) for batch in found
        )
        return [batch["input_ids"][0].tolist() for batch in found]

    plain = drawn()
    assert len(plain) == 4
    assert drawn("seed=5", "data_seed=0") == plain
    assert drawn("data_seed=1") != plain
    assert drawn("calibration_examples=6")[:4] == plain
    assert len(drawn("calibration_examples=1000")) == 12, "all that there are"


def test_their_number_is_part_of_the_identity_where_they_are_looked_at() -> None:
    def identities(init: str) -> set[str]:
        return {specify(asked(f"init={init}", f"calibration_examples={n}")).identity for n in (4, 8)}

    assert len(identities("eva")) == 2
    assert len(identities("kaiming")) == 1


def test_in_a_pack_it_trains_by_itself_and_as_it_does_alone(tmp_path: Path) -> None:
    words = ("steps=2", "rank=2", "calibration_examples=4", "tracking=none", "eval_before_training=false")
    words += ("+task.sizes={train: 12, validation: 4, test: 4}", "eval_splits=[validation]")
    words += ("task.max_new_tokens=2", "forgetting_text=null", "threads=1")
    packed = start(
        "-m", "init=kaiming,orthogonal,eva", "hydra/launcher=packed", f"out={tmp_path}/p", *words, at=tmp_path
    )
    alone = start("init=eva", f"out={tmp_path}/a", *words, at=tmp_path)
    out, err = packed.communicate(120)
    assert packed.returncode == 0, out + err
    assert "runs by itself, after the others: it looks at data (input_mean, input_moment)" in out
    assert alone.communicate(120) and alone.returncode == 0

    (mine,), (other,) = (
        [path.parent for path in (tmp_path / at).rglob("*-eva-*/result.json")] for at in "pa"
    )
    trained = [load_file(folder / "adapter" / WEIGHTS) for folder in (mine, other)]
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())
    assert any(name.endswith("B_OR") and bool(tensor.any()) for name, tensor in trained[0].items())
    assert not (mine / START).exists()

"""Shared resources: a base that is restored and checked by its hash, data read once."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from lora_zoo.config import schema as configuration
from lora_zoo.config.groups import folder
from lora_zoo.config.schema import Settings
from lora_zoo.config.validate import resolved
from lora_zoo.conformance.cases import WHOLE, bases, representatives
from lora_zoo.injection.base_model import base_parameters
from lora_zoo.injection.inject import inject
from lora_zoo.models import snapshot
from lora_zoo.models.snapshot import Snapshot, can_be_shared
from lora_zoo.training import resources
from lora_zoo.training.before_training import digest_of_function, key_of
from lora_zoo.training.measured import KEPT, Measurements
from lora_zoo.training.resources import CachedResources, FreshResources, process_as_it_was
from tests.test_training import TRAINED, examples, small

SIZES = "task.sizes={train: 12, validation: 4, test: 4}"


def asked(*overrides: str) -> Settings:
    configuration.register()
    with initialize_config_dir(str(folder()), version_base="1.3"):
        return resolved(compose("config", overrides=[f"++{SIZES}", *overrides]))


def lend(shared: CachedResources, seed: int = 0, *overrides: str) -> Any:
    settings = asked(*overrides)
    return shared.base(settings, shared.task_data(settings), seed)


@pytest.fixture(scope="module")
def loaded() -> Snapshot:
    settings = asked()
    fresh = FreshResources()
    return Snapshot(fresh.base(settings, fresh.task_data(settings), 0).model)


@pytest.fixture
def pocket(loaded: Snapshot) -> Iterator[Any]:
    """One model for all, given back by a test that fails as well."""
    yield loaded.model
    loaded.restore()


def portrait(model: Any) -> Any:
    """All that is visible of a model: modules, flags, hooks, parameters, configuration."""
    modules = [
        (name, type(m), id(m), m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    ]
    parameters = [(n, id(p), p.requires_grad, p.grad, p.dtype, p.device) for n, p in model.named_parameters()]
    said = (model.config.to_dict(), model.generation_config.to_dict())
    return modules, parameters, said, model.is_gradient_checkpointing


ENDS = ("is left as it is", "is merged", "breaks")
MEETING = sorted({*representatives(), *WHOLE} & {*TRAINED})
"""One variant of each way to meet a layer, and those without a matrix; `test_models` takes every one out."""


@pytest.mark.parametrize(
    ("ends", "name"),
    [
        (way, name)
        for turn, name in enumerate(MEETING)
        for way in (ENDS if name in bases() else ENDS[turn % 3 :][:1])
    ],
)
def test_a_base_is_as_it_was_whatever_a_run_did_to_it(name: str, ends: str, pocket: Any) -> None:
    before, taken = portrait(pocket), Snapshot(pocket)
    batch = {key: torch.tensor([row[key] for row in examples()[:4]]) for key in examples()[0]}
    injection = inject(pocket, name, **small(name))
    pocket.train()
    if not injection.variant.not_recomputable:
        pocket.gradient_checkpointing_enable()
    pocket.register_forward_hook(lambda *_: None)
    pocket.config.use_cache, pocket.generation_config.max_length = False, 3
    pocket.config.id2label["new"] = "label"
    pocket.forward = pocket.forward  # as accelerate does under bf16
    pocket(**batch).loss.backward()
    if ends == "is merged" and injection.variant.pointwise:
        injection.merge()
    elif ends == "breaks":
        pocket.model.layers[0].self_attn.q_proj = None
        del pocket.model.norm
    assert portrait(pocket) != before
    taken.restore()
    assert taken.intact()
    assert portrait(pocket) == before
    assert pocket.config.id2label.keys() == {0, 1}
    assert injection.model is pocket
    again = inject(pocket, name, **small(name))  # and can be adapted once more
    again.remove()
    assert portrait(pocket)[1] == before[1]


def bit(model: Any) -> None:
    weight = model.model.layers[2].mlp.up_proj.weight
    weight.data.view(torch.int32)[5, 5] ^= 1


def buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq[3] += 1e-6


def kept_tensor(model: Any) -> None:
    model.model.rotary_emb.original_inv_freq.data[1] += 1e-6


def dtype(model: Any) -> None:
    model.model.norm.weight.data = model.model.norm.weight.data.half()


def relaid(model: Any) -> None:
    """The same values in another order in memory, for which a product may round differently."""
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.data = weight.data.T.contiguous().T


CHANGES = [bit, buffer, kept_tensor, dtype, relaid]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_change_of_content_is_found_and_the_base_loaded_anew(change: Any) -> None:
    shared = CachedResources()
    first = lend(shared)
    right = {name: p.clone() for name, p in base_parameters(first.model).items()}
    change(first.model)
    shared.give_back()
    second = lend(shared)
    assert second.model is not first.model
    assert all(torch.equal(p, right[name]) for name, p in base_parameters(second.model).items())
    shared.give_back()
    assert lend(shared).model is second.model


def test_what_is_lent_is_loaded_once_and_one_base_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    for name in ("load_model", "load_splits"):
        whole = getattr(resources, name)
        monkeypatch.setattr(
            resources, name, lambda *a, whole=whole, name=name: (loads.append(name), whole(*a))[1]
        )
    shared = CachedResources()
    bases = [lend(shared, seed, f"seed={seed}", f"lr={lr}").model for seed in (0, 1) for lr in (1e-3, 1e-2)]
    assert len({id(model) for model in bases}) == 1
    assert loads == ["load_splits", "load_model"]
    gone = weakref.ref(bases[0])
    del bases
    other = lend(shared, 0, "model.dtype=bfloat16").model
    gc.collect()
    assert gone() is None, "the base before is still in memory"
    assert other.dtype == torch.bfloat16


def test_a_new_head_depends_on_the_seed_alone() -> None:
    overrides = ("task=pocket-nli", "task.type=classification", "++task.columns={text: prompt, label: label}")
    shared = CachedResources()
    first = lend(shared, 1, *overrides)
    assert first.new_modules == ["score"]
    start = first.model.score.weight.clone()
    assert lend(shared, 1, *overrides).model is first.model
    other = lend(shared, 2, *overrides).model.score.weight.clone()
    assert not torch.equal(other, start)
    torch.manual_seed(99)
    assert torch.equal(lend(shared, 1, *overrides).model.score.weight, start)


def test_lending_sets_the_global_stream_as_loading_does() -> None:
    shared, drawn = CachedResources(), []
    for seed in (4, 4):
        torch.manual_seed(1)
        lend(shared, seed)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_data_is_read_once_a_task_and_again_when_a_file_changes(tmp_path: Path) -> None:
    csv = tmp_path / "train.csv"
    csv.write_text("text,label\n" + "".join(f"good {n},1\nbad {n},0\n" for n in range(8)))
    overrides = (
        "task=classification", "task.dataset=csv", f"++task.data_files={{train: '{csv}'}}", "epochs=1",
        "++task.sizes={}", "++task.columns={text: text, label: label}",
    )  # fmt: skip
    shared = CachedResources()
    one = shared.task_data(asked(*overrides))
    assert shared.task_data(asked(*overrides, "lr=0.5")) is one
    assert shared.task_data(asked(*overrides, "task.max_length=7")) is not one
    csv.write_text("text,label\n" + "".join(f"fine {n},1\npoor {n},0\n" for n in range(9)))
    assert shared.task_data(asked(*overrides)).splits["train"]["text"][0][:4] in ("fine", "poor")


def test_few_data_sets_are_kept() -> None:
    shared = CachedResources()
    lengths = [f"task.max_length={n}" for n in (32, 64, 96)]
    materials = [weakref.ref(shared.task_data(asked(length))) for length in lengths]
    gc.collect()
    assert [ref() is None for ref in materials] == [True, False, False]


def test_models_of_other_tensors_are_not_shared(pocket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Coded(torch.nn.Parameter):
        """As a quantiser's: a class of its own."""

    assert can_be_shared(pocket)
    layer = torch.nn.Linear(2, 2)
    layer.weight = Coded(torch.zeros(2, 2))
    assert not can_be_shared(layer)
    monkeypatch.setattr(resources, "can_be_shared", lambda model: False)
    shared = CachedResources()
    assert lend(shared).model is not lend(shared).model


def test_what_a_run_sets_for_its_process_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("ACCELERATE_OLD", "1")
    monkeypatch.delenv("ACCELERATE_NEW", raising=False)
    before = (torch.get_num_threads(), torch.get_float32_matmul_precision())
    with pytest.raises(KeyError), process_as_it_was():
        torch.set_num_threads(3)
        torch.use_deterministic_algorithms(True)
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        os.environ.update(ACCELERATE_OLD="2", ACCELERATE_NEW="1")
        raise KeyError
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert os.environ["ACCELERATE_OLD"] == "1" and "ACCELERATE_NEW" not in os.environ


def test_adapters_that_begin_as_one_function_and_no_others_have_one_digest(pocket: Any) -> None:
    def digest(name: str, change: Any = lambda injection: None, **given: Any) -> str:
        injection = inject(pocket, name, **given)
        with torch.no_grad():
            change(injection)
        found = digest_of_function(injection)
        injection.remove()
        return found

    def trained(injection: Any) -> None:
        next(iter(injection.adapters.values())).B_OR[0, 0] = 1e-6

    def head(injection: Any) -> None:
        injection.trained["lm_head.weight"][0, 0] += 1e-6

    base = digest("lora", rank=2, target_modules=["q"])
    assert base
    assert base == digest("lora", rank=4, alpha=3, seed=1, target_modules=["v", "up"])
    assert base == digest("linear_probe", modules_to_save=["lm_head"])
    begun = {
        base,
        digest("lora", trained, rank=2, target_modules=["q"]),
        digest("linear_probe", head, modules_to_save=["lm_head"]),
        digest("pissa", rank=2, target_modules=["q"]),
    }
    assert len(begun) == 4
    for name in ("prompt_tuning", "bottleneck"):  # no weights: each is judged by itself
        assert digest(name, **small(name)) == ""
    bit(pocket)
    assert digest("lora", rank=2, target_modules=["q"]) != base
    bit(pocket)


def test_whatever_an_evaluation_depends_on_is_in_its_key(pocket: Any) -> None:
    spec, made_of = asked(), {"data": {"metric mine.py": "1"}}
    injection = inject(pocket, "lora", rank=2, target_modules=["q"])
    data = SimpleNamespace(fingerprint={"test": {"sha256": "1"}})
    about: dict[str, Any] = {"injection": injection, "data": data, "eval_splits": ["test"], "groups": []}

    def key(settings: Settings = spec, made_of: Any = made_of, **other: Any) -> str:
        evaluator: Any = SimpleNamespace(**about | other)
        return key_of(evaluator, SimpleNamespace(settings=settings, made_of=made_of))  # type: ignore[arg-type]

    task, model = replace(spec.task, max_new_tokens=5), replace(spec.model, dtype="bfloat16")
    others = [
        key(replace(spec, task=task)),
        key(replace(spec, model=model)),
        key(made_of={"data": {"metric mine.py": "2"}}),
        key(eval_splits=["validation"]),
        key(data=SimpleNamespace(fingerprint={"test": {"sha256": "2"}})),
    ]
    with process_as_it_was():
        torch.set_num_threads(torch.get_num_threads() + 1)
        others.append(key())
    with process_as_it_was():
        torch.use_deterministic_algorithms(True)
        others.append(key())
    assert len({key(), *others}) == 1 + len(others)
    assert key(replace(spec, lr=0.5, seed=3)) == key()
    assert key(groups=["a"]) == ""  # its adapters may be told of them


def test_what_is_measured_is_kept_by_its_key_and_not_for_ever() -> None:
    measured, count = Measurements(), iter(range(1000))
    assert measured.once("a", "first", lambda: next(count)) == (0, "first")
    assert measured.once("a", "second", lambda: next(count)) == (0, "first")
    assert measured.once("", "third", lambda: next(count)) == (1, "third")
    assert measured.once("", "fourth", lambda: next(count)) == (2, "fourth")
    for number in range(KEPT):
        measured.once(str(number), "other", lambda: next(count))
    assert measured.once("a", "last", lambda: next(count))[1] == "last"


def test_ties_are_part_of_the_hash() -> None:
    tied, apart = (torch.nn.ModuleList(torch.nn.Linear(3, 3, bias=False) for _ in range(2)) for _ in range(2))
    with torch.no_grad():
        for layer in (*tied, *apart):
            layer.weight.fill_(0.5)
    assert snapshot.digest(tied) == snapshot.digest(apart)
    tied[1].weight = tied[0].weight
    assert snapshot.digest(tied) != snapshot.digest(apart)


def test_a_module_that_reads_its_weight_itself_has_its_own_class_back() -> None:
    model = torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(8, 2)})
    names, taken = list(dict(model.named_parameters())), Snapshot(model)
    inject(model, "lora", rank=2, target_modules=["q"])
    assert type(model["attention"]) is not torch.nn.MultiheadAttention
    taken.restore()
    assert type(model["attention"]) is torch.nn.MultiheadAttention
    assert list(dict(model.named_parameters())) == names and taken.intact()


def test_a_tensor_that_is_neither_parameter_nor_buffer_is_hashed_too() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.spare = torch.zeros(3)
    before = snapshot.digest(layer)
    layer.spare[1] = 1.0
    assert snapshot.digest(layer) != before

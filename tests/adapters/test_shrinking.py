"""Adapters that give up components: what is left computes the same, in memory, from its file and in PEFT."""

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from lora_zoo.conformance.cases import (
    LOW_RANK,
    adapt,
    batch,
    fresh,
    logits,
    lone,
    only,
    perturb,
    settings,
    train,
)
from lora_zoo.formats.description import WEIGHTS
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.formats.peft.write import CONFIG, save_peft
from lora_zoo.injection.inject import Injection, inject

RANK = 4
LEFT = {"q_proj": [1, 2], "v_proj": [0, 2, 3]}
PLAIN = [name for name in LOW_RANK if only(adapt(lone("linear"), name))[0].components()]


def adapted(name: str, **more: Any) -> tuple[nn.Module, Injection]:
    model = fresh("llama")[0]
    return model, inject(model, name, target_modules=["q", "v"], **settings(name, RANK, **more))


def halved(name: str) -> tuple[nn.Module, Injection, dict[str, Tensor]]:
    """A model whose adapter has components of nothing, and the others of each matrix."""
    model, injection = adapted(name)
    perturb(injection, 0.3)
    kept = {matrix: torch.tensor(LEFT[matrix.rpartition(".")[2]]) for matrix in injection.adapters}
    with torch.no_grad():
        for key, tensor in injection.named_parameters().items():
            matrix, _, own = key.rpartition(".")
            if own.startswith("B") and own.endswith("_OR"):
                dead = [r for r in range(RANK) if r not in kept[matrix].tolist()]
                tensor[:, dead] = 0
    return model, injection, kept


def updates(injection: Injection) -> dict[str, Tensor]:
    return {name: dW_OI for name, _, dW_OI in injection}


def again(folder: Path) -> tuple[nn.Module, Injection]:
    model = fresh("llama")[0]
    return model, load_adapter(model, folder)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and any(bool(t.any()) for t in expected.values())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_left_is_smaller_and_computes_the_same(name: str, tmp_path: Path) -> None:
    model, injection, kept = halved(name)
    before, seen, trainable = updates(injection), logits(model, "llama"), injection.trainable()
    large = (save_adapter(injection, tmp_path / "large") / WEIGHTS).stat().st_size
    assert injection.shrink(kept)

    assert_same(updates(injection), before)
    torch.testing.assert_close(logits(model, "llama"), seen, rtol=0, atol=1e-6)
    assert injection.trainable() < trainable
    for key, tensor in injection.named_parameters().items():
        matrix, _, own = key.rpartition(".")
        axes = own.rpartition("_")[2]
        assert all(tensor.shape[i] == len(kept[matrix]) for i, axis in enumerate(axes) if axis == "R"), key
        assert tensor.requires_grad

    assert (save_adapter(injection, tmp_path / "small") / WEIGHTS).stat().st_size < large
    reloaded, other = again(tmp_path / "small")
    assert_same(updates(other), before)
    assert torch.equal(logits(reloaded, "llama"), logits(model, "llama"))
    assert other.trainable() == injection.trainable()


def trained(**more: Any) -> tuple[nn.Module, Injection]:
    """SoRA after steps of its own, some of its gates at zero."""
    model, injection = adapted("sora", alpha=7.0, **more)
    train(injection, lambda: model(**batch("llama")).loss, steps=6)
    return model, injection


def test_sora_drops_the_components_whose_gates_are_zero(tmp_path: Path) -> None:
    model, injection = trained(l1_weight=12.0)
    gates = {name: adapter.g_R.detach().clone() for name, adapter in injection.adapters.items()}
    before, seen = updates(injection), logits(model, "llama")
    dead = sum(int((g_R == 0).sum()) for g_R in gates.values())
    assert 0 < dead < RANK * len(gates)
    assert injection.shrink()
    for name, adapter in injection.adapters.items():
        alive_R = gates[name] != 0
        assert len(adapter.A_RI) == max(1, int(alive_R.sum()))
        assert torch.equal(adapter.g_R, gates[name][alive_R] if alive_R.any() else gates[name][:1])
    assert_same(updates(injection), before)
    assert not injection.shrink(), "nothing is left to drop"

    save_peft(injection, tmp_path)
    theirs = peft.PeftModel.from_pretrained(fresh("llama")[0], tmp_path).eval()
    torch.testing.assert_close(logits(theirs, "llama"), seen, rtol=0, atol=1e-5)

    hooks = injection.hooks
    train(injection, lambda: model(**batch("llama")).loss, steps=2)
    assert all(hooks.adapters[name] is adapter for name, adapter in injection.adapters.items())


def test_a_matrix_of_dead_components_keeps_one(tmp_path: Path) -> None:
    model, injection = trained(l1_weight=1e6)
    base = logits(fresh("llama")[0], "llama")
    assert not any(adapter.g_R.any() for adapter in injection.adapters.values())
    assert injection.shrink()
    assert {adapter.g_R.tolist() == [0.0] for adapter in injection.adapters.values()} == {True}
    save_adapter(injection, tmp_path)
    for found in (logits(model, "llama"), logits(again(tmp_path)[0], "llama")):
        assert torch.equal(found, base)


def test_merging_and_taking_out_work_on_what_is_left() -> None:
    model, injection = trained(l1_weight=12.0)
    injection.shrink()
    seen = logits(model, "llama")
    injection.merge()
    torch.testing.assert_close(logits(model, "llama"), seen, rtol=0, atol=1e-5)
    injection.unmerge()
    assert torch.equal(logits(model, "llama"), seen)
    injection.remove()
    assert torch.equal(logits(model, "llama"), logits(fresh("llama")[0], "llama"))


def test_adalora_drops_the_triplets_that_its_budget_has_left_out(tmp_path: Path) -> None:
    model, injection = adapted("adalora", tinit=1, tfinal=2)
    train(injection, lambda: model(**batch("llama")).loss, steps=6)
    alive = {name: int(adapter.E_R.count_nonzero()) for name, adapter in injection.adapters.items()}
    before, seen = updates(injection), logits(model, "llama")
    assert sum(alive.values()) == RANK * len(alive) and len({*alive.values()}) > 1
    assert injection.shrink()
    injection.hooks.law()
    assert {name: len(adapter.A_RI) for name, adapter in injection.adapters.items()} == alive

    save_adapter(injection, tmp_path / "ours")
    reloaded, other = again(tmp_path / "ours")
    for found in (injection, other):
        for name, dW_OI in updates(found).items():
            torch.testing.assert_close(dW_OI, before[name], rtol=0, atol=1e-7)
    assert other.trainable() == injection.trainable()
    save_peft(injection, tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / CONFIG).read_text())["peft_type"] == "ADALORA"
    theirs = peft.PeftModel.from_pretrained(fresh("llama")[0], tmp_path / "peft").eval()
    back, _ = again(tmp_path / "peft")
    for network in (model, reloaded, theirs, back):
        torch.testing.assert_close(logits(network, "llama"), seen, rtol=0, atol=1e-6)


WRONG = {
    "an unknown matrix": ("no.such_proj", torch.tensor([0]), "unknown adapted matrix 'no.such_proj'"),
    "an index out of range": ("q", torch.tensor([0, 4]), "from 0 to 3, at least one; got [0, 4]"),
    "an index below zero": ("q", torch.tensor([-1, 2]), "got [-1, 2]"),
    "no index": ("q", torch.tensor([], dtype=torch.int64), "got []"),
    "an index twice": ("q", torch.tensor([1, 1]), "got [1, 1]"),
    "descending ones": ("q", torch.tensor([2, 1]), "got [2, 1]"),
    "a mask": ("q", torch.tensor([True, False]), "got [True, False]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_kept_is_refused_in_one_line_and_nothing_is_changed(case: str) -> None:
    name, index, text = WRONG[case]
    _, injection = adapted("sora")
    first, *_, last = injection.adapters
    before = injection.state_dict()
    with pytest.raises(ValueError) as refusal:
        injection.shrink({first: torch.tensor([0]), last if name == "q" else name: index})
    assert text in str(refusal.value) and "\n" not in str(refusal.value)
    assert_same(injection.state_dict(), before)


@pytest.mark.parametrize("name", ["lora", "vera"])
def test_adapters_without_components_of_their_own_are_refused(name: str) -> None:
    _, injection = adapted(name, init="pissa") if name == "lora" else adapted(name)
    assert not injection.shrink(), "hooks name nothing"
    with pytest.raises(ValueError, match="has no components that could be dropped one by one"):
        injection.shrink({next(iter(injection.adapters)): torch.tensor([0])})


def test_patterns_of_any_hyperparameter_are_taken_and_checked() -> None:
    model = fresh("llama")[0]
    injection = inject(model, "sora", target_modules=["q", "v"], patterns={"rank": {"v": 2}}, rank=4)
    assert {len(a.A_RI) for n, a in injection.adapters.items() if n.endswith("v_proj")} == {2}
    with pytest.raises(ValueError, match="sora has no colour"):
        inject(copy.deepcopy(fresh("llama")[0]), "sora", patterns={"colour": {"v": 2}})

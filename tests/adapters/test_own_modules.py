"""Modules that belong to no matrix: a soft prompt (arXiv:2104.08691), through `shared` and `switch`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lora_zoo.conformance.cases import batch, fresh
from lora_zoo.core.adapter import Variant
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.variants import VARIANTS, register
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.batched import RowGroup
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.injection.preview import preview
from lora_zoo.updates.summary import summary


class Prompt(nn.Module):
    def __init__(self, like: Tensor, tokens: int, model: Any) -> None:
        super().__init__()
        start = model.get_input_embeddings().weight[:tokens].detach()
        self.P_TD = nn.Parameter(like.new_empty(start.shape).copy_(start))


class PromptHooks(AdapterHooks):
    """Puts the prompt before the tokens' embeddings; its positions have no labels."""

    @classmethod
    def shared(cls, shapes: Any, like: Tensor, *, seed: int, **hyper: Any) -> Prompt:
        return Prompt(like, hyper["tokens"], hyper["model"])

    def switch(self, on: bool) -> None:
        if on:
            self.handle = self.model.register_forward_pre_hook(self.prompted, with_kwargs=True)
        else:
            self.handle.remove()

    def prompted(self, model: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        rest = {key: value for key, value in named.items() if key not in ("input_ids", "labels")}
        words_NLD, P_TD = model.get_input_embeddings()(named["input_ids"]), self.common.P_TD
        rest["inputs_embeds"] = torch.cat([P_TD.expand(len(words_NLD), -1, -1), words_NLD], dim=1)
        if "labels" in named:
            none_NT = named["labels"].new_full((len(words_NLD), len(P_TD)), -100)
            rest["labels"] = torch.cat([none_NT, named["labels"]], dim=1)
        return given, rest


class SoftPrompt(Variant):
    """Tokens of its own, and no matrix."""

    name, paper, equation, count = "soft_prompt", "arXiv:2104.08691", "W' = W", ""
    pointwise, adapts, sized_by, hooks = False, False, "tokens", PromptHooks

    def __init__(self, *, tokens: int = 3) -> None: ...


def adapted(tokens: int = 3, model: Any = None) -> tuple[Any, Injection]:
    model = model or fresh("llama")[0]
    return model, inject(model, SoftPrompt, tokens=tokens)


def trained(injection: Injection, steps: int) -> None:
    optimizer = torch.optim.AdamW(injection.param_groups(lr=0.1))
    for _ in range(steps):
        injection.model(**batch("llama")).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(**batch("llama")).logits


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS._members, "soft_prompt", SoftPrompt)


def test_it_trains_is_counted_and_computes_what_a_prompt_of_tokens_would() -> None:
    model, injection = adapted()
    ids, plain = batch("llama")["input_ids"], fresh("llama")[0]
    tokens = torch.arange(3).expand(len(ids), -1)
    with torch.no_grad():
        expected = plain(input_ids=torch.cat([tokens, ids], dim=1)).logits
    assert_close(logits(model), expected)
    assert injection.trainable() == 3 * 16 == preview(fresh("llama")[0], SoftPrompt).trainable
    assert list(injection.named_parameters()) == ["shared.P_TD"]
    before = float(model(**batch("llama")).loss.detach())
    trained(injection, 5)
    assert float(model(**batch("llama")).loss.detach()) < before
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in plain.state_dict().items())


def test_it_is_saved_loaded_and_resumed(known: None, tmp_path: Path) -> None:
    model, injection = adapted()
    trained(injection, 3)
    save_adapter(injection, tmp_path)
    other = fresh("llama")[0]
    loaded = load_adapter(other, tmp_path)
    assert loaded.hyper == {"tokens": 3} and torch.equal(logits(other), logits(model))
    trained(injection, 2)
    state = injection.state_dict()
    loaded.load_state_dict(state)
    assert torch.equal(logits(other), logits(model))


def test_it_is_there_while_its_adapter_is_active_and_gone_when_it_is_removed() -> None:
    model, injection = adapted()
    expected, prompted = logits(fresh("llama")[0]), logits(model)
    with injection.disabled():
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), prompted)
    inject(model, "lora", name="lora", rank=2)
    assert torch.equal(logits(model), expected), "LoRA alone, at its start"
    adapters_of(model).activate("default", "lora")
    assert_close(logits(model), prompted)
    adapters_of(model).isolate("lora")
    assert torch.equal(logits(model), expected)
    adapters_of(model).isolate("default")
    assert torch.equal(logits(model), prompted)
    adapters_of(model).show_all()
    assert torch.equal(logits(model), expected)
    injection.activate()
    injection.remove()
    assert torch.equal(logits(model), expected)
    adapters_of(model).remove()
    assert not model._forward_pre_hooks


def test_what_needs_a_matrix_is_refused_in_one_line(tmp_path: Path) -> None:
    model, injection = adapted()
    with pytest.raises(ValueError, match=r"soft_prompt has no effective weight.*cannot be merged"):
        injection.merge()
    with pytest.raises(ValueError, match=r"soft_prompt has no effective weight.*written in PEFT's format"):
        save_peft(injection, tmp_path / "peft")
    with (
        pytest.raises(ValueError, match=r"'default' \(soft_prompt\) acts on whole batches"),
        adapters_of(model).batched_forward([RowGroup("default", 3, 6)]),
    ):
        pass
    assert summary(injection) == [] and PromptHooks.not_packable() == "switch"


def test_hooks_that_act_beside_matrices_are_no_function_of_the_weight() -> None:
    class Both(SoftPrompt):
        pointwise = True

    with pytest.raises(TypeError, match="must state `pointwise = False`, as its hooks"):
        register("both")(Both)

"""Batches whose rows have adapters of their own, at inference: any order, generation, what is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import T5Config, T5ForConditionalGeneration

from lora_zoo import BASE
from lora_zoo.conformance.cases import fresh, perturb
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import inject
from lora_zoo.injection.named_rows import NamedRows

NAMES = ["b", BASE, "a", "b", "c", "a"]
X = torch.randint(3, 20, (len(NAMES), 5), generator=torch.Generator().manual_seed(1))
WORDS = {"max_new_tokens": 3, "min_new_tokens": 3, "pad_token_id": 0}
BEAMS = {"num_beams": 3, "num_return_sequences": 2, **WORDS}


def several(variants: tuple[str, ...] = ("lora", "dora", "ia3"), kind: str = "llama") -> Any:
    """A model with adapters a, b and c, the last of them above a, all away from their start."""
    model = fresh(kind)[0].eval()
    for seed, (name, variant) in enumerate(zip("abc", variants, strict=True)):
        prior: dict[str, Any] = {"prior": ["a"]} if variant == "ia3" else {}
        perturb(inject(model, variant, target_modules=["q", "down"], name=name, **prior), 0.3, seed)
    return model


def each_alone(model: Any, names: list[str], call: Any) -> list[Tensor]:
    """For each row of `names`, what `call()` gives with its adapter active, for all rows."""
    found = []
    for name in names:
        adapters_of(model).activate(*([] if name == BASE else [name]))
        found.append(call())
    return found


@torch.no_grad()
@pytest.mark.parametrize(
    ("variants", "at_once"), [(("lora", "dora", "ia3"), False), (("lora", "rslora", "lora"), True)]
)
def test_each_row_is_what_a_pass_of_its_own_adapter_gives(
    variants: tuple[str, ...], at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, mask = several(variants), torch.ones_like(X)
    ways: set[bool] = set()
    plain = NamedRows.at_once
    monkeypatch.setattr(NamedRows, "at_once", lambda *given: (y := plain(*given), ways.add(y is not None))[0])
    adapters, mask[1, :2] = adapters_of(model), 0
    adapters.activate("b", "a", weights=[0.5, 2])
    adapters.merge()
    before = model(X).logits
    with adapters.rows(NAMES):
        found = model(X, attention_mask=mask).logits
        pooled = model.model.layers[0].self_attn.q_proj(torch.ones(len(NAMES), 16))
        flat = model.model.layers[0].self_attn.q_proj(torch.ones(len(NAMES) * 5, 16))
    assert adapters.merged and torch.equal(model(X).logits, before), "all is as it was"
    alone = each_alone(model, NAMES, lambda: model(X, attention_mask=mask).logits)
    for row, one in enumerate(alone):
        assert_close(found[row], one[row])
    assert_close(flat[::5], pooled), "flattened positions and pooled rows are those of their rows"
    assert_close(flat[0], flat[15]), "two rows of b"
    assert not torch.allclose(flat[0], flat[10]) and ways == {at_once}


@torch.no_grad()
@pytest.mark.parametrize("words", [WORDS, BEAMS], ids=["greedy", "beams"])
def test_generation_follows_each_row_through_its_beams(words: dict[str, Any]) -> None:
    model, k = several(), words.get("num_return_sequences", 1)
    with adapters_of(model).rows(NAMES):
        found = model.generate(X, **words)
    assert len(found) == k * len(NAMES) and "generate" not in vars(model)
    alone = each_alone(model, NAMES, lambda: model.generate(X, **words))
    for row, one in enumerate(alone):
        assert torch.equal(found[k * row : k * row + k], one[k * row : k * row + k])


@torch.no_grad()
def test_an_encoder_s_rows_are_not_those_of_the_beams() -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=24, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model: Any = T5ForConditionalGeneration(config).eval()
    for seed, name in enumerate("ab"):
        perturb(inject(model, "lora", rank=2, target_modules="all-linear", name=name), 0.5, seed)
    names = ["b", "a", "b"]
    with adapters_of(model).rows(names):
        found = model.generate(X[:3], **BEAMS)
    for row, one in enumerate(each_alone(model, names, lambda: model.generate(X[:3], **BEAMS))):
        assert torch.equal(found[2 * row : 2 * row + 2], one[2 * row : 2 * row + 2])


@torch.no_grad()
def test_rows_are_peft_s_of_adapter_names(tmp_path: Path) -> None:
    """Also of a head that each adapter trains in full."""
    model = fresh("bert")[0].eval()
    theirs: Any = None
    for seed, name in enumerate("abc"):
        more = {"target_modules": ["q", "v"], "modules_to_save": ["classifier"]}
        injection = inject(model, "lora", name=name, rank=seed + 1, **more)
        perturb(injection, 0.5, seed)
        save_peft(injection, tmp_path / name)
        if theirs is None:
            theirs = PeftModel.from_pretrained(fresh("bert")[0], tmp_path / name, name)
        else:
            theirs.load_adapter(tmp_path / name, name)
    expected = theirs.eval()(X, adapter_names=NAMES).logits
    with adapters_of(model).rows(NAMES):
        found = model(X).logits
    assert_close(found, expected)
    with adapters_of(model).disabled():
        assert torch.equal(model(X).logits, fresh("bert")[0].eval()(X).logits), "the base's head is back"


@torch.no_grad()
def test_the_order_and_the_dtype_of_a_batch_are_kept() -> None:
    model = several().to(torch.bfloat16)
    layer = model.model.layers[0].self_attn.q_proj
    order = [3, 0, 5, 1, 2, 4]
    with adapters_of(model).rows(NAMES):
        found = layer(torch.ones(6, 5, 16, dtype=torch.bfloat16))
    with adapters_of(model).rows([NAMES[n] for n in order]):
        permuted = layer(torch.ones(6, 5, 16, dtype=torch.bfloat16))
    assert found.dtype is torch.bfloat16 and torch.equal(permuted, found[order])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "x"], r"unknown adapter 'x'.*a, b, c, __base__"),
        (["a"] * 5, "one name for each of 6 rows is needed; got 5"),
        (["a"] * 3, "one name for each of 6 rows is needed; got 3"),
        ([], "at least one name"),
    ],
)
def test_names_that_do_not_fit_are_refused_and_leave_the_model_as_it_was(names: list[str], said: str) -> None:
    model = several()
    expected = model(X).logits
    for call in (model.forward, lambda x: model.generate(x, **BEAMS)):
        with pytest.raises(ValueError, match=said), adapters_of(model).rows(names):
            (call if call != model.forward else model)(X)
    assert torch.equal(model(X).logits, expected) and adapters_of(model).active == ("a", "c")


def test_what_does_not_act_on_rows_is_refused() -> None:
    model = several(("lora", "lora", "prompt_tuning"))
    with pytest.raises(ValueError, match=r"'c' \(prompt_tuning\) acts on whole batches"):
        adapters_of(model).rows(NAMES).__enter__()
    layer = model.model.layers[0].self_attn.q_proj
    with adapters_of(model).rows(["a", BASE]):
        assert layer.weight.shape == (16, 16) and layer.weight.dtype is torch.float32, "T5 asks"
        with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj is read, not called"):
            X[:, :1].float() @ layer.weight[:1]
    with pytest.raises(ValueError, match=r"inference; call model\.eval\(\)"):
        adapters_of(model.train()).rows(["a"]).__enter__()
    with pytest.raises(ValueError, match="not __base__; got"):
        inject(copy.deepcopy(model), "lora", name=BASE)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    inject(net, "lora", rank=2, target_modules=["0"], modules_to_save=["1"], name="a")
    inject(net, "lora", rank=2, target_modules=["1"], name="b")
    with pytest.raises(ValueError, match="1 is trained in full by one adapter and adapted by another"):
        adapters_of(net).rows(["a", "b"]).__enter__()

"""Prior adapters together in one run: as their composition has them, with what it learns."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lora_zoo.conformance.cases import fresh, perturb, train
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.injection.preview import preview
from lora_zoo.models.merging import refuse_unmergeable
from lora_zoo.runs.sources import own_files, with_imports
from lora_zoo.variants.routed.composed import Composed

NAMES = ("a", "b", "c")
X = torch.randint(3, 20, (2, 5), generator=torch.Generator().manual_seed(1))


def several() -> Any:
    """A llama with three adapters away from their start."""
    model = fresh("llama")[0].eval()
    for seed, name in enumerate(NAMES):
        inject(model, "lora", rank=2, target_modules=["q", "down"], name=name, seed=seed)
        perturb(adapters_of(model)[name], 0.5, seed)
    return model


def composed(model: Any, composition: str, **more: Any) -> Injection:
    return inject(model, "composed", name="m", prior=NAMES, composition=composition, seed=3, **more)


@torch.no_grad()
def logits(model: Any, **more: Any) -> torch.Tensor:
    return model(X, **more).logits


@pytest.mark.parametrize(
    ("name", "more", "options"),
    [
        ("average", {}, {}),
        ("ties", {"weight": 0.5, "options": {"density": 0.4}}, {"weights": [0.5] * 3, "density": 0.4}),
        ("dare_linear", {"options": {"density": 0.5}}, {"density": 0.5, "seed": 3}),
        ("arrow", {"options": {"top_k": 1}}, {"top_k": 1}),
        (
            "xlora",
            {"weight": 2.0, "options": {"layerwise": True}},
            {"scale": 2, "layerwise": True, "seed": 3},
        ),
    ],
)
def test_it_is_the_composition_of_its_priors_to_the_bit(
    name: str, more: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    model = several()
    adapters = adapters_of(model)
    adapters.activate(*NAMES, composition=name, **options)
    expected = logits(model)
    sizes = [preview(model, "composed", prior=NAMES, composition=name, **more).trainable]
    injection = composed(model, name, **more)
    assert torch.equal(logits(model), expected)
    with injection.disabled():
        assert torch.equal(logits(model), logits(fresh("llama")[0].eval())), "its priors are a part of it"
    assert torch.equal(logits(model), expected)
    adapters.activate("a")
    assert not torch.equal(logits(model), expected)
    adapters.activate("m")
    assert torch.equal(logits(model), expected) and sizes == [injection.trainable()]
    save_adapter(injection, tmp_path / "m")
    again = fresh("llama")[0].eval()
    load_adapter(again, tmp_path / "m", name="m")
    assert torch.equal(logits(again), expected)
    with (
        pytest.raises(ValueError, match=r"'m' \(composed\) acts on whole batches"),
        adapters.rows(["m", "a"]),
    ):
        pass


def test_a_router_trains_alone_and_its_weights_are_noted_without_padding() -> None:
    model = several()
    adapters = adapters_of(model)
    frozen = {(n, key): t.clone() for n in NAMES for key, t in adapters[n].state_dict().items()}
    injection = composed(model, "xlora")
    assert {*injection.named_parameters()} == {"shared.learned.0.weight", "shared.learned.0.bias"}
    first = model(X, labels=X).loss.item()
    names = train(injection, lambda: model(X, labels=X).loss, steps=8, lr=0.1)
    assert names == {*injection.named_parameters()} and model(X, labels=X).loss < first
    assert all(torch.equal(adapters[n].state_dict()[key], t) for (n, key), t in frozen.items())
    last: Any = injection.hooks.common.learned[-1]  # type: ignore[union-attr]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    with injection.recorded_routing() as record:
        logits(model, attention_mask=mask)
    ((place, seen),) = record.summary().items()
    assert place == "all layers" and seen["load"] == pytest.approx([0.5, 0.3, 0.2])
    assert seen["entropy"] == pytest.approx(1.0296530140645737)  # by hand: -Σ p log p
    assert record._sums[place][-1] == 9, "padding is no token"


def test_without_priors_it_is_the_base_and_a_merge_is_the_composition() -> None:
    model = fresh("llama")[0].eval()
    before = logits(model)
    alone = inject(model, "composed")
    assert torch.equal(logits(model), before) and not alone.trainable()
    model = several()
    injection = composed(model, "average")
    expected = logits(model)
    injection.merge()
    assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    refuse_unmergeable(composed(several(), "average"))
    for name in ("xlora", "arrow"):
        injection = composed(several(), name)
        for refused in (injection.merge, lambda own=injection: refuse_unmergeable(own)):
            with pytest.raises(ValueError, match=rf"{name} weighs adapters by the input.*cannot be merged"):
                refused()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"composition": "tise"}, "unknown composition 'tise'. Did you mean 'ties'?"),
        ({"composition": "fisher"}, "composed: fisher looks at data first; use python -m lora_zoo.compose"),
        ({"composition": "average", "weight": 0.5}, "composed: average takes no weight; got weight=0.5"),
        (
            {"composition": "xlora", "options": {"steps": 3}},
            "composed: steps of xlora is the run's own; give",
        ),
        ({"composition": "ties", "options": {"rank": 2}}, "ties: unknown hyperparameter 'rank'"),
        ({"composition": "ties", "options": [2]}, "composed: options must be keys with values"),
    ],
)
def test_what_cannot_be_composed_is_one_line(more: dict[str, Any], says: str) -> None:
    model = several()
    before = logits(model)
    with pytest.raises(ValueError, match=re.escape(says)):
        inject(model, "composed", prior=NAMES, **more)
    assert torch.equal(logits(model), before)


def test_the_code_of_the_composition_is_a_part_of_a_run_s_source() -> None:
    one, other = ({"variant": {"name": "composed", "composition": name}} for name in ("ties", "arrow"))
    assert with_imports(Composed, one) != with_imports(Composed, other)
    assert "lora_zoo.compositions.arrow " in with_imports(Composed, other)
    assert own_files(Composed, one) == own_files(Composed, other)

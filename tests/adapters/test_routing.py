"""Compositions in which the input weighs frozen adapters: X-LoRA, Arrow, token-level adaptation."""

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import ArrowConfig
from torch import Tensor, nn
from torch.testing import assert_close

from lora_zoo.compositions.token_level import centroid
from lora_zoo.conformance.cases import fresh, perturb
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.adapter_set import AdapterSet, adapters_of
from lora_zoo.injection.inject import inject

NAMES = ("a", "b", "c")
X = torch.randint(3, 20, (2, 5), generator=torch.Generator().manual_seed(1))
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def several(rank: int = 2, folder: Path | None = None, **more: Any) -> tuple[Any, AdapterSet[Any]]:
    """A llama with three adapters away from their start, written in PEFT's format into `folder`."""
    model = fresh("llama")[0].eval()
    for seed, name in enumerate(NAMES):
        inject(model, "lora", rank=rank, target_modules=["q", "down"], name=name, seed=seed, **more)
        perturb(adapters_of(model)[name], 0.5, seed)
        if folder:
            save_peft(adapters_of(model)[name], folder / name)
    return model, adapters_of(model)


@torch.no_grad()
def logits(model: Any, x: Tensor = X) -> Tensor:
    return model(x).logits


def alone(model: Any, adapters: AdapterSet[Any], *names: str, **options: Any) -> Tensor:
    adapters.activate(*names, **options)
    return logits(model)


# --- X-LoRA ------------------------------------------------------------------------------------------------


def classified(adapters: AdapterSet[Any], weight: float = 0.0, bias: Any = 0.0, **options: Any) -> Any:
    """X-LoRA of all three whose last map is the identity times `weight`, and `bias`."""
    adapters.activate(*NAMES, composition="xlora", **options)
    last: Any = adapters.composition.classifier[-1]
    nn.init.eye_(last.weight).mul_(weight)
    last.bias.copy_(torch.as_tensor(bias).expand(3).repeat(len(last.bias) // 3))
    return adapters.composition


@torch.no_grad()
def test_xlora_with_one_adapter_chosen_is_that_one_and_with_equal_weights_the_mean() -> None:
    model, adapters = several()
    singles = {name: alone(model, adapters, name) for name in NAMES}
    for place, name in enumerate(NAMES):
        classified(adapters, bias=[1e4 * (k == place) for k in range(3)])
        assert_close(logits(model), singles[name], **CLOSE)
    classified(adapters, layerwise=True)
    assert_close(logits(model), alone(model, adapters, *NAMES, weights=[1 / 3] * 3), **CLOSE)
    classified(adapters, top_k=2, bias=[1.0, 3.0, 2.0], renormalised=True)
    share = float(torch.tensor([3.0, 2.0]).softmax(0)[0])
    assert_close(logits(model), alone(model, adapters, "b", "c", weights=[share, 1 - share]), **CLOSE)
    classified(adapters, scale=0.0)
    assert_close(logits(model), alone(model, adapters), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("top_k", [None, 2])
def test_xlora_is_peft_s(layerwise: bool, top_k: int | None, tmp_path: Path) -> None:
    model, adapters = several(folder=tmp_path)
    base = fresh("llama")[0].eval()
    base.config.use_cache = False
    config = peft.XLoraConfig(
        hidden_size=16,
        adapters={str(n): str(tmp_path / name) for n, name in enumerate(NAMES)},
        layerwise_scalings=layerwise,
        top_k_lora=top_k,
        xlora_depth=2,
        xlora_size=8,
        scaling_pass_value=0.0 if top_k else 0.25,  # PEFT draws the top of equal values
        softmax_temperature=0.2,
        global_scaling_weight=1.5,
    )
    theirs = peft.get_peft_model(base, config).eval()
    adapters.activate(
        *NAMES, composition="xlora", layerwise=layerwise, top_k=top_k or 0, depth=2, size=8,
        first_pass=0.0 if top_k else 0.25, temperature=0.2, scale=1.5,
    )  # fmt: skip
    ours = adapters.composition.classifier  # type: ignore[attr-defined]
    linears = [m for m in theirs.base_model.internal_xlora_classifier.layers if isinstance(m, nn.Linear)]
    for own, their in zip([m for m in ours if isinstance(m, nn.Linear)], linears, strict=True):
        own.load_state_dict(their.state_dict())
    assert_close(logits(model), theirs(input_ids=X).logits, **CLOSE)


def test_xlora_trains_its_classifier_alone_and_leaves_the_adapters_as_they_were() -> None:
    model, adapters = several()
    before = len(model._forward_pre_hooks)
    adapters.activate(*NAMES, composition="xlora", layerwise=True)
    again = adapters.composition
    states = {name: adapters[name].state_dict() for name in NAMES}
    loss = model(X, labels=X).loss
    loss.backward()
    classifier = adapters.composition.classifier  # type: ignore[attr-defined]
    assert all(p.grad is not None and p.grad.any() for p in classifier.parameters())
    assert all(p.grad is None for p in model.parameters())
    optimizer = torch.optim.SGD(classifier.parameters(), 5.0)
    optimizer.step()
    assert model(X, labels=X).loss < loss
    with adapters.disabled():
        assert torch.equal(logits(model), logits(fresh("llama")[0].eval()))
        assert all(p.requires_grad for p in adapters["a"].parameters())
    assert adapters.composition is again and not any(p.requires_grad for p in adapters["a"].parameters())
    assert all(torch.equal(t, states[n][k]) for n in NAMES for k, t in adapters[n].state_dict().items())
    assert len(model._forward_pre_hooks) == before + 1, "X-LoRA's own"
    adapters.remove()
    assert not model._forward_pre_hooks


# --- Arrow -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_arrow_is_peft_s_where_its_power_iteration_is_exact(tmp_path: Path) -> None:
    model, adapters = several(rank=1, folder=tmp_path)
    arrow = ArrowConfig(top_k=2, router_temperature=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = [str(tmp_path / name) for name in NAMES]
        theirs = peft.create_arrow_model(fresh("llama")[0], paths, arrow).eval()
    adapters.activate(*NAMES, composition="arrow", top_k=2, temperature=0.5)
    assert_close(logits(model), theirs(input_ids=X).logits, **CLOSE)


@torch.no_grad()
def test_arrow_sends_a_token_where_it_is_stretched_most() -> None:
    """v₁ = e₁, v₂ = e₂ by hand: x = (3, 1) has the scores 3 and 1, whatever their signs."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    net[0].weight.zero_()
    for name, A in {"a": [[-1.0, 0.0]], "b": [[0.0, 2.0]]}.items():
        adapter = inject(net, "lora", rank=1, alpha=1, target_modules=["0"], name=name).adapters["0"]
        adapter.A_RI.copy_(torch.tensor(A))  # type: ignore[operator]
        adapter.B_OR.copy_(torch.tensor([[1.0], [10.0]]))  # type: ignore[operator]
    adapters, x = adapters_of(net), torch.tensor([[3.0, 1.0]])
    adapters.activate("a", "b", composition="arrow")
    w = torch.tensor([3.0, 1.0]).softmax(0)
    assert_close(net(x), (w[0] * -3 + w[1] * 2) * torch.tensor([[1.0, 10.0]]))
    adapters.activate("a", "b", composition="arrow", top_k=1)
    assert_close(net(x), torch.tensor([[-3.0, -30.0]]))
    adapters.activate("a", "b", composition="arrow", temperature=1e6)
    assert_close(net(x), torch.tensor([[-0.5, -5.0]]), rtol=1e-4, atol=1e-4)


# --- token-level adaptation ---------------------------------------------------------------------------------


@torch.no_grad()
def test_token_level_weights_follow_the_nearest_centroid() -> None:
    model, adapters = several()
    E = model.get_input_embeddings().weight
    centroids = [[float(v) for v in E[token]] for token in (3, 4, 5)]
    singles = {name: alone(model, adapters, name) for name in NAMES}
    adapters.activate(*NAMES, composition="token_level", centroids=centroids, temperature=1e-6)
    for token, name in zip((3, 4, 5), NAMES, strict=True):
        x = torch.full((1, 4), token)
        found = logits(model, x)
        adapters_of(model).activate(name)
        assert_close(found, logits(model, x), **CLOSE)
        adapters.activate(*NAMES, composition="token_level", centroids=centroids, temperature=1e-6)
    adapters.activate(*NAMES, composition="token_level", centroids=[centroids[0]] * 3)
    equal = logits(model)
    assert_close(equal, alone(model, adapters, *NAMES, weights=[1 / 3] * 3), **CLOSE)
    assert not torch.allclose(equal, singles["a"])


@torch.no_grad()
def test_a_context_is_the_mean_of_the_tokens_so_far_without_padding() -> None:
    model, adapters = several()
    E = model.get_input_embeddings().weight
    x, mask = torch.tensor([[0, 3, 4]]), torch.tensor([[0, 1, 1]])
    assert_close(torch.tensor(centroid(model, [{"input_ids": x, "attention_mask": mask}])), (E[3] + E[4]) / 2)
    centroids = [[float(v) for v in E[token]] for token in (3, 4, 5)]
    adapters.activate(*NAMES, composition="token_level", centroids=centroids, temperature=0.3)
    model(x, attention_mask=mask)
    weights = adapters.composition.weights[""]  # type: ignore[attr-defined]
    e = torch.stack([E[3], (E[3] + E[4]) / 2])
    cosines = nn.functional.normalize(e, dim=1) @ nn.functional.normalize(E[3:6], dim=1).T
    assert_close(weights[0, 1:], (cosines / 0.3).softmax(-1))


# --- what is refused ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("composition", "options"),
    [("xlora", {}), ("arrow", {}), ("token_level", {"centroids": [[1.0] * 16] * 3})],
)
def test_what_the_input_decides_is_never_merged_or_read(composition: str, options: Any) -> None:
    model, adapters = several()
    adapters.activate(*NAMES, composition=composition, **options)
    with pytest.raises(ValueError, match=rf"{composition} weighs adapters by the input.*cannot be merged"):
        adapters.merge()
    router, layer = adapters.composition, model.model.layers[0].self_attn.q_proj
    with pytest.raises(ValueError, match=f"is read, not called: {composition} has no weight"):
        layer.weight.sum()
    with pytest.raises(ValueError, match=f"{composition} composes adapters, and 'd' trains"):
        inject(model, "lora", name="d", modules_to_save=["lm_head"])
        adapters.activate("a", "d", composition=composition, **{k: v[:2] for k, v in options.items()})
    adapters.activate(*NAMES, composition=router)
    if composition != "arrow":
        with pytest.raises(ValueError, match="use_cache=False lets it generate"):
            model.generate(X, max_new_tokens=2, pad_token_id=0, use_cache=True)
    assert model.generate(X, max_new_tokens=2, pad_token_id=0, use_cache=False).shape == (2, 7)


def test_wrong_options_and_layers_are_one_line() -> None:
    model, adapters = several()
    before = alone(model, adapters, "b")
    for composition, options, said in (
        ("xlora", {"top_k": 4}, "top_k must lie between 0 .* and 3; got 4"),
        ("xlora", {"depth": 0}, "xlora needs depth >= 1"),
        ("arrow", {"top_k": 0}, "arrow needs top_k >= 1"),
        ("token_level", {"centroids": [[1.0]]}, "centroids: one for each of a, b, c is needed; got 1"),
    ):
        with pytest.raises(ValueError, match=said):
            adapters.activate(*NAMES, composition=composition, **options)
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4)).eval()
    inject(net, "lora", rank=2, target_modules=["0", "1"], name="a")
    with pytest.raises(ValueError, match="arrow weighs the tokens of dense layers, and 0"):
        adapters_of(net).activate("a", composition="arrow")
    with pytest.raises(
        ValueError, match="xlora weighs the tokens of a model of transformers', and a Sequential"
    ):
        adapters_of(net).activate("a", composition="xlora")
    inject(net, "lora", rank=2, target_modules=["1"], name="b")
    with pytest.raises(ValueError, match="changes nothing yet"):
        adapters_of(net).activate("b", composition="arrow")
    assert adapters_of(net).active == ("b",) and torch.equal(logits(model), before)

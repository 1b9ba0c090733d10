"""Initialisations that look at data: their statistics, their factors, and a model that stays as it was."""

from typing import Any

import pytest
import torch
from peft import EvaConfig, LoraConfig, LoraGAConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from lora_zoo.core.init import INITS, find_init, init_names
from lora_zoo.core.statistics import ORIGINAL
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.injection.inject import inject
from lora_zoo.injection.plan import plan_injection
from lora_zoo.injection.statistics import allotted, collect

TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
DATA_DRIVEN = init_names(lambda init: bool(init.needs) and ORIGINAL not in init.needs)
TAKING = {
    variant: [init for init in DATA_DRIVEN if cls.accepts_init(find_init(init))]
    for variant, cls in VARIANTS.items()
    if cls.adapts
}
WIDEST = max(TAKING, key=lambda variant: len(TAKING[variant]))
ACCEPTED = [
    (variant, init)
    for turn, (variant, known) in enumerate(TAKING.items())
    for init in (known if variant == WIDEST else known[turn % max(len(known), 1) :][:1])
]
"""Each variant with one start, by turns; the one that takes most, with all."""


def llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.3,
    )
    return LlamaForCausalLM(config).eval()


def batches(count: int = 3, rows: int = 8) -> list[dict[str, Tensor]]:
    source = torch.Generator().manual_seed(1)
    drawn = [torch.randint(0, 64, (rows, 12), generator=source) for _ in range(count)]
    return [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)} for ids in drawn]


def statistics(model: nn.Module, init: str, **hyper: Any) -> dict[str, Any]:
    plan = plan_injection(model, "lora", target_modules=TARGETS, init=init, **hyper)
    return collect(model, plan, batches())


def inputs_of(model: nn.Module, name: str, data: list[dict[str, Tensor]] | None = None) -> list[Tensor]:
    """The inputs (N, I) of a layer in each batch, float64."""
    seen: list[Tensor] = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, 1)))
    with torch.no_grad():
        for batch in batches() if data is None else data:
            model(**batch)
    hook.remove()
    return [x_NI.double() for x_NI in seen]


def peft_eva(rho: float) -> Any:
    config = LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=TARGETS,
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=rho, use_label_mask=False),
    )
    wrapped = get_peft_model(llama(), config)
    initialize_lora_eva_weights(wrapped, batches(1), show_progress_bar=False)
    return wrapped


def test_eva_has_the_directions_and_ranks_of_peft() -> None:
    ours = inject(llama(), "lora", rank=4, target_modules=TARGETS, init="eva", batches=batches(1))
    theirs = peft_eva(rho=2.0).get_submodule("base_model.model")
    ranks = {}
    for name, adapter in ours.adapters.items():
        layer = theirs.get_submodule(name)
        ranks[name] = layer.r["default"]
        assert layer.r["default"] == adapter.rank, name
        assert layer.scaling["default"] == adapter.scale
        cosines = adapter.A_RI @ layer.lora_A["default"].weight.T
        assert_close(cosines.abs(), torch.eye(adapter.rank), atol=2e-3, rtol=0)
    assert len(set(ranks.values())) > 1, "ranks that nothing moved"
    assert sum(ranks.values()) == 4 * 8


def test_eva_uniform_keeps_every_rank_and_has_the_principal_directions_of_the_inputs() -> None:
    model = llama()
    uniform = inject(llama(), "lora", rank=4, target_modules=TARGETS, init="eva_uniform", batches=batches())
    for name, adapter in uniform.adapters.items():
        x_NI = torch.cat(inputs_of(model, name))
        _, _, Vh_KI = torch.linalg.svd(x_NI - x_NI.mean(0), full_matrices=False)
        assert adapter.rank == 4
        assert_close(adapter.A_RI.T @ adapter.A_RI, (Vh_KI[:4].T @ Vh_KI[:4]).float())


def test_a_matrix_whose_inputs_vary_little_gets_no_adapter_and_the_others_its_rank() -> None:
    model = llama()
    plan = plan_injection(model, "lora", rank=2, target_modules=["q_proj", "v_proj"], init="eva")
    names = [matrix.name for matrix in plan.matrices]
    flat, steep = torch.eye(32).double() / 32, torch.diag(torch.tensor([0.2] * 5 + [0.0] * 27).double())
    means = torch.zeros(32).double()
    held = {n: {"input_mean": means, "input_moment": steep if n == names[0] else flat} for n in names}
    found = allotted(plan, held)
    assert found.patterns["rank"][names[0]] == 4, "at most rho times its rank"
    assert sum(found.patterns["rank"].values()) == 8
    assert [matrix.name for matrix in found.matrices] == list(found.patterns["rank"])
    assert found.patterns["alpha"] == found.patterns["rank"], "the scale stays"


def test_lora_ga_is_its_equation_on_the_gradient_that_peft_estimates() -> None:
    model, data = llama(), batches()
    theirs = llama()
    config = LoraConfig(target_modules=TARGETS, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())

    def pass_over_the_data() -> None:
        for batch in data:
            theirs.eval()  # dropout of the model would draw other masks
            theirs(**batch).loss.backward()

    preprocess_loraga(theirs, config, pass_over_the_data)
    ours = inject(model, "lora", rank=4, alpha=8, target_modules=TARGETS, init="lora_ga", batches=data)
    for name, adapter in ours.adapters.items():
        G_OI = theirs.get_submodule(name)._peft_loraga_grad
        U, _, Vh = torch.linalg.svd(G_OI, full_matrices=False)
        width = len(G_OI) ** 0.25 / 4
        # A pair of singular vectors has an arbitrary sign: A A^T and B B^T have none.
        assert_close(adapter.A_RI.T @ adapter.A_RI, width**2 * Vh[:4].T @ Vh[:4], atol=1e-4, rtol=0)
        B_OR = width * U[:, 4:8]
        assert_close(adapter.B_OR @ adapter.B_OR.T, B_OR @ B_OR.T, atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["kpm", "ipm"])
def test_corda_is_pefts_up_to_the_unit_of_the_moment(method: str) -> None:
    """PEFT divides the one sample by its greatest entry and sums over its positions."""
    data, theirs = batches(1, rows=1), llama()
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=TARGETS,
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=method),
    )
    preprocess_corda(theirs, config, run_model=lambda: theirs(**data[0]))
    wrapped = get_peft_model(theirs, config).get_submodule("base_model.model")
    plain = llama()
    ours = inject(
        llama(), "lora", rank=4, alpha=8, target_modules=TARGETS, init=f"corda_{method}", batches=data
    )
    for name, adapter in ours.adapters.items():
        layer = wrapped.get_submodule(name)
        A_RI, B_OR = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        update_OI = B_OR @ A_RI
        assert_close(adapter.B_OR @ adapter.A_RI, update_OI, atol=2e-5, rtol=1e-3)
        x_NI = inputs_of(plain, name, data)[0]
        unit = len(x_NI) / float(x_NI.max()) ** 2
        assert_close(adapter.B_OR.norm(dim=0) * unit**0.5, B_OR.norm(dim=0), atol=1e-4, rtol=1e-3)


def test_lora_one_begins_with_the_best_step_of_its_rank_along_the_gradient() -> None:
    data, model = batches(), llama()
    held, before = statistics(model, "lora_one"), model(**data[0]).loss.item()
    ours = inject(model, "lora", rank=4, alpha=4, target_modules=TARGETS, init="lora_one", batches=data)
    for name, adapter in ours.adapters.items():
        G_OI = held[name]["gradient"]
        U, S, Vh = torch.linalg.svd(G_OI)
        step_OI = -(U[:, :4] * S[:4]) @ Vh[:4] / S[0] / 128
        assert_close(adapter.B_OR @ adapter.A_RI, step_OI, atol=1e-6, rtol=1e-3)
        assert_close(adapter.B_OR.norm(dim=0), adapter.A_RI.norm(dim=1))
    assert model(**data[0]).loss.item() < before, "a small step downhill"


def test_the_statistics_are_their_definitions() -> None:
    model, data = llama(), batches()
    name, gradients = "model.layers.1.self_attn.v_proj", []
    x_NI = torch.cat(inputs_of(model, name))
    for batch in data:
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append(model.get_submodule(name).weight.grad.clone())
    model.zero_grad()
    of_inputs = statistics(model, "eva")[name]
    assert_close(of_inputs["input_mean"], x_NI.mean(0))
    assert_close(of_inputs["input_moment"], x_NI.T @ x_NI / len(x_NI))
    of_loss = statistics(model, "lora_ga")[name]
    assert_close(of_loss["gradient"], torch.stack(gradients).mean(0))


class Weighted(VARIANTS.find("lora")):  # type: ignore[misc]
    """LoRA that keeps the statistics that it asked for."""

    name, needs = "weighted", ("squared_gradient", "input_mean")

    def __init__(self, context: Any, **hyper: Any) -> None:
        super().__init__(context, **hyper)
        self.seen = dict(context.statistics)


def test_a_variant_of_its_own_is_given_what_it_needs_and_the_initialisation_what_that_needs() -> None:
    model, data = llama(), batches(rows=1)
    injection = inject(model, Weighted, rank=4, target_modules=["q_proj"], init="lora_ga", batches=data)
    name, adapter = next(iter(injection.adapters.items()))
    assert set(adapter.seen) == {"squared_gradient", "input_mean", "gradient"}
    plain, squares = llama(), []
    for batch in data:
        plain.zero_grad()
        plain(**batch).loss.backward()
        squares.append(plain.get_submodule(name).weight.grad.square())
    assert_close(adapter.seen["squared_gradient"], torch.stack(squares).mean(0))
    with pytest.raises(ValueError, match="weighted looks at data"):
        inject(llama(), Weighted, rank=4, target_modules=["q_proj"])


@pytest.mark.parametrize(("variant", "init"), ACCEPTED)
def test_every_variant_that_accepts_it_begins_unchanged_and_learns(variant: str, init: str) -> None:
    model, data = llama(), batches()
    before = model(**data[0]).logits
    injection = inject(model, variant, rank=4, target_modules=TARGETS, init=init, batches=data)
    if not find_init(init).moves:
        assert_close(model(**data[0]).logits, before, atol=2e-5, rtol=1e-4)
    optimizer = torch.optim.SGD(injection.parameters(), lr=0.5)
    first = model(**data[0]).loss
    for _ in range(5):
        optimizer.zero_grad()
        model(**data[0]).loss.backward()
        optimizer.step()
    assert model(**data[0]).loss < first


@pytest.mark.parametrize("init", DATA_DRIVEN)
def test_looking_leaves_no_trace(init: str) -> None:
    model = llama().train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    asked = {name: p.requires_grad for name, p in model.named_parameters()}
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    stream = torch.get_rng_state()
    statistics(model, init)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == asked
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("init", DATA_DRIVEN)
def test_a_second_adapter_sees_the_unadapted_model(init: str) -> None:
    alone = inject(llama(), "lora", rank=2, target_modules=TARGETS, init=init, batches=batches())
    model = llama()
    other = inject(model, "lora", rank=2, target_modules="all-linear", init="both_random", name="other")
    second = inject(model, "lora", rank=2, target_modules=TARGETS, init=init, batches=batches())
    for name, adapter in second.adapters.items():
        assert torch.equal(adapter.A_RI, alone.adapters[name].A_RI)
    other.remove()


@pytest.mark.parametrize("init", DATA_DRIVEN)
def test_a_saved_adapter_is_loaded_without_data(init: str, tmp_path: Any) -> None:
    model, data = llama(), batches()
    injection = inject(model, "lora", rank=4, target_modules=TARGETS, init=init, batches=data)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(0.02)
    save_adapter(injection, tmp_path)
    again = llama()
    load_adapter(again, tmp_path)
    assert torch.equal(again(**data[0]).logits, model(**data[0]).logits)


def padded() -> dict[str, Tensor]:
    batch = batches(1)[0]
    batch["attention_mask"][0, -3:] = 0
    return batch


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no data": ({"init": "eva"}, "init=eva looks at data .*give inject `batches`"),
    "empty data": ({"init": "lora_ga", "batches": []}, "give inject `batches`"),
    "padding": ({"init": "eva", "batches": [padded()]}, "without padding"),
    "no linear layer": (
        {"init": "eva", "target_modules": ["embed"], "batches": batches()},
        "cannot adapt model.embed_tokens.*linear layer's inputs",
    ),
    "a rank beyond half": (
        {"init": "lora_ga", "rank": 9, "target_modules": ["k_proj"], "batches": batches()},
        r"2 R = 18 .*rank can be 8 at most",
    ),
    "a budget": (
        {"init": "eva", "budget": "2k", "rank": None, "batches": batches()},
        "budget=2k cannot be kept",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_and_the_model_stays(case: str) -> None:
    options, message = REFUSED[case]
    given = {k: v for k, v in ({"target_modules": TARGETS, "rank": 4} | options).items() if v is not None}
    model = llama()
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        inject(model, "lora", **given)
    assert [type(module) for module in model.modules()] == before


def test_a_matrix_that_no_pass_reaches_is_named() -> None:
    model = llama()
    model.extra_proj = nn.Linear(8, 8)
    with pytest.raises(ValueError, match="no pass over it reached extra_proj"):
        inject(model, "lora", rank=2, target_modules=["extra_proj"], init="eva", batches=batches())


def test_a_statistic_that_does_not_exist_is_refused_where_it_is_asked_for() -> None:
    from lora_zoo.core.init import register

    with pytest.raises(ValueError, match=r"unknown statistic 'gradiant'.*gradient"):
        register("typo", "none", needs=("gradiant",))(lambda *_: None)  # type: ignore[arg-type, return-value]
    assert "typo" not in INITS

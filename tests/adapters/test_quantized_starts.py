"""Quantisers in plain torch, and adapters that begin from the error of a quantised base."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lora_zoo.config.schema import Model
from lora_zoo.conformance.cases import perturb, randomise
from lora_zoo.core.init import Factors, Recoding, find_init, init_names, initial_factors
from lora_zoo.core.statistics import ORIGINAL
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.hosts.find import find_host
from lora_zoo.inits import quantized
from lora_zoo.inits.spectral import balanced
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.folding import fold
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.injection.originals import remember_original
from lora_zoo.injection.plan import plan_injection
from lora_zoo.injection.quantize import quantize
from lora_zoo.injection.statistics import collect
from lora_zoo.models.base import Base
from lora_zoo.models.dequantize import load_dequantised
from lora_zoo.models.loading import load_model
from lora_zoo.quantizers import BlockLevels, CodedLinear, Quantizer, Uniform, even, normal_float
from lora_zoo.updates.mixed_widths import allotted_widths, least
from lora_zoo.updates.quantization_errors import PLAIN, error_table, lines, remainder
from tests.test_training import model as tiny
from tests.test_training import trainer

O, I, R = 24, 64, 4
NF4 = BlockLevels(normal_float())
EVEN = BlockLevels(even())
QUANTIZERS: dict[str, Quantizer] = {
    "nf4": NF4,
    "nf4 nested": BlockLevels(normal_float(), nested=True),
    "nf2": BlockLevels(normal_float(2)),
    "even4": EVEN,
    "int4": Uniform(4, 16),
    "int2": Uniform(2, 32),
}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
STARTS = init_names(lambda init: ORIGINAL in init.needs)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- quantisers --------------------------------------------------------------------------------------------


def test_nf4_has_the_published_levels_and_every_width_its_own_with_an_exact_zero() -> None:
    published = [-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0]
    published += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1]
    assert_close(torch.tensor(normal_float()), torch.tensor(published), rtol=0, atol=2e-7)
    for width in (2, 3, 8):
        levels = normal_float(width)
        assert len(set(levels)) == 2**width and sorted(levels) == list(levels)
        assert (levels[0], levels[-1]) == (-1, 1) and 0.0 in levels


def test_levels_are_the_nearest_and_a_tie_goes_down() -> None:
    """Four levels -1, -1/3, 1/3, 1 on one block with scale 3: values -3, -1, 1, 3, middles -2, 0, 2."""
    stored = BlockLevels(even(2), block=8).encode(torch.tensor([[3.0, -3, 2, 2.1, 0, 0.1, -1.9, -2.1]]))
    assert stored["codes"].tolist() == [[3, 0, 2, 3, 1, 2, 1, 0]] and stored["scales"].tolist() == [3.0]
    assert_close(
        BlockLevels(even(2), block=8).decode(stored), torch.tensor([[3.0, -3, 1, 3, -1, 1, -1, -3]]), **CLOSE
    )


def test_a_uniform_group_runs_from_its_least_to_its_greatest_weight() -> None:
    """Two bits: steps of 1 from 0 to 3, and of 2 from -1 to 5; a constant group is exact."""
    W_OI = torch.tensor([[0.0, 1.4, 1.6, 3, -1, 0.5, 2, 5], [7, 7, 7, 7, 0, 0, 0, 0]])
    stored = Uniform(2, 4).encode(W_OI)
    assert stored["codes"][0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert stored["scales"].tolist() == [[1, 2], [0, 0]] and stored["zeros"].tolist() == [[0, -1], [7, 0]]
    assert torch.equal(Uniform(2, 4).decode(stored)[1], W_OI[1])


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantiser_errs_by_half_a_gap_and_changes_its_own_values_no_more(name: str) -> None:
    quantizer, W_OI = QUANTIZERS[name], drawn(O, I)
    values = quantizer.rounded(W_OI)
    assert values.dtype == torch.float32 and quantizer.rounded(W_OI.double()).dtype == torch.float64
    if isinstance(quantizer, Uniform):
        half_O1 = quantizer.encode(W_OI)["scales"].repeat_interleave(quantizer.group, 1) / 2
    else:
        gaps = torch.tensor(quantizer.levels).diff()
        half_O1 = W_OI.view(-1, 64).abs().amax(1, keepdim=True).view(O, 1) * float(gaps.max()) / 2
    if name != "nf4 nested":  # whose scales are rounded again, about another mean
        assert bool(((W_OI - values).abs() <= half_O1 * (1 + 1e-5)).all())
        assert_close(quantizer.rounded(values), values, rtol=1e-6, atol=1e-6)
        assert torch.equal(quantizer.encode(values)["codes"], quantizer.encode(W_OI)["codes"])
    else:
        assert_close(values, NF4.rounded(W_OI), rtol=0.02, atol=1e-3)
    assert not quantizer.rounded(torch.zeros(O, I)).any()


def test_bits_count_codes_and_scales() -> None:
    """C-69: 4 + 8/64 + 32/(64 · 256) with double quantisation, and 0.373 bits less than without."""
    nested = QUANTIZERS["nf4 nested"].bits(512, 512)
    assert nested == pytest.approx(4 + 8 / 64 + 32 / (64 * 256)) == pytest.approx(4.127, abs=1e-3)
    assert NF4.bits(512, 512) - nested == pytest.approx(0.373, abs=1e-3)
    assert Uniform(4, 32).bits(8, 64) == 4 + 64 / 32


def test_nf4_suits_normal_weights_and_even_levels_uniform_ones() -> None:
    """C-68."""

    def error(quantizer: Quantizer, W: Tensor) -> float:
        return float((quantizer.rounded(W) - W).square().mean())

    normal, uniform = (
        drawn(256, 256),
        2 * torch.rand(256, 256, generator=torch.Generator().manual_seed(1)) - 1,
    )
    assert error(NF4, normal) < error(EVEN, normal) and error(NF4, uniform) > error(EVEN, uniform)


# --- starts ------------------------------------------------------------------------------------------------


class Kept:
    """A coder without a layer."""

    def __init__(self, quantizer: Quantizer, W_OI: Tensor) -> None:
        self.rounding, self.values = quantizer.rounded, quantizer.rounded(W_OI)

    def encode(self, W_OI: Tensor) -> Tensor:
        return self.rounding(W_OI)

    def put(self, values: Tensor) -> None:
        self.values = values


def begin(
    init: str, W_OI: Tensor, scale: float = 1.0, rank: int = R, **more: Tensor
) -> tuple[Tensor, Tensor]:
    """s B A and Q of a start on NF4."""
    coder = Kept(NF4, W_OI)
    found, residual = initial_factors(
        init,
        coder.values,
        rank=rank,
        scale=scale,
        seed=0,
        matrix="x",
        statistics={ORIGINAL: W_OI, **more},
        recoding=Recoding(coder, W_OI, scale),
    )
    assert not residual
    return scale * found.B_OR @ found.A_RI, coder.values


def of_data() -> dict[str, Tensor]:
    return {
        "input_magnitude": torch.linspace(0.1, 4, I).double(),
        "squared_gradient": drawn(O, I, seed=3).square(),
    }


def best(E_OI: Tensor, rank: int = R) -> Tensor:
    U, S, Vh = torch.linalg.svd(E_OI, full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vh[:rank]


@pytest.mark.parametrize("init", STARTS)
def test_the_scale_does_not_change_a_start_and_each_beats_plain_codes(init: str) -> None:
    W_OI = drawn(O, I)
    change, values = begin(init, W_OI, **of_data())
    scaled, again = begin(init, W_OI, 0.25, **of_data())
    assert_close(scaled, change, **CLOSE)
    assert_close(again, values, **CLOSE)
    assert float((W_OI - values - change).norm()) < float((W_OI - NF4.rounded(W_OI)).norm())
    assert torch.equal(values, NF4.rounded(W_OI)) != find_init(init).recodes


def test_each_start_is_its_equation() -> None:
    W, Q = drawn(O, I), NF4.rounded(drawn(O, I))
    E = W - Q
    for init in ("loftq", "lqer", "loftq_iter_1"):
        assert_close(begin(init, W)[0], best(E), **CLOSE)
    again = NF4.rounded(W - best(E))
    change, values = begin("loftq_iter_2", W)
    assert torch.equal(values, again)
    assert_close(change, best(W - again), **CLOSE)
    for init, left in (("qpissa", W), ("qpissa_iter_2", W - NF4.rounded(W - best(W)))):
        change, values = begin(init, W)
        assert_close(change, best(left), **CLOSE)
        assert_close(values, NF4.rounded(W - best(left)), **CLOSE)


def test_lqer_and_l2qer_are_each_the_best_in_its_own_norm() -> None:
    """C-38; equal inputs make them one, and all ranks make the error zero."""
    W, a_I = drawn(O, I), of_data()["input_magnitude"]
    E = W - NF4.rounded(W)
    plain, scaled = begin("lqer", W)[0], begin("l2qer", W, input_magnitude=a_I)[0]
    assert float((E - plain).norm()) < float((E - scaled).norm())
    assert float(((E - plain) * a_I).norm()) > float(((E - scaled) * a_I).norm())
    assert_close(begin("l2qer", W, input_magnitude=torch.full((I,), 3.0))[0], plain, **CLOSE)
    assert_close(begin("l2qer", W, rank=O, input_magnitude=a_I)[0], E, rtol=1e-4, atol=1e-5)


def test_lq_loras_error_falls_until_it_stops_and_a_constant_fisher_changes_nothing() -> None:
    """C-39, C-40."""
    W = drawn(O, I)
    change, values = begin("lq_lora", W)
    errors = []
    for iterations in range(1, 60):
        of, codes = begin(f"qpissa_iter_{iterations}" if iterations > 1 else "qpissa", W)
        errors.append(float((W - codes - of).norm()))
        if len(errors) > 1 and errors[-1] > errors[-2]:
            break
    assert len(errors) > 2 and float((W - values - change).norm()) == pytest.approx(min(errors), rel=1e-5)
    flat = begin("lq_lora_fisher", W, squared_gradient=torch.full((O, I), 4.0))
    assert_close(flat[0], change, **CLOSE)
    F = torch.outer(torch.linspace(0.01, 9, O), torch.linspace(4, 0.01, I))  # so that its means are all of it
    weighted, own = begin("lq_lora_fisher", W, squared_gradient=F)
    assert float((F.sqrt() * (W - own - weighted)).norm()) < float((F.sqrt() * (W - values - change)).norm())


# --- layers and models -------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, outputs: int = O, inputs: int = I) -> None:
        super().__init__()
        self.q_proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.q_proj(x)
        return y


def nets(quantizer: Quantizer = NF4) -> tuple[Net, Net]:
    """A quantised model, and the one that it is of."""
    plain, coded = Net(), Net()
    randomise(plain.parameters(), 0.3, set_to=True)
    coded.load_state_dict(plain.state_dict())
    quantize(coded, quantizer)
    remember_original(coded, plain)
    return coded, plain


def adapt(net: nn.Module, init: str, variant: str = "lora", **more: Any) -> Injection:
    return inject(net, variant, target_modules=["q"], rank=R, alpha=2 * R, init=init, **more)


def test_a_layer_of_codes_computes_with_their_values_and_passes_a_gradient_on() -> None:
    coded, plain = nets()
    layer: Any = coded.q_proj
    host = find_host(layer)
    assert host is not None and host.stores_codes and host.shape == (O, I)
    assert torch.equal(host.matrix(), NF4.rounded(plain.q_proj.weight.detach()))
    x = drawn(3, I).requires_grad_()
    assert_close(coded(x), nn.functional.linear(x, host.matrix(), plain.q_proj.bias))
    assert_close(torch.autograd.grad(coded(x).sum(), x)[0], host.matrix().sum(0).expand(3, I))
    with pytest.raises(ValueError, match="no linear layer is left"):
        quantize(coded, NF4)
    with pytest.raises(
        ValueError, match=r"q_proj cannot be quantised: group_size=7 must divide .* 64 inputs"
    ):
        quantize(Net(), Uniform(4, 7))


@pytest.mark.parametrize("init", ["loftq", "loftq_iter_2", "qpissa", "lq_lora"])
def test_an_adapter_is_loaded_with_its_codes_and_leaves_those_that_were(init: str, tmp_path: Path) -> None:
    coded, plain = nets()
    x, before = drawn(3, I), coded.q_proj.stored()["codes"].clone()  # type: ignore[operator]
    injection = adapt(coded, init, "dora")
    y = coded(x)
    assert float((y - plain(x)).norm()) < float((adapt(nets()[0], "kaiming").model(x) - plain(x)).norm())
    moved = not torch.equal(coded.q_proj.layer.stored()["codes"], before)  # type: ignore[union-attr, operator]
    assert moved == find_init(init).recodes
    perturb(injection)  # what the codes were made of stays
    y = coded(x)
    save_adapter(injection, tmp_path)
    injection.remove()
    assert torch.equal(coded.q_proj.stored()["codes"], before)  # type: ignore[operator]
    load_adapter(coded, tmp_path)
    assert torch.equal(coded(x), y)


def test_what_cannot_begin_so_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    coded, plain = nets()
    with pytest.raises(ValueError, match=r"q_proj, a linear .*: the start makes up for the error of a quant"):
        adapt(plain, "loftq")
    unknown, _ = nets()
    vars(unknown).pop("_lora_zoo_original")
    with pytest.raises(ValueError, match="from before the quantisation of this base are not known"):
        adapt(unknown, "loftq")
    first = adapt(coded, "loftq")
    with pytest.raises(ValueError, match="qpissa gives the base other codes, and default stand on those"):
        adapt(coded, "qpissa", name="second")
    save_peft(first, tmp_path)
    first.remove()
    with pytest.raises(ValueError, match=r"qpissa has given the base codes of its own.*merge it instead"):
        save_peft(adapt(coded, "qpissa"), tmp_path)


def test_an_injection_that_fails_leaves_the_codes() -> None:
    coded, _ = nets()
    before = coded.q_proj.stored()["codes"].clone()  # type: ignore[operator]
    plan = plan_injection(coded, "lora", target_modules=["q"], rank=R, init="qpissa")
    with pytest.raises(ValueError, match="adapter state"):
        Injection(coded, plan, seed=0, name="x", statistics=collect(coded, plan, None), state={"x": before})
    assert torch.equal(coded.q_proj.stored()["codes"], before)  # type: ignore[operator]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("base")
    tiny().save_pretrained(at)
    return at


def settings(folder: Path, scheme: str = "reference_nf4", **more: Any) -> Model:
    return Model(name="tiny", path=str(folder), quantization=scheme, **more)


def loaded(given: Model) -> Any:
    return load_model(given, "AutoModelForCausalLM", {}, None, seed=0).model


def test_a_model_is_loaded_in_codes_but_for_its_head(folder: Path) -> None:
    kinds: dict[str, Any] = {"reference_nf4": {"bnb_4bit_use_double_quant": True}}
    for scheme, more in (kinds | {"reference_int3": {"group_size": 8}}).items():
        model = loaded(settings(folder, scheme, **more))
        layer = model.model.layers[0].self_attn.q_proj
        assert type(layer) is CodedLinear and type(model.lm_head) is nn.Linear
        expected = BlockLevels(normal_float(), nested=True) if "nf4" in scheme else Uniform(3, 8)
        assert layer.quantizer == expected
    with pytest.raises(ValueError, match=r"model.quantization=reference_int4: model.layers.0.* group_size=7"):
        loaded(settings(folder, "reference_int4", group_size=7))


def test_moved_codes_are_merged_and_dequantised(folder: Path, tmp_path: Path) -> None:
    given = settings(folder)
    model, x = loaded(given), torch.arange(6)[None]
    save_adapter(inject(model, "lora", target_modules=["q", "v"], rank=2, init="loftq_iter_2"), tmp_path)
    y = model(x).logits
    dense: Any = load_dequantised(Base(given, "AutoModelForCausalLM", {}, None), None).model
    injection = load_adapter(dense, tmp_path)
    assert_close(dense(x).logits, y, rtol=1e-4, atol=1e-5)
    injection.merge()
    adapters_of(dense).remove()
    assert type(dense.model.layers[0].self_attn.q_proj) is nn.Linear
    assert_close(dense(x).logits, y, rtol=1e-4, atol=1e-5)


def test_training_on_moved_codes_goes_on_to_the_bit(folder: Path, tmp_path: Path) -> None:
    def run(at: Path, **more: Any) -> Any:
        options = {"target_modules": ["q", "v"], "rank": 2, "init": "qpissa"}
        return trainer(at, inject(loaded(settings(folder)), "lora", **options), max_steps=4, **more)

    whole = run(tmp_path / "whole", save_strategy="steps", save_steps=2)
    whole.train()
    rest = run(tmp_path / "rest")
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, tensor in whole.injection.state_dict().items():
        assert torch.equal(rest.injection.state_dict()[name], tensor), name


def test_the_factors_of_the_codes_do_not_move_with_those_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(*triplets: Any) -> Factors:  # no copy is made of a start that is contiguous
        return Factors(*(factor.contiguous() for factor in balanced(*triplets)))

    monkeypatch.setattr(quantized, "balanced", whole)
    adapter = adapt(nets()[0], "qpissa").adapters["q_proj"]
    kept = [factor.clone() for factor in adapter.coded() or ()]
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(1)
    assert len(kept) == 2 and all(map(torch.equal, kept, adapter.coded() or ()))


def test_statistics_of_such_a_start_are_of_the_original(folder: Path) -> None:
    model, plain = loaded(settings(folder, "reference_nf2")), tiny()
    ids = torch.randint(0, 32, (4, 6), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": row[None], "labels": row[None]} for row in ids]
    found = {}
    hook = plain.model.layers[1].self_attn.q_proj.register_forward_pre_hook(
        lambda _, x: found.setdefault("x", []).append(x[0].detach()[0].double())
    )
    for batch in batches:
        plain(**batch)
    hook.remove()
    magnitude = torch.cat(found["x"]).abs().mean(0)
    plan = plan_injection(model, "lora", target_modules=["q"], init="l2qer", rank=2)
    assert_close(
        collect(model, plan, batches)["model.layers.1.self_attn.q_proj"]["input_magnitude"], magnitude
    )
    fisher = plan_injection(model, "lora", target_modules=["q"], init="lq_lora_fisher", rank=2)
    held = collect(model, fisher, batches)["model.layers.1.self_attn.q_proj"]
    assert held["squared_gradient"].any() and torch.equal(
        held[ORIGINAL], plain.model.layers[1].self_attn.q_proj.weight
    )


# --- QA-LoRA -----------------------------------------------------------------------------------------------


def test_qa_lora_sees_means_of_groups_and_is_lora_with_groups_of_one() -> None:
    """By hand: s = 2, groups of two, A = [1 3], B = 1: ΔW x = 2 (mean of x₁, x₂ + 3 mean of x₃, x₄)."""
    net = Net(1, 4)
    injection = inject(net, "qa_lora", target_modules=["q"], rank=1, alpha=2, group_size=2)
    adapter: Any = injection.adapters["q_proj"]
    assert adapter.A_RG.shape == (1, 2)
    with torch.no_grad():
        adapter.A_RG.copy_(torch.tensor([[1.0, 3.0]]))
        adapter.B_OR.fill_(1)
    x = torch.tensor([[1.0, 3, 5, 9]])
    change = adapter.weight(torch.zeros(1, 4))
    assert change.tolist() == [[1, 1, 3, 3]] and float(x @ change.T) == 2 * (2 + 3 * 7)
    lone: Any = inject(Net(), "qa_lora", target_modules=["q"], rank=R, group_size=1).adapters["q_proj"]
    B_OR, A_RI = lone.factors()
    assert torch.equal(A_RI, lone.A_RG) and torch.equal(B_OR, lone.scale * lone.B_OR)
    uneven: Any = inject(Net(), "qa_lora", target_modules=["q"], rank=R, group_size=48).adapters["q_proj"]
    assert_close(uneven.factors()[1].sum(1), uneven.A_RG.sum(1))
    with pytest.raises(ValueError, match="group_size must be at least 1; got 0"):
        inject(Net(), "qa_lora", target_modules=["q"], group_size=0)


def test_qa_lora_is_folded_into_zero_points_and_the_integers_stay() -> None:
    """C-37; C-61: PEFT's pooling is the mean times I / L, which neither the mean nor the sum of L is."""
    coded, _ = nets(Uniform(4, 16))
    x = drawn(3, I)
    injection = inject(coded, "qa_lora", target_modules=["q"], rank=R, group_size=16)
    randomise(injection.parameters(), 0.5)
    y, before = coded(x), coded.q_proj.layer.stored()["codes"].clone()  # type: ignore[union-attr, operator]
    assert fold(injection) is coded and type(coded.q_proj) is CodedLinear
    assert torch.equal(coded.q_proj.stored()["codes"], before)
    assert_close(coded(x), y, rtol=1e-5, atol=1e-5)
    finer = inject(coded, "qa_lora", target_modules=["q"], rank=R, group_size=8)
    randomise(finer.parameters(), 0.5)
    with pytest.raises(ValueError, match=r"q_proj is no constant of each 16 inputs.*variant.group_size=16"):
        fold(finer)
    finer.remove()
    other = inject(nets()[0], "qa_lora", target_modules=["q"], rank=R)
    with pytest.raises(ValueError, match="q_proj has no zero points"):
        fold(other)
    coded.norm = nn.LayerNorm(O)
    both = inject(coded, "qa_lora", target_modules=["q"], rank=R, modules_to_save=["norm"])
    with pytest.raises(ValueError, match=r"norm\.weight was trained in full"):
        fold(both)


# --- tables and widths -------------------------------------------------------------------------------------


def test_the_table_of_errors_is_of_the_remainders() -> None:
    weights = {"a": drawn(O, I), "b": drawn(16, I, seed=1)}
    plain, loftq = error_table(weights, NF4, rank=R, starts=["loftq"])
    for row, start in ((plain, PLAIN), (loftq, "loftq")):
        left = [remainder(start, W, NF4, R) for W in weights.values()]
        root = math.sqrt(sum(float(E.square().sum()) for E in left))
        assert row.frobenius == pytest.approx(
            root / float(torch.cat(list(weights.values())).norm()), rel=1e-5
        )
        sums = [sum(float(torch.linalg.matrix_norm(M, "nuc")) for M in Ms) for Ms in (left, weights.values())]
        assert row.nuclear == pytest.approx(sums[0] / sums[1], rel=1e-5)
    assert (plain.reduction, plain.bits, plain.bits_all) == (0, 4.5, 4.5)
    assert loftq.reduction == pytest.approx(1 - loftq.nuclear / plain.nuclear)
    assert loftq.bits_all == pytest.approx(4.5 + 32 * R * (O + 16 + 2 * I) / (O * I + 16 * I))
    assert [line.split()[0] for line in lines([plain, loftq])] == ["start", PLAIN, "loftq"]
    with pytest.raises(ValueError, match="init=pissa does not look at the error"):
        error_table(weights, NF4, rank=R, starts=["pissa"])


def test_mixed_widths_are_the_best_choice_within_the_budget() -> None:
    errors, bits = np.array([[9.0, 4, 1], [30, 10, 2], [5, 4, 3]]), np.array([[2.0, 3, 4]] * 3)
    found = least(errors, bits, 9)
    of = {c: sum(errors[m, q] for m, q in enumerate(c)) for c in product(range(3), repeat=3)}
    within = {c: e for c, e in of.items() if sum(bits[m, q] for m, q in enumerate(c)) <= 9}
    assert tuple(found) == min(within, key=lambda c: within[c]) and of[tuple(found)] < of[1, 1, 1]
    with pytest.raises(ValueError, match="the budget is 5 bits, and the narrowest quantisers take 6"):
        least(errors, bits, 5)
    weights = {"q_proj": drawn(O, I), "big": 9 * drawn(O, I, seed=1)}
    chosen = allotted_widths(weights, {"2": QUANTIZERS["nf2"], "4": NF4}, bits=3.6)
    assert chosen == {"q_proj": QUANTIZERS["nf2"], "big": NF4}
    net = Net()
    with pytest.raises(ValueError, match="unknown linear layer 'big'"):
        quantize(net, chosen)
    assert quantize(net, {"q_proj": chosen["q_proj"]}) == ["q_proj"]
    assert net.q_proj.quantizer == QUANTIZERS["nf2"]

"""Other forms of ΔW, which PEFT lacks: their papers' equations, numbers by hand, what they reduce to, ranks.

Shapes: O out, I in, R rank; layers of one matrix in double precision.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lora_zoo.conformance.cases import inputs, lone, only, perturb, settings, train
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import inject
from tests.adapters.test_parity_shared import stacked
from tests.adapters.test_parity_wider import adapted

F64 = torch.float64
LN2 = math.log(2)


def entries(spec: str, *tensors: Tensor) -> Tensor:
    """Einstein's sum, which names every axis: another way to the numbers than the members' own products."""
    return torch.einsum(spec, *(t.detach() for t in tensors))


def svd(W_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(W_OI, full_matrices=False)
    return U, S, Vh


def spectral(W_OI: Tensor, values: Tensor) -> Tensor:
    U, _, Vh = svd(W_OI)
    return entries("ok,k,ki->oi", U, values, Vh)


def blocks(a: Any) -> Tensor:
    """MELoRA's ΔW of (10, 14), block by block, from its concatenation of outputs."""
    dW_OI = torch.zeros(10, 14, dtype=F64)
    for n in range(2):
        rows, columns = slice(5 * n, 5 * n + 5), slice(7 * n, 7 * n + 7)
        dW_OI[rows, columns] = entries("or,ri->oi", a.B_OR[rows], a.A_RI[:, columns])
    return dW_OI


def top(a: Any, W_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The top triplets of W, as many as the adapter has and with its signs, from torch's own SVD."""
    (U, S, Vh), R = svd(W_OI), len(a.S_R)
    U, S, Vh = U[:, :R], S[:R], Vh[:R]
    sign = (U * a.U_OR).sum(0).sign()
    return U * sign, S, Vh * sign[:, None]


def added(a: Any, W_OI: Tensor) -> Tensor:
    U, S, Vh = top(a, W_OI)
    moved = entries("or,r,ri->oi", U + a.A_OR, S, Vh + a.B_RI)
    return W_OI - entries("or,r,ri->oi", U, S, Vh) + moved


def turned(a: Any, W_OI: Tensor) -> Tensor:
    """Cayley's map with an inverse, as the official code has it."""
    U, S, Vh = top(a, W_OI)
    one, skew = torch.eye(len(S), dtype=F64), [(P - P.T).detach() / 2 for P in (a.P_RR, a.Q_RR)]
    R_U, R_V = ((one - K) @ torch.linalg.inv(one + K) for K in skew)
    return W_OI + entries("or,rs,s,ts,ti->oi", U, R_U, S, R_V, Vh) - entries("or,r,ri->oi", U, S, Vh)


def trains(a: Any) -> Tensor:
    """LoRETTA's B A: 14 = 2 · 7 inputs and then 3 ranks, 3 ranks and then 10 = 2 · 5 outputs."""
    A_IR = entries("aib,bjc,crd->ijr", *a.A).reshape(14, 3)
    B_RO = entries("arb,bic,cjd->rij", *a.B).reshape(3, 10)
    return entries("ro,ir->oi", B_RO, A_IR)


def stacked_blocks(a: Any) -> Tensor:
    """Fastfood's P θ, with Sylvester's matrix H and permutation matrices written out."""
    H, theta = torch.ones(1, 1, dtype=F64), torch.zeros(8, dtype=F64)
    theta[:5] = a.subspace.theta_d.detach()
    for _ in range(3):
        H = torch.kron(H, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=F64))
    rows = []
    for signs, order, gauss in zip(a.signs_NF, a.order_NF, a.gauss_NF, strict=True):
        rows.append(H @ gauss.diag() @ torch.eye(8, dtype=F64)[order] @ H @ signs.diag() @ theta)
    return torch.cat(rows)[:140].view(10, 14)


def gates(alpha: Tensor) -> Tensor:
    """Hard-concrete values at the median, between -1.5 and 1.5 before they are cut."""
    return torch.minimum(torch.relu(3 / (1 + torch.exp(-alpha)) - 1.5), torch.ones(()))


class Case(NamedTuple):
    """A member of (10, 14) with these hyperparameters: its W' by the paper's equation, and ΔW's rank."""

    hyper: dict[str, Any]
    effective: Callable[[Any, Tensor], Tensor]
    rank: int


CASES = {
    "moslora": Case(
        {"rank": 3, "alpha": 6.0},
        lambda a, W: W + 2 * entries("or,rs,si->oi", a.B_OR, a.M_RR, a.A_RI),
        rank=3,
    ),
    "flora_core": Case(
        {"rank": 3, "alpha": 6.0},
        lambda a, W: W + 2 * entries("or,rs,si->oi", a.B_OR, a.E_RR, a.A_RI),
        rank=3,
    ),
    "trilora": Case(
        {"rank": 3, "alpha": 6.0},
        lambda a, W: W + 2 * entries("or,r,ri->oi", a.B_OR, a.e_R, a.A_RI),
        rank=3,
    ),
    "melora": Case({"rank": 3, "alpha": 6.0}, lambda a, W: W + 2 * blocks(a), rank=2 * 3),
    "ssl": Case({}, lambda a, W: entries("oi,i->oi", W, a.c_I), rank=10),
    "ssb": Case({}, lambda a, W: entries("o,oi,i->oi", a.o_O, W, a.c_I), rank=10),
    "svdiff": Case({}, lambda a, W: spectral(W, (svd(W)[1] + a.d_K.detach()).clamp_min(0)), rank=10),
    "sam_parser": Case({}, lambda a, W: spectral(W, a.s_K), rank=10),
    "spectral_adapter_a": Case({"rank": 3}, added, rank=2 * 3),
    "spectral_adapter_r": Case({"rank": 3}, turned, rank=3),
    "abba": Case(
        {"rank": 3, "alpha": 2.0},
        lambda a, W: W + 2 * entries("or,ri,os,si->oi", a.B_OR, a.A_RI, a.B2_OR, a.A2_RI),
        rank=3 * 3,
    ),
    "lotr": Case(
        {"rank": 3, "alpha": 6.0},
        lambda a, W: W + 2 * entries("or,rs,si->oi", a.pair.B_OR, a.M_RR, a.pair.A_RI),
        rank=3,
    ),
    "loretta_rep": Case({"rank": 3, "alpha": 6.0}, lambda a, W: W + 2 * trains(a), rank=3),
    "intrinsic_dimension": Case({"dimension": 5}, lambda a, W: W + stacked_blocks(a), rank=10),
    "diff_pruning": Case(
        {},
        lambda a, W: W + entries("oi,oi,xx->oi", gates(a.gate_OI), a.D_OI, gates(a.group_gate_OI)),
        rank=10,
    ),
    "deep_lora": Case(
        {"rank": 3, "depth": 4},
        lambda a, W: W + entries("or,rs,st,ti->oi", a.B_OR, a.inner_DRR[1], a.inner_DRR[0], a.A_RI),
        rank=3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_effective_weight_is_the_paper_s_equation(name: str) -> None:
    adapter, W_OI = adapted(name, **CASES[name].hyper)
    effective_OI = adapter.weight(W_OI).detach()
    assert_close(effective_OI, CASES[name].effective(adapter, W_OI))
    assert torch.linalg.matrix_rank(effective_OI - W_OI) == CASES[name].rank


# (variant, hyperparameters, W, tensors, W'), worked out by hand.
KNOWN: list[tuple[str, dict[str, Any], list[Any], dict[str, list[Any]], list[Any]]] = [
    (
        "moslora",  # B M = [[0, 1], [3, 2]], B M A = [[0, 1, 1], [3, 2, 8]], s = 4 / 2
        {"rank": 2, "alpha": 4.0},
        [[1, 0, 0], [0, 1, 0]],
        {"B_OR": [[1, 0], [2, 1]], "M_RR": [[0, 1], [3, 0]], "A_RI": [[1, 0, 2], [0, 1, 1]]},
        [[1, 2, 2], [6, 5, 16]],
    ),
    (
        "flora_core",  # the same product; with alpha = r, s = 1
        {"rank": 2},
        [[1, 0, 0], [0, 1, 0]],
        {"B_OR": [[1, 0], [2, 1]], "E_RR": [[0, 1], [3, 0]], "A_RI": [[1, 0, 2], [0, 1, 1]]},
        [[1, 1, 1], [3, 3, 8]],
    ),
    (
        "trilora",  # 3 (1, 2)ᵀ (1, 0, 2) - (0, 1)ᵀ (0, 1, 1)
        {"rank": 2},
        [[1, 0, 0], [0, 1, 0]],
        {"B_OR": [[1, 0], [2, 1]], "e_R": [3, -1], "A_RI": [[1, 0, 2], [0, 1, 1]]},
        [[4, 0, 6], [6, 0, 11]],
    ),
    (
        "melora",  # (1, 2) moves row 0 of columns 0 and 1 three times, (5, 6) row 1 of the others
        {"rank": 1, "alpha": 1.0},
        [[1, 1, 1, 1], [1, 1, 1, 1]],
        {"B_OR": [[3], [1]], "A_RI": [[1, 2, 5, 6]]},
        [[4, 7, 1, 1], [1, 1, 6, 7]],
    ),
    (
        "melora",  # two rows of three columns, one row of two
        {"rank": 1, "alpha": 1.0},
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
        {"B_OR": [[1], [2], [3]], "A_RI": [[1, 2, 3, 4, 5]]},
        [[1, 2, 3, 0, 0], [2, 4, 6, 0, 0], [0, 0, 0, 12, 15]],
    ),
    ("ssl", {}, [[1, 2], [3, 4]], {"c_I": [10, -1]}, [[10, -2], [30, -4]]),
    ("ssb", {}, [[1, 2], [3, 4]], {"c_I": [10, -1], "o_O": [1, 2]}, [[10, -2], [60, -8]]),
    # Singular values 3 and 2 on the axes: the first becomes 5, the second 2 - 7 < 0.
    ("svdiff", {}, [[0, 3], [2, 0]], {"d_K": [2, -7]}, [[0, 5], [0, 0]]),
    ("sam_parser", {}, [[0, 3], [2, 0]], {"s_K": [5, -7]}, [[0, 5], [-7, 0]]),
    (
        "spectral_adapter_a",  # u = (1, 0) and v = (0, 1) become (2, 2) and (4, 6), σ = 3
        {"rank": 1},
        [[0, 3], [2, 0]],
        {"A_OR": [[1], [2]], "B_RI": [[4, 5]]},
        [[24, 36], [26, 36]],
    ),
    (
        "spectral_adapter_r",  # K = [[0, 1], [-1, 0]] turns (u₁, u₂) into (u₂, -u₁)
        {"rank": 2},
        [[0, 3], [2, 0]],
        {"P_RR": [[0, 2], [0, 0]], "Q_RR": [[0, 0], [0, 0]]},
        [[-2, 0], [0, 3]],
    ),
    (
        "abba",  # [[1, 2], [1, 2]] ⊙ [[0, 5], [0, 0]], s = α
        {"rank": 1, "alpha": 2.0},
        [[0, 3], [2, 0]],
        {"B_OR": [[1], [1]], "A_RI": [[1, 2]], "B2_OR": [[1], [0]], "A2_RI": [[0, 5]]},
        [[0, 23], [2, 0]],
    ),
    (
        "deep_lora",
        {"rank": 1},
        [[1, 1], [1, 1]],
        {"B_OR": [[2], [1]], "inner_DRR": [[[3]]], "A_RI": [[1, -1]]},
        [[7, -5], [4, -2]],
    ),
    (
        "diff_pruning",  # gates [[0, 1/2], [1, 0]], as σ(ln 2) = 2/3, and 1/2 for all
        {},
        [[1, 1], [1, 1]],
        {"D_OI": [[4, 8], [2, -6]], "gate_OI": [[0, LN2], [50, -3]], "group_gate_OI": [[LN2]]},
        [[1, 3], [2, 1]],
    ),
    (
        "lotr",
        {"rank": 1},
        [[1, 1, 1], [1, 1, 1]],
        {"pair.B_OR": [[1], [2]], "M_RR": [[3]], "pair.A_RI": [[1, 0, -1]]},
        [[4, 1, -2], [7, 1, -5]],
    ),
    (
        "loretta_rep",  # A = (1, 10) x (1, 2), the later core's index the faster
        {"rank": 1, "alpha": 1.0, "tensor_rank": 1},
        [[0, 0, 0, 0], [0, 0, 0, 0]],
        {
            **{"A.0": [[[1], [10]]], "A.1": [[[1], [2]]], "A.2": [[[1]]]},
            **{"B.0": [[[1]]], "B.1": [[[1], [-1]]]},
        },
        [[1, 2, 10, 20], [-1, -2, -10, -20]],
    ),
    (
        "intrinsic_dimension",
        {"dimension": 2, "projection": "dense", "structured": True},
        [[1, 2], [3, 4]],
        {"subspace.theta_d": [5, 1.5], "gain": 2, "P_Dd": [[1, 0], [0, 1], [1, 1], [2, -1]]},
        [[11, 5], [16, 21]],
    ),
    (
        # Block 1: B (3, -1), H (2, 4), Π (4, 2), G (4, 4), H (8, 0). Block 2: (3, 1), (4, 2), (4, 0), (4, 4)
        "intrinsic_dimension",
        {"dimension": 2},
        [[0, 0], [0, 0]],
        {
            "subspace.theta_d": [3, 1],
            **{"signs_NF": [[1, -1], [1, 1]], "order_NF": [[1, 0], [0, 1]], "gauss_NF": [[1, 2], [1, 0]]},
        },
        [[8, 0], [4, 4]],
    ),
]


@pytest.mark.parametrize(
    ("name", "hyper", "W", "tensors", "expected"), KNOWN, ids=[case[0] for case in KNOWN]
)
def test_a_case_that_is_worked_out_by_hand(
    name: str, hyper: dict[str, Any], W: list[Any], tensors: dict[str, list[Any]], expected: list[Any]
) -> None:
    model = lone("linear", len(W), len(W[0]))
    W_OI = torch.tensor(W, dtype=F64)
    with torch.no_grad():
        model.layer.weight.copy_(W_OI)
        adapter, _ = only(inject(model, name, target_modules="layer", **hyper))
        held = dict(adapter.named_parameters()) | dict(adapter.named_buffers())
        assert tensors.keys() >= dict(adapter.named_parameters()).keys()
        for of, values in tensors.items():
            held[of].copy_(torch.tensor(values, dtype=F64))
    assert_close(adapter.weight(W_OI).detach(), torch.tensor(expected, dtype=F64))


def test_every_case_is_also_worked_out_by_hand() -> None:
    assert CASES.keys() == {name for name, *_ in KNOWN} and CASES.keys() <= set(VARIANTS)


# --- reductions to LoRA -------------------------------------------------------------------------------------


def walked(name: str, frozen: dict[str, Tensor], **hyper: Any) -> tuple[Tensor, ...]:
    """The output, A and B after five steps of AdamW from LoRA's start; `frozen` tensors stay as they are."""
    model, x = lone("linear"), inputs("linear")
    lora = only(inject(lone("linear"), "lora", target_modules="layer", rank=3))[0]
    injection = inject(model, name, target_modules="layer", rank=3, **hyper)
    adapter, _ = only(injection)
    with torch.no_grad():
        adapter.A_RI.copy_(lora.A_RI)
        adapter.B_OR.copy_(lora.B_OR)
        for of, values in frozen.items():
            adapter.get_parameter(of).copy_(values).requires_grad_(False)
    train(injection, lambda: (model(x) - 1).square().mean(), steps=5)
    return model(x).detach(), adapter.A_RI.detach(), adapter.B_OR.detach()


@pytest.mark.parametrize(
    ("name", "frozen", "hyper"),
    [
        ("moslora", {"M_RR": torch.eye(3)}, {"mixer": "identity"}),
        ("flora_core", {"E_RR": torch.eye(3)}, {}),
        ("trilora", {"e_R": torch.ones(3)}, {}),
        ("melora", {}, {"num_mini": 1}),
    ],
)
def test_in_the_neutral_setting_a_member_walks_as_lora_does(
    name: str, frozen: dict[str, Tensor], hyper: dict[str, Any]
) -> None:
    assert_close(walked(name, frozen, **hyper), walked("lora", {}))


@pytest.mark.parametrize("name", ["moslora", "flora_core", "trilora"])
def test_a_core_has_the_start_that_sets_its_paper_apart(name: str) -> None:
    """MoSLoRA's zeros are in B, so that B moves first; the others' in the core, which then does."""
    model, x = lone("linear"), inputs("linear")
    adapter, _ = only(inject(model, name, target_modules="layer", rank=3))
    (model(x) - 1).square().mean().backward()
    moved = {of for of, p in adapter.named_parameters() if p.grad.any()}
    zero = {of for of, p in adapter.named_parameters() if not p.any()}
    assert moved == zero == {{"moslora": "B_OR", "flora_core": "E_RR", "trilora": "e_R"}[name]}


# --- starts and refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ["kaiming", "orthogonal", "identity"])
def test_moslora_s_mixer_begins_as_it_says(mixer: str) -> None:
    adapter, _ = only(inject(lone("linear", 80, 80), "moslora", target_modules="layer", rank=64, mixer=mixer))
    M_RR = adapter.M_RR.detach()
    if mixer == "kaiming":  # U(±1/8) of 4096 numbers
        assert 0.98 < float(M_RR.abs().max()) * 8 <= 1 and abs(float(M_RR.std()) * 8 * 3**0.5 - 1) < 0.05
    else:
        assert_close(M_RR @ M_RR.T, torch.eye(64, dtype=F64))
        assert (mixer == "identity") == torch.equal(M_RR, torch.eye(64, dtype=F64))


def test_flora_s_factors_have_the_authors_width() -> None:
    adapter, _ = only(inject(lone("linear", 300, 400), "flora_core", target_modules="layer", rank=8))
    for factor in (adapter.A_RI, adapter.B_OR):
        assert float(factor.detach().std()) == pytest.approx(0.02, rel=0.06)


def test_a_mini_draws_for_its_own_number_of_inputs() -> None:
    adapter, _ = only(inject(lone("linear", 300, 400), "melora", target_modules="layer", num_mini=4))
    for A_RI in adapter.A_RI.detach().chunk(4, dim=1):
        assert 0.98 < float(A_RI.abs().max()) * 100**0.5 <= 1
    assert not torch.equal(*adapter.A_RI.detach().chunk(4, dim=1)[:2])


def test_abba_s_second_pair_begins_as_the_best_approximation_of_w() -> None:
    adapter, host = only(inject(lone("linear"), "abba", target_modules="layer", rank=3))
    U, S, Vh = svd(host.matrix().detach())
    assert_close((adapter.B2_OR @ adapter.A2_RI).detach(), U[:, :3] * S[:3] @ Vh[:3])


def test_deep_lora_begins_with_three_small_orthogonal_factors() -> None:
    """ΔW's singular values are ε³ = 1e-9, all of them."""
    adapter, _ = only(inject(lone("linear"), "deep_lora", target_modules="layer", rank=3))
    B_OR, A_RI = adapter.factors()
    assert_close(1e9 * torch.linalg.svdvals((B_OR @ A_RI).detach())[:3], torch.ones(3, dtype=F64))


def test_the_trains_of_loretta_begin_at_zero_with_the_official_width() -> None:
    """A's entries have the variance 1 / (I + R), of which B is spared."""
    adapter, _ = only(inject(lone("linear", 96, 768), "loretta_rep", target_modules="layer", rank=8))
    assert [tuple(core.shape) for core in adapter.A] == [(1, 8, 5), (5, 8, 5), (5, 12, 5), (5, 8, 1)]
    assert [tuple(core.shape) for core in adapter.B] == [(1, 8, 5), (5, 4, 5), (5, 4, 5), (5, 6, 1)]
    B_OR, A_RI = adapter.factors()
    assert not B_OR.any() and float(A_RI.detach().std()) == pytest.approx(776**-0.5, rel=0.3)


def test_one_core_of_lotr_moves_one_matrix_and_all_have_one_tucker_rank() -> None:
    _, injection, _ = stacked("lotr", rank=2)
    injection.hooks.law()
    updates = [dW_OI for _, _, dW_OI in injection][:3]
    assert all(torch.linalg.matrix_rank(dW_OI) == 2 for dW_OI in updates)
    assert (
        torch.linalg.matrix_rank(torch.cat(updates)) == torch.linalg.matrix_rank(torch.cat(updates, 1)) == 2
    )
    assert injection.trainable() == 4 * 2 * 2 + 2 * (6 + 6) + 2 * (4 + 6)
    with torch.no_grad():
        injection.adapters["layers.1"].M_RR.zero_()
    assert [bool(dW_OI.any()) for _, _, dW_OI in injection] == [True, False, True, True]


@pytest.mark.parametrize("projection", ["dense", "fastfood"])
def test_columns_of_the_projection_have_length_1_and_no_correlation(projection: str) -> None:
    hyper = {"dimension": 20, "projection": projection}
    adapter, _ = only(inject(lone("linear", 90, 100), "intrinsic_dimension", target_modules="layer", **hyper))
    columns = []
    for one_d in torch.eye(20, dtype=F64):
        adapter.subspace.theta_d.data.copy_(one_d)
        columns.append(adapter.moved().detach()[:9000])
    gram = torch.stack(columns) @ torch.stack(columns).T
    assert_close(gram, torch.eye(20, dtype=F64), rtol=0, atol=0.15 if projection == "dense" else 0.3)


@pytest.mark.parametrize(("structured", "count"), [(False, 7), (True, 7 + 4)])
def test_one_subspace_holds_all_matrices(structured: bool, count: int) -> None:
    _, injection, _ = stacked("intrinsic_dimension", dimension=7, structured=structured)
    assert injection.trainable() == count
    directions = [torch.cat([dW_OI.flatten() for _, _, dW_OI in injection])]
    for seed in range(2, 12):
        perturb(injection, seed=seed)
        directions.append(torch.cat([dW_OI.flatten() for _, _, dW_OI in injection]))
    rank = int(torch.linalg.matrix_rank(torch.stack(directions)))
    assert rank > 7 if structured else rank == 7


@pytest.mark.parametrize(
    ("name", "kind", "hyper", "words"),
    [
        ("loretta_rep", "linear", {"tensor_rank": 0}, r"tensor_rank must be at least 1; got 0"),
        ("intrinsic_dimension", "linear", {"dimension": 0}, r"dimension must be at least 1; got 0"),
        (
            "intrinsic_dimension",
            "linear",
            {"dimension": 2**22, "projection": "dense"},
            r"a dense P would hold 140 x 4,194,304 numbers, more than 536,870,912; use projection=fastfood",
        ),
        ("deep_lora", "linear", {"depth": 2}, r"depth must be at least 3 .*got depth=2 and init_scale=0.001"),
        ("spectral_adapter_r", "linear", {"rank": 1}, r"rank must be at least 2, as one vector cannot turn"),
        ("spectral_adapter_a", "linear", {"rank": 11}, r"between 1 and the smaller side; got 11"),
        ("melora", "linear", {"num_mini": 4}, r"rank must lie between 1 and 2; got 3"),
        ("melora", "linear", {"num_mini": 0}, r"num_mini must lie between 1 and 10; got 0"),
        (
            "melora",
            "linear",
            {"rank": 6},
            r"rank must lie between 1 and 5; got 6",
        ),
        ("flora_core", "convolution_2d", {}, r"FLoRA's core of a convolution is no matrix"),
        ("moslora", "linear", {"mixer": "zero"}, r"moslora: mixer must be 'kaiming' or .*; got 'zero'"),
        ("moslora", "linear", {"init": "pissa"}, r"moslora cannot start from init=pissa"),
    ],
)
def test_what_cannot_be_is_refused(name: str, kind: str, hyper: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        inject(lone(kind), name, target_modules="layer", **(settings(name, 3) | hyper))


@pytest.mark.parametrize("name", ["ssl", "ssb", "sam_parser"])
def test_gains_and_singular_values_do_not_decay_to_zero(name: str) -> None:
    injection = inject(lone("linear"), name, target_modules="layer")
    assert [group["weight_decay"] for group in injection.param_groups(lr=0.1, weight_decay=0.5)] == [0.0]

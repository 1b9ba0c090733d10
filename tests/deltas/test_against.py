"""ΔW against W: planted directions, intruders and rows, dense decompositions of numpy, random matrices."""

import math
from collections.abc import Callable
from functools import partial

import numpy
import pytest
import torch
from torch import Tensor

from lora_zoo.updates import vs_base
from lora_zoo.updates.weight_update import DenseUpdate, FactoredUpdate, WeightUpdate

O, I = 24, 15


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis(dimension: int, count: int, seed: int) -> Tensor:
    """Orthonormal columns."""
    return torch.linalg.qr(drawn(dimension, count, seed=seed)).Q


def known(O: int = O, I: int = I) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W with the singular values K, K - 1, …, 1, and its U, σ, V as columns."""
    K = min(O, I)
    U_OK, V_IK, S_K = basis(O, K, 1), basis(I, K, 2), torch.arange(K, 0, -1, dtype=torch.float64)
    return U_OK * S_K @ V_IK.T, U_OK, S_K, V_IK


def forms(B_OR: Tensor, A_RI: Tensor) -> list[WeightUpdate]:
    return [FactoredUpdate("the.matrix", B_OR, A_RI), DenseUpdate("the.matrix", B_OR @ A_RI)]


SHAPES = [(24, 15), (15, 24), (12, 12)]

# --- amplification ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [1, 2, 3, 50])
@pytest.mark.parametrize("shape", SHAPES)
def test_amplification_is_the_definition_with_numpy(shape: tuple[int, int], asked: int) -> None:
    W_OI = drawn(*shape)
    for delta in forms(drawn(shape[0], 3, seed=1), drawn(3, shape[1], seed=2)):
        U, sigma, Vh = numpy.linalg.svd(delta.dense().numpy())
        R = min(asked, 3)
        own = numpy.linalg.norm(U[:, :R].T @ W_OI.numpy() @ Vh[:R].T)
        found = vs_base.amplification(delta, W_OI, asked)
        assert found.directions == R
        assert found.own == pytest.approx(own, rel=1e-10)
        base = numpy.linalg.norm(numpy.linalg.svd(W_OI.numpy(), compute_uv=False)[:R])
        assert found.base == pytest.approx(base, rel=1e-10)
        assert found.factor == pytest.approx(numpy.linalg.norm(sigma) / own, rel=1e-10)


def test_a_copy_of_w_s_top_amplifies_by_its_size() -> None:
    W_OI, U_OK, S_K, V_IK = known()
    top = FactoredUpdate("W", 0.5 * U_OK[:, :4] * S_K[:4], V_IK[:, :4].T)
    found = vs_base.amplification(top, W_OI, 4)
    assert found.own == pytest.approx(found.base, rel=1e-10) == pytest.approx(float(S_K[:4].norm()))
    assert found.factor == pytest.approx(0.5)


def test_a_change_along_the_bottom_is_strong_there() -> None:
    W_OI, U_OK, S_K, V_IK = known()
    bottom = FactoredUpdate("W", 7 * U_OK[:, -1:], V_IK[:, -1:].T)
    found = vs_base.amplification(bottom, W_OI, 1)
    assert (found.own, found.base) == pytest.approx((float(S_K[-1]), float(S_K[0])))
    assert found.factor == pytest.approx(7)


def test_the_paper_s_own_numbers() -> None:
    """LoRA, table 7: ‖W‖ = 61.95 at 12288 x 12288 gives 0.02 and 0.33 at random for 4 and 64 directions."""
    side = 12288 // 64
    W_OI, delta = drawn(side, side), FactoredUpdate("W", drawn(side, 64), drawn(64, side, seed=1))
    W_OI *= 61.95 / W_OI.norm()
    random = [vs_base.amplification(delta, W_OI, R).random / 64 for R in (4, 64)]
    assert random[0] == pytest.approx(0.02, abs=0.005) and random[1] == pytest.approx(0.33, abs=0.01)


def test_the_random_baseline_is_that_of_random_directions() -> None:
    W_OI, R, draws = known()[0], 3, 400
    seen = torch.tensor(
        [float((basis(O, R, 2 * k).T @ W_OI @ basis(I, R, 2 * k + 1)).square().sum()) for k in range(draws)]
    )
    expected = vs_base.amplification(forms(drawn(O, 8), drawn(8, I))[0], W_OI, R).random
    assert expected**2 == pytest.approx(float(seen.mean()), abs=4 * float(seen.std()) / math.sqrt(draws))
    assert expected == pytest.approx(float(W_OI.norm()) * R / math.sqrt(O * I))


def test_where_w_has_nothing_there_is_no_factor() -> None:
    W_OI = torch.zeros(O, I, dtype=torch.float64)
    W_OI[:5, :5] = torch.eye(5)
    away = torch.zeros(O, I, dtype=torch.float64)
    away[9, 9] = 3
    for delta in (DenseUpdate("W", away), DenseUpdate("W", torch.zeros(O, I))):
        found = vs_base.amplification(delta, W_OI, 2)
        assert found.directions == delta.rank and found.own == 0 and math.isnan(found.factor)
    assert (found.base, found.random) == (0, 0)


# --- touched ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_along_w_s_vectors_are_the_definition_with_numpy(shape: tuple[int, int], side: str) -> None:
    W_OI = drawn(*shape)
    U, _, Vh = numpy.linalg.svd(W_OI.numpy(), full_matrices=False)
    for delta in forms(drawn(shape[0], 3, seed=1), drawn(3, shape[1], seed=2)):
        dW = delta.dense().numpy()
        along = (
            numpy.linalg.norm(dW @ Vh.T, axis=0) if side == "right" else numpy.linalg.norm(U.T @ dW, axis=1)
        )
        expected = along**2 / numpy.linalg.norm(dW) ** 2
        numpy.testing.assert_allclose(vs_base.overlap(delta, W_OI, side), expected, atol=1e-10)


def test_a_planted_direction_is_found_on_its_side() -> None:
    W_OI, U_OK, _, V_IK = known()
    for delta in forms(U_OK[:, 2:3], 5 * V_IK[:, -2:-1].T):
        left, right = (vs_base.overlap(delta, W_OI, side) for side in ("left", "right"))
        assert int(left.argmax()) == 2 and int(right.argmax()) == len(right) - 2
        assert float(left[2]) == pytest.approx(1) and float(right[-2]) == pytest.approx(1)
        assert torch.equal(right, vs_base.overlap(delta, W_OI))


def test_parts_are_of_the_squared_norm() -> None:
    W_OI, U_OK, _, V_IK = known()
    mixed = DenseUpdate(
        "W", 3 * torch.outer(U_OK[:, 0], V_IK[:, 0]) + 4 * torch.outer(U_OK[:, 1], V_IK[:, 5])
    )
    assert vs_base.overlap(mixed, W_OI)[[0, 5]].tolist() == pytest.approx([9 / 25, 16 / 25])


def test_what_lies_outside_of_a_tall_matrix_is_missing_from_the_sum() -> None:
    W_OI, U_OK, _, V_IK = known()
    outside = drawn(O, 1, seed=9)
    outside -= U_OK @ (U_OK.T @ outside)
    delta = FactoredUpdate("W", outside / outside.norm(), V_IK[:, :1].T)
    assert float(vs_base.overlap(delta, W_OI, "left").sum()) < 1e-12
    assert float(vs_base.overlap(delta, W_OI, "right").sum()) == pytest.approx(1)
    half = FactoredUpdate("W", outside / outside.norm() + U_OK[:, 3:4], V_IK[:, :1].T)
    assert float(vs_base.overlap(half, W_OI, "left").sum()) == pytest.approx(0.5)


def test_a_random_change_touches_each_dimension_alike() -> None:
    W_OI, draws = known(12, 8)[0], 400
    parts = torch.stack(
        [vs_base.overlap(DenseUpdate("W", drawn(12, 8, seed=k)), W_OI, "left") for k in range(draws)]
    )
    error = parts.std(0) / math.sqrt(draws)
    assert ((parts.mean(0) - 1 / 12).abs() < 4.5 * error).all() and parts.shape[1] == 8


def test_nothing_touches_nothing_and_a_side_has_a_name() -> None:
    W_OI, zero = drawn(O, I), FactoredUpdate("W", torch.zeros(O, 2), drawn(2, I))
    assert not vs_base.overlap(zero, W_OI).any() and len(vs_base.overlap(zero, W_OI)) == I
    with pytest.raises(ValueError, match="side='top' is neither left nor right"):
        vs_base.overlap(zero, W_OI, "top")


# --- intruders --------------------------------------------------------------------------------------------


def big() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return known(256, 256)


def test_w_times_a_number_has_no_intruders() -> None:
    W_OI = big()[0]
    for scale in (0.5, -3.0, 0.0):
        found = vs_base.intruders(DenseUpdate("W", scale * W_OI), W_OI)
        assert found.count() == 0 and found.cosines.tolist() == pytest.approx([1.0] * 10)


@pytest.mark.parametrize("strength, intruders", [(500.0, 1), (100.0, 0)])
def test_a_planted_intruder_is_found_where_it_is_among_the_first(strength: float, intruders: int) -> None:
    """A left vector with the cosine 1 / 16 to each of W's 256, with a σ that puts it first, or far back."""
    W_OI, U_OK, _, _ = big()
    new = U_OK @ torch.full((256, 1), 1 / 16, dtype=torch.float64)
    row = basis(256, 1, seed=5)
    found = vs_base.intruders(FactoredUpdate("W", strength * new, row.T), W_OI)
    theirs = numpy.linalg.svd(W_OI.numpy())[0]
    tuned = numpy.linalg.svd((W_OI + strength * new @ row.T).numpy())[0]
    numpy.testing.assert_allclose(found.cosines, numpy.abs(tuned.T @ theirs).max(axis=1)[:10], rtol=1e-6)
    assert len(found.cosines) == 10 and found.count() == intruders
    assert (found.cosines[0] < 0.2) == (intruders == 1)


def test_more_are_looked_at_where_more_are_asked_for() -> None:
    W_OI = drawn(40, 30)
    delta = FactoredUpdate("W", drawn(40, 5, seed=1), drawn(5, 30, seed=2))
    few, all_of_them = vs_base.intruders(delta, W_OI, 3), vs_base.intruders(delta, W_OI, 99)
    assert len(few.cosines) == 3 and len(all_of_them.cosines) == 30
    numpy.testing.assert_allclose(few.cosines, all_of_them.cosines[:3], rtol=1e-12)


def test_intruders_are_of_the_outputs_side() -> None:
    """W' = W Q: another basis of the inputs, the same left vectors."""
    W_OI, Q_II = drawn(32, 32), basis(32, 32, seed=3)
    found = vs_base.intruders(DenseUpdate("W", W_OI @ Q_II - W_OI), W_OI, 32)
    assert found.cosines.tolist() == pytest.approx([1.0] * 32)
    turned = vs_base.intruders(DenseUpdate("W", Q_II @ W_OI - W_OI), W_OI, 32)
    assert turned.cosines.min() < 0.7


def test_the_floor_is_what_random_vectors_reach_and_a_count_needs_more() -> None:
    found = vs_base.intruders(DenseUpdate("W", torch.zeros(256, 3)), drawn(256, 3))
    assert found.floor == pytest.approx(math.sqrt(2 * math.log(256) / 256)) == pytest.approx(0.208, abs=1e-3)
    best = torch.stack([basis(256, 1, seed).abs().max() for seed in range(50)])
    assert float(best.mean()) == pytest.approx(found.floor, rel=0.2)
    for epsilon in (0.1, found.floor):
        with pytest.raises(ValueError, match=r"ε=0\.\d+ is not above 0\.21"):
            found.count(epsilon)
    assert found.count(0.22) == 0


def test_counted_is_what_stays_below() -> None:
    cosines = torch.tensor([0.5, 0.4999, 0.9, 0.3])
    found = vs_base.Intruders(cosines, 0.1)
    assert found.count() == 2 and found.count(0.95) == 4 and found.count(0.2) == 0


# --- rows -------------------------------------------------------------------------------------------------


def test_rows_of_known_size_and_angle() -> None:
    W_OI = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    after = torch.tensor([[0.0, 3.0], [0.0, 1.0], [-2.0, -2.0], [4.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    rows = vs_base.row_changes(W_OI, after - W_OI)
    # a quarter turn, a shorter one, a half turn; the last two have no direction before, or after
    assert rows.direction == pytest.approx((1 + 0 + 2) / 3)
    assert rows.magnitude == pytest.approx((0 + 1 + math.sqrt(2) + 4 + 5) / 5)


def test_rows_scaled_change_no_direction_and_rows_turned_no_magnitude() -> None:
    W_OI = drawn(O, I)
    scaled = vs_base.row_changes(W_OI, drawn(O, 1).abs() * W_OI)
    assert scaled.direction == pytest.approx(0, abs=1e-12) and scaled.magnitude > 0.1
    turned = vs_base.row_changes(W_OI, W_OI @ basis(I, I, 3) - W_OI)
    assert turned.magnitude == pytest.approx(0, abs=1e-12) and turned.direction > 0.1


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_rows_are_numpy_s(size: float) -> None:
    W, dW = drawn(O, I).numpy(), size * drawn(O, I, seed=1).numpy()
    before, after = (numpy.linalg.norm(m, axis=1) for m in (W, W + dW))
    cosines = ((W + dW) * W).sum(axis=1) / before / after
    rows = vs_base.row_changes(torch.from_numpy(W), torch.from_numpy(dW))
    assert rows.magnitude == pytest.approx(numpy.abs(after - before).mean(), rel=1e-6)
    assert rows.direction == pytest.approx((1 - cosines).mean(), rel=1e-3)


def test_rows_that_all_but_vanish_have_a_size() -> None:
    W_OI = drawn(300, 5)
    rows = vs_base.row_changes(W_OI, -W_OI * (1 - 1e-9))
    assert rows.magnitude == pytest.approx(float(W_OI.norm(dim=1).mean()), rel=1e-6)
    assert 0 <= rows.direction <= 2


def test_no_row_has_a_direction_where_w_is_zero() -> None:
    rows = vs_base.row_changes(torch.zeros(3, 2), torch.ones(3, 2))
    assert rows == pytest.approx((math.sqrt(2), 0.0))


# --- any W ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_w_may_be_of_few_bits(dtype: torch.dtype) -> None:
    W_OI, delta = drawn(O, I).to(dtype), forms(drawn(O, 2), drawn(2, I))[0]
    exact = W_OI.double()
    near = {"rel": 1e-4, "abs": 1e-5}
    assert vs_base.amplification(delta, W_OI, 2) == pytest.approx(
        vs_base.amplification(delta, exact, 2), **near
    )
    numpy.testing.assert_allclose(vs_base.overlap(delta, W_OI), vs_base.overlap(delta, exact), atol=1e-5)
    cosines = [vs_base.intruders(delta, W, 5).cosines for W in (W_OI, exact)]
    numpy.testing.assert_allclose(*cosines, atol=1e-9)
    small = (0.3 * delta.dense()).to(dtype)
    assert vs_base.row_changes(W_OI, small) == pytest.approx(
        vs_base.row_changes(exact, small.double()), **near
    )


ASKED = [partial(vs_base.amplification, directions=2), vs_base.overlap, vs_base.intruders]


@pytest.mark.parametrize("ask", ASKED)
def test_w_of_another_shape_and_no_numbers_are_refused(ask: Callable[[WeightUpdate, Tensor], object]) -> None:
    delta = forms(drawn(O, 2), drawn(2, I))[0]
    with pytest.raises(ValueError, match=r"the\.matrix: ΔW is \(24, 15\), but W is \(15, 24\)"):
        ask(delta, drawn(I, O))
    for bad in forms(math.nan * drawn(O, 2), drawn(2, I)):
        with pytest.raises(ValueError, match=r"the\.matrix holds NaN or inf"):
            ask(bad, drawn(O, I))


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)])
def test_a_matrix_may_be_a_vector(shape: tuple[int, int]) -> None:
    W_OI, dW_OI = torch.full(shape, 2.0), torch.full(shape, 1.0)
    delta = DenseUpdate("W", dW_OI)
    assert vs_base.amplification(delta, W_OI, 5)[:1] == (1,)
    assert vs_base.amplification(delta, W_OI, 5).factor == pytest.approx(0.5)
    for side in ("left", "right"):
        assert vs_base.overlap(delta, W_OI, side).tolist() == pytest.approx([1.0])
    assert vs_base.intruders(delta, W_OI).cosines.tolist() == pytest.approx([1.0])
    assert vs_base.row_changes(W_OI, dW_OI).direction == pytest.approx(0, abs=1e-12)

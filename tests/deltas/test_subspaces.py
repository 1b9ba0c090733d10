"""Directions and how alike they are: against scipy's angles, the definition and random subspaces."""

import itertools
import math

import numpy
import pytest
import scipy.linalg
import torch
from torch import Tensor

from lora_zoo.updates import subspaces
from lora_zoo.updates.subspaces import DIRECTIONS
from lora_zoo.updates.weight_update import DenseUpdate, FactoredUpdate, WeightUpdate

O, I = 14, 10


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(count: int, dimension: int, seed: int = 0) -> Tensor:
    """Rows."""
    return torch.linalg.qr(drawn(dimension, count, seed=seed)).Q.T


def learnt(rank: int, seed: int) -> FactoredUpdate:
    return FactoredUpdate("W", drawn(O, rank, seed=seed), drawn(rank, I, seed=seed + 100))


def same(one_KD: Tensor, other_KD: Tensor) -> None:
    """The same directions one by one, but for their signs."""
    assert one_KD.shape == other_KD.shape
    numpy.testing.assert_allclose((one_KD * other_KD).sum(1).abs(), 1, atol=1e-9)


# --- whose directions -------------------------------------------------------------------------------------


def by_numpy(of: str, delta: FactoredUpdate) -> Tensor:
    B_OR, A_RI = (factor.numpy() for factor in (delta.B_OR, delta.A_RI))
    rank = numpy.linalg.matrix_rank(B_OR @ A_RI)
    if of in ("left", "right"):
        U, _, Vh = numpy.linalg.svd(B_OR @ A_RI)
        return torch.from_numpy(U.T[:rank] if of == "left" else Vh[:rank])
    Vh = numpy.linalg.svd(A_RI if of == "A" else B_OR.T)[2]
    return torch.from_numpy(Vh[: len(A_RI)])


@pytest.mark.parametrize("of", DIRECTIONS)
def test_directions_are_singular_vectors_in_order_of_their_values(of: str) -> None:
    delta = learnt(3, seed=0)
    rows = subspaces.directions(delta, of)
    same(rows, by_numpy(of, delta))
    assert rows.shape == (3, I if of in ("right", "A") else O)
    numpy.testing.assert_allclose(rows @ rows.T, numpy.eye(3), atol=1e-12)


def test_the_input_s_directions_are_meant_where_nothing_is_said() -> None:
    delta = learnt(2, seed=0)
    assert torch.equal(subspaces.directions(delta), subspaces.directions(delta, "right"))


def test_directions_of_nothing_are_left_out() -> None:
    """A repeated row of A adds no direction; a zero column of B takes one from ΔW and none from A."""
    A_RI, B_OR = drawn(3, I), drawn(O, 3, seed=1)
    twice = FactoredUpdate("W", torch.cat([B_OR, B_OR], dim=1), torch.cat([A_RI, A_RI]))
    assert {len(subspaces.directions(twice, of)) for of in DIRECTIONS} == {3}
    B_OR[:, 1] = 0
    less = FactoredUpdate("W", B_OR, A_RI)
    assert [len(subspaces.directions(less, of)) for of in ("left", "right", "A", "B")] == [2, 2, 3, 2]
    wide = FactoredUpdate("W", drawn(O, 20), drawn(20, I))
    assert [len(subspaces.directions(wide, of)) for of in ("left", "right", "A", "B")] == [I, I, I, O]


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("of", DIRECTIONS)
def test_zero_has_no_directions(of: str, rank: int) -> None:
    zero = FactoredUpdate("W", torch.zeros(O, rank), torch.zeros(rank, I))
    assert subspaces.directions(zero, of).shape == (0, I if of in ("right", "A") else O)


def test_a_start_has_the_directions_of_its_drawn_factor_alone() -> None:
    start = FactoredUpdate("W", torch.zeros(O, 2), drawn(2, I))
    assert [len(subspaces.directions(start, of)) for of in ("left", "right", "A", "B")] == [0, 0, 2, 0]


def test_what_cannot_be_asked_says_why() -> None:
    whole = DenseUpdate("the.matrix", drawn(O, I))
    for of in ("A", "B"):
        with pytest.raises(
            ValueError, match=r"the\.matrix is no product of factors; compare .*left or right"
        ):
            subspaces.directions(whole, of)
    with pytest.raises(ValueError, match=r"unknown directions 'rigth'\. Did you mean 'right'\? .*left, A, B"):
        subspaces.directions(whole, "rigth")


@pytest.mark.parametrize("of", DIRECTIONS)
@pytest.mark.parametrize("bad", [0, 1])
def test_an_adapter_of_no_numbers_has_no_directions(of: str, bad: int) -> None:
    factors = [drawn(O, 2), drawn(2, I)]
    factors[bad][1, 1] = math.nan
    with pytest.raises(ValueError, match=r"the\.matrix holds NaN or inf"):
        subspaces.directions(FactoredUpdate("the.matrix", *factors), of)


# --- φ ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(4, 7), (7, 4), (1, 1), (1, 10), (10, 10)])
def test_phi_is_the_mean_squared_cosine_of_scipy_s_angles(counts: tuple[int, int]) -> None:
    one, other = (orthonormal(n, I, seed) for seed, n in enumerate(counts))
    phi = subspaces.similarity(one, other)
    assert phi.shape == counts
    for i, j in itertools.product(*(range(1, n + 1) for n in counts)):
        angles = scipy.linalg.subspace_angles(one[:i].numpy().T, other[:j].numpy().T)
        assert len(angles) == min(i, j)
        assert float(phi[i - 1, j - 1]) == pytest.approx(float(numpy.mean(numpy.cos(angles) ** 2)), abs=1e-12)


@pytest.mark.parametrize("counts", [(3, 6), (6, 3), (4, 4)])
def test_phi_is_one_less_the_squared_distance_a_dimension_not_what_the_paper_prints(
    counts: tuple[int, int],
) -> None:
    one, other = (orthonormal(n, I, seed) for seed, n in enumerate(counts))
    p, phi = min(counts), float(subspaces.similarity(one, other)[-1, -1])
    squared = sum(numpy.sin(scipy.linalg.subspace_angles(one.numpy().T, other.numpy().T)) ** 2)
    assert phi == pytest.approx(1 - squared / p) and phi != pytest.approx((1 - squared) / p, abs=0.05)


def test_the_smaller_within_the_greater_is_one_and_apart_is_zero() -> None:
    every = orthonormal(I, I)
    phi = subspaces.similarity(every[:3], every[:8])
    numpy.testing.assert_allclose(phi[:, 2:], 1, atol=1e-12)
    assert float(phi[2, 0]) == pytest.approx(1)
    apart = subspaces.similarity(every[:3], every[3:8])
    assert apart.abs().max() < 1e-12 and apart.min() >= 0


def test_a_known_angle() -> None:
    turned = torch.tensor([[math.cos(0.3), math.sin(0.3), 0.0]], dtype=torch.float64)
    plane = torch.eye(3, dtype=torch.float64)[[0, 2]]
    phi = subspaces.similarity(turned, plane)
    assert phi[0].tolist() == pytest.approx([math.cos(0.3) ** 2] * 2)


def test_rounding_leads_to_nothing_above_one() -> None:
    rows = orthonormal(6, 50) * (1 + 1e-9)
    assert subspaces.similarity(rows, rows).max() == 1


def test_random_subspaces_meet_their_expectation() -> None:
    dimension, i, j, draws = 20, 5, 9, 300
    phi = torch.stack(
        [
            subspaces.similarity(orthonormal(i, dimension, 2 * k), orthonormal(j, dimension, 2 * k + 1))
            for k in range(draws)
        ]
    )
    expected = torch.tensor(
        [[subspaces.expected(a, b, dimension) for b in range(1, j + 1)] for a in range(1, i + 1)]
    )
    assert float(expected[-1, -1]) == pytest.approx(9 / 20) and float(expected[4, 0]) == pytest.approx(5 / 20)
    error = phi.std(0) / math.sqrt(draws)
    assert ((phi.mean(0) - expected).abs() < 4.5 * error + 1e-9).all()


def test_nothing_is_like_nothing() -> None:
    none, some = torch.zeros(0, I, dtype=torch.float64), orthonormal(2, I)
    assert subspaces.similarity(none, some).shape == (0, 2)


def test_directions_of_other_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="directions in 10 and in 14 dimensions"):
        subspaces.similarity(orthonormal(2, I), orthonormal(2, O))


# --- the cosine of two ΔW ---------------------------------------------------------------------------------


def both(rank: int, seed: int) -> list[WeightUpdate]:
    thin = learnt(rank, seed)
    return [thin, DenseUpdate("W", thin.dense())]


def test_the_cosine_is_that_of_two_long_vectors() -> None:
    for one, other in itertools.product(both(2, 0), both(4, 1)):
        a, b = one.dense().numpy().ravel(), other.dense().numpy().ravel()
        expected = a @ b / numpy.linalg.norm(a) / numpy.linalg.norm(b)
        assert subspaces.cosine(one, other) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("factor", [2.5, -0.25])
def test_a_multiple_has_the_cosine_of_its_sign_and_not_a_bit_more(factor: float) -> None:
    for seed in range(20):
        one = learnt(3, seed)
        other = FactoredUpdate("W", factor * one.B_OR, one.A_RI)
        cosine = subspaces.cosine(one, other)
        assert cosine == pytest.approx(math.copysign(1, factor), abs=1e-12) and abs(cosine) <= 1


def test_zero_is_at_no_angle_and_another_shape_is_refused() -> None:
    zero = FactoredUpdate("W", torch.zeros(O, 2), torch.zeros(2, I))
    assert subspaces.cosine(zero, learnt(2, 0)) == subspaces.cosine(learnt(2, 0), zero) == 0
    with pytest.raises(ValueError, match=r"the\.matrix is \(14, 10\), and \(14, 9\) in the other"):
        subspaces.cosine(DenseUpdate("the.matrix", drawn(O, I)), DenseUpdate("the.matrix", drawn(O, 9)))


def test_an_adapter_of_no_numbers_is_like_no_other() -> None:
    bad = FactoredUpdate("the.matrix", torch.full((O, 2), math.nan), drawn(2, I))
    for pair in ((bad, learnt(2, 0)), (learnt(2, 0), bad)):
        with pytest.raises(ValueError, match=r"the\.matrix holds NaN or inf"):
            subspaces.cosine(*pair)

"""ΔW as a product or as it is: its decomposition against numpy's of the dense matrix, its numbers by hand."""

import math

import numpy
import pytest
import torch
from torch import Tensor

from lora_zoo.updates import measures
from lora_zoo.updates.weight_update import DenseUpdate, FactoredUpdate, WeightUpdate

O, I = 13, 9


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_spectrum(*sigma: float, shape: tuple[int, int] = (O, I), seed: int = 0) -> Tensor:
    """A matrix with these singular values, between random directions."""
    left, right = (torch.linalg.qr(drawn(n, len(sigma), seed=seed + k)).Q for k, n in enumerate(shape))
    return left @ torch.diag(torch.tensor(sigma, dtype=torch.float64)) @ right.T


def product(rank: int = 3, shape: tuple[int, int] = (O, I), seed: int = 0) -> FactoredUpdate:
    return FactoredUpdate("W", drawn(shape[0], rank, seed=seed), drawn(rank, shape[1], seed=seed + 1))


def kinds(rank: int = 3, shape: tuple[int, int] = (O, I), seed: int = 0) -> list[WeightUpdate]:
    """The same ΔW as factors and as a matrix."""
    thin = product(rank, shape, seed)
    return [thin, DenseUpdate("W", thin.B_OR @ thin.A_RI)]


SHAPES = [(3, (13, 9)), (3, (9, 13)), (12, (13, 9)), (30, (7, 11)), (1, (1, 5)), (2, (5, 1)), (4, (1, 1))]


@pytest.mark.parametrize("rank, shape", SHAPES)
def test_the_decomposition_is_numpy_s_of_the_dense_matrix(rank: int, shape: tuple[int, int]) -> None:
    for delta in kinds(rank, shape):
        whole = delta.dense().numpy()
        sigma = numpy.linalg.svd(whole, compute_uv=False)
        got = delta.singular_values
        assert delta.shape == shape and delta.rank == min(rank, *shape)
        numpy.testing.assert_allclose(got, sigma[: len(got)], atol=1e-12)
        assert numpy.all(numpy.diff(got) <= 0) and numpy.abs(sigma[len(got) :]).sum() < 1e-12
        assert delta.norm == pytest.approx(numpy.linalg.norm(whole), rel=1e-13)
        U_OK, S_K, Vh_KI = delta.triplets
        numpy.testing.assert_allclose(S_K, got, atol=1e-12)
        numpy.testing.assert_allclose(U_OK * S_K @ Vh_KI, whole, atol=1e-12)
        for basis in (U_OK.T[: delta.rank], Vh_KI[: delta.rank]):
            numpy.testing.assert_allclose(basis @ basis.T, numpy.eye(delta.rank), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_everything_is_as_exact_as_float64_whatever_the_tensors_are(dtype: torch.dtype) -> None:
    thin = FactoredUpdate("W", drawn(O, 3).to(dtype), drawn(3, I, seed=1).to(dtype))
    exact = thin.B_OR.double() @ thin.A_RI.double()
    torch.testing.assert_close(thin.dense(), exact, rtol=0, atol=1e-14)
    dense = DenseUpdate("W", drawn(O, I, seed=2).to(dtype))
    for delta in (thin, dense):
        sigma = numpy.linalg.svd(delta.dense().numpy(), compute_uv=False)
        numpy.testing.assert_allclose(delta.singular_values, sigma[: len(delta.singular_values)], atol=1e-13)
        numpy.testing.assert_allclose(delta.triplets.S_R, delta.singular_values, atol=1e-13)
        seen = [*delta.triplets, delta.singular_values, delta.dense(), delta.between(*map(torch.eye, (O, I)))]
        assert {tensor.dtype for tensor in seen} == {torch.float64}
        assert torch.equal(seen[-1], delta.dense()) or (seen[-1] - delta.dense()).abs().max() < 1e-14


def test_what_is_given_is_not_changed_and_needs_no_gradient() -> None:
    B_OR, A_RI = drawn(O, 2).requires_grad_(), drawn(2, I).requires_grad_()
    delta = FactoredUpdate("W", B_OR, A_RI)
    assert not delta.singular_values.requires_grad and not delta.triplets.U_OR.requires_grad
    assert not DenseUpdate("W", drawn(O, I).requires_grad_()).dense().requires_grad


@pytest.mark.parametrize("one", [0, 1])
@pytest.mark.parametrize("other", [0, 1])
def test_products_between_are_those_of_the_dense_matrices(one: int, other: int) -> None:
    a, b = kinds(3, seed=0)[one], kinds(5, seed=7)[other]
    expected = float(numpy.sum(a.dense().numpy() * b.dense().numpy()))
    assert a.inner(b) == pytest.approx(expected, rel=1e-12)
    assert a.inner(a) == pytest.approx(a.norm**2, rel=1e-12)
    left, right = drawn(O, 4, seed=20), drawn(I, 6, seed=21)
    for delta in (a, b):
        expected_46 = left.numpy().T @ delta.dense().numpy() @ right.numpy()
        numpy.testing.assert_allclose(delta.between(left, right), expected_46, atol=1e-12)
        numpy.testing.assert_allclose(delta.between(left.float(), right.float()), expected_46, atol=1e-5)


def test_products_of_wide_factors_never_form_the_matrix() -> None:
    side = 400_000  # (O, I) would take 1.3 TB
    a, b = (FactoredUpdate("W", torch.full((side, 2), 2.0), torch.full((2, side), x)) for x in (1.0, -3.0))
    assert a.inner(b) == pytest.approx(-3 * 16 * side**2)
    assert a.between(torch.ones(side, 1), torch.ones(side, 1)).item() == pytest.approx(4 * side**2)
    assert a.rank == 1 and a.triplets.U_OR.shape == (side, 2) and a.norm == pytest.approx(4 * side)


# --- what is rounding, what is zero, what is no number ----------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(9, 7), (200, 60), (60, 300), (500, 500)])
def test_a_matrix_of_low_rank_has_that_rank(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Small whole numbers: the matrix is exact, and all that a decomposition adds is its own rounding."""
    source = torch.Generator().manual_seed(0)
    B_OR, A_RI = (torch.randint(-4, 5, s, generator=source).to(dtype) for s in ((shape[0], 2), (2, shape[1])))
    for delta in (DenseUpdate("W", B_OR @ A_RI), FactoredUpdate("W", B_OR.repeat(1, 3), A_RI.repeat(3, 1))):
        assert delta.rank == 2 and int((delta.triplets.S_R > 0).sum()) == 2


def test_rounded_entries_add_no_rank() -> None:
    delta = DenseUpdate("W", (drawn(90, 2) @ drawn(2, 70, seed=1)).float())
    assert delta.rank == 2


def test_no_more_than_the_rounding_of_entries_is_taken_away() -> None:
    """float32 resolves 1e-7 of an entry, which in 200 rows is a direction of less than 1e-7 of the norm."""
    left, right = torch.eye(200)[:, :2].double(), torch.eye(150)[:2].double()
    for second, rank in ((3e-8, 2), (1e-9, 1)):
        sigma = torch.tensor([1.0, second], dtype=torch.float64)
        assert DenseUpdate("W", (left * sigma @ right).float()).rank == rank
        assert DenseUpdate("W", (left * sigma @ right).float() / 10, 1.0).rank == 1


def test_small_values_that_are_there_are_kept() -> None:
    sigma = (1.0, 1e-4, 1e-8, 1e-12)
    for delta in (
        DenseUpdate("W", with_spectrum(*sigma)),
        FactoredUpdate("W", with_spectrum(*sigma), torch.eye(I, dtype=torch.float64)),
    ):
        assert delta.rank == 4
        numpy.testing.assert_allclose(delta.singular_values[:4], sigma, rtol=1e-2)


def test_a_difference_of_matrices_holds_their_rounding() -> None:
    """W' of float32 near a W of norm 1000: what the sum rounds away is no ΔW, what is above it is."""
    W_OI = drawn(60, 40).float()
    W_OI *= 1000 / W_OI.norm()
    for size, rank in ((10.0, 1), (1e-5, 0)):
        update = size * torch.outer(*(torch.nn.functional.normalize(drawn(n), dim=0) for n in (60, 40)))
        delta = DenseUpdate("W", (W_OI + update.float()) - W_OI, float(W_OI.norm()))
        assert delta.rank == rank == int((delta.triplets.S_R > 0).sum())


def test_an_unmoved_residual_start_is_zero() -> None:
    B_OR, A_RI = drawn(40, 4).float(), drawn(4, 30, seed=1).float()
    delta = FactoredUpdate("W", torch.cat([B_OR, -B_OR], dim=1), torch.cat([A_RI, A_RI]))
    assert delta.norm == 0 and delta.rank == 0 and not delta.triplets.S_R.any()


@pytest.mark.parametrize(
    "zero",
    [
        FactoredUpdate("W", torch.zeros(O, 2), drawn(2, I)),
        FactoredUpdate("W", torch.zeros(O, 0), torch.zeros(0, I)),
        DenseUpdate("W", torch.zeros(O, I)),
        DenseUpdate("W", torch.zeros(O, I), 100.0),
        DenseUpdate("W", torch.zeros(1, I)),
    ],
)
def test_zero_is_zero(zero: WeightUpdate) -> None:
    assert zero.norm == 0 and zero.rank == 0 and not zero.dense().any() and not zero.triplets.S_R.any()
    assert zero.inner(zero) == 0 and measures.stable_rank(zero.singular_values) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [(0, 0), (-1, -1), (4, 1)])
def test_what_is_no_number_has_no_norm_and_names_itself(value: float, at: tuple[int, int]) -> None:
    B_OR, whole_OI = drawn(O, 2), drawn(O, I)
    B_OR[at[0], at[1]] = whole_OI[at] = value
    for delta in (FactoredUpdate("the.matrix", B_OR, drawn(2, I)), DenseUpdate("the.matrix", whole_OI, 3.0)):
        assert math.isnan(delta.norm) and delta.singular_values.isnan().all() and delta.rank == 0
        for ask in (lambda d: d.triplets, lambda d: d.check_finite()):
            with pytest.raises(ValueError, match=r"the\.matrix holds NaN or inf"):
                ask(delta)


# --- the spread of a spectrum -----------------------------------------------------------------------------

SPREADS = {
    "stable_rank": measures.stable_rank,
    "effective_rank": measures.effective_rank,
    "participation_ratio": measures.participation_ratio,
    "numerical_rank": measures.numerical_rank,
    "energy_rank": measures.energy_rank,
}


def numbers(*sigma: float) -> dict[str, float]:
    values = torch.tensor(sigma, dtype=torch.float64)
    return {name: measure(values) for name, measure in SPREADS.items()}


def test_equal_values_are_as_many_as_they_are() -> None:
    assert numbers(*[0.3] * 7) == pytest.approx(dict.fromkeys(SPREADS, 7))
    assert numbers(5.0) == pytest.approx(dict.fromkeys(SPREADS, 1))


def test_two_values_by_hand() -> None:
    found = numbers(3.0, 1.0)
    assert found["stable_rank"] == pytest.approx(10 / 9)
    assert found["participation_ratio"] == pytest.approx(100 / 82)
    assert found["effective_rank"] == pytest.approx(4 / 3**0.75)  # exp of the entropy of (3/4, 1/4)
    assert found["numerical_rank"] == 2 and found["energy_rank"] == 1  # 9 of 10 is 90 % to the digit


def test_a_spectrum_of_a_power_law() -> None:
    sigma = numpy.arange(1, 41) ** -0.7
    p = sigma / sigma.sum()
    found = numbers(*sigma)
    assert found["effective_rank"] == pytest.approx(numpy.exp(-numpy.sum(p * numpy.log(p))), rel=1e-12)
    assert found["stable_rank"] == pytest.approx(numpy.sum(sigma**2), rel=1e-12)
    assert found["participation_ratio"] == pytest.approx(
        numpy.sum(sigma**2) ** 2 / numpy.sum(sigma**4), rel=1e-12
    )
    held = numpy.cumsum(sigma**2) / numpy.sum(sigma**2)
    assert found["energy_rank"] == numpy.searchsorted(held, 0.9) + 1 and found["numerical_rank"] == 40
    numpy.testing.assert_allclose(measures.energy(torch.tensor(sigma)), held, rtol=1e-12)
    assert measures.energy_rank(torch.tensor(sigma), 0.5) == numpy.searchsorted(held, 0.5) + 1
    assert measures.energy_rank(torch.tensor(sigma), 1.0) == 40


def test_the_spread_does_not_depend_on_the_size() -> None:
    sigma = (1.0, 0.5, 0.4, 1e-3)
    for size in (1e-90, 1e90):
        assert numbers(*(size * s for s in sigma)) == pytest.approx(numbers(*sigma), rel=1e-9)


@pytest.mark.parametrize("above, rank", [(1.1e-6, 2), (0.9e-6, 1)])
def test_noise_ends_at_a_millionth_of_the_first(above: float, rank: int) -> None:
    values = torch.tensor([7.0, 7.0 * above], dtype=torch.float64)
    assert measures.numerical_rank(values) == rank
    assert (measures.effective_rank(values) > 1) == (rank == 2)


def test_nothing_has_no_rank() -> None:
    for sigma in ((), (0.0, 0.0)):
        assert numbers(*sigma) == dict.fromkeys(SPREADS, 0)
    assert not measures.energy(torch.zeros(3)).any()


def test_what_is_no_number_has_no_rank_that_is_one() -> None:
    for sigma in ((math.nan, math.nan), (2.0, math.nan)):
        assert all(math.isnan(number) for number in numbers(*sigma).values())

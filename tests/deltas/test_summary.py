"""Spectra of ΔW against the dense matrix in float64, closed forms and the definitions."""

import math

import pytest
import torch
from torch import Tensor, nn

from lora_zoo.conformance.cases import nearest_rank, settings
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.updates.summary import summary
from lora_zoo.updates.vs_base import row_changes
from lora_zoo.updates.weight_update import DenseUpdate, FactoredUpdate

O, I = 24, 17


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(I, O), nn.Linear(O, O)
        self.norm, self.head = nn.LayerNorm(O), nn.Linear(O, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.second(self.first(x).relu())).relu())


def trained(variant: str, scale: float = 0.1, **hyper: object) -> Injection:
    """`variant` on Net with every trainable tensor moved by noise, as training would."""
    net, where = Net(), ["first", "second"]
    hyper = settings(variant, nearest_rank(variant, net, 3, where)) | hyper
    injection = inject(net, variant, target_modules=where, modules_to_save=["head"], **hyper)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return injection


def erank(sigma: Tensor) -> float:
    """Roy & Vetterli's definition, written out."""
    kept = [s for s in sigma.tolist() if s >= 1e-6 * sigma[0]]
    return math.exp(-sum(s / sum(kept) * math.log(s / sum(kept)) for s in kept))


@pytest.mark.parametrize("variant", [name for name, cls in VARIANTS.items() if cls.pointwise])
def test_rows_agree_with_the_dense_update(variant: str) -> None:
    injection = trained(variant)
    rows = {row["name"]: row for row in summary(injection)}
    assert list(rows) == [update.name for update in injection]
    for name, W_OI, dW_OI in injection:
        sigma, row = torch.linalg.svdvals(dW_OI.double()), rows[name]
        near = {"rel": 1e-4, "abs": 1e-6}
        assert row["shape"] == list(W_OI.shape)
        assert row["norm"] == pytest.approx(float(dW_OI.double().norm()), **near)
        assert row["relative_norm"] == pytest.approx(
            float(dW_OI.double().norm() / W_OI.double().norm()), **near
        )
        got = torch.tensor(row["singular_values"], dtype=torch.float64)
        torch.testing.assert_close(got, sigma[: len(got)], rtol=1e-4, atol=3e-6)
        assert float(sigma[len(got) :].sum()) < 1e-4
        assert row["stable_rank"] == pytest.approx(float(sigma.square().sum() / sigma[0] ** 2), rel=1e-4)
        signal = sigma[sigma > 1e-5 * sigma[0]]  # the dense ΔW carries the rounding of float32
        assert row["effective_rank"] == pytest.approx(erank(signal), rel=1e-3)


@pytest.mark.parametrize("rank", [1, 4, 40])
def test_thin_values_are_those_of_the_product(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    B_OR = torch.randn(O, rank, generator=generator, dtype=torch.float64)
    A_RI = torch.randn(rank, I, generator=generator, dtype=torch.float64)
    thin, dense = FactoredUpdate("W", B_OR, A_RI).singular_values, torch.linalg.svdvals(B_OR @ A_RI)
    assert len(thin) == min(rank, O, I)
    torch.testing.assert_close(thin, dense[: len(thin)])


def test_thin_values_never_form_the_matrix() -> None:
    side = 1_000_000  # the (O, I) matrix would take 8 TB
    B_OR, A_RI = torch.zeros(side, 2), torch.zeros(2, side)
    B_OR[0, 0], B_OR[1, 1], A_RI[0, 0], A_RI[1, 1] = 3.0, 2.0, 5.0, 1.0
    assert FactoredUpdate("W", B_OR, A_RI).singular_values.tolist() == pytest.approx([15.0, 2.0])


@pytest.mark.parametrize("variant", ["lora", "pissa", "dora", "vera", "full"])
def test_an_unchanged_model_has_zeros(variant: str) -> None:
    injection = trained(variant, scale=0.0)
    rows = summary(injection)
    assert rows
    for row in rows:
        numbers = [row[key] for key in ("norm", "relative_norm", "stable_rank", "effective_rank")]
        assert numbers + row["singular_values"] == [0.0] * (4 + len(row["singular_values"])), row


def test_the_rounding_of_the_effective_weight_is_no_update() -> None:
    generator = torch.Generator().manual_seed(0)
    W_OI = torch.randn(O, I, generator=generator)
    turned = (W_OI * 3.0) / 3.0 - W_OI
    assert float(turned.norm()) > 0 and not DenseUpdate("W", turned, float(W_OI.norm())).singular_values.any()
    assert DenseUpdate("W", turned).singular_values.any()


def row_of(dW_OI: Tensor) -> dict[str, object]:
    """The row of the full fine-tuning that changes a layer by `dW_OI`, from zero."""
    model = nn.Sequential(nn.Linear(dW_OI.shape[1], dW_OI.shape[0], bias=False))
    nn.init.zeros_(model[0].weight)
    injection = inject(model, "full", target_modules=["0"])
    with torch.no_grad():
        model[0].weight += dW_OI
    (row,) = summary(injection)
    return row


def test_equal_singular_values_have_full_rank_by_both_measures() -> None:
    row = row_of(3.0 * torch.eye(5))
    assert row["stable_rank"] == pytest.approx(5) and row["effective_rank"] == pytest.approx(5)
    assert row["norm"] == pytest.approx(3 * math.sqrt(5))
    assert row["relative_norm"] is None  # nothing to relate it to: W was zero


def test_effective_rank_is_of_the_values_not_of_their_squares() -> None:
    row = row_of(torch.diag(torch.tensor([3.0, 1.0])))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert row["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-6)
    assert row["stable_rank"] == pytest.approx(10 / 9, rel=1e-6)


def test_noise_below_a_millionth_is_not_in_the_effective_rank() -> None:
    noisy = torch.diag(torch.tensor([1.0, 1.0, *[9e-7] * 30]))
    assert row_of(noisy)["effective_rank"] == pytest.approx(2, abs=1e-9)


def test_at_most_64_values_are_kept_and_the_norm_counts_all() -> None:
    row = row_of(torch.eye(100))
    assert row["singular_values"] == pytest.approx([1.0] * 64) and row["norm"] == pytest.approx(10)


def test_a_diverged_model_has_no_numbers_and_costs_no_crash() -> None:
    injection = trained("lora")
    with torch.no_grad():
        injection.parameters()[0].fill_(math.nan)
    rows = summary(injection)
    assert math.isnan(rows[0]["norm"]) and math.isnan(rows[0]["effective_rank"])
    assert math.isfinite(rows[1]["norm"])


@pytest.mark.parametrize("variant", [name for name, cls in VARIANTS.items() if cls.pointwise])
def test_changes_of_rows_are_those_of_their_norms_and_angles(variant: str) -> None:
    injection = trained(variant)
    rows = {row["name"]: row for row in summary(injection)}
    for name, W_OI, dW_OI in injection:
        before, after = W_OI.double(), W_OI.double() + dW_OI.double()
        grown = (after.norm(dim=1) - before.norm(dim=1)).abs().mean()
        turned = (1 - torch.cosine_similarity(after, before, dim=1, eps=0)).mean()
        assert rows[name]["magnitude_change"] == pytest.approx(float(grown), rel=1e-4, abs=1e-7)
        assert rows[name]["direction_change"] == pytest.approx(float(turned), rel=1e-4, abs=1e-7)


def test_a_small_turn_does_not_drown_in_rounding() -> None:
    """A row that turns by 1e-4: 1 - cos = 5e-9, below what float32 can tell from 1."""
    W_OI = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    dW_OI = torch.tensor([[0.0, 3e-4], [1.0, 0.0]])
    rows = row_changes(W_OI, dW_OI)
    assert rows.direction == pytest.approx(5e-9, rel=1e-3), "a row of zeros has no direction"
    assert rows.magnitude == pytest.approx(0.5, rel=1e-6)

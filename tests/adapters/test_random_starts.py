"""Random initialisations: the variances that their papers state, and PEFT's where it has the start."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close

from lora_zoo.core.init import Factors, initial_factors

I, O, R = 400, 300, 8


def begun(name: str, rank: int = R) -> Factors:
    return initial_factors(name, torch.ones(O, I), rank=rank, scale=1.0, seed=1, matrix="x")[0]


def peft(start: str | bool) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(I, O))
    config = LoraConfig(r=R, target_modules=["0"], init_lora_weights=start)
    layer = get_peft_model(model, config).get_submodule("base_model.model.0")
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


@pytest.mark.parametrize(
    ("name", "of_A", "of_B"),
    [("init_a", I**-0.5, 0), ("init_b", 0, R**-0.5), ("init_ab", I**-0.5, O**-0.5)],
)
def test_the_standard_deviations_are_the_papers(name: str, of_A: float, of_B: float) -> None:
    for factor, expected in zip(begun(name), (of_A, of_B), strict=True):
        assert factor.std().item() == pytest.approx(expected, rel=0.05)
        assert factor.mean().abs() <= 4 * expected / factor.numel() ** 0.5


@pytest.mark.parametrize(
    ("ours", "theirs"), [("orthogonal_pair", "orthogonal"), ("gaussian", "gaussian"), ("kaiming", True)]
)
def test_the_standard_deviations_are_pefts(ours: str, theirs: str | bool) -> None:
    for mine, other in zip(begun(ours), peft(theirs), strict=True):
        assert mine.shape == other.shape
        assert mine.std().item() == pytest.approx(other.std().item(), rel=0.1)


def test_the_factors_of_an_orthogonal_pair_cancel_and_halves_of_the_rank_do_not() -> None:
    A_RI, B_OR = begun("orthogonal_pair")
    assert A_RI.abs().min() > 0 and torch.linalg.matrix_rank(A_RI) == torch.linalg.matrix_rank(B_OR) == R // 2
    assert_close(B_OR @ A_RI, torch.zeros(O, I), atol=1e-7, rtol=0)
    assert (B_OR[:, : R // 2] @ A_RI[: R // 2]).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"init=orthogonal_pair on x .* rank must be even; got 3"):
        begun("orthogonal_pair", rank=3)

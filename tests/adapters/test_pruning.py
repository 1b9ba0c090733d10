"""Variants that prune while they train: which entries or components go, when, and that they stay away.

Shapes: O out, I in, R rank; layers of one matrix in double precision.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.testing import assert_close

from lora_zoo.conformance.cases import adamw, inputs, lone, only, perturb, train
from lora_zoo.core.hooks import Progress
from lora_zoo.injection.inject import Injection, inject

F64 = torch.float64


def begun(name: str, **hyper: Any) -> tuple[nn.Module, Injection, Any]:
    """A layer (10, 14), the variant on it, and its one adapter."""
    model = lone("linear")
    injection = inject(model, name, target_modules="layer", **hyper)
    return model, injection, only(injection)[0]


def regression(model: nn.Module) -> Callable[[], Tensor]:
    x, target_O = inputs("linear"), torch.linspace(-1, 1, 10, dtype=F64)
    return lambda: (model(x) - target_O).square().mean()


def followed(
    name: str, look: Callable[[Any, Injection], Any], *, steps: int = 20, **hyper: Any
) -> tuple[Injection, list[Any]]:
    """A whole run, and what `look` finds in the adapter before the first step and after each one."""
    model, injection, adapter = begun(name, **hyper)
    loss, optimizer, found = regression(model), adamw(injection), [look(adapter, injection)]
    for step in range(1, steps + 1):
        train(injection, loss, steps=step, first=step, total=steps, optimizer=optimizer)
        found.append(look(adapter, injection))
    return injection, found


def walked(name: str, **hyper: Any) -> list[Tensor]:
    """A and B after six steps."""
    model, injection, adapter = begun(name, rank=3, **hyper)
    train(injection, regression(model), steps=6)
    return [adapter.A_RI, adapter.B_OR]


class Two(nn.Module):
    """Two layers of other shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 9, dtype=F64), nn.Linear(9, 5, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.tanh(self.first(x)))
        return y


def two(name: str, ranks: Mapping[str, int], **hyper: Any) -> Injection:
    return inject(Two(), name, target_modules=["first", "second"], rank_pattern=ranks, **hyper)


# --- DoRA with dynamic ranks -------------------------------------------------------------------------------


def test_a_component_s_share_is_its_norm_over_that_of_the_update() -> None:
    """By hand: of orthogonal ones of norms 3 and 4, 0.6 and 0.8; of 2 b aᵀ and -b aᵀ, 2 and 1."""
    _, injection, adapter = begun("dora_dynamic", rank=2, init_r=2)
    hooks: Any = injection.hooks
    with torch.no_grad():
        for p in adapter.parameters():
            p.zero_()
        adapter.B_OR[0, 0] = adapter.B_OR[1, 1] = adapter.g_R[0] = adapter.g_R[1] = 1.0
        adapter.A_RI[0, 0], adapter.A_RI[1, 1] = 3.0, 4.0
        assert_close(hooks.shares(), torch.tensor([0.6, 0.8], dtype=F64))
        adapter.B_OR[:, 1], adapter.A_RI[1] = adapter.B_OR[:, 0], adapter.A_RI[0]
        adapter.g_R.copy_(torch.tensor([2.0, -1.0]))
        assert_close(hooks.shares(), torch.tensor([2.0, 1.0], dtype=F64))


def test_shares_of_all_matrices_are_those_of_the_dense_components() -> None:
    injection = two("dora_dynamic", {"first": 2, "second": 3}, alpha="r", seed=2)
    perturb(injection)
    hooks: Any = injection.hooks
    parts = hooks.shares().split([t.numel() for t in hooks.masks.tensors])
    for name, found_R in zip(hooks.masks.names, parts, strict=True):
        adapter: Any = injection.adapters[name.removesuffix(".g_R")]
        each_ROI = torch.einsum("or,r,ri->roi", adapter.B_OR, adapter.g_R, adapter.A_RI)
        assert_close(found_R, each_ROI.flatten(1).norm(dim=1) / each_ROI.sum(0).norm())
        assert_close(adapter.scale * each_ROI.sum(0), adapter.change(torch.zeros_like(each_ROI[0])))


WINDOW = {"tinit": 4, "tfinal": 8, "deltaT": 3, "rank": 4, "init_r": 8}
"""Of 20 steps, prunings after 4, 7, 10 and 12; 4 (p/8)³ components of 8 are cut: 0, 0.2, 1.7 and 4."""


@pytest.mark.parametrize("revive", [True, False])
def test_the_budget_falls_with_the_cube_and_is_met_exactly_at_the_window_s_end(revive: bool) -> None:
    injection, closed = followed(
        "dora_dynamic", lambda a, _: int((a.g_R == 0).sum()), revive=revive, dem_weight=0.1, **WINDOW
    )
    cut = {10: 1, 11: 0 if revive else 1}  # a gate grows again in the next step, or may not
    for step, number in enumerate(closed[1:], start=1):
        assert number == (4 if step >= 12 else cut.get(step, 0)), step
    injection.hooks.law()
    assert injection.shrink() and len(only(injection)[0].A_RI) == 4


@pytest.mark.parametrize("revive", [True, False])
def test_what_is_cut_may_come_back_at_the_next_pruning_or_never(revive: bool) -> None:
    _, injection, adapter = begun("dora_dynamic", rank=2, init_r=4, revive=revive)
    hooks: Any = injection.hooks
    for number, shares in ((1, [1.0, 2.0, 3.0, 4.0]), (2, [9.0, 2.0, 3.0, 4.0])):
        hooks.shares_K.copy_(torch.tensor(shares))
        adapter.g_R.data.fill_(1.0)
        hooks.cut(number)
    assert adapter.g_R.tolist() == ([1.0, 0.0, 0.0, 1.0] if revive else [0.0, 0.0, 1.0, 1.0])


@pytest.mark.parametrize("steps", [13, 20])
def test_a_step_that_is_skipped_at_the_window_s_end_leaves_the_budget_to_the_next_one(steps: int) -> None:
    model, injection, adapter = begun("dora_dynamic", **WINDOW)
    skipped = (12,) if steps == 13 else tuple(range(12, 21))
    train(injection, regression(model), steps=steps, total=20, skipped=skipped)
    assert int((adapter.g_R != 0).sum()) == 4


def test_with_all_gates_open_it_is_lora_with_its_factors_and_nothing_is_ever_cut() -> None:
    model, injection, adapter = begun("dora_dynamic", rank=3, init_r=3, alpha=6.0, dem_weight=0.0)
    train(injection, regression(model), steps=8)
    with torch.no_grad():
        assert adapter.g_R.all()
        adapter.g_R.fill_(1.0)
    other, _, lora = begun("lora", rank=3, alpha=6.0)
    lora.load_state_dict({key: t for key, t in adapter.state_dict().items() if key != "g_R"})
    assert_close(model(inputs("linear")), other(inputs("linear")))


def test_the_penalty_is_the_mean_variance_and_ends_with_the_window() -> None:
    """By hand: a row 0, …, 13 has the variance 17.5, a column 0, …, 9 has 55/6."""
    _, injection, adapter = begun("dora_dynamic", rank=1, init_r=1, tinit=1, tfinal=2, dem_weight=0.3)
    with torch.no_grad():
        adapter.A_RI.copy_(torch.arange(14.0))
        adapter.B_OR.copy_(torch.arange(10.0)[:, None])
    found = []
    for step in (1, 4, 5):
        with injection.hooks.forward_context(Progress(step, 6)):
            penalty = torch.as_tensor(injection.hooks.regularizer())
            found.append(float(penalty.detach()))
    assert found == pytest.approx([0.3 * (17.5 + 55 / 6) / 2] * 2 + [0.0])


def test_factors_begin_as_torch_s_kaiming_and_gates_at_zero() -> None:
    model = lone("linear", 300, 400)
    adapter: Any = inject(model, "dora_dynamic", target_modules="layer", rank=8).adapters["layer"]
    assert adapter.A_RI.shape == (12, 400) and adapter.scale == pytest.approx(8 / 12)
    for factor, fan_in in ((adapter.A_RI, 400), (adapter.B_OR, 12)):
        bound = math.sqrt(6 / fan_in)
        assert 0.95 * bound < float(factor.detach().abs().max()) <= bound
    assert not adapter.g_R.any()


# --- RoseLoRA ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, more", [("roselora", {}), ("prilora", {"deltaT": 2})])
def test_with_a_density_of_one_it_is_lora_to_the_bit(name: str, more: dict[str, Any]) -> None:
    for found, expected in zip(walked(name, density=1.0, **more), walked("lora"), strict=True):
        assert torch.equal(found, expected)


def counts(adapter: Any, injection: Injection) -> tuple[set[int], set[int]]:
    """The entries that are left in the rows of A, and in the columns of B."""
    return {*(adapter.A_RI != 0).sum(1).tolist()}, {*(adapter.B_OR != 0).sum(0).tolist()}


def test_rows_of_a_and_columns_of_b_keep_exactly_their_share_after_every_step() -> None:
    """⌈(0.25 + 0.75 (1 - (t - 2)/8)³) n⌉ from step 2 to step 10 of 20, of n = 14 and 10."""
    shares = {3: 0.7524, 4: 0.5664, 6: 0.34375, 9: 0.2515, 10: 0.25, 20: 0.25}
    _, found = followed("roselora", counts, rank=3, density=0.25, tinit=2, tfinal=10)
    assert found[2] == ({14}, {10})
    for step, share in shares.items():
        assert found[step] == ({math.ceil(share * 14)}, {math.ceil(share * 10)}), step


def test_what_is_kept_has_the_highest_smoothed_sensitivity_of_its_row_and_column() -> None:
    model, injection, adapter = begun("roselora", rank=3, density=0.3, tinit=2, tfinal=3, beta=0.6)
    loss, optimizer, hooks = regression(model), adamw(injection), injection.hooks
    mean = {"A_RI": torch.zeros(3, 14, dtype=F64), "B_OR": torch.zeros(10, 3, dtype=F64)}
    hooks.on_train_begin(8)
    for step in range(1, 9):
        optimizer.zero_grad()
        loss().backward()
        for name, mean_ in mean.items():
            p = getattr(adapter, name)
            mean_.mul_(0.6).add_(0.4 * (p * p.grad).abs().detach())
        hooks.on_after_backward(Progress(step, 8))
        torch.nn.utils.clip_grad_norm_(injection.parameters(), 1e-3)
        optimizer.step()
        hooks.on_step_end(Progress(step, 8))
    of_rows, of_columns = mean["A_RI"].topk(5, dim=1).indices, mean["B_OR"].topk(3, dim=0).indices
    assert torch.equal(adapter.A_RI != 0, torch.zeros(3, 14).scatter(1, of_rows, 1.0) > 0)
    assert torch.equal(adapter.B_OR != 0, torch.zeros(10, 3).scatter(0, of_columns, 1.0) > 0)


def test_the_update_is_sparse() -> None:
    """With shares a of a row and b of a column no more than r a b of the entries are other than 0."""
    model, injection, adapter = begun("roselora", rank=2, density=0.2, tinit=1, tfinal=4)
    train(injection, regression(model), steps=8)
    assert 0 < int((adapter.update() != 0).sum()) <= 2 * 3 * 2
    injection.hooks.law()


# --- PRILoRA -----------------------------------------------------------------------------------------------


def test_a_row_keeps_its_highest_products_of_weight_and_input_norm() -> None:
    """By hand: of |A| = 1, 2, 3, 4 and ‖x‖ = 4, 3, 1, 0.5 the products are 4, 6, 3, 2."""
    model = nn.Sequential(nn.Linear(4, 3, dtype=F64))
    injection = inject(model, "prilora", target_modules="0", rank=1, deltaT=1, beta=0.75)
    adapter, _ = only(injection)
    x, hooks = torch.tensor([[4.0, 3.0, 1.0, 0.5]], dtype=F64), injection.hooks
    with hooks.forward_context(Progress(1, 2)):
        model(torch.cat([x, -x]))
    adapter.A_RI.grad = torch.zeros_like(adapter.A_RI)
    with torch.no_grad():
        adapter.A_RI.copy_(torch.tensor([[1.0, -2.0, 3.0, -4.0]]))
    hooks.on_step_end(Progress(1, 2))
    assert adapter.A_RI.tolist() == [[1.0, -2.0, 0.0, 0.0]]
    assert_close(hooks.norms_N, 0.25 * x[0])
    hooks.on_step_end(Progress(2, 2))  # nothing was heard: the norms stay as they are
    assert_close(hooks.norms_N, 0.25 * x[0])


def test_only_training_passes_are_heard_and_only_of_steps_that_were_not_skipped() -> None:
    model, injection, _ = begun("prilora", rank=2)
    train(injection, regression(model), steps=2, total=3, skipped=(1, 2))
    hooks: Any = injection.hooks
    assert not hooks.norms_N.any()
    model.eval()(2 * inputs("linear"))
    model.train()
    train(injection, regression(model), steps=3, first=3, total=3)
    rms_I = inputs("linear").flatten(0, 1).square().mean(0).sqrt()
    assert_close(hooks.norms_N, 0.1 * rms_I)


@pytest.mark.parametrize("revive, between", [(True, 14), (False, 7)])
def test_a_row_of_a_is_half_pruned_every_so_often_and_at_the_end(revive: bool, between: int) -> None:
    injection, found = followed("prilora", counts, rank=3, steps=8, deltaT=3, revive=revive)
    rows = [next(iter(of_A)) if len(of_A) == 1 else of_A for of_A, _ in found]
    assert rows == [14, 14, 14, 7, between, between, 7, between, 7]
    injection.hooks.law()


def test_its_recipe_has_ranks_from_4_to_12_and_8_on_average() -> None:
    file = Path(__file__).parents[2] / "conf" / "recipe" / "prilora.yaml"
    pattern: Any = OmegaConf.to_container(OmegaConf.load(file).rank_pattern)
    model = nn.Module()
    model.layers = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(16, 16)}) for _ in range(5))
    injection = inject(model, "prilora", target_modules="q", rank_pattern=pattern)
    assert [adapter.components() for adapter in injection.adapters.values()] == [4, 6, 8, 10, 12]


# --- what cannot be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, wrong, text",
    [
        ("dora_dynamic", {"deltaT": 0}, "needs deltaT >= 1"),
        ("dora_dynamic", {"beta": 1.0}, "0 <= beta < 1"),
        ("dora_dynamic", {"rank": 4, "init_r": 3}, "1 <= rank <= init_r"),
        ("roselora", {"density": 0.0}, "0 < density <= 1"),
        ("roselora", {"init": "pissa"}, "cannot start from init=pissa"),
        ("prilora", {"density": 1.5}, "0 < density <= 1"),
        ("prilora", {"deltaT": 0}, "deltaT >= 1"),
        ("prilora", {"init": "pissa"}, "cannot start from init=pissa"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_line(name: str, wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as refusal:
        begun(name, **{"rank": 2, **wrong})
    assert text in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["dora_dynamic", "roselora"])
def test_a_schedule_without_a_step_is_refused(name: str) -> None:
    _, injection, _ = begun(name, rank=2, tinit=5, tfinal=5)
    with pytest.raises(ValueError, match=f"{name}: tinit=5 and tfinal=5 leave no step of 10"):
        injection.hooks.on_train_begin(10)


def test_an_embedding_has_no_inputs_that_prilora_could_score() -> None:
    with pytest.raises(ValueError, match="scored by the inputs of a linear layer"):
        inject(lone("embedding"), "prilora", target_modules="layer", rank=2)

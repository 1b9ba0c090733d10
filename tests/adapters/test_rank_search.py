"""Searches for the rank of each matrix: AutoLoRA's selection variables, ALoRA's ablations and moves."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lora_zoo import inject
from lora_zoo.conformance.cases import inputs, lone, only, perturb
from lora_zoo.core.components import inherit, masked, tensors_of
from lora_zoo.core.hooks import Progress
from lora_zoo.core.program import PROGRAMS, ProgramContext, Stage
from lora_zoo.programs.alora import Component, importances, reallocated
from tests.test_packed import batch, model, stirred

# --- AutoLoRA ----------------------------------------------------------------------------------------------


def search(rank: int = 3, **more: Any) -> Any:
    net = lone("linear")
    injection = inject(net, "autolora_search", target_modules="layer", rank=rank, **more)
    return net, injection, *only(injection)


@pytest.mark.parametrize(
    ("g", "weights", "selected"),
    [
        ([0.0, math.log(3)], [0.25, 0.75], [False, True]),
        ([0.0, 0.0, math.log(2)], [0.25, 0.25, 0.5], [False, False, True]),
        ([1.0] * 7, [1 / 7] * 7, [True] * 7),  # C-11: as it begins, all are kept, however 1/7 is rounded
        ([math.log(2), math.log(3), math.log(4)], [2 / 9, 3 / 9, 4 / 9], [False, True, True]),
    ],
)
def test_weights_are_a_softmax_and_those_of_1_r_are_selected(
    g: list[float], weights: list[float], selected: list[bool]
) -> None:
    for dtype in (torch.float32, torch.float64):
        adapter = search(len(g))[2].to(dtype)
        with torch.no_grad():
            adapter.g_R.copy_(torch.tensor(g))
        assert_close(adapter.gates(), torch.tensor(weights, dtype=dtype))
        assert adapter.selected().tolist() == selected


def test_at_its_start_the_search_is_lora_at_1_r_of_its_scale() -> None:
    """T11: selection variables that are frozen leave LoRA's trajectory, given r times the scale."""
    nets, x = [], inputs("linear")
    for name, alpha in (("lora", 6.0), ("autolora_search", 18.0)):
        net = lone("linear")
        injection = inject(net, name, target_modules="layer", rank=3, alpha=alpha)
        frozen = [p for n, p in injection.named_parameters().items() if n.endswith("g_R")]
        optimizer = torch.optim.Adam([p for p in injection.parameters() if p not in {*frozen}], lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            (net(x) - 1).square().mean().backward()
            optimizer.step()
        nets.append(net)
    assert_close(nets[0](x), nets[1](x), rtol=1e-6, atol=1e-9)


def test_the_search_walks_two_levels_of_first_order() -> None:
    """Plain descent: A and B on one part's steps, g on the other's, each at what the others are."""
    net, injection, adapter, host = search(alpha=6.0)
    x = inputs("linear")
    perturb(injection)
    W, b = host.matrix().detach(), net.layer.layer.bias.detach()
    B, g, A = (p.detach().clone() for p in (adapter.B_OR, adapter.g_R, adapter.A_RI))
    optimizer = injection.optimizer(torch.optim.SGD, lr=0.05)
    for step in range(1, 6):
        values = tuple(t.requires_grad_() for t in (B, g, A))
        weights = g.exp() / g.exp().sum()
        loss = (x @ (W + 2 * B @ torch.diag(weights) @ A).T + b - 1).square().mean()
        dB, dg, dA = torch.autograd.grad(loss, values)
        lower, upper = (0.05, 0.0) if step % 2 else (0.0, 0.05)
        B, g, A = ((t - r * d).detach() for t, r, d in ((B, lower, dB), (g, upper, dg), (A, lower, dA)))
        (net(x) - 1).square().mean().backward()
        injection.hooks.on_after_backward(Progress(step, 5))
        optimizer.step()
        optimizer.zero_grad()
    for own, expected in ((adapter.B_OR, B), (adapter.g_R, g), (adapter.A_RI, A)):
        assert_close(own.detach(), expected)


def test_the_parts_are_70_and_30_and_selection_variables_do_not_decay() -> None:
    _, injection, _, _ = search()
    assert injection.hooks.parts(**injection.hyper) == pytest.approx({"inner": 0.7, "outer": 0.3})
    plain, selection = injection.param_groups(lr=1.0, weight_decay=0.5)
    assert (plain["weight_decay"], selection["weight_decay"]) == (0.5, 0.0)
    assert [p.shape for p in selection["params"]] == [(3,)] and selection["betas"] == (0.5, 0.999)


# --- ALoRA -------------------------------------------------------------------------------------------------


def examples() -> list[dict[str, Tensor]]:
    return [
        batch(1, length, seed=length) | {"labels": batch(1, length, length)["input_ids"]} for length in (5, 8)
    ]


def test_importances_are_those_of_plain_ablations() -> None:
    """C-32, by weights that are written anew for each: S(M) - S(M∖r) + S(M_r)."""
    network = model()
    learned = stirred(inject(network, "lora", rank=2, alpha=6.0, target_modules=["q", "down"]))
    before = {key: tensor.clone() for key, tensor in learned.state_dict().items()}
    found = importances(learned, examples())
    plain, layers = model(), dict[str, Any](learned.adapters)

    def score(keep: set[Component]) -> float:
        of = plain.state_dict()
        for name, adapter in layers.items():
            own = [n for n in range(2) if Component(name, n) in keep]
            of[f"{name}.weight"] = of[f"{name}.weight"] + 3 * adapter.B_OR[:, own] @ adapter.A_RI[own]
        with torch.no_grad():
            losses = [torch.func.functional_call(plain, of, (), e)["loss"] for e in examples()]
        return -float(sum(losses)) / len(losses)

    every = {Component(name, n) for name in layers for n in range(2)}
    assert found.keys() == every and len(every) == 8
    for own in every:
        assert found[own] == pytest.approx(
            score(every) - score(every - {own}) + score({own}), abs=2e-6
        )  # losses are float32
    assert len({round(value, 5) for value in found.values()}) > 4
    assert all(torch.equal(before[key], t) for key, t in learned.state_dict().items()), "put back to the bit"


def test_components_that_are_zero_score_the_base_and_tie() -> None:
    network = model()
    learned = inject(network, "lora", rank=2, target_modules=["q"])
    with torch.no_grad():
        base = -math.fsum(float(network(**e).loss) for e in examples()) / 2
    assert set(importances(learned, examples()).values()) == {base}


def scores(**of: list[float]) -> dict[Component, float]:
    return {Component(name, n): score for name, own in of.items() for n, score in enumerate(own)}


WIDE = {name: 9 for name in "abc"}


@pytest.mark.parametrize(
    ("given", "pruned", "limits", "kept", "ranks"),
    [
        # the least two of all go, both of a, and b and c lost none: the best mean first
        (scores(a=[1, 2, 9], b=[3, 3], c=[4, 8]), 2, WIDE, {"a": [2], "b": [0, 1], "c": [0, 1]}, (1, 3, 3)),
        (
            scores(a=[1, 2, 9], b=[3, 3], c=[4, 8]),
            1,
            WIDE,
            {"a": [1, 2], "b": [0, 1], "c": [0, 1]},
            (2, 2, 3),
        ),
        # of equal ones the last of each matrix go, in the order of the matrices
        (scores(a=[5, 5], b=[5, 5], c=[5, 5]), 2, WIDE, {"a": [0], "b": [0], "c": [0, 1]}, (1, 1, 4)),
        # a matrix without a component is out; where all lost some, what is left takes part
        (scores(a=[1, 1], b=[9, 2]), 3, WIDE, {"b": [0]}, (4,)),
        # no more than its smaller side; the rest goes to the others
        (
            scores(a=[1, 7], b=[2, 8], c=[9]),
            2,
            {"a": 9, "b": 9, "c": 2},
            {"a": [1], "b": [1], "c": [0]},
            (1, 2, 2),
        ),
        (scores(a=[1, 2]), 5, WIDE, {"a": [1]}, (2,)),
        (scores(a=[1, 2], b=[3]), 0, WIDE, {"a": [0, 1], "b": [0]}, (2, 1)),
    ],
)
def test_ranks_move_to_matrices_that_lost_none_and_their_sum_stays(
    given: dict[Component, float],
    pruned: int,
    limits: dict[str, int],
    kept: dict[str, list[int]],
    ranks: tuple[int, ...],
) -> None:
    found = reallocated(given, pruned, limits)
    assert found == (kept, dict(zip(kept, ranks, strict=True)))
    assert sum(found[1].values()) == len(given)


@pytest.mark.parametrize("name", ["lora", "dora", "rslora"])
def test_growth_leaves_the_function_and_new_components_learn(name: str) -> None:
    """C-65, with the scale held fixed; what is pruned first is as if its components were zero."""
    x, net = inputs("linear"), lone("linear")
    before = inject(net, name, target_modules="layer", rank=3, alpha=6.0)
    perturb(before)
    (adapter, _), keep = only(before), torch.tensor([0, 2])
    with masked(before.adapters, {n: torch.tensor([True, False, True]) for n in before.adapters}):
        pruned = net(x)
    assert not torch.allclose(pruned, net(x))
    alpha = adapter.scale / adapter.scaling(1.0, 5)
    greater = lone("linear")
    after = inject(greater, name, target_modules="layer", rank=5, alpha=alpha, seed=7)
    fresh, _ = only(after)
    drawn = fresh.A_RI[2:].clone()
    inherit(fresh, tensors_of(adapter), keep)
    assert_close(greater(x), pruned, rtol=0, atol=1e-12)
    assert torch.equal(fresh.A_RI[2:], drawn) and drawn.any() and not fresh.B_OR[:, 2:].any()
    (greater(x) - 1).square().mean().backward()
    assert bool(fresh.B_OR.grad[:, 2:].abs().amin() > 0)


def planned(program: str, variant: str = "lora", steps: int = 24, **hyper: Any) -> Stage:
    """The first stage of a program."""
    known = {"rank": 4, "alpha": 4.0, "init": "kaiming", "lora_dropout": 0.0}
    context = ProgramContext(steps, variant, known, 0, lambda: iter(()))
    return next(PROGRAMS.find(program)(context, **hyper))


@pytest.mark.parametrize(
    ("program", "hyper", "says"),
    [
        ("autolora", {"search": 1.0}, "0 < search < 1, steps >= 2 and search_rank >= 1 are needed; got 1.0"),
        ("autolora", {"search_rank": 0}, "got 0.5, 24 and 0"),
        ("autolora", {"variant": "full"}, "autolora finds ranks of matrices, and full has none"),
        ("autolora", {"variant": "bitfit"}, "and bitfit has none"),
        ("alora", {"rounds": 24}, "1 <= rounds < 24 steps, 0 < moved < 1 and examples >= 1; got 0.33"),
        ("alora", {"moved": 1.0}, "8, 1.0 and 32"),
        ("alora", {"variant": "adalora"}, "alora moves ranks, and those of adalora cannot; can: "),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(program: str, hyper: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as error:
        planned(program, **hyper)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_the_search_begins_at_twice_the_rank_and_rounds_share_what_is_left() -> None:
    first = planned("autolora", search=0.25)
    assert (first.steps, first.inject["rank"], first.variant, first.then) == (
        6,
        8,
        "autolora_search",
        "discard",
    )
    assert planned("autolora", search_rank=3).inject["rank"] == 3
    assert planned("alora").steps == 8 and planned("alora", rounds=23).steps == 1

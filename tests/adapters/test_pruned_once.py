"""SparseAdapter: six scores, exact counts, and masks that are fixed from one step on.

Letters: O out, I in, R rank; N all entries of all factors.
"""

import typing
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lora_zoo.conformance.cases import adamw, fresh, lone, perturb, train
from lora_zoo.core.hooks import Progress
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.variants.adaptive.pruning_scores import SCORES, densities
from lora_zoo.variants.adaptive.sparse_adapter import Score

EXACT = {"rtol": 0, "atol": 0}
X = torch.randn(6, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def adapted(**hyper: Any) -> tuple[nn.Module, Injection]:
    """Two layers of which the second is wider: factors of 4 x 14, 10 x 4, 4 x 10 and 14 x 4, 192 entries."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(14, 10), nn.Tanh(), nn.Linear(10, 14)).double()
    return model, inject(model, "sparse_adapter", rank=4, target_modules=["0", "2"], **hyper)


def run(
    model: nn.Module, injection: Injection, steps: int, total: int, skipped: tuple[int, ...] = ()
) -> list[Tensor]:
    """Steps as a trainer takes them, in two micro-batches each; the masks after each step."""
    hooks, optimizer, seen = injection.hooks, adamw(injection), []
    hooks.on_train_begin(total)
    for step in range(1, steps + 1):
        progress = Progress(step, total)
        for part in X.split(3):
            loss, _, extra = hooks.objective(lambda part=part: (model(part).square().mean(), None), progress)
            (loss + extra).backward()
        if step in skipped:
            optimizer.zero_grad()
        else:
            hooks.on_after_backward(progress)
        optimizer.step()
        hooks.on_step_end(progress)
        optimizer.zero_grad()
        seen.append(hooks.masks.kept_N.clone())
    return seen


def test_the_scores_are_worked_out_by_hand() -> None:
    """L = ½ (b a - 1)² at a = 2, b = 1: g = (1, 2), H = [[1, 3], [3, 4]] and H g = (7, 11), a first."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.zeros_(model[0].weight)
    injection = inject(
        model, "sparse_adapter", rank=1, alpha=1.0, score="grasp", warmup=0.0, target_modules="0"
    )
    hooks, adapter = injection.hooks, injection.adapters["0"]
    with torch.no_grad():
        adapter.A_RI.fill_(2.0)
        adapter.B_OR.fill_(1.0)
    loss = hooks.objective(lambda: ((model(torch.ones(1, 1)) - 1).square().sum() / 2, None), Progress(1, 9))[
        0
    ]
    loss.backward()
    expected = {"magnitude": (2, 1), "snip": (2, 2), "grasp": (14, 11), "synflow": (2, 2)}
    for score, values in expected.items():
        found = dict(zip(hooks.masks.names, SCORES[score](hooks).tolist(), strict=True))
        assert (found["0.A_RI"], found["0.B_OR"]) == values, score


def test_synflow_is_the_gradient_of_the_sum_of_outputs_for_ones() -> None:
    _, injection = adapted(alpha=8.0)
    perturb(injection)
    masks, expected = injection.hooks.masks, {}
    for name, adapter in injection.adapters.items():
        A_RI, B_OR = (p.detach().abs().requires_grad_() for p in (adapter.A_RI, adapter.B_OR))
        (2 * B_OR @ A_RI @ torch.ones(A_RI.shape[1], dtype=torch.float64)).sum().backward()
        expected |= {f"{name}.A_RI": A_RI * A_RI.grad, f"{name}.B_OR": B_OR * B_OR.grad}
    assert_close(SCORES["synflow"](injection.hooks), torch.cat([expected[n].flatten() for n in masks.names]))


def test_erdos_renyi_counts_are_worked_out_by_hand() -> None:
    """Shares of 10 and 12 in 22 of 24 entries, the greater remainder rounded up; a full matrix is full."""
    assert densities([(2, 8), (8, 4)], 24) == [11, 13]
    assert densities([(1, 2), (10, 10)], 24) == [2, 22]
    _, injection = adapted(score="erdos_renyi", keep=1 / 3)  # 64 entries, as the sides add up to
    kept = {name: int(mask.sum()) for name, mask in pruned(injection).items()}
    assert kept == {"0.A_RI": 18, "0.B_OR": 14, "2.A_RI": 14, "2.B_OR": 18}


def pruned(injection: Injection) -> dict[str, Tensor]:
    """The mask of each factor after a step that has scores."""
    perturb(injection)
    injection.hooks.on_train_begin(10)
    injection.hooks.on_after_backward(Progress(10, 10))
    return by_name(injection)


def by_name(injection: Injection) -> dict[str, Tensor]:
    masks = injection.hooks.masks
    return dict(zip(masks.names, (kept for _, kept in masks.pairs()), strict=True))


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("score", typing.get_args(Score))
def test_exactly_as_many_are_kept_and_what_is_masked_stays_0(score: Any, scope: Any) -> None:
    if score == "erdos_renyi" and scope == "local":
        pytest.skip("is refused")
    model, injection = adapted(score=score, scope=scope, keep=0.3, warmup=0.2)
    seen, masks = run(model, injection, steps=9, total=10), injection.hooks.masks
    assert [bool(kept_N.all()) for kept_N in seen] == [True] * 2 + [False] * 7  # the third step's scores
    assert all(torch.equal(kept_N, seen[2]) for kept_N in seen[2:])
    # By hand: 192 - ⌈0.7 · 192⌉ = 57; of 56 and of 40 entries 56 - 40 = 16 and 40 - 28 = 12.
    counts = {name: int(kept.sum()) for name, kept in by_name(injection).items()}
    assert sum(counts.values()) == (57 if scope == "global" else 56)
    assert scope == "global" or set(counts.values()) == {16, 12}
    for tensor, kept in masks.pairs():
        assert not tensor[~kept].any() and tensor[kept].all()
    injection.hooks.law()
    assert score in ("random", "erdos_renyi") or not masks.kept_N[: masks.kept_N.sum()].all()


@pytest.mark.parametrize("score", ["magnitude", "snip", "grasp", "synflow"])
def test_at_lora_s_start_scores_are_0_and_the_next_step_is_tried(score: str) -> None:
    """Identity C-62: B and what it multiplies; of A, the magnitude and GraSP's are not."""
    model, injection = adapted(score=score, warmup=0.0)
    hooks = injection.hooks
    loss = hooks.objective(lambda: (model(X).square().mean(), None), Progress(1, 10))[0]
    loss.backward()
    parts = SCORES[score](hooks).split([tensor.numel() for tensor in hooks.masks.tensors])
    scores = dict(zip(hooks.masks.names, parts, strict=True))
    assert not scores["0.B_OR"].any() and not scores["2.B_OR"].any()
    assert bool(scores["0.A_RI"].any()) == (score in ("magnitude", "grasp"))
    injection.hooks.products = {}
    for parameter in injection.parameters():
        parameter.grad = None
    seen = run(model, injection, steps=3, total=10)
    assert [bool(kept_N.all()) for kept_N in seen] == [True, False, False]


def test_a_step_that_is_skipped_leaves_no_scores() -> None:
    model, injection = adapted(score="grasp", warmup=0.1)
    assert [bool(kept_N.all()) for kept_N in run(model, injection, 3, 10)] == [True, False, False]
    model, injection = adapted(score="grasp", warmup=0.1)
    seen = run(model, injection, 3, 10, skipped=(2,))
    assert [bool(kept_N.all()) for kept_N in seen] == [True, True, False]


def test_grasp_adds_the_products_of_micro_batches() -> None:
    model, injection = adapted(score="grasp", warmup=0.0)
    perturb(injection)
    hooks, found = injection.hooks, []
    for parts in ([X[:3]], [X[3:]], [X[:3], X[3:]]):
        hooks.products = {}
        for part in parts:
            hooks.objective(lambda part=part: (model(part).square().mean(), None), Progress(1, 10))
        found.append(SCORES["grasp"](hooks))
    assert_close(found[0] + found[1], found[2])
    hooks.objective(
        lambda: (model(X[:3]).square().mean(), None), Progress(2, 10)
    )  # the step before was skipped
    assert_close(SCORES["grasp"](hooks), found[0], **EXACT)


def test_kept_entries_have_the_highest_scores_and_gradients_are_masked_before_clipping() -> None:
    model, injection = adapted(keep=0.5, warmup=0.0)
    perturb(injection)
    hooks = injection.hooks
    hooks.on_train_begin(10)
    model(X).square().mean().backward()
    scores_N = torch.cat([(p * p.grad).abs().flatten() for p in hooks.masks.tensors])
    hooks.on_after_backward(Progress(1, 10))
    kept_N = hooks.masks.kept_N
    assert scores_N[kept_N].min() > scores_N[~kept_N].max()
    assert all(not p.grad[~kept].any() and p.grad[kept].all() for p, kept in hooks.masks.pairs())


def test_random_masks_follow_the_seed_and_not_which_other_layers_there_are() -> None:
    def mask(seed: int, *targets: str) -> Tensor:
        torch.manual_seed(seed + 5)
        model = nn.Sequential(nn.Linear(14, 10), nn.Tanh(), nn.Linear(10, 14)).double()
        injection = inject(
            model, "sparse_adapter", score="random", scope="local", target_modules=targets, seed=seed
        )
        return pruned(injection)["0.A_RI"]

    _, injection = adapted(score="random", scope="local")
    masks = pruned(injection)
    assert not torch.equal(masks["0.A_RI"].flatten(), masks["2.B_OR"].flatten()), "factors share their draws"
    assert torch.equal(mask(0, "0"), mask(0, "0", "2")) and not torch.equal(mask(0, "0"), mask(1, "0"))


def test_with_keep_1_it_is_lora_to_the_bit() -> None:
    states = []
    for name, own in (("lora", {}), ("sparse_adapter", {"keep": 1.0})):
        model = lone("linear")
        injection = inject(model, name, rank=2, target_modules="layer", **own)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(injection, lambda model=model: model(X).square().mean(), steps=4)
        states.append(injection.state_dict())
    assert_close(states[1], states[0], **EXACT)


def test_a_run_without_scores_says_so() -> None:
    model, injection = adapted(warmup=0.9)
    with pytest.warns(UserWarning, match="no step had scores"):
        train(injection, lambda: model(X).square().mean(), steps=1)


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"keep": 0.0}, r"0 < keep <= 1 .*got 0\.0 and"),
        ({"warmup": 1.0}, "warmup < 1"),
        ({"score": "erdos_renyi", "scope": "local"}, "use scope=global"),
        ({"init": "pissa"}, "pissa"),
        ({"score": "grasp"}, "attention by sdpa does not allow: give model.attn_implementation=eager"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(hyper: dict[str, Any], message: str) -> None:
    model, _ = fresh("llama")
    with pytest.raises(ValueError, match=message) as refusal:
        inject(model, "sparse_adapter", **hyper).hooks.on_train_begin(10)
    assert "\n" not in str(refusal.value)

"""The mask engine: exact counts at every scope, the first of equals, masks that outlast a step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lora_zoo.variants.adaptive.masking import Masks, Sensitivity, highest, share_of

SITES = {"q": (3, 4, 5), "v": (2, 6, 5), "o": (3, 4, 5)}
"""Of each site the rank, O and I."""


def tensors(value: float = 1.0) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for site, (R, O, I) in SITES.items():
        found[f"{site}.A_RI"] = nn.Parameter(torch.full((R, I), value))
        found[f"{site}.B_OR"] = nn.Parameter(torch.full((O, R), value))
        found[f"{site}.g_R"] = nn.Parameter(torch.full((R,), value))
    return found


def masked(scope: Any, share: float, *, ties: bool = False) -> tuple[Masks, dict[str, Tensor]]:
    """Masks chosen by random scores, or by equal ones, and the scores by name."""
    masks = Masks(tensors(), scope)
    source = torch.Generator().manual_seed(0)
    scores_N = torch.rand(len(masks.kept_N), generator=source)
    scores_N = torch.ones_like(scores_N) if ties else scores_N
    masks.keep(scores_N, share_of(share))
    parts = scores_N.split([tensor.numel() for tensor in masks.tensors])
    shaped = [part.view_as(tensor) for part, tensor in zip(parts, masks.tensors, strict=True)]
    return masks, dict(zip(masks.names, shaped, strict=True))


def best(scores: Tensor, kept: Tensor) -> bool:
    """True if the least score that is kept is above the greatest that is not."""
    return bool(scores[kept].min() > scores[~kept].max())


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_exactly_as_many_are_kept_as_were_asked_for_and_these_are_the_highest(
    share: float, ties: bool
) -> None:
    """⌈share n⌉ of each n that compete: by hand, 0.6 of five is three, and 0.3 of five is two."""
    of = {0.01: (1, 1), 0.3: (2, 2), 0.5: (3, 2), 0.6: (3, 3), 1.0: (5, 4)}[share]  # of five, of four
    rows, scores = masked("row", share, ties=ties)
    columns, other = masked("column", share, ties=ties)
    for name, kept in rows.named().items():
        if name.endswith("A_RI"):
            assert kept.sum(1).tolist() == len(kept) * [of[0]]
            assert ties or share == 1 or all(map(best, scores[name], kept))
    for name in ("q.B_OR", "o.B_OR"):
        kept = columns.named()[name]
        assert kept.sum(0).tolist() == kept.shape[1] * [of[1]]
        assert ties or share == 1 or all(map(best, other[name].T, kept.T))
    matrix, scores = masked("matrix", share, ties=ties)
    for name, kept in matrix.named().items():
        assert int(kept.sum()) == share_of(share)(kept.numel())
        assert ties or kept.all() or best(scores[name], kept)
    whole, _ = masked("global", share, ties=ties)
    assert int(whole.kept_N.sum()) == share_of(share)(len(whole.kept_N))


def test_of_equal_scores_the_first_are_kept() -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    assert highest(scores, lambda n: 2).tolist() == [[True, True, False, False], [True, True, False, False]]
    assert not highest(scores, lambda n: 0).any()


def test_a_component_is_kept_or_masked_in_all_tensors_of_its_site() -> None:
    """Its score is the sum of the mean scores in them; eight components compete over all sites."""
    masks, scores = masked("component", 0.4)
    kept, totals, alive = masks.named(), [], []
    for site in SITES:
        A_RI, B_OR, g_R = (kept[f"{site}.{own}"] for own in ("A_RI", "B_OR", "g_R"))
        assert torch.equal(A_RI, g_R[:, None].expand_as(A_RI))
        assert torch.equal(B_OR, g_R.expand_as(B_OR))
        totals.append(scores[f"{site}.A_RI"].mean(1) + scores[f"{site}.B_OR"].mean(0) + scores[f"{site}.g_R"])
        alive.append(g_R)
    assert int(torch.cat(alive).sum()) == 4  # ⌈0.4 · 8⌉
    assert best(torch.cat(totals), torch.cat(alive))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_what_is_masked_is_zero_after_every_step_and_the_rest_learns_as_it_did(optimizer: Any) -> None:
    masks = Masks(named := tensors(), "matrix")
    plain, steps = tensors(), []
    for owned in (named, plain):
        stepped = optimizer(owned.values(), lr=0.1)
        steps.append(stepped)
    for step in range(4):
        for owned, stepped in zip((named, plain), steps, strict=True):
            for n, tensor in enumerate(owned.values()):
                tensor.grad = torch.full_like(tensor, n + 1.0)
            assert not masks.skipped()
            stepped.step()
        if step == 1:
            masks.keep(torch.arange(len(masks.kept_N)).float(), share_of(0.5))
        masks.apply_()
    for name, kept in masks.named().items():
        assert not named[name][~kept].any()
        assert torch.equal(named[name][kept], plain[name][kept])
        named[name].grad = None
    assert masks.skipped()


def test_sensitivity_is_the_smoothed_product_with_the_gradient() -> None:
    """By hand, β 0.8: p = 2, gradients -3 and 1: 0.2 · 6 = 1.2, then 0.8 · 1.2 + 0.2 · 2 = 1.36.

    The spread, β 0.5: 0.5 |6 - 1.2| = 2.4, then 0.5 · 2.4 + 0.5 |2 - 1.36| = 1.52.
    """
    p = nn.Parameter(torch.tensor([2.0]))
    one, both = Sensitivity([p], 0.8), Sensitivity([p], 0.8, 0.5)
    for gradient in (None, -3.0, None, 1.0):
        p.grad = None if gradient is None else torch.tensor([gradient])
        one.observe()
        both.observe()
    assert_close(one.scores(), torch.tensor([1.36]))
    assert_close(both.scores(), torch.tensor([1.36 * 1.52]))
    assert {*one.state_dict()} == {"mean_N"} and {*both.state_dict()} == {"mean_N", "spread_N"}


def test_masks_are_saved_and_resumed() -> None:
    masks, _ = masked("row", 0.5)
    again = Masks(tensors(), "row")
    again.load_state_dict(masks.state_dict())
    again.apply_()
    of = dict(zip(again.names, again.tensors, strict=True))
    assert all(torch.equal(of[name] != 0, kept) for name, kept in masks.named().items())

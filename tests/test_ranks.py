"""Ranks over a training: told by the hooks, recorded where they change, and the same after a break."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lora_zoo import inject
from lora_zoo.injection.inject import Injection
from lora_zoo.training.ranks import by_role, joined, note, whole_ranks
from tests.test_training import model, trainer

STEPS, LOGS = 12, 2
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


def at(changes: dict[str, list[list[float]]], step: int) -> dict[str, float]:
    """The rank of each matrix after `step` steps."""
    return {name: [rank for when, rank in own if when <= step][-1] for name, own in changes.items()}


def pruned() -> Injection:
    return inject(model(), "adalora", rank=2, init_r=4, tinit=2, tfinal=4, lora_dropout=0.1)


def run(folder: Path, injection: Injection, **more: Any) -> Any:
    return trainer(folder, injection, max_steps=STEPS, logging_steps=LOGS, **more)


def test_the_ranks_of_a_run_are_its_budget_at_each_log_and_survive_a_break(tmp_path: Path) -> None:
    """Eq. 14: b(t) = b(T) + (b(0) - b(T)) (1 - (t - tᵢ) / (T - t_f - tᵢ))³, whole; a matrix may get none."""
    whole = run(tmp_path, injection := pruned(), save_strategy="steps", save_steps=5)
    whole.train()
    changes = whole.ranks.changes
    assert changes.keys() == injection.adapters.keys() and len(changes) == 4
    for step in range(0, STEPS + 1, LOGS):
        left = min(max(1 - (step - 2) / 6, 0), 1) ** 3
        assert sum(at(changes, step).values()) == int(8 + 8 * left), step
    for own in changes.values():
        assert own[0] == [0, 4]
        assert all(a[1] != b[1] and a[0] < b[0] for a, b in pairwise(own))
    kept = {name: int((adapter.E_R != 0).sum()) for name, adapter in injection.adapters.items()}
    assert at(changes, STEPS) == kept == injection.hooks.ranks()
    logged = {e["step"]: e["rank/total"] for e in whole.state.log_history if "loss" in e}
    assert logged == {step: sum(at(changes, step).values()) for step in range(LOGS, STEPS + 1, LOGS)}

    resumed = run(tmp_path, pruned())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))  # between two logs
    assert resumed.ranks.changes == changes


def test_a_gate_at_zero_is_a_rank_less_and_other_methods_tell_none(tmp_path: Path) -> None:
    injection = inject(model(), "sora", rank=3)
    injection.adapters[Q].g_R.data[:2] = 0
    assert injection.hooks.ranks() == dict.fromkeys(injection.adapters, 3) | {Q: 1}
    plain = run(tmp_path, inject(model(), "dylora", rank=2))
    plain.train()
    assert plain.ranks.changes == {} and not [k for e in plain.state.log_history for k in e if "rank" in k]


def test_the_last_rank_of_a_step_counts_and_one_that_stays_is_not_repeated() -> None:
    own = list[list[float]]()
    for step, rank in ((0, 4), (2, 4), (4, 3), (4, 4), (6, 0), (6, 1), (8, 1)):
        note(own, step, rank)
    assert own == [[0, 4], [6, 1]]


def test_stages_follow_each_other_and_a_matrix_that_one_leaves_has_no_rank() -> None:
    first: Any = joined({}, {"q": [[0, 4], [6, 2]], "v": [[0, 4]]}, 0)
    assert first == {"q": [[0, 4], [6, 2]], "v": [[0, 4]]}
    second = {"q": [[0, 2], [5, 3]], "k": [[0, 8]]}
    both: Any = {"q": [[0, 4], [6, 2], [15, 3]], "v": [[0, 4], [10, 0]], "k": [[10, 8]]}
    assert joined(first, second, 10) == both
    assert joined(both, second, 10) == both, "the stage anew, after a break"
    assert joined(both, {}, 20) == {
        "q": [*both["q"], [20, 0]], "v": both["v"], "k": [[10, 8], [20, 0]]
    }  # fmt: skip


@pytest.mark.parametrize("prior", [(), ("below",)])
def test_what_is_settled_counts_and_a_prior_does_not(prior: tuple[str, ...]) -> None:
    network = model()
    inject(network, "lora", rank=5, target_modules=["q"], name="below")
    top = inject(
        network, "lora", rank_pattern={"v": 3}, rank=2, target_modules=["q", "v"], prior=prior, name="top"
    )
    top._adapter_set.activate("below", "top")
    found = whole_ranks(top)
    assert (found[Q], found[V]) == (2 if prior else 7, 3)


def test_ranks_are_averaged_by_role() -> None:
    assert by_role({Q: 2, Q.replace("0", "1"): 5, V: 0, "own": 4}) == {
        "rank/q": 3.5, "rank/v": 0, "rank/other": 4, "rank/total": 11
    }  # fmt: skip
    assert by_role({}) == {}

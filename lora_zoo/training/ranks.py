"""The ranks of an adapter's matrices while it trains, told where they change."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import Injection
from lora_zoo.injection.plan import hyperparameters_at
from lora_zoo.injection.roles import role_of

Changes = dict[str, list[list[float]]]
"""Matrix -> [step, rank] wherever its rank is not the one before."""


class RankRecorder(TrainerCallback):
    """Asks the hooks for their `ranks` at the first step, at each log, and when training is over.

    `changes` stays empty where they have none to tell, unless `whole`: then all matrices count, with what
    earlier stages of the run have settled.
    """

    def __init__(self, injection: Injection, *, whole: bool) -> None:
        self.injection, self.whole = injection, whole
        self.changes: Changes = {}

    def look(self, step: int) -> dict[str, float]:
        """Note the ranks after `step` steps; returns their mean a role, and their sum, as `rank/…`."""
        now = whole_ranks(self.injection) if self.whole else dict(self.injection.hooks.ranks())
        for name, rank in now.items():
            note(self.changes.setdefault(name, []), step, rank)
        return by_role(now)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        if not self.changes:  # a checkpoint may be from between two logs
            self.look(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.look(state.global_step)


def note(own: list[list[float]], step: float, rank: float) -> None:
    """Add to the changes of one matrix, in place; of several ranks at one step the last one counts."""
    if own and own[-1][0] == step:
        own.pop()
    if not own or own[-1][1] != rank:
        own.append([step, rank])


def joined(earlier: Mapping[str, Sequence[Sequence[float]]], own: Changes, start: int) -> Changes:
    """The changes up to step `start`, then `own` ones of a stage that starts there and counts from 0.

    A matrix that the stage does not have is of rank 0 from then on.
    """
    found: Changes = {}
    for name in dict.fromkeys([*earlier, *own]):
        found[name] = [[step, rank] for step, rank in earlier.get(name, ()) if step <= start]
        for step, rank in own.get(name, [[0, 0]]):
            note(found[name], start + step, rank)
    return {name: changes for name, changes in found.items() if changes}


def whole_ranks(injection: Injection) -> dict[str, float]:
    """The rank of each matrix in the adapter and in those that are active beside it, but for its priors."""
    found: dict[str, float] = {}
    every = adapters_of(injection.model)
    for one in (every[name] for name in every.active if name not in injection.prior):
        for name, rank in (_built(one) | dict(one.hooks.ranks())).items():
            found[name] = found.get(name, 0) + rank
    return found


def _built(injection: Injection) -> dict[str, float]:
    """The ranks with which adapters were built; none for a variant without a rank."""
    hyper, patterns = injection.hyper, injection.patterns
    if "rank" not in hyper:
        return {}
    return {m.name: hyperparameters_at(m, hyper, patterns)["rank"] for m in injection.matrices.values()}


def by_role(ranks: Mapping[str, float]) -> dict[str, float]:
    """The mean of each role as rank/ROLE (rank/other for a matrix without one) and the sum as rank/total."""
    roles: dict[str, list[float]] = {}
    for name, rank in ranks.items():
        roles.setdefault(role_of(name) or "other", []).append(rank)
    means = {f"rank/{role}": sum(own) / len(own) for role, own in roles.items()}
    return means | ({"rank/total": float(sum(ranks.values()))} if ranks else {})

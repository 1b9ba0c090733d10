"""An Optuna study of one cell, kept in a file beside the runs.

A trial that a killed process left without an end is asked for again, with the values that it had. The sampler
is made anew for each trial, from the seed and the trial's number: a search that was interrupted suggests what
it would have suggested, and cells begin with the same values.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

from lora_zoo.config.space import Dimension
from lora_zoo.core.errors import unknown
from lora_zoo.core.seeding import derived_seed
from lora_zoo.terminal import say

SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler", "gp": "GPSampler"}
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}
FILE = "study.journal"
LIKELIHOOD = "nll"
State = Literal["done", "pruned", "diverged", "failed"]


def check_names(sampler: str, pruner: str) -> None:
    """ValueError without Optuna, and for a sampler or a pruner that is none."""
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("hydra/sweeper=optuna needs Optuna: pip install 'lora_zoo[optuna]'")
    for what, name, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if name not in known:
            raise ValueError(unknown(f"hydra.sweeper.{what}", name, known))


@final
class Study:
    """The study called `name` in the sweep's folder; `higher` scores are better, or lower ones."""

    def __init__(
        self, folder: Path, name: str, *, higher: bool, sampler: str, pruner: str, seed: int
    ) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        _check_journal(folder / FILE)
        self.higher, self.seed, self.sampler = higher, seed, getattr(optuna.samplers, SAMPLERS[sampler])
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / FILE))),
            study_name=name,
            load_if_exists=True,
            direction="maximize" if higher else "minimize",
            pruner=getattr(optuna.pruners, PRUNERS[pruner])(),
        )
        self.left = [t for t in self._trials() if not t.state.is_finished()]
        """Trials of an earlier process that have come to no end."""

    @property
    def ended(self) -> int:
        """The number of trials that have come to an end."""
        return sum(trial.state.is_finished() for trial in self._trials())

    def ask(self, dimensions: Sequence[Dimension]) -> "SearchTrial":
        """A trial with its values: one that was left, else a new one."""
        from optuna.trial import Trial as OptunaTrial

        begun = self.left.pop(0) if self.left else None
        number = begun.number if begun else len(self._trials())
        self.study.sampler = self.sampler(seed=derived_seed("search", self.seed, number) % 2**32)
        trial = OptunaTrial(self.study, begun._trial_id) if begun else self.study.ask()
        return SearchTrial(self, trial, _rounded({d.key: d.suggest(trial) for d in dimensions}))

    def best(self) -> dict[str, Any] | None:
        """The values of the best done trial; of equal ones, that of the best likelihood, then the first."""
        sign = 1 if self.higher else -1
        done = [t for t in self._trials() if t.value is not None and t.state.name == "COMPLETE"]
        likely = [t.user_attrs.get(LIKELIHOOD, 0.0) for t in done]
        ranked = sorted(zip(done, likely, strict=True), key=lambda one: (-sign * one[0].value, one[1]))
        return _rounded(ranked[0][0].params) if ranked else None

    def searched(self, keys: Sequence[str]) -> str:
        """The number of configurations that were searched, by each value of `keys`, and how they ended."""
        ended = [t for t in self._trials() if t.state.is_finished()]
        different = {tuple(sorted(t.params.items())): t for t in ended}.values()
        parts = [f"{len(different)} configurations searched"]
        for key in keys:
            values = [t.params[key] for t in different]
            name = key.lstrip("+")
            parts += [f"{values.count(value)} of {name}={value}" for value in dict.fromkeys(values)]
        for state in ("pruned", "diverged", "failed"):
            if count := sum(t.user_attrs.get("state") == state for t in ended):
                parts.append(f"{count} {state}")
        return "; ".join(parts)

    def _trials(self) -> list[Any]:
        return list(self.study.get_trials(deepcopy=False))


def _check_journal(file: Path) -> None:
    """Cut a last line that a killed process left torn, to which Optuna would append the next one.

    ValueError for any other line that it could not read.
    """
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            if not (isinstance(json.loads(line), dict) and line.endswith(b"\n")):
                raise ValueError("it is no object that ends its line")
        except ValueError as error:
            if number < len(lines):
                raise ValueError(
                    f"{file}: line {number} is damaged ({error}); take the file away, and the same command "
                    "searches anew, without running again what is finished"
                ) from error
            os.truncate(file, file.stat().st_size - len(line))
            say(f"{file}: its last line was torn and is cut off; the search goes on from the line before")


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with numbers that people can read."""
    return {key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in values.items()}


@final
class SearchTrial:
    """One configuration of a study, in hand."""

    def __init__(self, study: Study, trial: Any, values: dict[str, Any]) -> None:
        self.study, self.trial, self.values = study, trial, values
        self.pruned = False

    def watch(self, metric: str) -> Callable[[int, dict[str, float]], bool]:
        """A function for a run to call after an evaluation: True where the trial is to be given up."""

        def given_up(step: int, values: dict[str, float]) -> bool:
            self.trial.report(values[metric], step)
            self.pruned = bool(self.trial.should_prune())
            return self.pruned

        return given_up

    def tell(self, state: State, value: float | None = None, likelihood: float | None = None) -> None:
        """End the trial. One that diverged is, to samplers, one that was pruned: worse than any score."""
        from optuna.trial import TrialState

        self.trial.set_user_attr("state", state)
        if likelihood is not None:
            self.trial.set_user_attr(LIKELIHOOD, likelihood)
        states = {"done": TrialState.COMPLETE, "failed": TrialState.FAIL}
        self.study.study.tell(self.trial, value, state=states.get(state, TrialState.PRUNED))

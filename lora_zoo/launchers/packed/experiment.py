"""One job of a pack: an Experiment whose model is shared and whose training meets that of others."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.inject.adapter_set import adapters_of
from lora_zoo.inject.base_model import base_parameters
from lora_zoo.inject.injection import Injection, inject
from lora_zoo.inject.plan import plan_injection
from lora_zoo.launchers.packed.backbone import Backbone, unfit
from lora_zoo.launchers.packed.scheduler import Pack, PackedJob
from lora_zoo.models.loading import Loaded
from lora_zoo.runs.tracking import Tracker
from lora_zoo.training.experiment import Experiment
from lora_zoo.training.resources import TaskData
from lora_zoo.training.trainer import ZooTrainer


class SharedBase:
    """The model of a pack, loaded by its first job; `unfit` says why jobs cannot share it."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None
        self.backbone: Backbone | None = None
        self.heads: dict[int, dict[str, Tensor]] = {}
        """Seed -> the values of the parameters that the checkpoint lacks."""
        self.unfit = ""


class PackedExperiment(Experiment):
    """A run in a seat of a pack. What cannot be packed goes on by itself, after the others."""

    def __init__(self, *arguments: Any, pack: Pack, seat: PackedJob, base: SharedBase) -> None:
        super().__init__(*arguments)
        self.pack, self.seat, self.base = pack, seat, base

    def _model(self, material: TaskData) -> Loaded:
        base, seed = self.base, self.settings.seed
        if base.unfit:
            self._alone(base.unfit)
        if base.loaded is None:
            loaded = super()._model(material)
            base.unfit = self.seat.reason = base.unfit or unfit(loaded.model)
            if not base.unfit:
                base.loaded, base.backbone, base.heads[seed] = loaded, Backbone(loaded.model), _heads(loaded)
                self.pack.share(base.backbone)
            return loaded
        if base.loaded.new_modules and seed not in base.heads:
            base.heads[seed] = _heads(super()._model(material))
        return base.loaded

    def _adapted(self, model: nn.Module, how: dict[str, Any]) -> Injection:
        if self.base.backbone is None:
            return super()._adapted(model, how)
        with warnings.catch_warnings(action="ignore"):  # `inject` warns
            plan = plan_injection(model, self.variant, **how)
        heads = self.base.heads.get(self.settings.seed, {})
        frozen = [name for name in heads if name not in plan.fully_trained]
        reason = self.base.backbone.refuses(plan)
        if frozen and len(self.base.heads) > 1:
            reason = reason or f"{frozen[0]} starts from its seed and stays as it is, which jobs cannot share"
        if reason:
            self._alone(reason)
        group = adapters_of(model)
        group.show_all()
        if reason:
            _set(base_parameters(model), heads)
        injection = inject(model, self.variant, **how, seed=self.settings.seed, name=self.seat.name)
        _set(injection.trained, heads)
        own = {name: nn.Parameter(values.clone(), False) for name, values in heads.items()}
        injection.originals |= {name: own[name] for name in injection.originals.keys() & own.keys()}
        adapters_of(model).isolate(self.seat.name)
        injection.name = "default"  # as its files call it
        self.seat.injection = injection
        return injection

    def _alone(self, reason: str) -> None:
        name = self.record.content["name"]
        text = f"{name} runs by itself, after the others: {reason}"
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.pack.be_alone(reason)

    def _trainer(self, *arguments: Any) -> ZooTrainer:
        trainer = super()._trainer(*arguments)
        backward = trainer.accelerator.backward

        def through_the_trunk(*given: Any, **named: Any) -> None:
            backward(*given, **named)
            self.pack.backward()

        trainer.accelerator.backward = through_the_trunk
        return trainer

    def _measure_activations(self, trainer: ZooTrainer) -> None:
        """A pass of the trunk is all runs' together: what one of them keeps is not known."""

    def _train(self, trainer: ZooTrainer, mirror: Tracker) -> None:
        try:
            super()._train(trainer, mirror)
        finally:
            alone = {"alone": self.seat.reason} if self.seat.reason else {}
            self.record.update(packed={"jobs": self.seat.most} | alone)


def _heads(loaded: Loaded) -> dict[str, Tensor]:
    """The values of the parameters that the checkpoint lacks, which come from the run's seed."""
    every = base_parameters(loaded.model)
    named = {n: p for n, p in every.items() if n.startswith(tuple(f"{m}." for m in loaded.new_modules))}
    return {name: parameter.detach().clone() for name, parameter in named.items()}


@torch.no_grad()
def _set(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name in parameters.keys() & values.keys():
        parameters[name].copy_(values[name])

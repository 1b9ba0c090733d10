"""The resources of one job of a pack: a base, and passes of it, that it shares with other jobs."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from lora_zoo.config.schema import Settings
from lora_zoo.config.spec import readable_name, variant_of
from lora_zoo.core.adapter import Variant
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.base_model import base_parameters
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.injection.plan import plan_injection
from lora_zoo.launchers.packed.backbone import Backbone
from lora_zoo.launchers.packed.compatibility import unfit
from lora_zoo.launchers.packed.job import PackedJob
from lora_zoo.launchers.packed.scheduler import Pack
from lora_zoo.models.loading import Loaded
from lora_zoo.training.measured import Measurements
from lora_zoo.training.resources import FreshResources, TaskData
from lora_zoo.training.signals import SignalHandler


class SharedBase:
    """The model of a pack, loaded by its first job; `unfit` is the reason why jobs cannot share it."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None
        self.backbone: Backbone | None = None
        self.heads: dict[int, dict[str, Tensor]] = {}
        """Seed -> the values of the parameters that the checkpoint lacks."""
        self.unfit = ""
        self.measured = Measurements()


class PackedResources(FreshResources):
    """Lends a job its adapter's place in the shared base. A job that cannot share runs after the others."""

    exclusive = False

    def __init__(self, pack: Pack, job: PackedJob, shared: SharedBase) -> None:
        self.pack, self.job, self.shared = pack, job, shared
        self.name = job.name

    @contextlib.contextmanager
    def process(self) -> Iterator[SignalHandler]:
        """Lend the pack's signal handler; the launcher restores the process once all jobs have ended."""
        yield self.pack.signals

    def task_data(self, settings: Settings) -> TaskData:
        self.name = readable_name(settings, variant_of(settings))
        return super().task_data(settings)

    def base(self, settings: Settings, data: TaskData, seed: int) -> Loaded:
        shared, own = self.shared, settings.seed
        if shared.unfit:
            self._run_alone(shared.unfit)
        if shared.loaded is None:
            loaded = super().base(settings, data, seed)
            shared.unfit = self.job.reason = shared.unfit or unfit(loaded.model)
            if not shared.unfit:
                shared.loaded, shared.backbone = loaded, Backbone(loaded.model)
                shared.heads[own] = _heads(loaded)
                self.pack.share(shared.backbone)
            return loaded
        if shared.loaded.new_modules and own not in shared.heads:
            shared.heads[own] = _heads(super().base(settings, data, seed))
        return shared.loaded

    def inject(
        self,
        model: nn.Module,
        variant: type[Variant],
        seed: int,
        arguments: Mapping[str, Any],
        batches: Iterable[Mapping[str, Any]],
    ) -> Injection:
        backbone = self.shared.backbone
        if backbone is None:
            return super().inject(model, variant, seed, arguments, batches)
        heads = self.shared.heads.get(seed, {})
        reason = self._refusal(model, backbone, variant, {**arguments, "seed": seed}, heads)
        if reason:
            self._run_alone(reason)
        adapters_of(model).show_all()
        if reason:
            _set(base_parameters(model), heads)
        injection = inject(model, variant, **arguments, seed=seed, name=self.job.name, batches=batches)
        _set(injection.trained, heads)
        own = {name: nn.Parameter(values.clone(), False) for name, values in heads.items()}
        injection.originals |= {name: own[name] for name in injection.originals.keys() & own.keys()}
        adapters_of(model).isolate(self.job.name)
        injection.name = "default"  # as its files call it
        self.job.injection = injection
        return injection

    def _refusal(
        self,
        model: nn.Module,
        backbone: Backbone,
        variant: type[Variant],
        arguments: Mapping[str, Any],
        heads: Mapping[str, Tensor],
    ) -> str:
        """The reason why the job cannot share the base; "" if it can."""
        with warnings.catch_warnings(action="ignore"):  # `inject` warns
            of_matrices = {key: value for key, value in arguments.items() if key != "branch_dtype"}
            plan = plan_injection(model, variant, **of_matrices)
        if plan.needs:
            return f"it looks at data ({', '.join(plan.needs)}) before its adapter is built"
        if method := variant.hooks.not_packable():
            return f"{variant.name}'s hooks override {method}, which could reach other jobs (see `packable`)"
        if reason := backbone.refuses(plan):
            return reason
        frozen = [name for name in heads if name not in plan.fully_trained]
        if frozen and len(self.shared.heads) > 1:
            return f"{frozen[0]} starts from its seed and stays as it is, which jobs cannot share"
        return ""

    def _run_alone(self, reason: str) -> None:
        text = f"{self.name} runs by itself, after the others: {reason}"
        Console().print(text, markup=False, highlight=False, soft_wrap=True)
        self.pack.run_alone(reason)

    def once(self, key: str, run: str, measure: Callable[[], Any]) -> tuple[Any, str]:
        return self.shared.measured.once(key, run, measure)

    def prepare(self, accelerator: Accelerator) -> None:
        backward = accelerator.backward

        def with_backbone(*given: Any, **named: Any) -> None:
            backward(*given, **named)
            self.pack.backward()

        accelerator.backward = with_backbone

    def about(self) -> dict[str, Any]:
        alone = {"alone": self.job.reason} if self.job.reason else {}
        return {"packed": {"jobs": self.job.most} | alone}


def _heads(loaded: Loaded) -> dict[str, Tensor]:
    """Copy the parameters that the checkpoint lacks, which come from the run's seed."""
    new = tuple(f"{module}." for module in loaded.new_modules)
    parameters = base_parameters(loaded.model).items()
    return {name: p.detach().clone() for name, p in parameters if name.startswith(new)}


@torch.no_grad()
def _set(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name in parameters.keys() & values.keys():
        parameters[name].copy_(values[name])

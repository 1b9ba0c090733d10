"""Collect statistics of data at each target matrix of the unadapted model, before adapters are built."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.dtypes import wide
from lora_zoo.core.init import find_init
from lora_zoo.core.statistics import EVERY_OF_INPUTS, ORIGINAL, Statistics, of_data
from lora_zoo.core.train_eval import in_mode
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.matrices import TargetMatrix
from lora_zoo.injection.originals import original_matrices, original_of
from lora_zoo.injection.plan import InjectionPlan

Batch = Mapping[str, Any]
OF_X: Mapping[str, Callable[[Tensor], Tensor]] = {
    "input_mean": lambda x_NI: x_NI.sum(0),
    "input_moment": lambda x_NI: x_NI.T @ x_NI,
    "input_magnitude": lambda x_NI: x_NI.abs().sum(0),
}
"""Statistic of inputs -> its sum over the rows of x (N, I)."""


def collect(
    model: nn.Module, plan: InjectionPlan, batches: Iterable[Batch] | None, prior: Sequence[str] = ()
) -> dict[str, Statistics]:
    """Matrix -> the statistics that `plan` needs, means over `batches`; {} where it needs none.

    With the weights from before a quantisation, those of data are of the model from before it, too.

    The model computes with no adapter but those called `prior`, in evaluation mode, and is left as it was;
    no random number is drawn. ValueError without batches, for padding in them and for a matrix that no pass
    reaches.
    """
    if not plan.needs:
        return {}
    if ORIGINAL in plan.needs:
        return _of_original(model, plan, batches)
    collector = Collector(model, plan.matrices, plan.needs, _asking(plan))
    with adapters_of(model).disabled(keep=prior):
        return _collected(collector, batches)


def _collected(collector: "Collector", batches: Iterable[Batch] | None) -> dict[str, Statistics]:
    model = collector.model
    with in_mode(model, training=False), collector:
        for batch in batches or ():
            refuse_padding(model, batch)
            collector.add(batch)
    if not collector.batches:
        raise ValueError(
            f"{collector.asking} looks at data ({', '.join(collector.needs)}); give inject `batches`, "
            "keyword arguments of the model"
        )
    return collector.means()


def _of_original(
    model: nn.Module, plan: InjectionPlan, batches: Iterable[Batch] | None
) -> dict[str, Statistics]:
    original, needs = original_of(model), of_data(plan.needs)
    matrices = original_matrices(original, [matrix.name for matrix in plan.matrices])
    found: dict[str, Statistics] = {name: {} for name in matrices}
    if needs:
        collector = Collector(original, list(matrices.values()), needs, _asking(plan))
        found = _collected(collector, batches)
    own = {name: {ORIGINAL: matrix.host.matrix().detach()} for name, matrix in matrices.items()}
    return {name: {**found[name], **own[name]} for name in matrices}


def allotted(plan: InjectionPlan, statistics: Mapping[str, Statistics]) -> InjectionPlan:
    """`plan` with the ranks that its initialisation gives to the matrices; those of rank 0 are left out.

    alpha goes with the rank, so that alpha / rank stays.
    """
    init = find_init(plan.hyperparameters["init"]) if plan.hyperparameters.get("init") else None
    if not statistics or init is None or init.allot is None:
        return plan
    before = {matrix.name: plan.hyperparameters_at(matrix) for matrix in plan.matrices}
    ranks = init.allot(statistics, {name: hyper["rank"] for name, hyper in before.items()})
    patterns = {**plan.patterns, "rank": {name: rank for name, rank in ranks.items() if rank}}
    if "alpha" in plan.hyperparameters:
        shares = {name: rank / before[name]["rank"] for name, rank in patterns["rank"].items()}
        patterns["alpha"] = {name: before[name]["alpha"] * share for name, share in shares.items()}
    kept = [matrix for matrix in plan.matrices if ranks[matrix.name]]
    return replace(plan, matrices=kept, patterns=patterns)


class Collector:
    """Sums statistics over passes; a context manager, inside which hooks see the layers' inputs.

    `asking` are the words for what looks at data.
    """

    def __init__(
        self, model: nn.Module, matrices: Sequence[TargetMatrix], needs: Sequence[str], asking: str
    ) -> None:
        self.model, self.matrices, self.needs, self.asking = model, matrices, needs, asking
        self.batches = 0
        self.sums: dict[str, dict[str, Tensor]] = {matrix.name: {} for matrix in matrices}
        self.positions = dict.fromkeys(self.sums, 0)
        self._of_inputs = [need for need in self.needs if need in EVERY_OF_INPUTS]
        self._gradients = [need for need in self.needs if need not in EVERY_OF_INPUTS]
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        if self._of_inputs:
            for matrix in self.matrices:
                see = partial(self._see, matrix.name)
                self._hooks.append(matrix.host.layer.register_forward_pre_hook(see))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def add(self, batch: Batch) -> None:
        """Run the model on a batch, and backwards where a gradient is needed."""
        self.batches += 1
        if not self._gradients:
            with torch.no_grad():
                self.model(**batch)
            return
        tensors = {id(t): t for t in (matrix.host.tensor() for matrix in self.matrices)}
        required = {p: p.requires_grad for p in self.model.parameters()}
        try:
            self.model.requires_grad_(False)
            for tensor in tensors.values():
                tensor.requires_grad_()
            with torch.enable_grad():
                loss = self.model(**batch).loss
                found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
        finally:
            for parameter, asked in required.items():
                parameter.requires_grad_(asked)
        self._add_gradients(dict(zip(tensors, found, strict=True)))

    def _add_gradients(self, gradients: Mapping[int, Tensor | None]) -> None:
        for matrix in self.matrices:
            stored = gradients[id(matrix.host.tensor())]
            if stored is None:
                continue
            G_OI = wide(matrix.host.read(stored))
            for need in self._gradients:
                self._sum(matrix.name, need, G_OI.square() if need == "squared_gradient" else G_OI)

    def _see(self, name: str, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        x_NI = arguments[0].detach().flatten(0, -2).double()
        self.positions[name] += len(x_NI)
        for need in self._of_inputs:
            self._sum(name, need, OF_X[need](x_NI))

    def _sum(self, name: str, statistic: str, value: Tensor) -> None:
        held = self.sums[name]
        held[statistic] = held[statistic] + value if statistic in held else value

    def means(self) -> dict[str, Statistics]:
        """The statistics by matrix. ValueError for a matrix that no pass has reached."""
        for name, held in self.sums.items():
            if set(self.needs) - held.keys():
                raise ValueError(
                    f"{self.asking} looks at data, and no pass over it reached {name}; "
                    "exclude_modules leaves it out"
                )
        return {
            name: {
                key: value / (self.positions[name] if key in EVERY_OF_INPUTS else self.batches)
                for key, value in held.items()
            }
            for name, held in self.sums.items()
        }


def refuse_padding(model: nn.Module, batch: Batch) -> None:
    """Raise ValueError for a batch with padding, whose positions would count as data."""
    masks = (batch.get("attention_mask"), batch.get("decoder_attention_mask"))
    padded = any(mask is not None and not bool(mask.all()) for mask in masks)
    labels = batch.get("labels")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and labels is not None:
        padded = padded or bool((labels == -100).any())
    if padded:
        raise ValueError(
            "statistics are collected on batches without padding; give each example by itself, or examples "
            "of one length together"
        )


def _asking(plan: InjectionPlan) -> str:
    return plan.variant.name if plan.variant.needs else f"init={plan.hyperparameters['init']}"

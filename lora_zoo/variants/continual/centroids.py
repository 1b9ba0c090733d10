"""The centres of tasks' inputs, and hooks that find by them the task of each row.

Shapes: H features (the inputs of the last adapted matrix), N rows, K clusters, T tasks.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from lora_zoo.core.caches import cache_of, without_cache
from lora_zoo.core.hooks import Pass, Progress
from lora_zoo.core.recomputation import in_backward
from lora_zoo.core.train_eval import in_mode
from lora_zoo.variants.continual.task_loras import ExpertsOfTasks, names_of

ROUNDS = 25
"""Of Lloyd's algorithm, at most."""


class Centroids(nn.Module):
    """The clusters' centres C (T, K, H) of each task's training inputs, and if a task has any."""

    C_TKH: Tensor
    known_T: Tensor

    def __init__(self, tasks: int, clusters: int, like: Tensor, H: int) -> None:
        super().__init__()
        self.register_buffer("C_TKH", like.new_zeros(tasks, clusters, H))
        self.register_buffer("known_T", torch.zeros(tasks, dtype=torch.int64, device=like.device))

    @torch.no_grad()
    def succeed(self, before: Mapping[str, Tensor]) -> None:
        """Take over the centres of earlier tasks, in place."""
        self.C_TKH[:-1].copy_(before["C_TKH"])
        self.known_T[:-1].copy_(before["known_T"])

    def nearest(self, f_NH: Tensor) -> Tensor:
        """The task (N,) of the centre nearest to each row; the newest one while there are no centres."""
        distances_NTK = (f_NH[:, None, None, :] - self.C_TKH.to(f_NH)).square().sum(-1)
        distances_NT = distances_NTK.amin(-1).masked_fill(self.known_T == 0, torch.inf)
        found_N = distances_NT.argmin(-1)
        return found_N if bool(self.known_T.any()) else torch.full_like(found_N, len(self.C_TKH) - 1)


def k_means(f_NH: Tensor, clusters: int) -> Tensor:
    """Centres (K, H) of Lloyd's algorithm. It starts from the first row and then the row farthest from all
    centres so far; of fewer rows than clusters some centres are alike.
    """
    centres = [f_NH[0]]
    while len(centres) < clusters:
        distances_NK = torch.cdist(f_NH, torch.stack(centres))
        centres.append(f_NH[distances_NK.amin(1).argmax()])
    C_KH = torch.stack(centres)
    for _ in range(ROUNDS):
        of_N = torch.cdist(f_NH, C_KH).argmin(1)
        means = [f_NH[of_N == k].mean(0) if bool((of_N == k).any()) else C_KH[k] for k in range(clusters)]
        C_KH, before = torch.stack(means), C_KH
        if torch.equal(C_KH, before):
            break
    return C_KH


class NearestCentroid(ExpertsOfTasks):
    """Finds the task of each row before every pass, by a pass of the base; collects features in training.

    A row's features are the mean over its positions of what the last adapted matrix sees in the base: of the
    tokens before the first label where there are labels. A pass that goes on from a cache keeps its routes.
    """

    F_NH: Tensor
    seen: Tensor

    def __init__(self, adapters: Mapping[str, Any], *, prototypes: int = 256, clusters: int = 5) -> None:
        super().__init__(adapters)
        if min(prototypes, clusters) < 1:
            raise ValueError(
                f"color: prototypes and clusters must be at least 1; got {prototypes}, {clusters}"
            )
        last = [*adapters.values()][-1]
        self.register_buffer("F_NH", last.A_RI.new_zeros(prototypes, last.A_RI.shape[1]))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._handle: Any = None
        self._asks = self._learns = False

    @classmethod
    def shared(
        cls,
        shapes: Mapping[str, tuple[int, int]],
        like: Tensor,
        *,
        seed: int,
        **hyper: Any,
    ) -> nn.Module:
        return Centroids(len(names_of(hyper["tasks"])), hyper["clusters"], like, [*shapes.values()][-1][1])

    def switch(self, on: bool) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self.model.register_forward_pre_hook(self._before, with_kwargs=True) if on else None

    @classmethod
    def gathers(cls, **hyper: Any) -> str:
        return "keeps features of all examples, whose centres tell tasks apart"

    def _before(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        cache = cache_of(kwargs)
        if self._asks or in_backward() or (cache is not None and cache.get_seq_length()):
            return
        if not model.training:
            route_N = self.common.nearest(self.features(*args, **kwargs))  # type: ignore[union-attr,operator]
            self._route(route_N)
            last = [*self.adapters.values()][-1]
            last.note(one_hot(route_N, len(last.tasks)))
            return
        self._route(None)
        room = len(self.F_NH) - int(self.seen) if self._learns else 0
        if room > 0:
            f_NH = self.features(*args, **kwargs)[:room].to(self.F_NH)
            self.F_NH[int(self.seen) : int(self.seen) + len(f_NH)] = f_NH
            self.seen += len(f_NH)

    def objective(self, once: Callable[[], Pass], progress: Progress) -> tuple[Tensor, Any, Tensor | float]:
        self._learns = True
        try:
            return super().objective(once, progress)
        finally:
            self._learns = False

    def _route(self, route_N: Tensor | None) -> None:
        for adapter in self.adapters.values():
            adapter.route_N = route_N

    @torch.no_grad()
    def features(self, *args: Any, **inputs: Any) -> Tensor:
        """The features (N, H) of a batch."""
        labels, mask = inputs.pop("labels", None), inputs.get("attention_mask")
        if labels is not None and mask is not None and labels.shape == mask.shape:
            mask = mask * ((labels != -100).cumsum(1) == 0)
        last, found = [*self.adapters.values()][-1], list[Tensor]()
        handle = last.register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))
        self._asks = True
        for adapter in self.adapters.values():
            adapter.idle = True
        try:
            with in_mode(self.model, training=False):
                self.model(*args, **without_cache(inputs))
        finally:
            handle.remove()
            self._asks = False
            for adapter in self.adapters.values():
                adapter.idle = False
        x = found[-1].to(self.F_NH.dtype)
        x_NLH = x[:, None] if x.ndim == 2 else x.flatten(1, -2)
        if mask is None or mask.shape != x_NLH.shape[:2]:
            return x_NLH.mean(1)
        weight_NL = mask.to(x_NLH)
        return (weight_NL[..., None] * x_NLH).sum(1) / weight_NL.sum(1, keepdim=True).clamp_min(1)

    @contextlib.contextmanager
    def of_group(self, name: str) -> Iterator[None]:
        """Nothing is told: the task is found."""
        yield

    def on_train_begin(self, total: int) -> None:
        self.to_adapters()

    @torch.no_grad()
    def on_train_end(self) -> None:
        if int(self.seen):
            centroids: Centroids = self.common  # type: ignore[assignment]
            C_TKH = centroids.C_TKH
            C_TKH[-1].copy_(k_means(self.F_NH[: int(self.seen)], C_TKH.shape[1]))
            centroids.known_T[-1] = 1

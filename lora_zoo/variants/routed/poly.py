"""Poly: Combining Parameter-Efficient Modules for Task-level Generalisation (Ponti et al., EACL 2023).

Shapes: O out, I in, R rank, N examples, S tasks, C splits, E skills.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import LayerContext
from lora_zoo.core.alpha import Alpha
from lora_zoo.core.hooks import Progress
from lora_zoo.core.host import LayerHost
from lora_zoo.core.init import Init
from lora_zoo.core.processes import current
from lora_zoo.core.recomputation import CallNumbers
from lora_zoo.core.seeding import generator
from lora_zoo.core.variants import register
from lora_zoo.variants.low_rank import Scaled
from lora_zoo.variants.routed.mixture import Routed, each_by_itself, expert_starts
from lora_zoo.variants.routers import RouterRate


class Relaxation(RouterRate):
    """In training steps the skills of each example are drawn: binary Concrete numbers of temperature 1."""

    @contextlib.contextmanager
    def forward_context(self, progress: Progress) -> Iterator[None]:
        for adapter in self.adapters.values():
            adapter.draws = True
        try:
            yield
        finally:
            for adapter in self.adapters.values():
                adapter.draws = False


@register("poly")
class Poly(Scaled, Routed):
    """§3: every task has logits of the skills that it uses, by which the skills' factors A and B are mixed.

    Tasks are `task_ids` from 0 below `n_tasks`, a column `task` of the data; without it there is one task.
    A pass that names no task, of other texts say, has the mean of all tasks' weights; in training that is
    refused. `n_splits` above 1 is multi-head routing (arXiv:2211.03831): each part of the inputs and of the
    outputs has logits of its own. Scale and starts are PEFT's.
    """

    paper = "arXiv:2202.13914"
    by_row = "draws the skills of each row"
    equation = "W' x = W x + (α/r) (Σᵢ ωᵢ Bᵢ) (Σᵢ ωᵢ Aᵢ) x, ω = σ(Z of the task) over its sum"
    count = "n_skills * R * (O + I) + n_tasks * n_splits * n_skills"
    paper_alpha = 1.0
    hooks = Relaxation
    routers = ("Z_SCE",)

    def __init__(
        self,
        context: LayerContext,
        *,
        rank: int = 8,
        alpha: Alpha = "auto",
        n_tasks: int = 1,
        n_skills: int = 4,
        n_splits: int = 1,
        init: str = "kaiming",
    ) -> None:
        for key, value in (("n_tasks", n_tasks), ("n_skills", n_skills)):
            if value < 1:
                raise ValueError(f"poly: {key} must be at least 1; got {value}")
        super().__init__(context, experts=n_skills)
        self.scale, self.splits, self.draws = self.scale_of(alpha, rank), n_splits, False
        self.A_ERI = nn.Parameter(torch.stack([*expert_starts(context, n_skills, rank, self.scale, init)]))
        self.B_EOR = nn.Parameter(context.full((n_skills, context.shape[0], rank)))
        self.Z_SCE = nn.Parameter(context.uniform("Z", (n_tasks, n_splits, n_skills), 1e-3))
        self.seed, name = context.seed, f"{context.name} skills"
        self.passes = context.counter.sites.setdefault(name, CallNumbers())

    @classmethod
    def accepts_init(cls, init: Init) -> bool:
        return init.zero == "B" and not init.needs

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        n = hyper["n_splits"]
        if n < 1 or any(side % n for side in shape):
            return f"n_splits={n} must divide both sides"
        return super().refusal(kind, shape, hyper)

    def skills(self, examples: int) -> Tensor:
        """ω (N, C, E) of a pass's examples."""
        tasks = self.counter.tasks_of(examples)
        if tasks is not None:
            Z_NCE = self.Z_SCE[self._known(tasks)]
        elif not self.draws:
            return _normalised(self.Z_SCE.sigmoid()).mean(0).expand(examples, -1, -1)
        elif len(self.Z_SCE) > 1:
            raise ValueError(
                f"poly: n_tasks={len(self.Z_SCE)}, and the data do not say which one an example is of: they "
                "need a column `task` of whole numbers, or use n_tasks=1"
            )
        else:
            Z_NCE = self.Z_SCE.expand(examples, -1, -1)
        return _normalised((Z_NCE + self.noise(Z_NCE) if self.draws else Z_NCE).sigmoid())

    @torch.compiler.disable
    def _known(self, tasks: Tensor) -> Tensor:
        last = len(self.Z_SCE) - 1
        if not 0 <= int(tasks.min()) <= int(tasks.max()) <= last:
            raise ValueError(f"poly: tasks lie between 0 and {last}; got {sorted(set(tasks.tolist()))}")
        return tasks.to(self.Z_SCE.device)

    @torch.compiler.disable
    def noise(self, like: Tensor) -> Tensor:
        """log u - log(1 - u) for u ~ U(0, 1), by the seed, the matrix, the pass and the example."""
        source, here = generator("skills", self.seed, self.matrix_name, self.passes.number()), current()
        of_all = (here.size * len(like), *like.shape[1:])  # the examples of all processes, who take turns
        u = torch.rand(of_all, generator=source, dtype=torch.float64)[here.rank :: here.size]
        return u.logit(1e-12).to(like)

    def mixed(self, omega_NCE: Tensor) -> tuple[Tensor, Tensor]:
        """Each example's B (N, O, R) and A (N, R, I)."""
        A_ERCi, B_ECoR = (
            self.A_ERI.unflatten(2, (self.splits, -1)),
            self.B_EOR.unflatten(1, (self.splits, -1)),
        )
        A_NRI = torch.einsum("nce,erci->nrci", omega_NCE, A_ERCi).flatten(2)
        return torch.einsum("nce,ecor->ncor", omega_NCE, B_ECoR).flatten(1, 2), A_NRI

    def forward(self, x: Tensor, host: LayerHost) -> Tensor:
        y = host.base(x)
        omega_NCE = self.skills(len(x))
        self.note(omega_NCE.flatten(0, 1))
        B_NOR, A_NRI = self.mixed(omega_NCE)
        return y + each_by_itself(x, host, self.scale * B_NOR, A_NRI).to(y.dtype)

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """An example's factors lie between the least and the greatest of the skills', entry by entry."""
        omega_NCE = self.skills(2)
        torch.testing.assert_close(omega_NCE.sum(-1), torch.ones_like(omega_NCE[..., 0]))
        for of_skills, mixed in zip((self.B_EOR, self.A_ERI), self.mixed(omega_NCE), strict=True):
            assert (mixed >= of_skills.amin(0) - 1e-5).all() and (mixed <= of_skills.amax(0) + 1e-5).all()


def _normalised(use: Tensor) -> Tensor:
    return use / (use.sum(-1, keepdim=True) + 1e-12)

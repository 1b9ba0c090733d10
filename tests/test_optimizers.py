"""Optimisers that a variant's hooks wrap or choose, in the Trainer and over what trains in full."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Adafactor, Optimizer
from torch.testing import assert_close

from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.variants import VARIANTS
from lora_zoo.injection.inject import Injection, inject
from lora_zoo.training import flora
from lora_zoo.training.arguments import training_arguments
from lora_zoo.training.flora import Flora
from lora_zoo.training.optimizers import _by_dimension, split_optim
from lora_zoo.training.trainer import ZooTrainer
from tests.recorded import settings
from tests.test_training import model, trainer

RANK = 2
LR = 0.01


class ProjectedMomentum(Optimizer):
    """GaLore's form: momentum of Pᵀ G for each matrix, where P (O, R) spans a gradient's best R directions.

    P is taken anew every third step; both are the optimiser's state. Vectors take plain steps.
    """

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {"lr": 0.0, "beta": 0.9})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                p.sub_(group["lr"] * (self.projected(p, group["beta"]) if p.ndim == 2 else p.grad))

    def projected(self, p: Tensor, beta: float) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        count = state.setdefault("count", torch.zeros(()))
        if count % 3 == 0:
            state["P_OR"] = torch.linalg.svd(p.grad, full_matrices=False).U[:, :RANK].contiguous()
            state["m_RI"] = torch.zeros(RANK, p.shape[1])
        count += 1
        state["m_RI"].lerp_(state["P_OR"].T @ p.grad, 1 - beta)
        step_OI: Tensor = state["P_OR"] @ state["m_RI"]
        return step_OI


class Projecting(AdapterHooks):
    def optimizer(self, groups: Any, make: Any) -> Optimizer:
        return ProjectedMomentum(groups)


def projected(folder: Path, seed: int = 5, **more: Any) -> ZooTrainer:
    """Full fine-tuning of a few matrices and norms, with gradient accumulation and clipping."""
    variant = type("Projected", (VARIANTS["full"],), {"name": "projected", "hooks": Projecting})
    injection = inject(model(), variant, seed=seed)
    usual = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "lr_scheduler_type": "cosine"}
    return trainer(folder, injection, **usual | more)


def test_hooks_may_choose_the_optimiser_of_what_trains_in_full(tmp_path: Path) -> None:
    """Three steps with one P move each matrix by at most its rank; the user's own optimiser moves by more."""
    ranks = {}
    for name in ("projected", "full"):
        more = {"max_steps": 3, "learning_rate": 1.0 if name == "projected" else 1e-2}
        own = name == "projected"
        run = projected(tmp_path, **more) if own else trainer(tmp_path, inject(model(), "full"), **more)
        run.train()
        ranks[name] = [int(torch.linalg.matrix_rank(dW, atol=1e-6)) for _, _, dW in run.injection]
    assert max(ranks["projected"]) == RANK < min(ranks["full"])


def test_the_state_of_another_optimiser_is_resumed_to_the_bit(tmp_path: Path) -> None:
    """Stopped at a step at which P is two steps old."""
    whole = projected(tmp_path / "whole", save_strategy="steps", save_steps=1, max_steps=7)
    whole.train()
    resumed = projected(tmp_path / "resumed", max_steps=7)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    for key, tensor in whole.injection.state_dict().items():
        assert torch.equal(tensor, resumed.injection.state_dict()[key]), key


class Watching(AdapterHooks):
    """Notes, around each step, the gradients' norm, each group's rate and the parameters that moved."""

    def __init__(self, adapters: Any) -> None:
        super().__init__(adapters)
        self.seen: list[tuple[float, list[float], int]] = []

    def optimizer(self, groups: Any, make: Any) -> Optimizer:
        optimizer: Optimizer = make(groups)
        self.before: list[Tensor] = []
        optimizer.register_step_pre_hook(self.look)
        optimizer.register_step_post_hook(self.note)
        return optimizer

    def look(self, optimizer: Optimizer, *_: Any) -> None:
        self.before = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]

    def note(self, optimizer: Optimizer, *_: Any) -> None:
        every = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in every if p.grad is not None]
        norm = float(torch.stack([g.norm() for g in gradients]).norm()) if gradients else 0.0
        moved = sum(not torch.equal(p, old) for p, old in zip(every, self.before, strict=True))
        self.seen.append((norm, [group["lr"] for group in optimizer.param_groups], moved))


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_a_wrapped_step_sees_clipped_gradients_of_the_whole_batch_and_its_own_rate(
    optim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the step that is skipped there are no gradients, and nothing moves."""
    plain = ZooTrainer.compute_loss

    def compute_loss(self: ZooTrainer, *given: Any, **more: Any) -> Any:
        return plain(self, *given, **more) * (float("inf") if self.progress.step == 3 else 1)

    monkeypatch.setattr(ZooTrainer, "compute_loss", compute_loss)
    variant = type("Watched", (VARIANTS["lora_plus"],), {"name": "watched", "hooks": Watching})
    injection = inject(model(), variant, rank=2, modules_to_save=["lm_head"])
    more = {"gradient_accumulation_steps": 2, "max_grad_norm": 1e-3, "weight_decay": 0.0, "max_steps": 4}
    run = trainer(tmp_path, injection, skip=True, optim=optim, **more)
    run.train()
    assert [norm for norm, _, _ in injection.hooks.seen] == pytest.approx([1e-3, 1e-3, 0, 1e-3], rel=1e-3)
    rates = [rates for _, rates, _ in injection.hooks.seen]
    assert rates == [[pytest.approx(rate)] * 2 for rate in (0.01, 0.0075, 0.005, 0.0025)]
    assert [moved > 0 for _, _, moved in injection.hooks.seen] == [True, True, False, True]


class Forgetful(AdapterHooks):
    def optimizer(self, groups: Any, make: Any) -> Optimizer:
        return make([groups[0] | {"params": groups[0]["params"][1:]}])


def test_an_optimiser_that_leaves_a_parameter_out_is_told() -> None:
    injection = inject(model(), type("Left", (VARIANTS["lora"],), {"name": "left", "hooks": Forgetful}))
    with pytest.raises(AssertionError, match="a trainable parameter is in no group"):
        injection.optimizer(torch.optim.SGD, lr=0.1)


class Restarting(AdapterHooks):
    """A third of the schedule's rate, and new moments before the third step."""

    def optimizer(self, groups: Any, make: Any) -> Optimizer:
        optimizer, steps = make(groups), iter(range(1, 100))

        def before(*_: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] /= 3
            if next(steps) == 3:
                optimizer.state.clear()

        def after(*_: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"] *= 3

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return optimizer


def test_hooks_may_put_a_factor_on_the_schedule_s_rate_and_reset_moments() -> None:
    """As Adam by hand, whose second half is a new optimiser's."""
    variant = type("Restarted", (VARIANTS["lora"],), {"name": "restarted", "hooks": Restarting})
    injection, plain = (inject(model(), cls, rank=2) for cls in (variant, "lora"))
    found = walked(injection, torch.optim.Adam, (1.0, 2.0, 4.0, 1.0))
    for half in (((0.1, 1.0), (0.075, 2.0)), ((0.05, 4.0), (0.025, 1.0))):
        optimizer = torch.optim.Adam(plain.parameters(), lr=1.0)
        for rate, gradient in half:
            optimizer.param_groups[0]["lr"] = rate / 3
            for p in plain.parameters():
                p.grad = torch.full_like(p, gradient)
            optimizer.step()
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(found[key], tensor)


def walked(injection: Injection, make: Any, gradients: tuple[float, ...]) -> dict[str, Tensor]:
    """The adapter after a step of an optimiser, whose rate falls, on each of these constant gradients."""
    steps = len(gradients)
    optimizer = injection.optimizer(make, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for gradient in gradients:
        for p in injection.parameters():
            p.grad = torch.full_like(p, gradient)
        optimizer.step()
        schedule.step()
    return injection.state_dict()


def test_sora_is_the_plain_optimiser_and_a_proximal_step_of_its_rate() -> None:
    """By the closed form of a gate under SGD whose gradient is 1: g ← prox(g - η, η λ), η the step's rate."""
    injection = inject(model(), "sora", rank=2, target_modules=["q"], l1_weight=0.5)
    expected = {n: a.g_R.detach().clone() for n, a in injection.adapters.items()}
    for rate in (0.1, 0.075, 0.05, 0.025):
        stepped = {n: g - rate for n, g in expected.items()}
        expected = {n: g.sign() * (g.abs() - 0.5 * rate).clamp_min(0) for n, g in stepped.items()}
    after = walked(injection, torch.optim.SGD, (1.0,) * 4)
    for name, g_R in expected.items():
        torch.testing.assert_close(after[f"{name}.g_R"], g_R)


# --- optimisers of pytorch_optimizer ---------------------------------------------------------------------


def library(folder: Path, name: str, options: str = "", **more: Any) -> ZooTrainer:
    """LoRA with an optimiser of the library, at a constant rate."""
    arguments = {"learning_rate": LR, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 1}
    own = split_optim({"optim": name, "optim_args": options, **arguments, **more})
    network = model()
    if name == "sophiah":
        network.set_attn_implementation("eager")
    injection = inject(network, "lora", target_modules=["q", "v"], rank=RANK, seed=5)
    return trainer(folder, injection, **own)


def moved(run: ZooTrainer) -> dict[str, Tensor]:
    before = {key: tensor.clone() for key, tensor in run.injection.state_dict().items()}
    run.train()
    return {key: tensor - before[key] for key, tensor in run.injection.state_dict().items()}


def test_lion_steps_by_the_sign_of_the_gradient(tmp_path: Path) -> None:
    """2302.06675, alg. 2: the first step is lr sign(g), of every entry with a gradient: B alone, as B = 0."""
    steps = moved(library(tmp_path, "lion", weight_decay=0.0))
    of_B = [step for key, step in steps.items() if key.endswith("B_OR")]
    assert of_B and all(torch.allclose(step.abs(), torch.full_like(step, LR)) for step in of_B)
    assert not any(step.any() for key, step in steps.items() if key.endswith("A_RI"))


def test_muon_takes_matrices_by_orthogonal_steps_and_vectors_by_adamws(tmp_path: Path) -> None:
    """The first step of a matrix is lr U Vᵀ, as near as five Newton-Schulz iterations come."""
    steps = moved(library(tmp_path, "muon", weight_decay=0.0))
    for key, step in steps.items():
        if key.endswith("B_OR"):
            values = torch.linalg.svdvals(step) / LR
            assert values.min() > 0.5 and values.max() / values.min() < 2, values
    groups = _by_dimension(_Recorded, [{"params": [torch.zeros(2, 3), torch.zeros(3)], "lr": 0.5}], lr=0.1)
    assert [(g["use_muon"], g["lr"], g["params"][0].ndim) for g in groups.seen] == [
        (True, 0.5, 2),
        (False, 0.5, 1),
    ]


class _Recorded:
    def __init__(self, groups: Any, **_: Any) -> None:
        self.seen = groups


@pytest.mark.parametrize("name", ["sophiah", "galore", "adopt"])
def test_others_learn_and_resume_to_the_bit(tmp_path: Path, name: str) -> None:
    options = "rank=2,update_proj_gap=3,scale=1.0,projection_type=std" if name == "galore" else ""
    often = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    whole = library(tmp_path / "whole", name, options, **often)
    assert any(step.any() for step in moved(whole).values())
    resumed = library(tmp_path / "resumed", name, options, **often)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for key, tensor in whole.injection.state_dict().items():
        assert torch.equal(tensor, resumed.injection.state_dict()[key]), key


# --- Flora -------------------------------------------------------------------------------------------------

SHAPES = ((10, 14), (14, 10), (12, 12), (5, 40), (7,), (3, 4, 2))
"""The fourth is too flat, and the last two are no matrices, for a compressed momentum."""


def walk(make: Any, steps: int = 9) -> list[Tensor]:
    """Where parameters of `SHAPES` are after steps of `make(parameters)` on fixed gradients."""
    source = torch.Generator().manual_seed(1)
    held = [torch.randn(s, generator=source, dtype=torch.float64).requires_grad_() for s in SHAPES]
    optimizer = make(held)
    for _ in range(steps):
        for p in held:
            p.grad = torch.randn(p.shape, generator=source, dtype=torch.float64)
        optimizer.step()
    return [p.detach() for p in held]


def test_flora_without_momentum_is_adafactor() -> None:
    """torch's, whose rate is times the weight's root mean square too; it also factors what is no matrix."""
    found, theirs = (
        walk(partial(cls, lr=0.01, **more)) for cls, more in ((Flora, {"beta1": 0.0}), (Adafactor, {}))
    )
    assert_close(found[:5], theirs[:5], rtol=1e-4, atol=1e-6)


def test_flora_by_square_orthogonal_projections_keeps_the_whole_momentum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C moves from one P to the next without loss; a rank above every side compresses nothing."""

    def orthogonal(like: Tensor, group: Any, number: int, epoch: int) -> Tensor:
        source = torch.Generator().manual_seed(epoch)
        side = like.shape[1]
        return torch.linalg.qr(torch.randn(side, side, generator=source, dtype=torch.float64)).Q

    whole = walk(partial(Flora, lr=0.1, rank=50))
    monkeypatch.setattr(flora, "projection", orthogonal)
    monkeypatch.setattr(flora, "compressible", lambda p, rank: p.ndim == 2 and min(p.shape) == 10)
    assert_close(walk(partial(Flora, lr=0.1, rank=10, kappa=2)), whole)


def test_flora_s_projections_are_the_identity_on_average() -> None:
    like_LS, group = torch.zeros(9, 6, dtype=torch.float64), {"seed": 0, "rank": 4}
    every = torch.stack([flora.projection(like_LS, group, 1, epoch) for epoch in range(3000)])
    assert_close((every @ every.mT).mean(0), torch.eye(6, dtype=torch.float64), rtol=0, atol=0.06)
    other = flora.projection(like_LS, group, 2, 0)
    assert torch.equal(every[0], flora.projection(like_LS, group, 1, 0)) and not torch.equal(every[0], other)


def test_full_fine_tuning_by_flora_has_little_state_and_resumes_to_the_bit(tmp_path: Path) -> None:
    own = split_optim({"optim": "flora", "optim_args": "rank=2,kappa=3", "learning_rate": 0.05})
    often = own | {"save_strategy": "steps", "save_steps": 1, "max_steps": 6}
    whole = trainer(tmp_path / "whole", inject(model(), "full"), **often)
    assert any(step.any() for step in moved(whole).values())
    for p, state in whole.optimizer.optimizer.state.items():
        small = flora.compressible(p, 2)
        assert state["momentum"].numel() == (2 * max(p.shape) if small else p.numel())
    assert any(flora.compressible(p, 2) for p in whole.injection.parameters())
    resumed = trainer(tmp_path / "resumed", inject(model(), "full"), **often)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for key, tensor in whole.injection.state_dict().items():
        assert torch.equal(tensor, resumed.injection.state_dict()[key]), key


def test_attention_that_has_no_second_derivative_is_refused(tmp_path: Path) -> None:
    own = split_optim({"optim": "adahessian"})
    run = trainer(tmp_path, inject(model(), "lora", target_modules=["q"], rank=RANK), **own)
    with pytest.raises(ValueError, match=r"attention by sdpa .*give model.attn_implementation=eager"):
        run.create_optimizer()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optim": "gallore"}, "unknown optim 'gallore'. Did you mean 'galore'?"),
        ({"optim": "lion", "adam_beta1": 0.8}, "adam_beta1 is AdamW's; optim=lion takes its own"),
        ({"optim": "lion", "optim_args": "betaz=(0.9,0.9)"}, "unknown option of optim=lion 'betaz'"),
        ({"optim": "lion", "optim_args": "betas=(0.9"}, "is not KEY=VALUE,KEY=VALUE"),
        ({"optim": "lion", "optim_args": "0.9"}, "optim_args='0.9' is not KEY=VALUE,KEY=VALUE"),
        ({"optim": "lbfgs"}, "LBFGS"),
        ({"optim": "flora", "optim_args": "rank=0"}, "flora needs rank >= 1, kappa >= 1"),
        ({"optim": "alig"}, "closure"),
    ],
    ids=lambda case: next(iter(case.values())) if isinstance(case, dict) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_read(given: Any, said: str, tmp_path: Path) -> None:
    words = [
        f"+trainer.{key}={value if key != 'optim_args' else repr(value)}" for key, value in given.items()
    ]
    with pytest.raises(ValueError, match=re.escape(said)):
        training_arguments(settings("+variant=lora", *words), tmp_path)

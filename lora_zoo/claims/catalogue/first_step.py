"""Statements about the first step that need no runs: computed now, in float64, on a tiny model.

Letters: R rank. The model has one attention-like pair of linear layers, q_proj and v_proj, of width WIDTH.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from lora_zoo.adapters.injection import Injection, inject
from lora_zoo.analysis.claims.registry import computed
from lora_zoo.analysis.claims.verdicts import Comparison, Sampled, Status, Verdict, verdict, within
from lora_zoo.analysis.statistics import Interval

WIDTH, TOKENS = 64, 32
RANKS = (2, 4, 8, 16, 32, 64)
ROUNDING = 1e-9


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.q_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(2))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.v_proj(self.q_proj(x).tanh())


def loss(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(TOKENS, WIDTH, generator=generator).double() for _ in range(2))
    return (model(x) - y).square().mean()


def adapted(variant: str = "lora", **hyper: Any) -> Injection:
    """Tiny with an adapter on both matrices, after a backward pass."""
    injection = inject(Tiny(), variant, target_modules=["q", "v"], **{"rank": 4} | hyper)
    loss(injection.model).backward()
    return injection


def zeroed() -> Injection:
    """LoRA with A = B = 0, after a backward pass."""
    injection = inject(Tiny(), "lora", target_modules=["q", "v"], rank=4)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.zero_()
    loss(injection.model).backward()
    return injection


def exactly(right: bool, effect: float, unit: str, said: str, n: int) -> Verdict:
    """The verdict on a quantity that is known up to rounding, in `n` cases."""
    status = Status.SUPPORTED if right else Status.NOT_SUPPORTED
    return Verdict(status, f"computed now: {said}", Interval(effect, effect, effect, n), unit, n)


def _greatest(injection: Injection, factor: str) -> float:
    """The greatest |∂L/∂factor| over all matrices."""
    gradients = [
        parameter.grad for name, parameter in injection.named_parameters().items() if name.endswith(factor)
    ]
    return max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)


@computed(
    "steps/both-zero-is-dead",
    paper="source S0, S1",
    where="H01",
    says="With A = B = 0 both gradients are exactly 0, so that no step changes anything.",
)
def both_zero_is_dead() -> Verdict:
    injection = zeroed()
    norms = {factor: _greatest(injection, factor) for factor in ("A_RI", "B_OR")}
    said = f"max |∂L/∂A| = {norms['A_RI']:.3g}, max |∂L/∂B| = {norms['B_OR']:.3g}"
    return exactly(max(norms.values()) == 0, max(norms.values()), "largest gradient", said, len(injection))


@computed(
    "steps/one-zero-lives",
    paper="2106.09685",
    where="section 4.1; H01",
    says="With B = 0 and A random, the first gradient of A is 0 and that of B is not.",
)
def one_zero_lives() -> Verdict:
    injection = adapted()
    of_A, of_B = _greatest(injection, "A_RI"), _greatest(injection, "B_OR")
    said = f"max |∂L/∂A| = {of_A:.3g}, max |∂L/∂B| = {of_B:.3g}"
    return exactly(of_A == 0 < of_B, of_B, "largest gradient of B", said, len(injection))


@computed(
    "steps/symmetric-same-loss",
    paper="source S1",
    where="H03",
    says="Both factors random less their product (W - s B₀A₀ + s B A) starts at exactly the base's loss.",
)
def symmetric_same_loss() -> Verdict:
    base, started = (loss(model).item() for model in (Tiny(), adapted(init="symmetric").model))
    change = abs(started / base - 1)
    said = f"loss {base:.12g} without, {started:.12g} with the adapter"
    return exactly(change < ROUNDING, change, "relative change", said, 1)


@computed(
    "steps/symmetric-moves-both",
    paper="source S1",
    where="H03",
    says="From that start, unlike from B = 0, both factors have a gradient at the first step.",
)
def symmetric_moves_both() -> Verdict:
    injection = adapted(init="symmetric")
    least = min(_greatest(injection, factor) for factor in ("A_RI", "B_OR"))
    return exactly(least > 0, least, "smaller of the largest gradients", f"{least:.3g}", len(injection))


@computed(
    "steps/frozen-has-no-gradient",
    paper="source S1",
    where="H11",
    says="The gradient of a frozen W is never formed, though the algebra of ∂L/∂A and ∂L/∂B names it.",
)
def frozen_has_no_gradient() -> Verdict:
    model = adapted().model
    own = {"A_RI", "B_OR"}
    base = {n: p for n, p in model.named_parameters() if n.rpartition(".")[2] not in own}
    formed = [name for name, parameter in base.items() if parameter.grad is not None]
    said = f"{len(formed)} of {len(base)} frozen tensors have a gradient after the backward pass"
    return exactly(bool(base) and not formed, len(formed), "gradients formed", said, len(base))


@computed(
    "steps/alpha-is-a-rate-at-first",
    paper="source S0, S1",
    where="H09",
    says="From B = 0, ΔW after the first step of Adam (eps = 0) depends on α x rate alone.",
)
def alpha_is_a_rate_at_first() -> Verdict:
    apart, later = (_adam_apart(steps) for steps in (1, 20))
    said = f"||ΔW - ΔW'|| / ||ΔW|| = {apart:.2g} after 1 step, {later:.2g} after 20, for α = 2, 4, 8"
    return exactly(apart < ROUNDING, apart, "relative difference", said, 3)


def _adam_apart(steps: int) -> float:
    """How far apart ||ΔW|| is between three pairs of α and rate with one product, relative to ΔW."""
    found = []
    for alpha in (2.0, 4.0, 8.0):
        injection = inject(Tiny(), "lora", target_modules=["q", "v"], rank=4, alpha=alpha)
        optimiser = torch.optim.Adam(injection.parameters(), lr=0.08 / alpha, eps=0.0)
        for _ in range(steps):
            optimiser.zero_grad()
            loss(injection.model).backward()
            for parameter in injection.parameters():  # 0 / 0 where there is no gradient yet
                if parameter.grad is not None and not parameter.grad.any():
                    parameter.grad = None
            optimiser.step()
        found.append(torch.stack([update.dW_OI for update in injection]))
    return max(float((other - found[0]).norm() / found[0].norm()) for other in found[1:])


def _exponents(variant: str) -> pd.Series:
    """By seed of the start, the slope of log ||∂L/∂B|| on log R at step 0, α fixed."""
    x = np.log(RANKS)
    found = {}
    for seed in range(8):
        norms = [_norm_of_B(adapted(variant, rank=rank, alpha=8.0, seed=seed)) for rank in RANKS]
        found[seed] = float(np.polyfit(x, np.log(norms), 1)[0])
    return pd.Series(found)


def _norm_of_B(injection: Injection) -> float:
    squares = [
        float(parameter.grad.square().sum())
        for name, parameter in injection.named_parameters().items()
        if name.endswith("B_OR") and parameter.grad is not None
    ]
    return math.sqrt(sum(squares))


@computed(
    "steps/gradient-collapses",
    paper="2312.03732",
    where="theorem 3.2; H10",
    says=(
        "At step 0, ||∂L/∂B|| grows as s √r: r^-1/2 with α/r and r^0 with α/√r, each within 0.1 "
        "of the exponent."
    ),
)
def gradient_collapses() -> Verdict:
    comparisons: list[Comparison] = []
    for variant, exponent in (("lora", -0.5), ("rslora", 0.0)):
        claimed = within(exponent - 0.1, exponent + 0.1)
        comparisons.append(
            Sampled(f"{variant}: exponent of r", _exponents(variant), claimed, "exponent of r")
        )
    return verdict(comparisons, [])


@computed(
    "steps/ratio-of-rates",
    paper="2402.12354",
    where="section 4",
    says="LoRA+ gives B exactly λ times A's learning rate, and LoRA the same rate to both.",
)
def ratio_of_rates() -> Verdict:
    plus, plain = adapted("lora_plus", loraplus_lr_ratio=16.0), adapted("lora")
    ratios = {"lora_plus": _ratio_of_rates(plus), "lora": _ratio_of_rates(plain)}
    said = ", ".join(f"{variant}: {ratio:g}" for variant, ratio in ratios.items())
    right = ratios == {"lora_plus": 16.0, "lora": 1.0}
    return exactly(right, ratios["lora_plus"], "rate of B / rate of A", said, 2)


def _ratio_of_rates(injection: Injection) -> float:
    rates: dict[str, set[float]] = {"A_RI": set(), "B_OR": set()}
    names = {id(p): name.rpartition(".")[2] for name, p in injection.named_parameters().items()}
    for group in injection.param_groups(lr=1e-3):
        for parameter in group["params"]:
            rates[names[id(parameter)]].add(group["lr"])
    (of_A,), (of_B,) = rates["A_RI"], rates["B_OR"]
    return float(of_B / of_A)


@computed(
    "steps/merged-is-equal",
    paper="2106.09685",
    where="section 4.1",
    says="Merged into W, LoRA gives the same output, so that inference costs nothing more.",
)
def merged_is_equal() -> Verdict:
    injection = moved(adapted())
    before = loss(injection.model).item()
    injection.merge()
    injection.remove()
    change = abs(loss(injection.model).item() / before - 1)
    plain = [type(module) is nn.Linear for module in (injection.model.q_proj, injection.model.v_proj)]
    said = f"relative change of the loss {change:.2g}, {sum(plain)} of 2 layers plain linear again"
    return exactly(change < ROUNDING and all(plain), change, "relative change", said, 2)


def moved(injection: Injection) -> Injection:
    """Every trainable tensor moved by noise, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).double())
    return injection


@computed(
    "steps/nf4-equally-spaced",
    paper="source S4",
    where="H28",
    says=(
        "NF4 has 16 equally spaced levels: its widest step equals its narrowest. (2305.14314: "
        "normal quantiles.)"
    ),
)
def nf4_equally_spaced() -> Verdict:
    gaps = np.diff(nf4_levels())
    ratio = float(gaps.max() / gaps.min())
    said = f"levels by QLoRA's definition: widest step / narrowest = {ratio:.3g}"
    return exactly(abs(ratio - 1) < ROUNDING, ratio, "widest / narrowest step", said, 16)


def nf4_levels() -> np.ndarray:
    """QLoRA's 16 levels: quantiles of the normal distribution, 8 above and 7 below an exact "
    "0, scaled to ±1."""
    end = (1 - 1 / 32 + 1 - 1 / 30) / 2
    above = stats.norm.ppf(np.linspace(end, 0.5, 9)[:-1])
    below = -stats.norm.ppf(np.linspace(end, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, [0.0], below]))
    return levels / np.abs(levels).max()

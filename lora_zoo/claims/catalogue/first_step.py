"""Statements about the first step that need no runs: computed now, in float64, on a tiny model."""

import math

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn

from lora_zoo.analysis.statistics import Interval
from lora_zoo.claims.hypotheses import Sampled, between
from lora_zoo.claims.measures import exponents
from lora_zoo.claims.registry import computed
from lora_zoo.claims.rule import Status, Verdict, verdict
from lora_zoo.claims.tiny import Tiny, adapted, gradients, loss, moved
from lora_zoo.injection.inject import Injection, inject

RANKS = (2, 4, 8, 16, 32, 64)
ROUNDING = 1e-9


def exactly(right: bool, effect: float, unit: str, found: str, n: int) -> Verdict:
    """The verdict on a quantity that is known up to rounding, in `n` cases."""
    status = Status.SUPPORTED if right else Status.NOT_SUPPORTED
    return Verdict(status, f"computed now: {found}", Interval(effect, effect, effect, n), unit, n)


def _greatest(injection: Injection, factor: str) -> float:
    """The greatest |∂L/∂factor| over all matrices."""
    return max((float(gradient.abs().max()) for gradient in gradients(injection, factor)), default=0.0)


@computed("steps/both-zero-is-dead", "source S0, S1", "H01")
def both_zero_is_dead() -> Verdict:
    """With A = B = 0 both gradients are exactly 0, so that no step changes anything."""
    injection = adapted(init="both_zero")
    norms = {factor: _greatest(injection, factor) for factor in ("A_RI", "B_OR")}
    found = f"max |∂L/∂A| = {norms['A_RI']:.3g}, max |∂L/∂B| = {norms['B_OR']:.3g}"
    return exactly(max(norms.values()) == 0, max(norms.values()), "largest gradient", found, len(injection))


@computed("steps/one-zero-lives", "2106.09685", "section 4.1; H01")
def one_zero_lives() -> Verdict:
    """With B = 0 and A random, the first gradient of A is 0 and that of B is not."""
    injection = adapted()
    of_A, of_B = _greatest(injection, "A_RI"), _greatest(injection, "B_OR")
    found = f"max |∂L/∂A| = {of_A:.3g}, max |∂L/∂B| = {of_B:.3g}"
    return exactly(of_A == 0 < of_B, of_B, "largest gradient of B", found, len(injection))


@computed("steps/symmetric-same-loss", "source S1", "H03")
def symmetric_same_loss() -> Verdict:
    """Both factors random less their product (W - s B₀A₀ + s B A) starts at exactly the base's loss."""
    base, started = (loss(model).item() for model in (Tiny(), adapted(init="symmetric").model))
    change = abs(started / base - 1)
    found = f"loss {base:.12g} without, {started:.12g} with the adapter"
    return exactly(change < ROUNDING, change, "relative change", found, 1)


@computed("steps/symmetric-moves-both", "source S1", "H03")
def symmetric_moves_both() -> Verdict:
    """From that start, unlike from B = 0, both factors have a gradient at the first step."""
    injection = adapted(init="symmetric")
    least = min(_greatest(injection, factor) for factor in ("A_RI", "B_OR"))
    return exactly(least > 0, least, "smaller of the largest gradients", f"{least:.3g}", len(injection))


@computed("steps/frozen-has-no-gradient", "source S1", "H11")
def frozen_has_no_gradient() -> Verdict:
    """The gradient of a frozen W is never formed, though the algebra of ∂L/∂A and ∂L/∂B names it."""
    model = adapted().model
    own = {"A_RI", "B_OR"}
    base = {n: p for n, p in model.named_parameters() if n.rpartition(".")[2] not in own}
    formed = [name for name, parameter in base.items() if parameter.grad is not None]
    found = f"{len(formed)} of {len(base)} frozen tensors have a gradient after the backward pass"
    return exactly(bool(base) and not formed, len(formed), "gradients formed", found, len(base))


@computed("steps/alpha-is-a-rate-at-first", "source S0, S1", "H09")
def alpha_is_a_rate_at_first() -> Verdict:
    """From B = 0, ΔW after the first step of Adam (eps = 0) depends on α x rate alone."""
    apart, later = (_adam_apart(steps) for steps in (1, 20))
    found = f"||ΔW - ΔW'|| / ||ΔW|| = {apart:.2g} after 1 step, {later:.2g} after 20, for α = 2, 4, 8"
    return exactly(apart < ROUNDING, apart, "relative difference", found, 3)


def _adam_apart(steps: int) -> float:
    """The distance between the ΔW of three pairs of α and rate with one product, relative to ΔW."""
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


def _exponents_of_rank(variant: str) -> pd.Series:
    """By seed of the start, the slope of log ||∂L/∂B|| on log R at step 0, α fixed."""

    def norm(rank: int, seed: int) -> float:
        found = gradients(adapted(variant, rank=rank, alpha=8.0, seed=seed), "B_OR")
        return math.sqrt(sum(float(gradient.square().sum()) for gradient in found))

    return exponents(pd.DataFrame({rank: [norm(rank, seed) for seed in range(8)] for rank in RANKS}))


@computed("steps/gradient-collapses", "2312.03732", "theorem 3.2; H10")
def gradient_collapses() -> Verdict:
    """At step 0, ||∂L/∂B|| is a power of r: r^-1/2 with α/r and r^0 with α/√r, the exponent within 0.1."""
    unit = "exponent of r"
    return verdict(
        [
            Sampled(f"{variant}: {unit}", _exponents_of_rank(variant), between(x - 0.1, x + 0.1), unit)
            for variant, x in (("lora", -0.5), ("rslora", 0.0))
        ]
    )


@computed("steps/ratio-of-rates", "2402.12354", "section 4")
def ratio_of_rates() -> Verdict:
    """LoRA+ gives B exactly λ times A's learning rate, and LoRA the same rate to both."""
    plus, plain = adapted("lora_plus", loraplus_lr_ratio=16.0), adapted("lora")
    ratios = {"lora_plus": _ratio_of_rates(plus), "lora": _ratio_of_rates(plain)}
    found = ", ".join(f"{variant}: {ratio:g}" for variant, ratio in ratios.items())
    right = ratios == {"lora_plus": 16.0, "lora": 1.0}
    return exactly(right, ratios["lora_plus"], "rate of B / rate of A", found, 2)


def _ratio_of_rates(injection: Injection) -> float:
    rates: dict[str, set[float]] = {"A_RI": set(), "B_OR": set()}
    names = {id(p): name.rpartition(".")[2] for name, p in injection.named_parameters().items()}
    for group in injection.param_groups(lr=1e-3):
        for parameter in group["params"]:
            rates[names[id(parameter)]].add(group["lr"])
    (of_A,), (of_B,) = rates["A_RI"], rates["B_OR"]
    return float(of_B / of_A)


@computed("steps/merged-is-equal", "2106.09685", "section 4.1")
def merged_is_equal() -> Verdict:
    """Merged into W, LoRA gives the same output, so that inference costs nothing more."""
    injection = moved(adapted())
    before = loss(injection.model).item()
    injection.merge()
    injection.remove()
    change = abs(loss(injection.model).item() / before - 1)
    plain = [type(module) is nn.Linear for module in (injection.model.q_proj, injection.model.v_proj)]
    found = f"relative change of the loss {change:.2g}, {sum(plain)} of 2 layers plain linear again"
    return exactly(change < ROUNDING and all(plain), change, "relative change", found, 2)


@computed("steps/nf4-equally-spaced", "source S4", "H28")
def nf4_equally_spaced() -> Verdict:
    """NF4 has 16 equally spaced levels: its widest step equals its narrowest. (2305.14314: quantiles.)"""
    gaps = np.diff(nf4_levels())
    ratio = float(gaps.max() / gaps.min())
    found = f"levels by QLoRA's definition: widest step / narrowest = {ratio:.3g}"
    return exactly(abs(ratio - 1) < ROUNDING, ratio, "widest / narrowest step", found, 16)


def nf4_levels() -> np.ndarray:
    """QLoRA's 16 levels: normal quantiles, 8 above and 7 below an exact 0, scaled to ±1."""
    end = (1 - 1 / 32 + 1 - 1 / 30) / 2
    above = stats.norm.ppf(np.linspace(end, 0.5, 9)[:-1])
    below = -stats.norm.ppf(np.linspace(end, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, [0.0], below]))
    return levels / np.abs(levels).max()

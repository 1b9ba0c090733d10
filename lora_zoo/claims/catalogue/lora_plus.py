"""LoRA+: Efficient Low Rank Adaptation of Large Models (Hayou et al., ICML 2024)."""

from collections.abc import Iterator

import numpy as np

from lora_zoo.analysis.claims.reading import RATIO, Runs, by_seed, early_loss
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import Comparison, OnGrid, Range, Sampled, above, below, within

PAPER = "2402.12354"


@claim(
    "lora-plus/ratio-helps",
    paper=PAPER,
    where="theorem 1, section 5",
    says="With A's rate chosen for each λ, λ = 4 and λ = 8 score higher than λ = 1.",
    needs="lora_plus_ratio",
)
def ratio_helps(runs: Runs) -> Iterator[Comparison]:
    for ratio in (4, 8):
        difference = runs.difference({RATIO: ratio}, {RATIO: 1})
        yield Sampled(f"λ={ratio} - λ=1", difference, above(0), runs.metric)


def _optimum(runs: Runs, claimed: Range) -> Iterator[Comparison]:
    """log2 of the ratio with the best score, seed by seed; ties count as their mean."""
    scores = by_seed({ratio: runs.of({RATIO: ratio}) for ratio in runs.values(RATIO)})
    logs = np.log2(np.array(scores.columns, dtype=float))
    best = scores.apply(lambda row: float(logs[(row == row.max()).to_numpy()].mean()), axis=1)
    yield OnGrid("log2 of the best λ", best, claimed, "log2 λ", step=float(np.diff(logs).max()))


@claim(
    "lora-plus/optimum",
    paper=PAPER,
    where="section 5.3, Init[1]",
    says=(
        "With B = 0 at the start, the best λ is 2² to 2³: log2 λ lies between 1.5 and 3.5, half "
        "a step around."
    ),
    needs="lora_plus_ratio",
    against=["lora-plus/sixteen"],
)
def optimum(runs: Runs) -> Iterator[Comparison]:
    _needs_ratios_around(runs)
    yield from _optimum(runs, within(1.5, 3.5))


@claim(
    "lora-plus/below-sixteen",
    paper=PAPER,
    where="section 5.3, Init[1]",
    says="With B = 0 at the start, the best λ is below 2⁴: log2 λ below 3.5, half a step under.",
    needs="lora_plus_ratio",
    against=["lora-plus/sixteen"],
)
def below_sixteen(runs: Runs) -> Iterator[Comparison]:
    _needs_ratios_around(runs)
    yield from _optimum(runs, below(3.5))


@claim(
    "lora-plus/sixteen",
    paper=PAPER,
    where="section 5.3, as commonly quoted (stated for A = 0 starts)",
    says="λ = 2⁴ is best: log2 λ between 3.5 and 4.5, here with B = 0 at the start.",
    needs="lora_plus_ratio",
    against=["lora-plus/optimum", "lora-plus/below-sixteen"],
)
def sixteen(runs: Runs) -> Iterator[Comparison]:
    _needs_ratios_around(runs)
    yield from _optimum(runs, within(3.5, 4.5))


def _needs_ratios_around(runs: Runs) -> None:
    """Without both ends of the range there is no optimum to find: Missing."""
    for ratio in (1, 4, 8, 16):
        runs.of({RATIO: ratio})


@claim(
    "lora-plus/faster",
    paper=PAPER,
    where="abstract, section 5",
    says=(
        "With A's rate chosen for each λ, the mean loss of the first quarter is lower at λ = 4 than at λ = 1."
    ),
    needs="lora_plus_ratio",
)
def faster(runs: Runs) -> Iterator[Comparison]:
    difference = runs.difference({RATIO: 1}, {RATIO: 4}, early_loss)
    yield Sampled("early loss, λ=1 - λ=4", difference, above(0), "nats a token")

"""LoRA+: Efficient Low Rank Adaptation of Large Models (Hayou et al., ICML 2024)."""

from lora_zoo.claims.forms import Form, better, lower, optimum
from lora_zoo.claims.hypotheses import Range, below, between
from lora_zoo.claims.measures import EARLY_LOSS
from lora_zoo.claims.registry import Source

RATIO = "variant.hyperparameters.loraplus_lr_ratio"

ratios = Source("2402.12354", "lora_plus_ratio")


def best_ratio(claimed: Range) -> Form:
    """log2 of the best λ; without the ratios at both ends there is no optimum to find."""
    return optimum(RATIO, claimed, among=(1, 4, 8, 16))


ratios.claim(
    "lora-plus/ratio-helps", "theorem 1, section 5", *(better({RATIO: ratio}, {RATIO: 1}) for ratio in (4, 8))
).says("With A's rate chosen for each λ, λ = 4 and λ = 8 score higher than λ = 1.")
ratios.claim(
    "lora-plus/optimum",
    "section 5.3, Init[1]",
    best_ratio(between(1.5, 3.5)),
    against=["lora-plus/sixteen"],
).says(
    "With B = 0 at the start, the best λ is 2² to 2³: log2 λ lies between 1.5 and 3.5, half a step around."
)
ratios.claim(
    "lora-plus/below-sixteen",
    "section 5.3, Init[1]",
    best_ratio(below(3.5)),
    against=["lora-plus/sixteen"],
).says("With B = 0 at the start, the best λ is below 2⁴: log2 λ below 3.5, half a step under.")
ratios.claim(
    "lora-plus/sixteen",
    "section 5.3, as commonly quoted (stated for A = 0 starts)",
    best_ratio(between(3.5, 4.5)),
    against=["lora-plus/optimum", "lora-plus/below-sixteen"],
).says("λ = 2⁴ is best: log2 λ between 3.5 and 4.5, here with B = 0 at the start.")
ratios.claim("lora-plus/faster", "abstract, section 5", lower({RATIO: 4}, {RATIO: 1}, of=EARLY_LOSS)).says(
    "With A's rate chosen for each λ, the mean loss of the first quarter is lower at λ = 4 than at λ = 1."
)

"""rsLoRA: A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA (Kalajdzievski, 2023)."""

from typing import Any

from lora_zoo.claims.forms import better, hardly_better, more, slope
from lora_zoo.claims.hypotheses import below, between
from lora_zoo.claims.measures import GRADIENT_NORM, LOSS
from lora_zoo.claims.registry import Source

HALFWAY = 0.25
"""Halfway between the exponents of theorem 3.2: -1/2 for α/r, 0 for α/√r."""

ranks = Source("2312.03732", "rslora_ranks")


def least(variant: str) -> dict[str, Any]:
    return {"variant": variant, "rank": min}


def greatest(variant: str) -> dict[str, Any]:
    return {"variant": variant, "rank": max}


ranks.claim(
    "rslora/gradients-of-lora-fall",
    "theorem 3.2, figure 3; H10",
    slope("lora", "rank", below(-HALFWAY), GRADIENT_NORM),
).says(f"With α/r, the mean gradient norm of training falls with rank: as r^x with x below -{HALFWAY}.")
ranks.claim(
    "rslora/gradients-stay",
    "theorem 3.2, figure 3",
    slope("rslora", "rank", between(-HALFWAY, HALFWAY), GRADIENT_NORM),
).says(f"With α/√r, the mean gradient norm of training keeps its order: r^x with |x| below {HALFWAY}.")
ranks.claim("rslora/rank-pays", "section 4, figure 2", better(greatest("rslora"), least("rslora"))).says(
    "With α/√r, the greatest rank scores higher than the smallest."
)
ranks.claim(
    "rslora/rank-does-not-pay-in-lora", "section 4, figure 2", hardly_better(greatest("lora"), least("lora"))
).says("With α/r, the greatest rank scores less than 1 point above the smallest.")
ranks.claim(
    "rslora/only-with-the-root",
    "section 4, figure 2",
    more((least("rslora"), greatest("rslora")), (least("lora"), greatest("lora")), of=LOSS),
).says("From the smallest rank to the greatest, the training loss falls more with α/√r than with α/r.")

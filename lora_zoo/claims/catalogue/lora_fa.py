"""LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning (2023)."""

from lora_zoo.claims.forms import as_good, each, ratio
from lora_zoo.claims.hypotheses import below
from lora_zoo.claims.measures import CountedQuantity
from lora_zoo.claims.registry import Source

PAPER = "2308.03303"
FRACTION = 0.5
ACTIVATIONS = CountedQuantity("activation bytes", "bytes", "saved_bytes")


def _cell(variant: str, rank: int) -> dict[str, object]:
    return {"variant": variant, "rank": rank}


Source(PAPER, "lora_fa_memory").claim(
    "lora-fa/activations",
    "section 4 (v1)",
    each(
        "rank", lambda rank: ratio(_cell("lora_fa", rank), _cell("lora", rank), below(FRACTION), ACTIVATIONS)
    ),
).says(
    f"At each rank, LoRA-FA keeps less than {FRACTION:g} of the activation bytes that LoRA's adapters keep."
)
Source(PAPER, "bakeoff_rank").claim("lora-fa/as-good", "section 5 (v1)", as_good("lora_fa", "lora")).says(
    "At one rank, each at its own best learning rate, LoRA-FA is less than 1 point below LoRA."
)
Source("2402.16842", "bakeoff_budget").claim(
    "asymmetry/b-only-as-good", "source S1; H05", as_good("lora_fa", "lora")
).says("At equal parameters (twice the rank), training B alone is less than 1 point below LoRA.")

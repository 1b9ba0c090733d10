"""LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning (2023)."""

from collections.abc import Iterator

from lora_zoo.analysis.claims.reading import Runs
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import Comparison, Counted, Sampled, above, below

PAPER = "2308.03303"
FRACTION = 0.5


@claim(
    "lora-fa/activations",
    paper=PAPER,
    where="section 4 (v1)",
    says=(
        f"At each rank, LoRA-FA keeps less than {FRACTION:g} of the activation bytes that LoRA's "
        f"adapters keep."
    ),
    needs="lora_fa_memory",
)
def activations(runs: Runs) -> Iterator[Comparison]:
    for rank in runs.values("rank"):
        one, other = ({"variant": variant, "rank": rank} for variant in ("lora_fa", "lora"))
        ratio = runs.ratio(one, other, "saved_bytes")
        yield Counted(f"rank {rank:g}: lora_fa / lora", ratio, below(FRACTION), "of LoRA's bytes")


@claim(
    "lora-fa/as-good",
    paper=PAPER,
    where="section 5 (v1)",
    says="At one rank, each at its own best learning rate, LoRA-FA is less than 1 point below LoRA.",
    needs="bakeoff_rank",
)
def as_good(runs: Runs) -> Iterator[Comparison]:
    difference = runs.difference({"variant": "lora_fa"}, {"variant": "lora"})
    yield Sampled("lora_fa - lora", difference, above(-runs.point), runs.metric)


@claim(
    "asymmetry/b-only-as-good",
    paper="2402.16842",
    where="source S1; H05",
    says="At equal parameters (twice the rank), training B alone is less than 1 point below LoRA.",
    needs="bakeoff_budget",
)
def b_only_as_good(runs: Runs) -> Iterator[Comparison]:
    difference = runs.difference({"variant": "lora_fa"}, {"variant": "lora"})
    yield Sampled("lora_fa - lora", difference, above(-runs.point), runs.metric)

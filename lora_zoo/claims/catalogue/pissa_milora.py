"""PiSSA (Meng et al., NeurIPS 2024) and MiLoRA (Wang et al., 2024): starts from the singular vectors of W."""

from collections.abc import Iterator

from lora_zoo.analysis.claims.reading import Runs, early_loss, forgotten
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import Comparison, Sampled, above

PISSA, MILORA = "2404.02948", "2406.09044"


def _over(runs: Runs, one: str, other: str) -> Iterator[Comparison]:
    difference = runs.difference({"variant": one}, {"variant": other})
    yield Sampled(f"{one} - {other}", difference, above(0), runs.metric)


def _forgets_less(runs: Runs, one: str, *others: str) -> Iterator[Comparison]:
    for other in others:
        difference = runs.difference({"variant": other}, {"variant": one}, forgotten)
        label = f"growth of the pretraining loss, {other} - {one}"
        yield Sampled(label, difference, above(0), "nats a token")


@claim(
    "pissa/faster-early",
    paper=PISSA,
    where="section 5, figure 2; H36",
    says="At one learning rate, PiSSA's mean loss over the first quarter of training is below LoRA's.",
    needs="svd_starts",
)
def pissa_faster_early(runs: Runs) -> Iterator[Comparison]:
    difference = runs.difference({"variant": "lora"}, {"variant": "pissa"}, early_loss)
    yield Sampled("early loss, lora - pissa", difference, above(0), "nats a token")


@claim(
    "pissa/over-lora",
    paper=PISSA,
    where="section 5; H27",
    says="At one rank, each at its own best learning rate, PiSSA scores higher than LoRA.",
    needs="bakeoff_rank",
    against=["milora/lora-over-pissa"],
)
def pissa_over_lora(runs: Runs) -> Iterator[Comparison]:
    yield from _over(runs, "pissa", "lora")


@claim(
    "milora/lora-over-pissa",
    paper=MILORA,
    where="table 1; H27",
    says=(
        "At one rank, LoRA scores higher than PiSSA: the order in MiLoRA's own setting (learning rate 3e-4)."
    ),
    needs="bakeoff_rank",
    against=["pissa/over-lora"],
)
def lora_over_pissa(runs: Runs) -> Iterator[Comparison]:
    yield from _over(runs, "lora", "pissa")


@claim(
    "milora/over-pissa",
    paper=MILORA,
    where="table 1; H27",
    says="At one rank, each at its own best learning rate, MiLoRA scores higher than PiSSA.",
    needs="bakeoff_rank",
)
def milora_over_pissa(runs: Runs) -> Iterator[Comparison]:
    yield from _over(runs, "milora", "pissa")


@claim(
    "milora/over-lora",
    paper=MILORA,
    where="tables 1 and 2; H27",
    says="At one rank, each at its own best learning rate, MiLoRA scores higher than LoRA.",
    needs="bakeoff_rank",
)
def milora_over_lora(runs: Runs) -> Iterator[Comparison]:
    yield from _over(runs, "milora", "lora")


@claim(
    "milora/forgets-less",
    paper=MILORA,
    where="section 5",
    says="The loss on text of pretraining grows less with MiLoRA than with LoRA and than with PiSSA.",
    needs="svd_starts",
)
def milora_forgets_less(runs: Runs) -> Iterator[Comparison]:
    yield from _forgets_less(runs, "milora", "lora", "pissa")


@claim(
    "lora/forgets-less",
    paper="source S1",
    where="H16",
    says="The loss on text of pretraining grows less with LoRA than with full fine-tuning.",
    needs="svd_starts",
)
def lora_forgets_less(runs: Runs) -> Iterator[Comparison]:
    yield from _forgets_less(runs, "lora", "full")


@claim(
    "lora/learns-less",
    paper="source S1",
    where="H16",
    says="Each at its own best learning rate, full fine-tuning scores higher than LoRA.",
    needs="bakeoff_rank",
)
def lora_learns_less(runs: Runs) -> Iterator[Comparison]:
    yield from _over(runs, "full", "lora")

"""Where in W's spectrum PiSSA and MiLoRA change it: MiLoRA's table 14, and what PiSSA is built on.

Everything is a mean over all adapted matrices of ΔW = W' - W against the original W, at one rank; the paper
looks at one matrix, the down-projection of layer 16.
"""

from collections.abc import Iterator, Mapping

from lora_zoo.analysis.claims.matrices import mean_of
from lora_zoo.analysis.claims.reading import Measure, Runs
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.svd_starts import MILORA, PISSA
from lora_zoo.analysis.claims.verdicts import RATIO, Comparison, Sampled, above, below

NEEDS = "svd_starts"
TOP, BOTTOM = mean_of("touched", "top / expected"), mean_of("touched", "bottom / expected")
OWN, FACTOR = mean_of("amplification", "own"), mean_of("amplification", "factor")
LITTLE = 1.25
LORA, OF_PISSA, OF_MILORA = ({"variant": name} for name in ("lora", "pissa", "milora"))


def _more(
    runs: Runs, one: Mapping[str, str], other: Mapping[str, str], what: Measure, label: str
) -> Comparison:
    ratio = runs.ratio(one, other, what)
    return Sampled(f"{label}, {one['variant']} / {other['variant']}", ratio, above(1), "times", RATIO)


@claim(
    "pissa/changes-the-top",
    paper=PISSA,
    where="section 3; 2406.09044, table 14",
    says="PiSSA's ΔW lies in the first tenth of W's directions more than a random one does.",
    needs=NEEDS,
)
def changes_the_top(runs: Runs) -> Iterator[Comparison]:
    yield Sampled("pissa: part in W's top / at random", runs.of(OF_PISSA, TOP), above(1), "times")


@claim(
    "milora/leaves-the-top",
    paper=MILORA,
    where="section 3, table 14",
    says=(
        "MiLoRA's ΔW lies in the first tenth of W's directions no more than a random one: less than "
        f"{LITTLE:g} times the expected part."
    ),
    needs=NEEDS,
)
def leaves_the_top(runs: Runs) -> Iterator[Comparison]:
    yield Sampled("milora: part in W's top / at random", runs.of(OF_MILORA, TOP), below(LITTLE), "times")


@claim(
    "milora/changes-the-bottom",
    paper=MILORA,
    where="section 3, table 14",
    says="MiLoRA's ΔW lies in the last tenth of W's directions more than LoRA's does.",
    needs=NEEDS,
)
def changes_the_bottom(runs: Runs) -> Iterator[Comparison]:
    yield _more(runs, OF_MILORA, LORA, BOTTOM, "part in W's bottom")


@claim(
    "milora/pissa-along-w",
    paper=MILORA,
    where="section 5, table 14",
    says="W is larger in the directions of PiSSA's ΔW than in those of LoRA's and of MiLoRA's (‖UᵀWV‖).",
    needs=NEEDS,
)
def pissa_along_w(runs: Runs) -> Iterator[Comparison]:
    for other in (LORA, OF_MILORA):
        yield _more(runs, OF_PISSA, other, OWN, "‖UᵀWV‖")


@claim(
    "milora/amplification-order",
    paper=MILORA,
    where="section 5, table 14",
    says="LoRA's ΔW amplifies its directions more than MiLoRA's does, and MiLoRA's more than PiSSA's.",
    needs=NEEDS,
)
def amplification_order(runs: Runs) -> Iterator[Comparison]:
    for one, other in ((LORA, OF_MILORA), (OF_MILORA, OF_PISSA)):
        yield _more(runs, one, other, FACTOR, "amplification factor")

"""The part of W's spectrum that PiSSA and MiLoRA change: MiLoRA's table 14, and what PiSSA is built on.

Everything is a mean over all adapted matrices of ΔW = W' - W against the original W, at one rank; the paper
looks at one matrix, the down-projection of layer 16.
"""

from lora_zoo.claims.catalogue.pissa_milora import MILORA, PISSA
from lora_zoo.claims.forms import lies, ratio
from lora_zoo.claims.hypotheses import above, below
from lora_zoo.claims.measures import Quantity, mean_of
from lora_zoo.claims.registry import Source

TOP = Quantity("part in W's top / at random", "times", mean_of("touched", "top / expected"))
BOTTOM = Quantity("part in W's bottom", "times", mean_of("touched", "bottom / expected"))
OWN = Quantity("‖UᵀWV‖", "times", mean_of("amplification", "own"))
FACTOR = Quantity("amplification factor", "times", mean_of("amplification", "factor"))
LITTLE = 1.25

Source(PISSA, "svd_starts").claim(
    "pissa/changes-the-top", "section 3; 2406.09044, table 14", lies("pissa", above(1), TOP)
).says("PiSSA's ΔW lies in the first tenth of W's directions more than a random one does.")

milora = Source(MILORA, "svd_starts")

milora.claim("milora/leaves-the-top", "section 3, table 14", lies("milora", below(LITTLE), TOP)).says(
    "MiLoRA's ΔW lies in the first tenth of W's directions no more than a random one: less than "
    f"{LITTLE:g} times the expected part."
)
milora.claim(
    "milora/changes-the-bottom", "section 3, table 14", ratio("milora", "lora", above(1), BOTTOM)
).says("MiLoRA's ΔW lies in the last tenth of W's directions more than LoRA's does.")
milora.claim(
    "milora/pissa-along-w",
    "section 5, table 14",
    *(ratio("pissa", other, above(1), OWN) for other in ("lora", "milora")),
).says("W is larger in the directions of PiSSA's ΔW than in those of LoRA's and of MiLoRA's (‖UᵀWV‖).")
milora.claim(
    "milora/amplification-order",
    "section 5, table 14",
    ratio("lora", "milora", above(1), FACTOR),
    ratio("milora", "pissa", above(1), FACTOR),
).says("LoRA's ΔW amplifies its directions more than MiLoRA's does, and MiLoRA's more than PiSSA's.")

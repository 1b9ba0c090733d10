"""LoRA, section 7.3 and table 7: how ΔW compares to W.

‖UᵀWVᵀ‖_F is compared for U, V the first singular vectors, as many as the rank, of ΔW (`own`), of W (`base`)
and at random (`random`, in closed form). Each run counts by the mean over its query matrices; the paper looks
at one of them, of layer 48 of 96.
"""

from lora_zoo.claims.catalogue.lora import PAPER
from lora_zoo.claims.forms import Form, each, lies, ratio
from lora_zoo.claims.hypotheses import Range, above, below, between
from lora_zoo.claims.measures import Quantity, mean_of
from lora_zoo.claims.registry import Source


def _of_q(name: str, unit: str, formula: str) -> Quantity:
    return Quantity(name, unit, mean_of("amplification", formula, ["q"]))


FACTOR = _of_q("amplification factor", "times", "factor")
ALONG = _of_q("‖UᵀWV‖ along ΔW / at random", "times", "own / random")
# Random directions alone reach rank / width of ‖W‖_F: these are taken off. In the paper 0.014 and 0.042.
WAY = _of_q("way from random to W's own", "of the way", "(own - random) / (base - random)")
PRINTED = {4: 6.91 / 0.32, 64: 3.57 / 1.90}
TIMES = 1.5
PART = 0.1
TABLE_7 = "section 7.3, table 7"

table_7 = Source(PAPER, "lora_table7")


def _at_each_rank(claimed: Range, of: Quantity) -> Form:
    return each("rank", lambda rank: lies({"rank": rank}, claimed, of))


table_7.claim("lora/change-along-w", TABLE_7, _at_each_rank(above(1), ALONG)).says(
    "At each rank, W is larger in the directions of q's ΔW than in random ones: the ratio is above 1."
)
table_7.claim("lora/change-off-the-top", TABLE_7, _at_each_rank(below(PART), WAY)).says(
    f"At each rank, W is small in the directions of q's ΔW: less than {PART:g} of the way from random "
    "directions to its own."
)
table_7.claim("lora/amplifies", TABLE_7, _at_each_rank(above(1), FACTOR)).says(
    "At each rank, q's ΔW amplifies its directions: ‖ΔW‖ is greater than what W has there."
)
table_7.claim(
    "lora/amplifies-more-at-rank-4", TABLE_7, ratio({"rank": 4}, {"rank": 64}, above(1), FACTOR)
).says("The amplification factor of q's ΔW is greater at rank 4 than at rank 64.")
table_7.claim(
    "lora/amplification-factors",
    TABLE_7,
    *(lies({"rank": rank}, between(x / TIMES, x * TIMES), FACTOR) for rank, x in PRINTED.items()),
).says(f"The factors of q's ΔW are 21.5 at rank 4 and 1.9 at rank 64, each within {TIMES:g} times.")

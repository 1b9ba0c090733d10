"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., ICLR 2022)."""

from lora_zoo.claims.forms import Form, alike, as_good, better, each, hardly_better
from lora_zoo.claims.registry import Source

PAPER = "2106.09685"
MARGIN = 1
"""The margin of "as good as", in points of the metric: twice the paper's spread over seeds on WikiSQL."""

table_5, table_6, study = (Source(PAPER, f"lora_{name}") for name in ("table5", "table6", "rank_study"))


def on(targets: str, **axes: object) -> dict[str, object]:
    return {"target_modules": targets, **axes}


table_5.claim("lora/q-or-k-alone", "section 7.1, table 5", better(on("q,v"), on("q"), on("k"))).says(
    "At one budget, {q,v} scores higher than {q} alone and than {k} alone."
)
table_5.claim(
    "lora/spread-the-budget", "section 7.1, table 5; H07", better(on("q,k,v,o"), *map(on, "qkvo"))
).says("At one budget, {q,k,v,o} scores higher than each of q, k, v and o alone.")
table_5.claim(
    "lora/qv-over-qk", "table 5; H07", better(on("q,v"), on("q,k")), against=["overview/qk-over-qv"]
).says("At one budget, {q,v} scores higher than {q,k}: what table 5 shows.")
Source("source S0", "lora_table5").claim(
    "overview/qk-over-qv", "section 11; H07", better(on("q,k"), on("q,v")), against=["lora/qv-over-qk"]
).says("At one budget, {q,k} scores higher than {q,v}: the text of S0, against the table that it prints.")
table_5.claim(
    "lora/qv-ties-with-all", "section 7.1, table 5", alike(on("q,v"), on("q,k,v,o"), within=MARGIN)
).says(f"At one budget, {{q,v}} and {{q,k,v,o}} score alike: within {MARGIN} point of each other.")


def _suffices(rank: int) -> list[Form]:
    both = ("q,v", "q,k,v,o")
    return [as_good(on(targets, rank=rank), on(targets, rank=max), within=MARGIN) for targets in both]


table_6.claim("lora/rank-1-suffices", "section 7.2, table 6", *_suffices(1)).says(
    f"On {{q,v}} and {{q,k,v,o}}, rank 1 is as good as the greatest rank: less than {MARGIN} point below."
)
table_6.claim(
    "lora/rank-4-suffices", "section 7.2, table 6; H08", *_suffices(4), against=["theory/half-the-width"]
).says(f"On {{q,v}} and {{q,k,v,o}}, rank 4 is as good as the greatest rank: less than {MARGIN} point below.")
table_6.claim(
    "lora/q-alone-needs-rank", "section 7.2, table 6", better(on("q", rank=4), on("q", rank=1))
).says("On {q} alone, rank 4 scores higher than rank 1.")
study.claim("lora/rank-1-falls-short", "appendix H, table 18", better({"rank": 16}, {"rank": 1})).says(
    "In the study of one rank after another, rank 16 scores higher than rank 1."
)
study.claim(
    "lora/gain-ends-at-16",
    "appendix H, table 18",
    hardly_better({"rank": max}, {"rank": 16}, within=MARGIN),
    against=["theory/half-the-width"],
).says(f"The greatest rank scores less than {MARGIN} point above rank 16.")
Source("source S1", "lora_rank_study").claim(
    "theory/half-the-width",
    "theory of expressive power; H08",
    each(
        "rank",
        lambda rank: better({"rank": max}, {"rank": rank}, by=MARGIN),
        among=lambda ranks: [rank for rank in ranks if 4 <= rank < ranks[-1] / 2],
    ),
    against=["lora/rank-4-suffices", "lora/gain-ends-at-16"],
).says("The greatest rank scores over 1 point above each rank from 4 to below its half (half the width).")

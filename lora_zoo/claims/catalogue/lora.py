"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., ICLR 2022)."""

from collections.abc import Iterator

from lora_zoo.analysis.claims.reading import Runs
from lora_zoo.analysis.claims.registry import claim
from lora_zoo.analysis.claims.verdicts import Comparison, Sampled, above, below, within

PAPER = "2106.09685"
MARGIN = 1.0
"""The margin of "as good as", in points of the metric: twice the paper's spread over seeds on WikiSQL."""


def _better(runs: Runs, one: str, others: str) -> Iterator[Comparison]:
    """{one} over each of `others` ("q k"), whatever the rank that the budget leaves."""
    for other in others.split():
        difference = runs.difference({"target_modules": one}, {"target_modules": other})
        yield Sampled(f"{{{one}}} - {{{other}}}", difference, above(0), runs.metric)


@claim(
    "lora/q-or-k-alone",
    paper=PAPER,
    where="section 7.1, table 5",
    says="At one budget, {q,v} scores higher than {q} alone and than {k} alone.",
    needs="lora_table5",
)
def q_or_k_alone(runs: Runs) -> Iterator[Comparison]:
    yield from _better(runs, "q,v", "q k")


@claim(
    "lora/spread-the-budget",
    paper=PAPER,
    where="section 7.1, table 5; H07",
    says="At one budget, {q,k,v,o} scores higher than each of q, k, v and o alone.",
    needs="lora_table5",
)
def spread_the_budget(runs: Runs) -> Iterator[Comparison]:
    yield from _better(runs, "q,k,v,o", "q k v o")


@claim(
    "lora/qv-over-qk",
    paper=PAPER,
    where="table 5; H07",
    says="At one budget, {q,v} scores higher than {q,k}: what table 5 shows.",
    needs="lora_table5",
    against=["overview/qk-over-qv"],
)
def qv_over_qk(runs: Runs) -> Iterator[Comparison]:
    yield from _better(runs, "q,v", "q,k")


@claim(
    "overview/qk-over-qv",
    paper="source S0",
    where="section 11; H07",
    says="At one budget, {q,k} scores higher than {q,v}: the text of S0, against the table that it prints.",
    needs="lora_table5",
    against=["lora/qv-over-qk"],
)
def qk_over_qv(runs: Runs) -> Iterator[Comparison]:
    yield from _better(runs, "q,k", "q,v")


@claim(
    "lora/qv-ties-with-all",
    paper=PAPER,
    where="section 7.1, table 5",
    says=f"At one budget, {{q,v}} and {{q,k,v,o}} score alike: within {MARGIN:g} point of each other.",
    needs="lora_table5",
)
def qv_ties_with_all(runs: Runs) -> Iterator[Comparison]:
    margin = MARGIN * runs.point
    difference = runs.difference({"target_modules": "q,v"}, {"target_modules": "q,k,v,o"})
    yield Sampled("{q,v} - {q,k,v,o}", difference, within(-margin, margin), runs.metric)


def _as_good(runs: Runs, rank: int) -> Iterator[Comparison]:
    """`rank` against the greatest that was run, on {q,v} and on {q,k,v,o}."""
    greatest = max(runs.values("rank"))
    for targets in ("q,v", "q,k,v,o"):
        cell = {"target_modules": targets}
        difference = runs.difference(cell | {"rank": rank}, cell | {"rank": greatest})
        label = f"{{{targets}}} rank {rank} - rank {greatest:g}"
        yield Sampled(label, difference, above(-MARGIN * runs.point), runs.metric)


@claim(
    "lora/rank-1-suffices",
    paper=PAPER,
    where="section 7.2, table 6",
    says=(
        f"On {{q,v}} and {{q,k,v,o}}, rank 1 is as good as the greatest rank: less than "
        f"{MARGIN:g} point below."
    ),
    needs="lora_table6",
)
def rank_1_suffices(runs: Runs) -> Iterator[Comparison]:
    yield from _as_good(runs, 1)


@claim(
    "lora/rank-4-suffices",
    paper=PAPER,
    where="section 7.2, table 6; H08",
    says=(
        f"On {{q,v}} and {{q,k,v,o}}, rank 4 is as good as the greatest rank: less than "
        f"{MARGIN:g} point below."
    ),
    needs="lora_table6",
    against=["theory/half-the-width"],
)
def rank_4_suffices(runs: Runs) -> Iterator[Comparison]:
    yield from _as_good(runs, 4)


@claim(
    "lora/q-alone-needs-rank",
    paper=PAPER,
    where="section 7.2, table 6",
    says="On {q} alone, rank 4 scores higher than rank 1.",
    needs="lora_table6",
)
def q_alone_needs_rank(runs: Runs) -> Iterator[Comparison]:
    cell = {"target_modules": "q"}
    difference = runs.difference(cell | {"rank": 4}, cell | {"rank": 1})
    yield Sampled("{q} rank 4 - rank 1", difference, above(0), runs.metric)


@claim(
    "lora/rank-1-falls-short",
    paper=PAPER,
    where="appendix H, table 18",
    says="In the study of one rank after another, rank 16 scores higher than rank 1.",
    needs="lora_rank_study",
)
def rank_1_falls_short(runs: Runs) -> Iterator[Comparison]:
    difference = runs.difference({"rank": 16}, {"rank": 1})
    yield Sampled("rank 16 - rank 1", difference, above(0), runs.metric)


@claim(
    "lora/gain-ends-at-16",
    paper=PAPER,
    where="appendix H, table 18",
    says=f"The greatest rank scores less than {MARGIN:g} point above rank 16.",
    needs="lora_rank_study",
    against=["theory/half-the-width"],
)
def gain_ends_at_16(runs: Runs) -> Iterator[Comparison]:
    greatest = max(runs.values("rank"))
    difference = runs.difference({"rank": greatest}, {"rank": 16})
    yield Sampled(f"rank {greatest:g} - rank 16", difference, below(MARGIN * runs.point), runs.metric)


@claim(
    "theory/half-the-width",
    paper="source S1",
    where="theory of expressive power; H08",
    says="The greatest rank scores over 1 point above each rank from 4 to below its half (half the width).",
    needs="lora_rank_study",
    against=["lora/rank-4-suffices", "lora/gain-ends-at-16"],
)
def half_the_width(runs: Runs) -> Iterator[Comparison]:
    *smaller, greatest = runs.values("rank")
    for rank in (rank for rank in smaller if 4 <= rank < greatest / 2):
        difference = runs.difference({"rank": greatest}, {"rank": rank})
        label = f"rank {greatest:g} - rank {rank:g}"
        yield Sampled(label, difference, above(MARGIN * runs.point), runs.metric)

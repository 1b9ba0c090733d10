"""What claims read off ΔW: recorded tables, kept adapters, and the points of DoRA's figure 2."""

import numpy as np
import pandas as pd
import pytest
import torch

from lora_zoo import updates
from lora_zoo.claims import Status, claims
from lora_zoo.claims.catalogue.dora import change_correlation
from lora_zoo.claims.catalogue.lora_subspaces import (
    between_ranks,
    between_seeds,
    jackknife,
    mean_over,
    others,
    top,
)
from lora_zoo.claims.evidence import Evidence, Missing
from lora_zoo.claims.measures import over_matrices
from tests.claims.delta_trios import TRIOS, planted
from tests.claims.planted import NAMES, OUT, adapter, table, written
from tests.claims.trios import decomposed
from tests.claims.trios import frame as made

ROWS = [
    {"name": "a", "role": "q", "layer": 0, "own": 2.0, "random": 1.0, "count": 3},
    {"name": "b", "role": "q", "layer": 1, "own": 6.0, "random": 2.0, "count": None},
    {"name": "c", "role": "v", "layer": 0, "own": 9.0, "random": 1.0, "count": 4},
    {"name": "d", "role": "v", "layer": 0, "own": 9.0, "random": 0.0, "count": None},
]


def a_run(**columns):
    return pd.Series({"run": "0", "record": None, "updates": []} | columns)


def one_context(frame):
    (runs,) = Evidence(frame).of("lora_table7")
    return runs


def test_a_formula_is_averaged_over_the_matrices_that_have_it():
    run = a_run(**table("amplification", ROWS))
    assert over_matrices("amplification", "own / random")(run) == pytest.approx((2 + 3 + 9) / 3)
    assert over_matrices("amplification", "own / random", ["q"])(run) == pytest.approx(2.5)
    assert over_matrices("amplification", "own", ["q", "k"], total=True)(run) == 8
    assert over_matrices("amplification", "count")(run) == 3.5
    assert over_matrices("amplification", "count", total=True)(run) == 7
    assert np.isnan(
        over_matrices("amplification", "count", total=True)(a_run(**table("amplification", [ROWS[1]])))
    )
    assert np.isnan(over_matrices("amplification", "own", ["k"])(run))


@pytest.mark.parametrize("record", [None, {}, {"deltas": {"touched": ROWS}}, float("nan")], ids=str)
def test_a_table_that_was_not_recorded_is_missing_by_name(record):
    with pytest.raises(Missing, match=r"'amplification'.*--record"):
        over_matrices("amplification", "own")(a_run(record=record))


def test_a_column_that_a_table_lacks_is_missing_by_name():
    with pytest.raises(Missing, match=r"'amplification'.*top / expected"):
        over_matrices("amplification", "top / expected")(a_run(**table("amplification", ROWS)))


def points(pairs, steps, role="q"):
    return [
        {
            "step": s,
            "name": f"{role}{i}",
            "role": role,
            "layer": i,
            "magnitude_change": x,
            "direction_change": y,
        }
        for i, (s, (x, y)) in enumerate(zip(steps, pairs, strict=True))
    ]


GROWING = points([(1, 2), (2, 1), (11, 12), (12, 11)], [50, 50, 100, 100])


def test_checkpoints_are_points_of_dora_s_figure_2_where_they_were_recorded():
    """At each checkpoint, and at the end, ΔM and ΔD anticorrelate; over the training they grow together."""
    run = a_run(
        updates=decomposed(-2.0)["updates"], **table("evolution", GROWING + points([(5, 99)], [50], "v"))
    )
    expected = np.corrcoef([1, 2, 11, 12], [2, 1, 12, 11])[0, 1]
    assert change_correlation(run) == pytest.approx(expected) and expected > 0.9
    assert change_correlation(a_run(updates=decomposed(-2.0)["updates"])) == pytest.approx(np.tanh(-2.0))


def test_dora_s_claims_read_the_checkpoints():
    frame = made("dora_decomposition", "variant", {"lora": -0.7}, 0.002, decomposed)
    assert claims()["dora/lora-positive"].verdict(Evidence(frame)).status is Status.NOT_SUPPORTED
    noise = np.random.default_rng(0).normal(size=len(frame)) * 0.1
    records = [table("evolution", points([(1, 2 + e), (2, 1), (11, 12), (12, 11)], [50] * 4)) for e in noise]
    with_them = frame.assign(record=[r["record"] for r in records])
    assert claims()["dora/lora-positive"].verdict(Evidence(with_them)).status is Status.SUPPORTED


def test_two_ranks_are_compared_at_different_seeds():
    """At one seed, the ranks' directions are nested and φ is 1; between seeds they share what was planted."""
    frame = planted(0.6, 0.0, lambda level: {"q": (level, level), "v": (0.3, 0.9)})
    runs = one_context(frame)
    found = dict(between_ranks(runs, "A", top))
    assert found["q"].to_numpy() == pytest.approx(0.36, abs=1e-5)
    assert found["v"].to_numpy() == pytest.approx(0.09, abs=1e-5)
    of_seed = {
        (r, s): updates.read(f)
        for r, s, f in zip(frame["rank"], frame["seed"], frame["adapter"], strict=True)
    }
    same = updates.comparison(of_seed[8, 0], of_seed[64, 0], factor="A", first=64)
    assert same["phi_1"].to_numpy() == pytest.approx(1.0, abs=1e-5)
    other = updates.comparison(of_seed[8, 4], of_seed[64, 0], factor="A", first=64).set_index("role")
    assert found["q"][4] == pytest.approx(other.loc["q", "phi_1"])


def test_every_seed_meets_the_next_one_that_was_run():
    frame = planted(0.5, 0.1, lambda level: {"q": (level, 0.1), "v": (level, 0.1)})
    part = frame.set_index(["rank", "seed"])["test"].clip(0, 1)
    runs = one_context(frame[(frame["seed"] != 2) & ~((frame["seed"] == 3) & (frame["rank"] == 64))])
    found = dict(between_ranks(runs, "A", top))["q"]
    wanted = {0: part[8, 0] * part[64, 1], 1: part[8, 1] * part[64, 4], 4: part[8, 4] * part[64, 0]}
    assert found.to_dict() == pytest.approx(wanted, abs=1e-5)


def test_random_directions_share_nothing_and_a_subspace_all():
    draw = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(40):
        one, other = (torch.linalg.qr(torch.randn(128, n, generator=draw).double()).Q.T for n in (8, 64))
        shares.append(others(one, other))
    assert np.mean(shares) == pytest.approx(0, abs=4 * np.std(shares) / np.sqrt(40))
    assert others(other[3:11], other) == pytest.approx(1)


def test_others_leave_the_top_direction_out():
    one = torch.eye(128, dtype=torch.float64)
    assert others(one[:8], torch.cat([one[:1], one[64:127]])) == pytest.approx(-1)  # 0 of 7, 0.5 expected


def test_pairs_of_seeds_count_a_seed_once():
    """What varies with the seed alone, x_i + x_j, has the spread of 2 x_i: pairs are not independent."""
    x = {0: 0.3, 1: -1.0, 2: 2.0, 5: 0.4}
    pairs = {(i, j): x[i] + x[j] for i in x for j in x if i < j}
    values = jackknife(pairs)
    assert values.to_dict() == pytest.approx({seed: 2 * own for seed, own in x.items()})
    uneven = {pair: value**2 for pair, value in pairs.items()}
    assert jackknife(uneven).mean() == pytest.approx(np.mean(list(uneven.values())))


def test_all_pairs_of_seeds_are_compared_at_rank_64():
    frame = planted(0.6, 0.0, lambda level: {"q": (level, level), "v": (level, level)})
    met = []

    def number(one, other):
        assert len(one[NAMES["q"]]) == len(other[NAMES["q"]]) == 64
        met.append((id(one), id(other)))
        return 0.0

    between_seeds(one_context(frame), number)
    assert len(set(met)) == 10 and len({one for pair in met for one in pair}) == 5


def test_the_matrices_of_a_role_count_alike():
    """φ(1, 1) is 1 in one matrix of q and 0 in the other; v, and what one adapter lacks, do not count."""
    axes = torch.eye(4, dtype=torch.float64)
    names = [f"model.layers.{i}.self_attn.{role}_proj" for i in (0, 1) for role in "qv"]
    one, other = dict.fromkeys(names, axes), dict(zip(names, (axes, axes, axes.flip(0), axes), strict=True))
    assert mean_over("q", top, one | {"model.layers.2.self_attn.q_proj": axes}, other) == 0.5
    with pytest.raises(Missing, match="no matrix of k"):
        mean_over("k", top, one, other)


@pytest.mark.parametrize("name", [name for name in TRIOS if "adapter" in TRIOS[name].supports])
@pytest.mark.parametrize(
    ("lost", "said"), [(None, "not kept"), ("nowhere/at/all", "cannot be read.*nowhere/at/all")]
)
def test_adapters_that_are_not_there_leave_a_claim_open(name, lost, said):
    frame = TRIOS[name].supports
    verdict = claims()[name].verdict(Evidence(frame.assign(adapter=lost)))
    assert verdict.status is Status.INCONCLUSIVE
    assert pd.Series(verdict.reason).str.contains(said).all(), verdict.reason


def test_adapters_of_one_role_leave_the_other_open():
    frame = planted(0.9, 0.002, lambda level: {"q": (level, 0.1)})
    verdict = claims()["lora/top-direction-shared"].verdict(Evidence(frame))
    assert verdict.status is Status.INCONCLUSIVE and "no matrix of v" in verdict.reason


def test_an_adapter_that_learned_nothing_has_no_directions():
    frame = TRIOS["lora/top-direction-of-change-shared"].supports
    zeros = {NAMES["q"] + ".A_RI": torch.zeros(8, 128), NAMES["q"] + ".B_OR": torch.zeros(OUT, 8)}
    empty = frame.assign(adapter=[written(8, 0, zeros)] * len(frame))
    assert (
        claims()["lora/top-direction-of-change-shared"].verdict(Evidence(empty)).status is Status.INCONCLUSIVE
    )


def test_a_rank_as_wide_as_the_matrix_leaves_no_others():
    frame = planted(0.3, 0.002, lambda level: {"q": (0.9, level), "v": (0.9, level)})
    narrow = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    tensors = {f"{name}.A_RI": narrow for name in NAMES.values()}
    tensors |= {f"{name}.B_OR": torch.eye(64) for name in NAMES.values()}
    verdict = claims()["lora/other-directions-differ"].verdict(
        Evidence(frame.assign(adapter=written(64, 0, tensors)))
    )
    assert verdict.status is Status.INCONCLUSIVE and "width" in verdict.reason


def test_the_planted_adapters_are_what_they_say():
    """The first direction of A is not that of ΔW, or no test could tell which of them a claim looks at."""
    one, other = (updates.read(adapter(8, seed, {"q": (0.9, 0.1)}, "A")) for seed in (0, 1))
    assert updates.comparison(one, other, factor="A")["phi_1"].iloc[0] == pytest.approx(0.81, abs=1e-5)
    assert updates.comparison(one, other, factor="right")["phi_1"].iloc[0] < 0.5

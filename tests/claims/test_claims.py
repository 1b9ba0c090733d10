"""Every claim can be supported, can fail and can stay open; none trips over unexpected results."""

import numpy as np
import pandas as pd
import pytest
from delta_trios import TRIOS as OF_DELTAS
from trios import SEEDS
from trios import TRIOS as OF_SCORES

from lora_zoo.analysis.claims import Status, claims, ledger
from lora_zoo.analysis.claims.reading import Evidence
from lora_zoo.analysis.claims.registry import Computed, Measured, OnRecord, Unbuilt, claim

CLAIMS = claims()
TRIOS = OF_SCORES | OF_DELTAS
MEASURED = [name for name, c in CLAIMS.items() if isinstance(c, Measured)]


def said_of(name, frame):
    return CLAIMS[name].verdict(Evidence(frame))


@pytest.fixture(params=MEASURED)
def name(request):
    return request.param


def test_every_claim_about_runs_has_its_trio():
    assert sorted(TRIOS) == sorted(MEASURED)


def test_supported(name):
    verdict = said_of(name, TRIOS[name].supports)
    assert verdict.status is Status.SUPPORTED, verdict.said
    assert verdict.n == len(SEEDS) and verdict.effect is not None and verdict.unit


def test_not_supported(name):
    verdict = said_of(name, TRIOS[name].refutes)
    assert verdict.status is Status.NOT_SUPPORTED, verdict.said


def test_noise_decides_nothing(name):
    verdict = said_of(name, TRIOS[name].noisy)
    assert verdict.status is Status.INCONCLUSIVE, verdict.said


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_decide_nothing(name, seeds):
    for frame in TRIOS[name]:
        verdict = said_of(name, frame[frame["seed"] < seeds])
        assert verdict.status is Status.INCONCLUSIVE, verdict.said


def test_three_seeds_are_enough_where_the_effect_is_clear():
    frame = TRIOS["dora/over-lora"].supports
    assert said_of("dora/over-lora", frame[frame["seed"] < 3]).status is Status.SUPPORTED


def test_a_second_model_that_disagrees_counts(name):
    both = pd.concat([TRIOS[name].supports, TRIOS[name].refutes.assign(model="other")], ignore_index=True)
    assert said_of(name, both).status is Status.NOT_SUPPORTED


def test_a_second_task_that_is_too_noisy_leaves_it_open(name):
    both = pd.concat([TRIOS[name].supports, TRIOS[name].noisy.assign(task="other")], ignore_index=True)
    verdict = said_of(name, both)
    assert verdict.status in (
        Status.INCONCLUSIVE,
        Status.SUPPORTED if "most" in name else Status.INCONCLUSIVE,
    )
    assert "other" in verdict.said


def test_runs_of_another_experiment_are_not_its_business(name):
    frame = TRIOS[name].supports.assign(experiment="something_else")
    verdict = said_of(name, frame)
    assert verdict.status is Status.NOT_RUN and CLAIMS[name].command in verdict.said


def test_runs_that_are_not_done_do_not_count(name):
    assert said_of(name, TRIOS[name].supports.assign(state="failed")).status is Status.NOT_RUN


ABOUT_ONE_CELL = (
    *("dora/full-negative", "dora/lora-positive", "dora/dora-negative"),
    *("lora/seeds-share-directions", "lora/q-shares-more-than-v"),
    *("pissa/changes-the-top", "milora/leaves-the-top", "intruders/full-has-none"),
)


@pytest.mark.parametrize("name", sorted(set(MEASURED) - set(ABOUT_ONE_CELL)))
def test_one_cell_is_no_comparison(name):
    for frame in TRIOS[name]:
        axes = [
            "variant",
            "rank",
            "alpha",
            "init",
            "layers",
            "target_modules",
            "lora_dropout",
            "weight_decay",
        ]
        axes = [a for a in [*axes, "task_lr", *(c for c in frame if "." in c)] if a in frame]
        for _, cell in list(frame.groupby(axes, dropna=False))[:2]:
            assert said_of(name, cell).status in (Status.INCONCLUSIVE, Status.NOT_RUN)


def test_the_order_of_rows_does_not_matter(name):
    frame = TRIOS[name].supports.sample(frac=1, random_state=0).reset_index(drop=True)
    assert said_of(name, frame).status is Status.SUPPORTED


@pytest.mark.parametrize("frame", [pd.DataFrame(), None, pd.DataFrame({"seed": [0, 1]})], ids=str)
def test_without_runs_every_claim_says_what_it_needs(frame):
    for entry in ledger(frame):
        kind = CLAIMS[entry.id]
        assert entry.verdict.said
        if isinstance(kind, Measured):
            assert entry.verdict.status is Status.NOT_RUN and entry.command in entry.verdict.said
            assert kind.sweep or f"+experiment={entry.needs}" in entry.command
        if isinstance(kind, Unbuilt):
            assert entry.verdict.status is Status.NOT_BUILT and entry.needs in entry.verdict.said
        if isinstance(kind, OnRecord):
            assert entry.verdict.status is Status.NOT_MEASURABLE


READ = ("experiment", "task", "validation", "test", "history", "updates", "record", "adapter")


def ruined(frame):
    """The frame with one column that claims read after another gone, or full of something else."""
    for column in READ:
        yield frame.drop(columns=column, errors="ignore")
        yield frame.assign(**{column: "x"})
    yield frame.iloc[:0]
    yield pd.concat([frame, frame], ignore_index=True)
    yield frame.assign(history=[[{"step": "x", "loss": "nan", "grad_norm": None}]] * len(frame))
    yield frame.assign(updates=[[{"name": "x"}]] * len(frame))
    yield frame.assign(test=np.inf, loss=-1.0, step_seconds=0.0, saved_bytes=0, trainable=0)


def test_whatever_the_results_a_claim_answers(name):
    for frame in ruined(TRIOS[name].supports):
        assert isinstance(said_of(name, frame).status, Status)


WITH_TABLES = [name for name in MEASURED if TRIOS[name].supports["record"].notna().any()]


@pytest.mark.parametrize("name", WITH_TABLES)
def test_whatever_a_recorded_table_holds_a_claim_answers(name):
    frame = TRIOS[name].supports
    (table,) = frame["record"].iloc[0]["deltas"]
    words = {"name": "x", "role": "q", "factor": "x", "own": "x", "top": "x", "intruders": "x"}
    for rows in ([], [{"name": "x"}], [words], [1], "x", 1, None):
        ruined = frame.assign(record=[{"deltas": {table: rows}}] * len(frame))
        assert said_of(name, ruined).status is Status.INCONCLUSIVE


def test_several_runs_for_one_cell_are_refused_by_name():
    frame = TRIOS["rslora/rank-pays"].supports
    twice = pd.concat([frame, frame.assign(alpha=32.0, run=frame["run"] + "b")], ignore_index=True)
    verdict = said_of("rslora/rank-pays", twice)
    assert verdict.status is Status.INCONCLUSIVE and "alpha" in verdict.said


def test_a_gap_leaves_the_claim_open_but_a_failure_stands():
    """{q,v} over {q} and over {k}, where k was not run."""
    trio = TRIOS["lora/q-or-k-alone"]
    without = [frame[frame["target_modules"] != "k"] for frame in trio]
    verdicts = [said_of("lora/q-or-k-alone", frame) for frame in without]
    assert [v.status for v in verdicts] == [Status.INCONCLUSIVE, Status.NOT_SUPPORTED, Status.INCONCLUSIVE]
    assert "no runs with target_modules=k" in verdicts[0].said


def test_learning_rates_are_chosen_on_validation_alone():
    """DoRA's best test score lies at a rate that validation does not choose."""
    frame = TRIOS["dora/over-lora"].supports.copy()
    dora = frame["variant"] == "dora"
    frame.loc[dora, "test"] = (
        frame.loc[dora, "task_lr"].map({0.01: 0.99, 0.02: 0.5, 0.04: 0.99}) + 0.001 * frame["seed"]
    )
    assert said_of("dora/over-lora", frame).status is Status.NOT_SUPPORTED


def test_a_metric_that_counts_to_100_has_points_of_1():
    """rank 1 lies 0.5 points of BLEU below rank 64: as good, though 0.5 would be half of an accuracy."""
    trio = TRIOS["lora/rank-1-suffices"]
    bleu = trio.supports.copy()
    bleu["test"] = 68 + bleu["test"] - 0.5 * (bleu["rank"] == 1)
    assert said_of("lora/rank-1-suffices", bleu).status is Status.SUPPORTED
    assert said_of("lora/rank-1-suffices", bleu.assign(test=bleu["test"] / 100)).status is Status.SUPPORTED
    far = bleu.assign(test=bleu["test"] - 1.5 * (bleu["rank"] == 1))
    assert said_of("lora/rank-1-suffices", far).status is Status.NOT_SUPPORTED


def test_claims_that_disagree_say_so_of_each_other():
    for one in CLAIMS.values():
        for other in one.against:
            assert one.id in CLAIMS[other].against, (one.id, other)


@pytest.mark.parametrize("name", [n for n in MEASURED if CLAIMS[n].against])
def test_no_results_support_two_claims_that_disagree(name):
    for frame in TRIOS[name]:
        if said_of(name, frame).status is Status.SUPPORTED:
            for other in CLAIMS[name].against:
                conditions = {name, other} == {"starts/one-factor-zero", "starts/both-random-at-small-rates"}
                assert conditions or said_of(other, frame).status is not Status.SUPPORTED


def test_every_number_of_the_list_of_statements_is_in_the_ledger():
    text = " ".join(f"{c.id} {c.where}" for c in CLAIMS.values())
    assert [n for n in range(1, 41) if f"H{n:02}" not in text] == []


def test_a_claim_says_who_where_and_what():
    for c in CLAIMS.values():
        assert c.paper and c.says.endswith((".", "M", ")")) and (c.where or isinstance(c, Unbuilt)), c.id
        assert isinstance(c, Measured | Computed | Unbuilt | OnRecord)


def test_an_id_is_taken_once():
    with pytest.raises(ValueError, match="twice"):
        claim("dora/over-lora", paper="x", where="x", says="x.", needs="x")(lambda runs: iter(()))
    with pytest.raises(ValueError, match="either the experiment"):
        claim("new", paper="x", where="x", says="x.")(lambda runs: iter(()))

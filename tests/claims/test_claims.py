"""Every claim can be supported, can fail and can stay open; none trips over unexpected results."""

import argparse
import re
import sys

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from lora_zoo.claims import Status, claims, ledger, registry
from lora_zoo.claims.__main__ import asked_for, main, of_status
from lora_zoo.claims.evidence import Evidence
from lora_zoo.claims.registry import Computed, Measured, NotBuilt, Untestable, measured
from lora_zoo.claims.show import overview
from lora_zoo.core.registry import Registry
from tests.claims.delta_trios import TRIOS as OF_DELTAS
from tests.claims.trios import SEEDS
from tests.claims.trios import TRIOS as OF_SCORES

CLAIMS = claims()
TRIOS = OF_SCORES | OF_DELTAS
MEASURED = [name for name, claim in CLAIMS.items() if isinstance(claim, Measured)]
KINDS = {
    "differences": "dora/over-lora",
    "ratios": "cost/steps-faster-than-full",
    "correlations": "dora/magnitudes",
    "counts": "lora-fa/activations",
    "optima": "lora-plus/optimum",
    "exponents": "rslora/gradients-stay",
    "most of several": "tuning/most-tie",
}
FORMS = KINDS | {
    "better": "rslora/rank-pays",
    "lower": "pissa/faster-early",
    "as good": "lora-fa/as-good",
    "hardly better": "rslora/rank-does-not-pay-in-lora",
    "lies": "adalora/uneven",
    "more": "overfitting/dropout-helps-large-ranks-more",
    "each": "theory/half-the-width",
    "functions": "adalora/same-pattern",
    "directions": "lora/top-direction-shared",
}
every_kind = pytest.mark.parametrize("name", KINDS.values(), ids=KINDS.keys())
every_form = pytest.mark.parametrize("name", FORMS.values(), ids=FORMS.keys())
every_claim = pytest.mark.parametrize("name", MEASURED)


def judged(name, frame):
    return CLAIMS[name].verdict(Evidence(frame))


def test_every_claim_about_runs_has_its_trio():
    assert sorted(TRIOS) == sorted(MEASURED)


@every_claim
def test_supported(name):
    verdict = judged(name, TRIOS[name].supports)
    assert verdict.status is Status.SUPPORTED, verdict.reason
    assert verdict.n == len(SEEDS) and verdict.effect is not None and verdict.unit


@every_claim
def test_not_supported(name):
    verdict = judged(name, TRIOS[name].refutes)
    assert verdict.status is Status.NOT_SUPPORTED, verdict.reason


@every_form
def test_noise_decides_nothing(name):
    verdict = judged(name, TRIOS[name].noisy)
    assert verdict.status is Status.INCONCLUSIVE, verdict.reason


@every_form
def test_fewer_than_three_seeds_decide_nothing(name):
    frame = TRIOS[name].supports
    verdict = judged(name, frame[frame["seed"] < 2])
    assert verdict.status is Status.INCONCLUSIVE, verdict.reason


def test_three_seeds_are_enough_where_the_effect_is_clear():
    frame = TRIOS["dora/over-lora"].supports
    assert judged("dora/over-lora", frame[frame["seed"] < 3]).status is Status.SUPPORTED


@every_kind
def test_a_second_model_that_disagrees_counts(name):
    both = pd.concat([TRIOS[name].supports, TRIOS[name].refutes.assign(model="other")], ignore_index=True)
    assert judged(name, both).status is Status.NOT_SUPPORTED


@every_kind
def test_a_second_task_that_is_too_noisy_leaves_it_open(name):
    both = pd.concat([TRIOS[name].supports, TRIOS[name].noisy.assign(task="other")], ignore_index=True)
    verdict = judged(name, both)
    assert verdict.status is Status.INCONCLUSIVE or (name == KINDS["most of several"])
    assert "other" in verdict.reason


@every_kind
def test_runs_of_another_experiment_or_that_are_not_done_do_not_count(name):
    frame = TRIOS[name].supports
    for others in (frame.assign(experiment="something_else"), frame.assign(state="failed")):
        verdict = judged(name, others)
        assert verdict.status is Status.NOT_RUN and CLAIMS[name].command in verdict.reason


AXES = ("variant", "rank", "alpha", "init", "layers", "target_modules", "lora_dropout", "weight_decay")


@pytest.mark.parametrize("name", [name for name in FORMS.values() if name != "dora/magnitudes"])
def test_one_cell_is_no_comparison(name):
    frame = TRIOS[name].supports
    axes = [axis for axis in (*AXES, "task_lr", *(c for c in frame if "." in c)) if axis in frame]
    _, cell = next(iter(frame.groupby(axes, dropna=False)))
    assert judged(name, cell).status in (Status.INCONCLUSIVE, Status.NOT_RUN)


@pytest.mark.parametrize("name", ["dora/over-lora", "lora-plus/optimum"])
def test_the_order_of_rows_does_not_matter(name):
    frame = TRIOS[name].supports
    shuffled = frame.sample(frac=1, random_state=0).reset_index(drop=True)
    one, other = (judged(name, rows).effect for rows in (shuffled, frame))
    assert (one.low, one.high) == pytest.approx((other.low, other.high))


@pytest.mark.parametrize("frame", [pd.DataFrame(), None, pd.DataFrame({"seed": [0, 1]})], ids=str)
def test_without_runs_every_claim_says_what_it_needs(frame, monkeypatch):
    for claim in CLAIMS.values():  # what is computed now does not depend on the frame
        if isinstance(claim, Computed):
            monkeypatch.delitem(registry.CLAIMS._members, claim.id)
    for entry in ledger(frame):
        claim = CLAIMS[entry.id]
        assert entry.verdict.reason
        if isinstance(claim, Measured):
            assert entry.verdict.status is Status.NOT_RUN and entry.command in entry.verdict.reason
            assert claim.sweep or f"+experiment={entry.needs}" in entry.command
        if isinstance(claim, NotBuilt):
            assert entry.verdict.status is Status.NOT_BUILT and entry.needs in entry.verdict.reason
        if isinstance(claim, Untestable):
            assert entry.verdict.status is Status.NOT_MEASURABLE


COMPUTED = [name for name, claim in CLAIMS.items() if isinstance(claim, Computed)]
WRONG = ("count/13b-table", "count/gpt-2-large", "count/gpt-2-medium", "steps/nf4-equally-spaced")


@pytest.mark.parametrize("name", COMPUTED)
def test_statements_that_need_no_runs_are_computed(name):
    """By hand, 2 x layers x 2 x width x rank: 6.55M, not 650K; 0.39M and 0.74M, not 0.35M and 0.77M.

    The levels of NF4 are normal quantiles.
    """
    verdict = CLAIMS[name].verdict(Evidence(pd.DataFrame()))
    assert verdict.status is (Status.NOT_SUPPORTED if name in WRONG else Status.SUPPORTED), verdict.reason
    assert verdict.n and verdict.unit and verdict.effect is not None


def ruined(frame, columns):
    """The frame with one of these columns gone, or full of something else."""
    for column in columns:
        yield frame.drop(columns=column)
        yield frame.assign(**{column: "x"})


@pytest.mark.parametrize("name", ["dora/over-lora", "lora-fa/activations"])
def test_whatever_the_results_a_claim_answers(name):
    frame = TRIOS[name].supports
    others = (
        frame.iloc[:0],
        pd.concat([frame, frame], ignore_index=True),
        frame.assign(test=np.inf, loss=-1.0, step_seconds=0.0, saved_bytes=0, trainable=0),
    )
    for wrong in (*ruined(frame, ["experiment", "task", "validation", "test"]), *others):
        assert isinstance(judged(name, wrong).status, Status)


NOT_NUMBERS = [{"step": "x", "loss": "nan", "grad_norm": None}]
READERS = {
    **{"pissa/faster-early": "history", "rslora/gradients-stay": "history", "dora/magnitudes": "updates"},
    **{"adalora/uneven": "updates", "adalora/same-pattern": "updates", "starts/both-zero-stays": "updates"},
    **{"lora/amplifies": "record", "lora/top-direction-shared": "adapter"},
    **{"overfitting/grows-with-rank": "metrics.train.exact_match", "milora/forgets-less": "retention_after"},
}


@pytest.mark.parametrize("name", READERS)
def test_whatever_a_column_holds_the_claim_that_reads_it_stays_open(name):
    frame, column = TRIOS[name].supports, READERS[name]
    lists = [frame.assign(**{column: [rows] * len(frame)}) for rows in (NOT_NUMBERS, [{"name": "x"}])]
    for wrong in (*ruined(frame, [column]), *lists):
        assert judged(name, wrong).status is Status.INCONCLUSIVE


WITH_TABLES = ("lora/change-along-w", "pissa/changes-the-top", "intruders/full-has-none")


@pytest.mark.parametrize("name", WITH_TABLES)
def test_whatever_a_recorded_table_holds_a_claim_answers(name):
    frame = TRIOS[name].supports
    (table,) = frame["record"].iloc[0]["deltas"]
    words = {"name": "x", "role": "q", "factor": "x", "own": "x", "top": "x", "intruders": "x"}
    for rows in ([], [{"name": "x"}], [words], [1], "x", 1, None):
        changed = frame.assign(record=[{"deltas": {table: rows}}] * len(frame))
        assert judged(name, changed).status is Status.INCONCLUSIVE


def test_several_runs_for_one_cell_are_refused_by_name():
    frame = TRIOS["rslora/rank-pays"].supports
    twice = pd.concat([frame, frame.assign(alpha=32.0, run=frame["run"] + "b")], ignore_index=True)
    verdict = judged("rslora/rank-pays", twice)
    assert verdict.status is Status.INCONCLUSIVE and "alpha" in verdict.reason


def test_a_setting_that_only_some_cells_share_is_no_reason_to_refuse():
    """Two settings that differ between the cells, but not within one, are what is compared."""
    frame = TRIOS["dora/over-lora"].supports
    both = frame.assign(**{"config.trainer.fast": frame["variant"] == "dora", "config.other": 1})
    assert judged("dora/over-lora", both).status is Status.SUPPORTED
    mixed = frame.assign(**{"config.trainer.fast": frame["seed"] < 2})
    verdict = judged("dora/over-lora", mixed)
    assert verdict.status is Status.INCONCLUSIVE and "config.trainer.fast" in verdict.reason


def test_a_gap_leaves_the_claim_open_but_a_failure_stands():
    """{q,v} over {q} and over {k}, where k was not run."""
    trio = TRIOS["lora/q-or-k-alone"]
    without = [frame[frame["target_modules"] != "k"] for frame in trio]
    verdicts = [judged("lora/q-or-k-alone", frame) for frame in without]
    assert [v.status for v in verdicts] == [Status.INCONCLUSIVE, Status.NOT_SUPPORTED, Status.INCONCLUSIVE]
    assert "no runs with target_modules=k" in verdicts[0].reason


def test_learning_rates_are_chosen_on_validation_alone():
    """DoRA's best test score lies at a rate that validation does not choose."""
    frame = TRIOS["dora/over-lora"].supports.copy()
    dora = frame["variant"] == "dora"
    frame.loc[dora, "test"] = (
        frame.loc[dora, "task_lr"].map({0.01: 0.99, 0.02: 0.5, 0.04: 0.99}) + 0.001 * frame["seed"]
    )
    assert judged("dora/over-lora", frame).status is Status.NOT_SUPPORTED


@pytest.mark.parametrize(
    ("name", "variants", "margin"),
    [("lora-fa/as-good", ("lora_fa", "lora"), 1), ("vera/fewer-parameters", ("vera", "lora"), 2)],
)
@pytest.mark.parametrize("point", [0.01, 1])
def test_margins_are_in_points_of_the_metric(name, variants, margin, point):
    """A metric that counts to 100 has points of 1; 0.9 margins below is as good, 1.1 margins are not."""
    frame = TRIOS[name].supports
    one, _ = variants
    for below, status in ((0.9, Status.SUPPORTED), (1.1, Status.NOT_SUPPORTED)):
        scores = 60 * point + point * 0.01 * (frame["seed"] % 3) * (frame["variant"] == one)
        scores -= below * margin * point * (frame["variant"] == one)
        assert judged(name, frame.assign(test=scores)).status is status


def test_vera_is_compared_at_about_as_many_parameters():
    frame = TRIOS["vera/at-equal-parameters"].supports
    fewer = frame.assign(trainable=frame["trainable"].where(frame["variant"] == "lora", 8000))
    verdict = judged("vera/at-equal-parameters", fewer)
    assert verdict.status is Status.INCONCLUSIVE and "not about as many" in verdict.reason


def test_claims_that_disagree_say_so_of_each_other():
    for one in CLAIMS.values():
        for other in one.against:
            assert one.id in CLAIMS[other].against, (one.id, other)


CONDITIONAL = {"starts/one-factor-zero", "starts/both-random-at-small-rates"}
"""These disagree, but each at learning rates of its own."""


@pytest.mark.parametrize("name", [name for name in MEASURED if CLAIMS[name].against])
def test_no_results_support_two_claims_that_disagree(name):
    for other in CLAIMS[name].against:
        if {name, other} != CONDITIONAL:
            assert judged(other, TRIOS[name].supports).status is not Status.SUPPORTED


def test_every_number_of_the_list_of_statements_is_in_the_ledger():
    text = " ".join(f"{claim.id} {claim.where}" for claim in CLAIMS.values())
    assert [n for n in range(1, 41) if f"H{n:02}" not in text] == []


def test_a_claim_says_who_where_and_what():
    for claim in CLAIMS.values():
        assert claim.paper and (claim.where or isinstance(claim, NotBuilt)), claim.id
        assert claim.statement.endswith((".", "M", ")")) and "  " not in claim.statement, claim.id


def test_an_id_is_taken_once():
    with pytest.raises(ValueError, match="taken"):
        measured("dora/over-lora", "x", "x", experiment="x")(iter)
    for needs in ({}, {"experiment": "x", "sweep": "x"}):
        with pytest.raises(ValueError, match="either the experiment"):
            measured("new", "x", "x", **needs)(iter)
    assert claims()["dora/over-lora"] is CLAIMS["dora/over-lora"]


def test_a_function_s_docstring_is_its_claim_s_statement(monkeypatch):
    monkeypatch.setattr(registry, "CLAIMS", Registry("claim", "lora_zoo.claims.catalogue"))

    @measured("new", "paper", "where", experiment="experiment")
    def form(runs):
        """One
        line.

        And what the reader of the code alone wants to know.
        """
        return iter(())

    claim = registry.CLAIMS["new"]
    assert claim.statement == "One line." and list(claim.tests) == [form]


def test_a_file_that_cannot_be_imported_is_left_out_with_its_reason(monkeypatch, tmp_path):
    good = "from lora_zoo.claims.registry import NotBuilt, add\nadd(NotBuilt('{0}', 'p', waits_for='x'))\n"
    folder = tmp_path / "planted_claims"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "fine.py").write_text(good.format("new/fine"))
    (folder / "broken.py").write_text(good.format("new/broken") + "import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "CLAIMS", Registry("claim", "planted_claims", by_import=True))
    with pytest.warns(UserWarning, match=r"planted_claims\.broken are left out: .*no_such_package"):
        assert list(claims()) == ["new/fine"]
    assert list(claims()) == ["new/fine"]  # without another warning
    sys.modules.pop("planted_claims.fine")


def rises(row):
    return [{"step": step, "loss": 1.0 + step / 100 + row / 1000} for step in range(10, 60, 10)]


ABOUT_SCORES = ["rslora/rank-pays", "dora/over-lora", "lora/qv-over-qk", "svd/forgets-less"]


@pytest.mark.parametrize("name", [name for name in ABOUT_SCORES if name in CLAIMS])
def test_a_verdict_on_a_cell_that_diverged_untuned_is_none(name):
    frame = TRIOS[name].refutes.copy()
    frame["task_lr"] = frame.get("task_lr", pd.Series(0.02, frame.index)).max()  # one rate for all
    frame = frame.drop_duplicates([c for c in frame if c not in ("test", "validation", *UNHASHED)])
    assert judged(name, frame).status is Status.NOT_SUPPORTED
    diverged = frame.assign(history=[rises(row) for row in range(len(frame))])
    found = judged(name, diverged)
    assert found.status is Status.UNTUNED and "at the one rate that was tried, 0.0" in found.reason
    assert "not counted (not supported)" in found.reason
    half = frame.assign(history=[rises(n) if s == 0 else [] for n, s in enumerate(frame["seed"])])
    assert judged(name, half).status is Status.NOT_SUPPORTED, "one seed of five is no cell"


UNHASHED = ("experiment_about", "record", "history", "run", "name")


def test_a_cell_of_which_seeds_diverged_with_an_error_is_untuned_too():
    frame = TRIOS["dora/over-lora"].refutes
    frame = frame[frame["task_lr"] == frame["task_lr"].max()] if "task_lr" in frame else frame
    lost = frame[(frame["variant"] == "dora")].assign(state="diverged", run=lambda f: f["run"] + "d")
    lost = pd.concat([lost, lost.assign(seed=lost["seed"] + 9, run=lost["run"] + "e")])
    both = pd.concat([frame, lost], ignore_index=True)
    assert judged("dora/over-lora", both).status in (Status.UNTUNED, Status.INCONCLUSIVE)
    assert "10 of 15 runs with variant=dora diverged" in judged("dora/over-lora", both).reason


@pytest.mark.parametrize("name", ["cost/steps-faster-than-full", "cost/back-to-the-lowest-layer"])
@pytest.mark.parametrize(("share", "says"), [(np.nan, "not known"), (0.4, "had 40 % of a core")])
def test_seconds_of_a_busy_machine_decide_nothing(name, share, says):
    for side in (TRIOS[name].supports, TRIOS[name].refutes):
        found = judged(name, side.assign(cpu_share=share))
        assert found.status is Status.BUSY and says in found.reason
        assert judged(name, side.assign(cpu_share=0.97)).status is not Status.BUSY


# The command's filters -------------------------------------------------------------------------------------


def filtered(*arguments: str) -> list[str]:
    words = {"claim": None, "paper": None, "status": None, "experiment": None}
    given = argparse.Namespace(**(words | dict(zip(arguments[::2], arguments[1::2], strict=True))))
    asked = {claim.id for claim in asked_for([*claims().values()], given)}
    return [entry.id for entry in of_status(ledger(among=asked), given.status)]


def test_the_command_computes_each_claim_once(monkeypatch, tmp_path) -> None:
    judged: list[str] = []
    verdict = Computed.verdict
    monkeypatch.setattr(Computed, "verdict", lambda own, runs: judged.append(own.id) or verdict(own, runs))
    monkeypatch.chdir(tmp_path)
    main([])
    assert sorted(judged) == [name for name, claim in claims().items() if isinstance(claim, Computed)] != []


def test_each_filter_of_the_command_leaves_the_claims_that_it_names() -> None:
    every = ledger()
    assert filtered() == [entry.id for entry in every]
    assert filtered("claim", "vera/*") == [entry.id for entry in every if entry.id.startswith("vera/")]
    assert filtered("status", "not_run") == [e.id for e in every if e.verdict.status is Status.NOT_RUN]
    assert filtered("experiment", "relora_rank", "claim", "relora/*") == [
        e.id for e in every if e.needs == "relora_rank" and e.id.startswith("relora/")
    ]
    paper = every[0].paper
    assert filtered("paper", paper) == [entry.id for entry in every if entry.paper == paper]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("experiment", "relora_rnk"), "unknown experiment 'relora_rnk'. Did you mean 'relora_rank'?"),
        (("claim", "relora/rounds-add-rnk"), "Did you mean 'relora/rounds-add-rank'?"),
        (("paper", "1234.56789"), "none of"),
    ],
)
def test_filters_that_leave_no_claim_are_refused(words: tuple[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        filtered(*words)


def test_the_overview_has_a_row_a_claim_and_fits_a_window(capsys: pytest.CaptureFixture[str]) -> None:
    entries = ledger()[:7]
    Console(width=80).print(overview(entries))
    printed = capsys.readouterr().out.splitlines()
    assert all(sum(line.strip().startswith(entry.id[:20]) for line in printed) == 1 for entry in entries)
    assert max(map(len, printed)) <= 80

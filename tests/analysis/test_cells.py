"""The protocol of a table: what one seed could publish is impossible here."""

import itertools
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lora_zoo.analysis.comparison import Cell, Cells
from lora_zoo.analysis.protocol import better, cells
from lora_zoo.analysis.rounds import Plan
from lora_zoo.analysis.statistics import holm, paired_items
from lora_zoo.claims.evidence import Evidence
from tests.analysis.made_frames import run, study, tuned


def names(found: list[Cell]) -> list[str]:
    return [cell.key["variant"] for cell in found]


def test_a_cell_is_the_mean_over_seeds_with_its_interval() -> None:
    frame = study({"lora": 0.7, "dora": 0.8})
    for cell in cells(frame, by=["variant"]).cells:
        values = frame[frame["variant"] == cell.key["variant"]].set_index("seed")["test"]
        assert cell.values.to_dict() == values.to_dict() and cell.n == 5
        low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
        assert (cell.interval.low, cell.interval.high) == pytest.approx((low, high))
        assert cell.runs == frame[frame["variant"] == cell.key["variant"]]["run"].tolist()
        assert cell.trainable == 100


def test_effects_that_are_there_are_found_and_others_are_not() -> None:
    table = cells(study({"lora": 0.70, "dora": 0.80, "vera": 0.801, "full": 0.60}), by=["variant"])
    assert set(names(table.tied())) == {"dora", "vera"}
    against = {cell.key["variant"]: difference for cell, difference in table.against_best().items()}
    assert against["full"].estimate == pytest.approx(-0.2, abs=0.03) and against["full"].high < 0
    assert all(d.n == 5 and "Holm over 6 pairs" in d.how for d in against.values())


def test_the_best_of_many_is_corrected_for_every_pair() -> None:
    table = cells(study({f"v{i}": 0.7 for i in range(5)}), by=["variant"])
    values = {cell: cell.values for cell in table.cells}
    pairs = list(itertools.combinations(table.cells, 2))
    raw = [stats.ttest_rel(values[a], values[b]).pvalue for a, b in pairs]
    corrected = dict(zip(pairs, holm(raw), strict=True))
    for cell, difference in table.against_best().items():
        pair = next(p for p in pairs if set(p) == {cell, table.best()})
        assert difference.p == pytest.approx(corrected[pair])
        assert difference.estimate == pytest.approx((cell.values - table.best().values).mean())


def _null(rng: np.random.Generator, k: int) -> Cells:
    def series() -> pd.Series:
        return pd.Series(rng.normal(size=5))

    made = [Cell({"variant": i}, series(), series(), [str(i)] * 5) for i in range(k)]
    return Cells(made, ["variant"], "test", "higher", "")


def test_a_best_among_equals_is_declared_in_at_most_one_table_of_twenty() -> None:
    """Six equal variants: uncorrected, or Holm over the five pairs with the winner, errs too often."""
    rng = np.random.default_rng(0)
    wrong = naive = with_best = 0
    for _ in range(200):
        table = _null(rng, 6)
        wrong += len(table.tied()) < 6
        best = table.best()
        p = [stats.ttest_rel(best.values, c.values).pvalue for c in table.cells if c is not best]
        naive += min(p) < 0.05
        with_best += min(holm(p)) < 0.05
    assert wrong / 200 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)
    assert naive / 200 > 0.2
    assert wrong <= with_best


def test_one_seed_declares_nothing() -> None:
    table = cells(study({"lora": 0.1, "dora": 0.9}, seeds=[0]), by=["variant"])
    assert len(table.tied()) == 2
    assert all(math.isnan(d.p) or d.p == 1 for d in table.against_best().values())
    assert any("fewer than 3 seeds: variant=lora (1), variant=dora (1)" in w for w in table.warnings)


def test_comparisons_are_on_common_seeds() -> None:
    frame = study({"lora": 0.7, "dora": 0.8})
    frame = frame[~((frame["variant"] == "dora") & (frame["seed"] == 2))]
    table = cells(frame, by=["variant"])
    (difference,) = table.against_best().values()
    assert difference.n == 4 and abs(difference.estimate + 0.1) < 0.03
    assert any("unequal numbers of seeds (variant=lora: 5, variant=dora: 4)" in w for w in table.warnings)


def test_a_lead_within_noise_is_said_with_the_seeds_that_it_would_take() -> None:
    table = cells(study({"lora": 0.700, "dora": 0.703}), by=["variant"])
    (warning,) = [w for w in table.warnings if "seed noise" in w]
    assert "1 of 1 others cannot be told" in warning and "over 5 seeds; to see so little takes" in warning
    clear = cells(study({"lora": 0.7, "dora": 0.9}), by=["variant"])
    assert clear.warnings == []


def judged(frame: pd.DataFrame, **directions: bool | None) -> pd.DataFrame:
    """The frame of runs that recorded these directions of their metrics; None where none was declared."""
    facts = {name: {"higher_is_better": higher, "range": None} for name, higher in directions.items()}
    return frame.assign(record=[{"metric_facts": facts} for _ in range(len(frame))])


def test_costs_are_better_low() -> None:
    frame = study({"lora": 0.7, "dora": 0.8})
    for cost in ("step_seconds", "retention_after", "loss", "saved_bytes"):
        frame[cost] = frame["test"]
        assert cells(frame, by=["variant"], value=cost).best().key["variant"] == "lora"


def test_the_best_is_in_the_direction_that_the_metric_declared() -> None:
    frame = study({"lora": 0.7, "dora": 0.8}, metric="brier")
    lower, higher = (cells(judged(frame, brier=d), by=["variant"]) for d in (False, True))
    assert (lower.best().key["variant"], higher.best().key["variant"]) == ("lora", "dora")
    assert (lower.better, higher.better) == ("lower", "higher")
    frame["metrics.test.brier"] = frame["test"]
    of_split = cells(judged(frame, brier=False), by=["variant"], value="metrics.test.brier")
    assert of_split.best().key["variant"] == "lora"


def test_metrics_of_opposite_directions_do_not_compare() -> None:
    frame = study({"lora": 0.7, "dora": 0.8}, metric="brier")
    frame.loc[0, "metric"] = "accuracy"  # the package's own: its direction needs no record
    with pytest.raises(ValueError, match="of the metrics accuracy, brier some are better high and some low"):
        cells(judged(frame, brier=False), by=["variant"])


def test_one_name_with_two_directions_is_refused() -> None:
    frame = study({"lora": 0.7, "dora": 0.8}, metric="mine")
    both = pd.concat([judged(frame[:5], mine=True), judged(frame[5:], mine=False)])
    with pytest.raises(ValueError, match="different metrics called mine"):
        cells(both, by=["variant"])


@pytest.mark.parametrize("record", [True, False])
def test_without_a_declared_direction_there_are_means_and_no_best(record: bool) -> None:
    frame = study({"lora": 0.7, "dora": 0.9}, metric="mine")
    table = cells(judged(frame, mine=None) if record else frame, by=["variant"])
    assert [round(cell.mean, 1) for cell in table.cells] == [0.7, 0.9] and table.better == ""
    assert any("no best test: nothing declares its direction" in w for w in table.warnings)
    for refused in (table.best, table.tied, table.against_best, lambda: better(frame, "test")):
        with pytest.raises(ValueError, match="give the metric's class higher_is_better = True or False"):
            refused()


def test_tuning_follows_the_declared_direction_and_refuses_without_one() -> None:
    frame = tuned(CHOICES).assign(metric="brier")
    (cell,) = cells(judged(frame, brier=False), by=["variant"], tune=["lr"]).cells
    assert cell.chosen == {"lr": 0.01}
    with pytest.raises(ValueError, match="no best validation: nothing declares its direction"):
        cells(frame, by=["variant"], tune=["lr"])


CHOICES = {"lora": {0.01: (0.6, 0.9), 0.02: (0.8, 0.7), 0.04: (0.7, 0.95)}}


def test_tuning_looks_at_validation_alone() -> None:
    (cell,) = cells(tuned(CHOICES), by=["variant"], tune=["task.lr"]).cells
    assert (cell.chosen, cell.tries, cell.n) == ({"task.lr": 0.02}, 3, 3)
    assert cell.mean == pytest.approx(0.7, abs=0.01)


def test_no_test_score_can_change_a_choice() -> None:
    rng = np.random.default_rng(0)
    frame = tuned({v: {lr: (rng.uniform(), 0.5) for lr in (0.1, 0.2, 0.3)} for v in ("lora", "dora")})
    chosen = []
    for _ in range(20):
        frame["test"] = rng.uniform(size=len(frame))
        chosen.append([str(c.chosen) for c in cells(frame, by=["variant"], tune=["lr"]).cells])
    assert all(choice == chosen[0] for choice in chosen)
    frame["validation"] = -frame["validation"]
    assert [str(c.chosen) for c in cells(frame, by=["variant"], tune=["lr"]).cells] != chosen[0]


def test_unequal_tuning_budgets_are_said() -> None:
    both = {"lora": CHOICES["lora"], "dora": {0.02: (0.8, 0.8)}}
    (warning,) = [w for w in cells(tuned(both), by=["variant"], tune=["lr"]).warnings if "tuning" in w]
    assert "variant=lora: 3" in warning and "variant=dora: 1 (lr=0.02)" in warning
    other = {"lora": {0.01: (0.6, 0.6), 0.02: (0.7, 0.6)}, "dora": {0.02: (0.7, 0.6), 0.04: (0.6, 0.6)}}
    assert any("unequal tuning" in w for w in cells(tuned(other), by=["variant"], tune=["lr"]).warnings)
    equal = {v: CHOICES["lora"] for v in ("lora", "dora")}
    assert not any("unequal tuning" in w for w in cells(tuned(equal), by=["variant"], tune=["lr"]).warnings)


def test_a_try_that_some_seeds_did_not_survive_is_not_chosen() -> None:
    frame = tuned({"lora": {0.01: (0.6, 0.6), 0.02: (0.9, 0.9), 0.04: (0.5, 0.5)}})
    frame.loc[(frame["lr"] == 0.02) & (frame["seed"] == 1), "state"] = "diverged"
    table = cells(frame, by=["variant"], tune=["lr"])
    assert table.cells[0].chosen == {"lr": 0.01} and table.cells[0].tries == 3
    assert any("not eligible, for want of all 3 seeds: lr=0.02 (2)" in w for w in table.warnings)


def test_with_seed_auto_a_rate_is_chosen_by_the_first_seeds_as_the_sweep_chose_it() -> None:
    frame = tuned({"lora": {0.01: (0.6, 0.6), 0.02: (0.7, 0.8), 0.04: (0.5, 0.5)}}, seeds=range(6))
    frame.loc[(frame["lr"] == 0.02) & (frame["seed"] >= 3), "validation"] = 0.1
    frame = frame[(frame["lr"] == 0.02) | (frame["seed"] < 3)]
    plan = {f"config.seeds.{name}": [value] for name, value in asdict(Plan(first=3, most=6)).items()}
    planned = frame.assign(**{name: value * len(frame) for name, value in plan.items()})
    (cell,) = (table := cells(planned, by=["variant"], tune=["lr"])).cells
    assert cell.chosen == {"lr": 0.02} and cell.n == 6 and "over its first 3 seeds" in table.rule
    assert not any("not eligible" in w for w in table.warnings)


def test_a_choice_at_the_edge_of_the_grid_is_said() -> None:
    edge = {"lora": {0.01: (0.6, 0.9), 0.02: (0.7, 0.7), 0.04: (0.8, 0.95)}}
    warnings = cells(tuned(edge), by=["variant"], tune=["lr"]).warnings
    assert any("the lr chosen (0.04) is the greatest tried" in w for w in warnings)
    assert not any("tried" in w for w in cells(tuned(CHOICES), by=["variant"], tune=["lr"]).warnings)


def test_comparing_what_was_chosen_by_is_said_to_flatter() -> None:
    table = cells(tuned(CHOICES), by=["variant"], tune=["lr"], value="validation")
    assert any("flatters" in w for w in table.warnings)


def test_tuning_without_validation_is_refused() -> None:
    frame = tuned(CHOICES).assign(validation=math.nan)
    with pytest.raises(ValueError, match="needs validation scores"):
        cells(frame, by=["variant"], tune=["lr"])


def with_likelihood() -> pd.DataFrame:
    """Three rates, of which the second has the best score and the first the best likelihood."""
    frame = tuned(CHOICES)
    return frame.assign(validation_nll=10 * frame["lr"] + frame["validation"], test_nll=frame["test"])


def test_where_likelihoods_are_compared_they_choose_and_less_is_better() -> None:
    frame = with_likelihood()
    (cell,) = cells(frame, by=["variant"], value="test_nll", tune=["lr"]).cells
    assert cell.chosen == {"lr": 0.01}
    table = cells(frame, by=["variant"], value="test", tune=["lr"])
    assert table.cells[0].chosen == {"lr": 0.02} and "by its mean validation over seeds" in table.rule
    rule = cells(frame, by=["variant"], value="test_nll", tune=["lr"]).rule
    assert "chosen for each cell by its mean validation_nll over seeds, never by test" in rule
    frame.loc[0, "validation_nll"] = math.nan
    (old,) = cells(frame, by=["variant"], value="test_nll", tune=["lr"]).cells
    assert old.chosen == {"lr": 0.02}, "not where runs lack it"


def test_a_claim_about_likelihoods_chooses_by_them() -> None:
    frame = with_likelihood().assign(steps=200, batch_size=16, experiment="")
    (found,) = Evidence(frame).of("")
    one = found.by_seed({"variant": "lora"}, "test_nll", ["lr"])
    other = found.by_seed({"variant": "lora"}, "test", ["lr"])
    assert (one > 0.8).all() and (other < 0.8).all()


def test_an_axis_that_nobody_named_is_no_average() -> None:
    with pytest.raises(ValueError, match=r"variant=lora differ in lr \(0.01, 0.02, 0.04\)"):
        cells(tuned(CHOICES), by=["variant"])
    mixed = study({"lora": 0.7}).assign(**{"config.trainer.warmup_steps": [1, 1, 1, 1, 2]})
    with pytest.raises(ValueError, match=r"config\.trainer\.warmup_steps"):
        cells(mixed, by=["variant"])
    quiet = study({"lora": 0.7}).assign(**{"config.threads": range(5)})
    assert cells(quiet, by=["variant"]).cells[0].n == 5


def test_an_axis_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"no axis 'varient'\. Near are: variant"):
        cells(study({"lora": 0.7}), by=["varient"])


def test_several_tasks_are_compared_each_by_itself() -> None:
    frame = pd.concat([study({"lora": 0.7, "dora": 0.9}, task=task) for task in ("sql", "nli")])
    table = cells(frame.reset_index(drop=True), by=["task", "variant"])
    with pytest.raises(ValueError, match="2 tasks do not compare"):
        table.best()
    parts = table.within("task")
    assert list(parts) == ["sql", "nli"] and [len(part.cells) for part in parts.values()] == [2, 2]
    assert all(part.best().key["variant"] == "dora" for part in parts.values())
    with pytest.raises(ValueError, match="not laid out by rank"):
        table.within("rank")


def test_runs_that_diverged_are_said_where_their_cell_is() -> None:
    frame = study({"lora": 0.7, "dora": 0.9})
    frame.loc[[0, 1], "state"] = "diverged"
    assert any("variant=lora: 2 seeds diverged" in w for w in cells(frame, by=["variant"]).warnings)
    frame.loc[:4, "state"] = "diverged"
    table = cells(frame, by=["variant"])
    assert len(table.cells) == 1
    assert any("variant=lora: every run diverged" in w for w in table.warnings)


def test_a_score_that_is_missing_is_not_zero() -> None:
    frame = study({"lora": 0.7, "dora": 0.9})
    frame.loc[0, "test"] = math.nan
    table = cells(frame, by=["variant"])
    assert table.cells[0].n == 4 and any("1 done runs have no test" in w for w in table.warnings)


def test_a_test_set_of_four_images_is_said() -> None:
    frame = study({"lora": 0.5, "dora": 0.9}).assign(**{"data.test.size": 4})
    warnings = cells(frame, by=["variant"]).warnings
    assert any("4 items: one of them moves a score by 0.25" in w for w in warnings)


def test_data_seeds_that_are_crossed_with_seeds_are_runs_of_their_own() -> None:
    rows = [
        run(s, variant=v, data_seed=d, run=f"{v}{s}{d}", test=0.5 + s / 10 + d / 100)
        | {"adapter.sha256": None}
        for v in ("lora", "dora")
        for s in (0, 1)
        for d in (0, 1, 2)
    ]
    table = cells(pd.DataFrame(rows), by=["variant"])
    assert [cell.n for cell in table.cells] == [6, 6]
    assert list(table.cells[0].values.index)[:3] == ["0/0", "0/1", "0/2"]


def test_scores_per_item_find_their_seeds() -> None:
    frame = study({"lora": 0.7, "dora": 0.9}).sample(frac=1, random_state=2).reset_index(drop=True)
    table = cells(frame, by=["variant"])
    rng = np.random.default_rng(0)
    examples = pd.DataFrame(
        {run: rng.uniform(size=40) < mean for run, mean in zip(frame["run"], frame["test"], strict=True)}
    ).astype(float)
    a, b = (cell.scores(examples) for cell in table.cells)
    seeds = dict(zip(frame["run"], frame["seed"], strict=True))
    for cell, scores in zip(table.cells, (a, b), strict=True):
        for name in cell.runs:
            assert scores[seeds[name]].equals(examples[name].rename(seeds[name]))
    assert paired_items(a, b).n == 5


def test_the_rule_says_how_the_table_was_made() -> None:
    rule = cells(tuned(CHOICES), by=["variant"], tune=["task.lr"]).rule
    assert "task.lr chosen for each cell by its mean validation over seeds, never by test" in rule
    assert "Holm" in rule and "95 %" in rule

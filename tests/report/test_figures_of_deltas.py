"""Figures of ΔW show means over matrices and then over runs, beside what chance gives."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import delta_tables

from lora_zoo.report import figures
from lora_zoo.report.figures import Axis, Nothing, line, series_styles
from lora_zoo.report.figures.planes import Bands, Marks, Points
from lora_zoo.report.figures.style import GREY

TABLES = delta_tables()
END = TABLES[TABLES["step"] == 30]


def test_singular_values_are_shown_relative_to_the_first() -> None:
    q, v = figures.decay(END, ["rank"]).panels
    assert isinstance(q, Bands) and (q.title, v.title) == ("q", "v")
    rows = q.of("r8")
    assert list(rows.x) == list(range(1, 9)) and list(rows.y) == pytest.approx([0.5**i for i in range(8)])
    assert len(q.of("r64").x) == 20, "what is zero to rounding, below 1e-6 of the first, is left out"


def test_a_band_holds_the_middle_of_the_matrices() -> None:
    table = pd.DataFrame({"role": "q", "rank": 2, "singular_values": [[1.0, i / 10] for i in range(1, 10)]})
    (panel,) = figures.decay(table, ["rank"]).panels
    rows = panel.of("r2")
    assert (rows.low.iloc[1], rows.y.iloc[1], rows.high.iloc[1]) == pytest.approx((0.18, 0.5, 0.82))


def test_of_no_change_there_is_no_spectrum() -> None:
    with pytest.raises(Nothing, match="no ΔW differs from zero"):
        figures.decay(pd.DataFrame({"role": ["q"], "singular_values": [[0.0, 0.0]]}), [])


def test_points_are_means_over_matrices_then_over_runs() -> None:
    stable, effective = figures.ranks(END, ["variant"]).panels
    assert isinstance(stable, Marks) and stable.x.log and stable.y.log
    rows = effective.of("LoRA")
    assert list(rows.x) == [4, 8, 64] and list(rows.y) == [3, 3, 3]
    low, high = stats.t.interval(0.95, 2, 3, stats.sem([2, 3, 4]))
    assert (rows.low.iloc[0], rows.high.iloc[0]) == pytest.approx((low, high)), (
        "three runs, not twelve matrices"
    )
    assert list(stable.of("r").y) == list(effective.of("r").y) == [4, 8, 64]


def test_a_run_counts_once_however_many_matrices_it_has() -> None:
    uneven = END[(END["seed"] > 0) | ((END["role"] == "q") & (END["layer"] == 0))]
    (_, panel) = figures.ranks(uneven, ["variant"]).panels
    assert list(panel.of("PiSSA").y) == [3, 3, 3]


def test_what_is_in_w_stands_between_its_own_and_chance() -> None:
    projected, factor = figures.amplification(END, "rank").panels
    assert isinstance(projected, Marks)
    assert list(projected.of("all runs").y) == [8, 16, 128]
    assert list(projected.of("W's own").y) == [40, 80, 640]
    assert list(projected.of("random").y) == [4, 8, 64]
    expected = [30 * np.mean([1, 1.1, 1.2]) * 1.5 / (2 * rank) for rank in (4, 8, 64)]
    assert list(factor.of("all runs").y) == pytest.approx(expected)
    assert factor.baselines.empty


def test_cells_share_a_panel_only_where_they_share_the_baselines() -> None:
    chart = figures.amplification(END, "layer", ["variant", "rank"])
    *projected, _ = chart.panels
    assert [panel.title for panel in projected] == [f"first {r} directions" for r in (4, 8, 64)]
    assert projected[0].names == ["LoRA · r4", "PiSSA · r4"]
    other = END.assign(base=END["base"] * np.where(END["variant"] == "lora", 1, 2))
    titles = [panel.title for panel in figures.amplification(other, "rank", ["variant"]).panels]
    assert titles == ["LoRA: first r directions", "PiSSA: first r directions", "amplification"]


def test_a_matrix_outside_of_the_layers_has_no_place_along_them() -> None:
    outside = END.head(1).assign(layer=pd.NA, own=99.0, role="head")
    chart = figures.amplification(pd.concat([END, outside]), "layer", ["rank"])
    assert chart.alt == figures.amplification(END, "layer", ["rank"]).alt


def test_energy_is_summed_over_tenths_and_a_random_change_has_equal_parts() -> None:
    (panel,) = figures.overlap(END, ["variant"]).panels
    assert list(panel.of("LoRA").y) == pytest.approx([0.1] * 10)
    assert list(panel.of("random").y) == pytest.approx([0.1] * 10)
    assert list(panel.of("PiSSA").y) == pytest.approx([1] + [0] * 9)


@pytest.mark.parametrize("K", [3, 10, 17, 128])
def test_no_energy_is_lost_between_tenths(K: int) -> None:
    profile = np.random.default_rng(0).dirichlet(np.ones(K))
    expected = max(1, round(K / 10)) / (2 * K)  # of a matrix that is twice as wide as high
    (panel,) = figures.overlap(pd.DataFrame({"profile": [profile.tolist()], "expected": [expected]})).panels
    assert panel.rows.y.sum() == pytest.approx(1)
    assert list(panel.of("random").y) == pytest.approx([0.05] * 10)


def test_full_fine_tuning_is_a_line_across_the_ranks() -> None:
    full = END[END["rank"] == 64].assign(variant="full", rank=float("nan"), intruders=0)
    chart = figures.intruders(pd.concat([END[END["variant"] == "lora"], full]))
    (panel,) = chart.panels
    assert list(panel.of("LoRA").y) == [17, 9, 2]
    assert set(panel.baselines.series) == {"Full fine-tuning"}
    assert (list(panel.of("Full fine-tuning").x), list(panel.of("Full fine-tuning").y)) == (
        [4, 8, 64],
        [0, 0, 0],
    )
    assert "0.28" in chart.caption and "10 directions" in panel.y.title


def test_what_cannot_be_judged_is_no_intruder_and_no_zero() -> None:
    lora = END[END["variant"] == "lora"].astype({"intruders": object})
    lora.loc[lora["role"] == "v", "intruders"] = None
    (panel,) = figures.intruders(lora).panels
    assert list(panel.of("LoRA").y) == [17, 9, 2]
    with pytest.raises(Nothing, match="no intruders"):
        figures.intruders(lora.assign(intruders=None))
    with pytest.raises(Nothing, match="no run has a rank"):
        figures.intruders(END.assign(rank=float("nan")))


def test_growth_is_shown_by_step() -> None:
    norm, rank = figures.evolution(TABLES, ["variant"]).panels
    rows = norm.of("LoRA")
    assert list(rows.x) == [10, 20, 30] and list(rows.y) == pytest.approx([0.165, 0.33, 0.495])
    assert norm.x.title == "optimiser step" and rank.y.title == "effective rank of ΔW"


def test_the_correlation_is_that_of_the_points() -> None:
    lora, pissa = figures.magnitude_direction(TABLES, ["variant"]).panels
    assert isinstance(lora, Points) and lora.title == "LoRA: correlation +1.00"
    part = TABLES[TABLES["variant"] == "pissa"]
    r = np.corrcoef(part["direction_change"], part["magnitude_change"])[0, 1]
    assert r < 0 and pissa.title == f"PiSSA: correlation {r:+.2f}"
    assert lora.names == ["step 10", "step 20", "step 30"]
    assert len(lora.rows) == len(part) == 108
    assert set(lora.of("step 30").x) == set(END[END["variant"] == "lora"]["direction_change"])


def test_the_table_of_one_adapter_needs_neither_runs_nor_steps() -> None:
    one = END[END["run"] == "lora-r8-s0"].drop(columns=["run", "variant", "seed", "step"])
    (panel,) = figures.magnitude_direction(one, []).panels
    assert panel.title.startswith("all runs") and len(panel.rows) == 4
    assert panel.names == ["step end"]
    (panel,) = figures.overlap(one).panels
    assert panel.rows.low.isna().all(), "one run has no interval"


def test_baselines_are_drawn_and_named_beside_their_ends() -> None:
    base = line("chance <1>", [1, 2], [5, 500])
    panel = Marks("", Axis("x"), Axis("y", log=True), line("a", [1, 2], [1, 2]), baselines=base)
    spec = panel.responsive(series_styles([("a", "")]))
    drawn, words, _ = spec["layer"]
    assert [row["y"] for row in drawn["data"]["values"]] == [5, 500]
    assert drawn["encoding"]["color"] == {"value": GREY} and drawn["encoding"]["detail"] == {
        "field": "series"
    }
    assert [row["y"] for row in words["data"]["values"]] == [500]
    assert words["encoding"]["text"] == {"field": "series"}
    low, high = spec["encoding"]["y"]["scale"]["domain"]
    assert low <= 1 and high >= 500, "the axis holds the baselines, too"
    assert spec["encoding"]["y"]["axis"]["values"] == [1, 10, 100], "and so do its ticks"
    assert "chance <1>: from 5 at 1 to 500 at 2" in panel.describe() and panel.names == ["a"]


def test_a_notebook_shows_the_picture_its_words_and_the_caption() -> None:
    chart = figures.Chart(
        "a < b", "c & d", [Points("", Axis("x"), Axis("y"), line("s", [1], [2]))], series_styles([("s", "")])
    )
    shown = chart._repr_html_()
    assert "data:image/svg+xml;base64," in shown and "http" not in shown
    assert 'alt="a &lt; b.' in shown and "<figcaption>c &amp; d</figcaption>" in shown

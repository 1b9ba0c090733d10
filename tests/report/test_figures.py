"""Figures show the numbers of the frame, both renderers the same ones, and say what they cannot show."""

import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from scipy import stats
from synthetic import delta_tables, sweep

from lora_zoo import runs as results
from lora_zoo.report import figures
from lora_zoo.report.figures import Axis, Chart, Nothing, Series
from lora_zoo.report.figures.cells import MOST
from lora_zoo.report.figures.heat import Heat
from lora_zoo.report.figures.lines import Bands, Front, Marks
from lora_zoo.report.figures.looks import kinds

RUNS = sweep(ranks=(1, 2, 8, 64), targets=("q", "q,v"), tasks=("pocket-sql", "pocket-nli"))
BY = ["task", "variant", "target_modules", "rank"]
TABLES = delta_tables()
SIMILARITY = pd.DataFrame([[1.0, 0.5], [0.25, 0.125]], index=[1, 2], columns=[1, 2])
GREAT = pd.DataFrame(0.5, index=range(1, 65), columns=range(1, 65))


def curves(runs: pd.DataFrame = RUNS, **options: str) -> Chart:
    return figures.curves(runs, results.histories(runs), ["variant", "rank"], **options)


CHARTS: dict[str, Callable[[], Chart]] = {
    "curves": curves,
    "seconds": lambda: curves(against="seconds"),
    "against": lambda: figures.against(RUNS, "rank", BY),
    "grid": lambda: figures.grid(RUNS, "target_modules", "rank", BY),
    "pareto": lambda: figures.pareto(RUNS, "trainable", ["variant", "rank"]),
    "pareto of one task": lambda: figures.pareto(sweep(), "trainable", ["variant"]),
    "profiles": lambda: figures.profiles(RUNS, "variant", BY),
    "ranks": lambda: figures.layer_ranks(results.updates(RUNS.head(3))),
    "spectra": lambda: figures.spectra(results.updates(RUNS[RUNS["rank"] == 8])),
    "subspaces": lambda: figures.subspaces({"r8 in r64": SIMILARITY}),
    "many subspaces": lambda: figures.subspaces({"64 x 64": GREAT}, dimension=128),
    "decay": lambda: figures.decay(TABLES, ["rank"]),
    "ranks of ΔW": lambda: figures.ranks(TABLES, ["variant"]),
    "amplification": lambda: figures.amplification(TABLES, "rank", ["variant"]),
    "amplification by layer": lambda: figures.amplification(TABLES, "layer", ["variant", "rank"]),
    "touched": lambda: figures.touched(TABLES, ["variant"]),
    "intruders": lambda: figures.intruders(TABLES),
    "evolution": lambda: figures.evolution(TABLES, ["variant", "rank"]),
    "ΔM and ΔD": lambda: figures.magnitude_direction(TABLES, ["variant"]),
}


@pytest.fixture(scope="module", params=CHARTS)
def chart(request: pytest.FixtureRequest) -> Chart:
    return CHARTS[request.param]()


def series(panel: Bands | Marks | Front, name: str) -> Series:
    (found,) = [one for one in panel.series if one.name == name]
    return found


def test_a_chart_is_drawn_in_every_format_and_the_same_each_time(chart: Chart, tmp_path: Path) -> None:
    svg, pdf, png = chart.save(tmp_path / "once" / "chart")
    assert ET.fromstring(svg.read_bytes()).tag.endswith("svg")
    assert pdf.read_bytes().startswith(b"%PDF") and png.read_bytes().startswith(b"\x89PNG")
    fresh = Chart(chart.title, chart.caption, chart.panels, chart.looks)
    again = fresh.save(tmp_path / "again" / "chart")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in (svg, pdf, png)]


def test_plotly_takes_every_panel(chart: Chart) -> None:
    for drawn in chart.interactive():
        assert go.Figure(drawn).data, "a trace that plotly knows"


def test_axes_are_labelled_and_the_words_for_the_blind_name_every_series(chart: Chart) -> None:
    drawn = chart.interactive()
    for panel, one in zip(chart.panels, drawn, strict=True):
        for axis in ("xaxis", "yaxis"):
            assert one["layout"][axis]["title"]["text"]
        assert all(name in panel.said() for name in panel.names)
    axes = [axes for axes in chart.figure().axes if axes.axison and axes.get_label() != "<colorbar>"]
    assert len(axes) == len(chart.panels) and all(a.get_xlabel() and a.get_ylabel() for a in axes)
    assert chart.title in chart.alt and chart.caption


def test_no_words_are_cut_off(chart: Chart) -> None:
    figure = chart.figure()
    words = [word for axes in figure.axes for word in (axes.xaxis.label, axes.yaxis.label, *axes.texts)]
    words += [text for text in figure.findobj(Text) if text.get_text() in named(chart)]
    for word in words:
        box = word.get_window_extent()
        inside = box.x0 > -2 and box.y0 > -2 and box.x1 < figure.bbox.x1 + 2 and box.y1 < figure.bbox.y1 + 2
        assert inside, f"{word.get_text()!r} at {box}"


def named(chart: Chart) -> set[str]:
    return {chart.title, *(panel.title for panel in chart.panels), *(name for name, _, _ in chart.legend)} - {
        ""
    }


def test_no_two_series_of_a_chart_look_alike(chart: Chart) -> None:
    seen = [(look.colour, look.line, look.point) for _, look, _ in chart.legend]
    assert len(set(seen)) == len(seen)


@given(st.integers(1, 10), st.integers(1, 5))
def test_cells_of_ten_groups_and_five_members_look_different(groups: int, members: int) -> None:
    looks = kinds((f"g{g}", f"m{m}") for g in range(groups) for m in range(members))
    told = {(look.colour, look.line, look.point) for look in looks.values()}
    assert len(told) == len(looks) == groups * members


def test_a_curve_is_the_seeds_mean_and_its_band_their_range() -> None:
    (panel,) = curves(sweep()).panels
    line = series(panel, "dora · r8")
    losses = {step: [(2 + seed / 10) / step for seed in range(3)] for step in (10, 20, 30)}
    assert list(line.x) == [10, 20, 30]
    assert list(line.y) == pytest.approx([np.mean(v) for v in losses.values()])
    assert list(line.low) == pytest.approx([min(v) for v in losses.values()])
    assert list(line.high) == pytest.approx([max(v) for v in losses.values()])
    assert panel.y.title == "training loss (nats)"


def test_seconds_are_those_logged_or_steps_times_the_median_step() -> None:
    runs = sweep(variants=("dora",), ranks=(2,))
    (panel,) = curves(runs, against="seconds").panels
    assert list(panel.series[0].x) == pytest.approx([0.6, 1.2, 1.8])
    logged = results.histories(runs).assign(seconds=lambda table: table["step"] * 2.0)
    (panel,) = figures.curves(runs, logged, ["rank"], against="seconds").panels
    assert list(panel.series[0].x) == [20, 40, 60] and panel.x.title == "training time (s)"


def test_a_single_seed_has_no_band_and_no_interval() -> None:
    runs = sweep(seeds=1)
    assert all(not line.low for line in curves(runs).panels[0].series)
    (panel,) = figures.against(runs, "rank", ["variant"]).panels
    assert all(math.isnan(low) for line in panel.series for low in line.low)


def test_points_are_means_with_t_intervals_along_the_sorted_axis() -> None:
    chart = figures.against(RUNS, "rank", BY)
    panel = next(panel for panel in chart.panels if panel.title == "pocket-nli")
    line = series(panel, "lora · q,v")
    assert list(line.x) == [1, 2, 8, 64] and panel.x.log
    scores = RUNS.query(
        "task == 'pocket-nli' and variant == 'lora' and target_modules == 'q,v' and rank == 8"
    )
    low, high = stats.t.interval(0.95, 2, scores["test"].mean(), stats.sem(scores["test"]))
    assert (line.y[2], line.low[2], line.high[2]) == pytest.approx((scores["test"].mean(), low, high))
    assert panel.y.title == "accuracy, test (share)"


def test_a_grid_has_numbers_in_order_and_holes_where_nothing_was_run() -> None:
    runs = RUNS[(RUNS["target_modules"] != "q") | (RUNS["rank"] != 8)]
    chart = figures.grid(runs, "target_modules", "rank", ["variant"])
    assert [panel.title for panel in chart.panels] == [
        f"pocket-{task} · {variant}" for task in ("nli", "sql") for variant in ("dora", "lora")
    ]
    heat = chart.panels[-1]
    assert (
        isinstance(heat, Heat)
        and list(heat.columns) == ["1", "2", "8", "64"]
        and list(heat.rows) == ["q", "q,v"]
    )
    assert math.isnan(heat.values[0][2])
    assert heat.values[1] == pytest.approx([0.55, 0.59, 0.67, 0.79])
    for panel in chart.panels:
        assert (panel.low, panel.high) == pytest.approx((0.53, 0.84)), "one scale for all panels"
    assert heat.plotly({})["data"][0]["z"][0][2] is None


POINT = st.tuples(st.integers(1, 9), st.integers(0, 9))


@given(st.lists(POINT, min_size=1, max_size=12))
def test_on_the_front_is_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    panel = Front("", Axis("cost"), Axis("score"), [Series("a", *zip(*points, strict=True))])
    beaten = {(x, y) for x, y in points if any((u <= x and v > y) or (u < x and v >= y) for u, v in points)}
    assert set(panel.stairs) == set(points) - beaten


@given(st.lists(POINT, min_size=1, max_size=12))
def test_where_less_is_better_the_front_is_that_of_the_mirrored_scores(points: list[tuple[int, int]]) -> None:
    x, y = zip(*points, strict=True)
    less = Front("", Axis("cost"), Axis("loss"), [Series("a", x, y)], -1)
    mirrored = Front("", Axis("cost"), Axis("score"), [Series("a", x, [-v for v in y])])
    assert list(less.stairs) == [(u, -v) for u, v in mirrored.stairs]


def test_the_front_of_a_loss_is_drawn_where_it_is_low() -> None:
    runs = sweep(metric="loss")
    (panel,) = figures.pareto(runs, "trainable", ["variant", "rank"]).panels
    assert panel.stairs[0][1] == min(y for series in panel.series for y in series.y)
    assert "worse at every threshold" in figures.profiles(runs, "variant", ["rank"]).caption


def test_a_point_without_a_number_is_on_no_front() -> None:
    panel = Front("", Axis("cost"), Axis("score"), [Series("a", [1, math.nan, 2], [1, 9, math.nan])])
    assert list(panel.stairs) == [(1, 1)]


def test_the_front_names_its_cells() -> None:
    (panel,) = figures.pareto(sweep(), "trainable", ["variant", "rank"]).panels
    assert list(series(panel, "dora").x) == [4100, 16100] and list(series(panel, "dora").said) == ["r2", "r8"]
    assert panel.said().endswith("On the Pareto front: dora · r2, dora · r8, lora · r2, lora · r8.")
    bars = panel.plotly(figures.pareto(sweep(), "trainable", ["variant", "rank"]).looks)["data"][1]["error_y"]
    assert bars["array"] == pytest.approx(bars["arrayminus"]) and bars["array"][0] == pytest.approx(
        0.02484, abs=1e-4
    )


def test_a_profile_is_the_share_of_runs_above_each_score() -> None:
    chart = figures.profiles(RUNS, "variant", BY)
    line = series(chart.panels[0], "lora")
    scores = RUNS[RUNS["variant"] == "lora"]["test"].to_numpy()
    assert line.y[0] == 1.0
    reached = dict(zip(line.x, line.y, strict=True))  # of two points at one x, the lower
    for x, y in reached.items():
        if x != line.x[-1]:
            assert y == pytest.approx(np.mean(scores > x))


def test_a_profile_of_unequal_seeds_is_refused() -> None:
    with pytest.raises(Nothing, match="unequal numbers of seeds"):
        figures.profiles(RUNS.iloc[1:], "variant", BY)


def test_ranks_stand_at_their_layer_and_role() -> None:
    effective, numerical = figures.layer_ranks(results.updates(sweep(ranks=(8,)))).panels
    assert isinstance(effective, Heat) and isinstance(numerical, Heat)
    assert list(effective.rows) == ["q", "v"] and list(effective.columns) == ["0", "1"]
    assert effective.values == [[8.0, 7.5], [8.0, 7.5]] and numerical.values == [[8, 8], [8, 8]]


def test_spectra_leave_out_what_is_zero() -> None:
    chart = figures.spectra(results.updates(sweep(ranks=(8,))))
    assert [panel.title for panel in chart.panels] == ["q", "v"]
    line = series(chart.panels[0], "layer 1")
    assert list(line.x) == list(range(1, 9)) and list(line.y) == pytest.approx([2 * 0.5**i for i in range(8)])


def test_subspaces_are_shown_as_given_on_a_scale_from_0_to_1() -> None:
    (heat,) = figures.subspaces({"a": SIMILARITY}).panels
    assert isinstance(heat, Heat) and heat.values == SIMILARITY.to_numpy().tolist()
    assert (heat.low, heat.high) == (0, 1)


def test_beside_subspaces_stands_what_random_ones_have() -> None:
    *_, random = figures.subspaces({"a": SIMILARITY, "b": GREAT}, dimension=128).panels
    assert isinstance(random, Heat) and "128" in random.title
    assert random.values[7][63] == random.values[63][7] == 0.5 and random.values[0][0] == 1 / 128
    assert (len(random.values), len(random.values[0])) == (64, 64), "as great as the greatest of the others"


@pytest.mark.parametrize(("rows", "columns"), [(8, 64), (64, 64), (7, 32)])
def test_a_great_map_fits_a_page_and_its_labels_do_not_collide(rows: int, columns: int) -> None:
    table = pd.DataFrame(0.5, index=range(1, rows + 1), columns=range(1, columns + 1))
    (axes, *_) = figures.subspaces({"a": table}).figure().axes
    assert max(axes.figure.get_size_inches()) < 4
    assert not axes.texts, "no numbers in cells that are too small for them"
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent() for label in ticks]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_where_cells_are_many_there_are_more_panels_and_none_is_lost() -> None:
    runs = sweep(variants=("lora", "dora", "pissa"), ranks=(1, 2, 4, 8), targets=("q", "v", "q,v"))
    chart = figures.curves(runs, results.histories(runs), ["variant", "target_modules", "rank"])
    names = [f"{panel.title} {one.name}" for panel in chart.panels for one in panel.series]
    assert len(set(names)) == len(names) == 36
    assert all(len(panel.series) <= MOST for panel in chart.panels)


def test_runs_that_are_not_done_do_not_count() -> None:
    runs = sweep()
    runs.loc[runs["seed"] == 2, ["state", "test"]] = ["diverged", 99.0]
    (panel,) = figures.against(runs, "rank", ["variant"]).panels
    assert max(value for line in panel.series for value in line.y) < 1
    with pytest.raises(Nothing, match="no run is done"):
        figures.against(runs.assign(state="failed"), "rank", ["variant"])


def test_what_is_missing_is_named() -> None:
    with pytest.raises(Nothing, match="no saved_bytes"):
        figures.pareto(RUNS, "saved_bytes", ["variant"])
    with pytest.raises(Nothing, match="no eval_accuracy"):
        curves(y="eval_accuracy")


def test_names_are_text_to_both_renderers() -> None:
    runs = sweep(variants=(r"$\frac{1$", "<b>bold</b> & co"))
    chart = figures.against(runs, "rank", ["variant"])
    svg = chart.svg.decode()
    assert "\\frac{1" in svg
    names = [trace["name"] for trace in chart.interactive()[0]["data"]]
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in names and not any("<" in name for name in names)

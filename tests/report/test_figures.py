"""Figures show the numbers of the frame: their rows hold them, and their specifications those rows."""

import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import altair
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from synthetic import delta_tables, sweep

from lora_zoo import runs as results
from lora_zoo.report import figures
from lora_zoo.report.figure_list import figure_list
from lora_zoo.report.figures import Axis, Chart, Nothing, line, series_styles
from lora_zoo.report.figures.groups import MOST
from lora_zoo.report.figures.heat import MANY, Heat
from lora_zoo.report.figures.panels import Panel
from lora_zoo.report.figures.planes import Bands, Front, Marks
from lora_zoo.report.figures.rank_history import even_steps
from lora_zoo.report.figures.style import GREY

RUNS = sweep(ranks=(1, 2, 8, 64), targets=("q", "q,v"), tasks=("pocket-sql", "pocket-nli"))
BY = ["task", "variant", "target_modules", "rank"]
TABLES = delta_tables()
CHANGES = pd.DataFrame(
    [
        (run, step, f"model.layers.{layer}.self_attn.q_proj", "q", layer, rank + layer)
        for run, changes in {"00000000": [(0, 4), (10, 2), (20, 16)], "00000001": [(0, 4), (20, 8)]}.items()
        for layer in (0, 1)
        for step, rank in changes
    ],
    columns=["run", "step", "name", "role", "layer", "rank"],
)
MERGES = pd.DataFrame(
    [
        {"by": by, "options": options, "split": "test", "run": task, "task": task, "metric": "exact_match"}
        | {"alone": 0.9, "composed": composed}
        for by, options, composed in (("sum", "", 0.5), ("ties", "density=0.2", 0.25), ("sum", "", 0.7))
        for task in ("lists", "topic")
    ]
)
ROUTING = pd.DataFrame(
    [
        (run, "test", f"model.layers.{layer}.self_attn.q_proj", "q", layer, expert, load, math.log(2) / 2)
        for run, first in {"00000000": 0.5, "00000001": 0.75}.items()
        for layer in (0, 1)
        for expert, load in enumerate((first, 1 - first))
    ],
    columns=["run", "split", "name", "role", "layer", "expert", "load", "entropy"],
)
SIMILARITY = pd.DataFrame([[1.0, 0.5], [0.25, 0.125]], index=[1, 2], columns=[1, 2])
GREAT = pd.DataFrame(0.5, index=range(1, 65), columns=range(1, 65))


def curves(runs: pd.DataFrame = RUNS, **options: str) -> Chart:
    return figures.curves(runs, results.histories(runs), ["variant", "rank"], **options)


def memory(information: float = 6000.0) -> pd.DataFrame:
    """Runs that count bits, 1,000 a doubling of the rank, and forget a tenth of a nat for each of them."""
    runs = sweep(ranks=(1, 2, 8))
    bits = 1000 * (1 + np.log2(runs["rank"])) + 10 * runs["seed"]
    about = {"metric": "bits", "test": bits, "bits": bits, "zero_shot_test": -500.0}
    about |= {"bits_per_parameter": bits / runs["trainable"], "data.train.information": information}
    return runs.assign(**about, forgetting=bits / 10_000)


def differing() -> pd.DataFrame:
    """Runs of two variants whose ranks differ from matrix to matrix."""
    runs = sweep(ranks=(4,))
    for record in runs["updates"]:
        for number, row in enumerate(record):
            row["singular_values"] = [1.0] * (number + 1)
    return runs


CHARTS: dict[str, Callable[[], Chart]] = {
    "curves": curves,
    "seconds": lambda: curves(against="seconds"),
    "against": lambda: figures.against(RUNS, "rank", BY),
    "grid": lambda: figures.grid(RUNS, "target_modules", "rank", BY),
    "pareto": lambda: figures.pareto(RUNS, "trainable", ["variant", "rank"]),
    "pareto of one task": lambda: figures.pareto(sweep(), "trainable", ["variant"]),
    "bits": lambda: figures.learned(memory(), "rank", ["variant", "rank"]),
    "bits a parameter": lambda: figures.learned(
        memory(), "trainable", ["variant"], value="bits_per_parameter"
    ),
    "forgetting": lambda: figures.forgetting(memory(), ["variant", "rank"]),
    "profiles": lambda: figures.profiles(RUNS, "variant", BY),
    "ranks": lambda: figures.layer_ranks(results.updates(RUNS.head(3))),
    "ranks over steps": lambda: figures.rank_history(CHANGES, sweep(ranks=(8,)), ["variant"]),
    "routing": lambda: figures.routing(ROUTING, sweep(ranks=(8,)), ["variant"]),
    "merges": lambda: figures.merges(MERGES),
    "agreement": lambda: figures.agreement(differing(), ["variant"]),
    "spectra": lambda: figures.spectra(results.updates(RUNS[RUNS["rank"] == 8])),
    "subspaces": lambda: figures.subspaces({"r8 in r64": SIMILARITY}),
    "many subspaces": lambda: figures.subspaces({"64 x 64": GREAT}, dimension=128),
    "decay": lambda: figures.decay(TABLES, ["rank"]),
    "ranks of ΔW": lambda: figures.ranks(TABLES, ["variant"]),
    "amplification": lambda: figures.amplification(TABLES, "rank", ["variant"]),
    "amplification by layer": lambda: figures.amplification(TABLES, "layer", ["variant", "rank"]),
    "overlap": lambda: figures.overlap(TABLES, ["variant"]),
    "intruders": lambda: figures.intruders(TABLES),
    "evolution": lambda: figures.evolution(TABLES, ["variant", "rank"]),
    "ΔM and ΔD": lambda: figures.magnitude_direction(TABLES, ["variant"]),
}


def test_a_merge_s_cell_is_the_mean_over_models_and_the_first_row_each_run_alone() -> None:
    (panel,) = figures.merges(MERGES).panels
    cells = panel.rows.pivot_table("value", "row", "column", sort=False)
    assert [*cells.index] == ["alone", "sum", "ties density=0.2"] and [*cells] == ["lists", "topic", "mean"]
    assert cells.to_numpy().tolist() == pytest.approx(np.array([[0.9] * 3, [0.6] * 3, [0.25] * 3]))
    with pytest.raises(Nothing, match="no composed model was judged"):
        figures.merges(MERGES.iloc[:0])


@pytest.fixture(scope="module", params=CHARTS)
def chart(request: pytest.FixtureRequest) -> Chart:
    return CHARTS[request.param]()


Spec = dict[str, Any]


def layers(
    spec: Spec, outer: list[Spec] = (), encoding: Spec | None = None
) -> Iterator[tuple[Spec, list[Spec], Spec]]:
    """Each mark of a specification with its rows and its whole encoding, inherited ones included."""
    rows = spec["data"]["values"] if "data" in spec else outer
    encoding = {**(encoding or {}), **spec.get("encoding", {})}
    for inner in spec.get("layer", []):
        yield from layers(inner, rows, encoding)
    if "mark" in spec:
        yield spec["mark"], rows, encoding


def test_a_specification_is_valid_vega_lite(chart: Chart) -> None:
    altair.Chart.from_dict(without_rows(chart.spec))


def without_rows(spec: Any) -> Any:
    """Numbers are valid, and many."""
    if isinstance(spec, list):
        return [without_rows(inner) for inner in spec]
    if not isinstance(spec, dict):
        return spec
    return {key: value[:1] if key == "values" else without_rows(value) for key, value in spec.items()}


def test_every_mark_draws_columns_that_its_rows_have(chart: Chart) -> None:
    """Vega draws nothing, and says nothing, where a field is misspelt."""
    for panel in (*chart.spec["concat"], *chart.interactive()):
        drawn = list(layers(panel))
        assert drawn and any(rows for _, rows, _ in drawn)
        for mark, rows, encoding in drawn:
            channels = [
                c
                for channel in encoding.values()
                for c in (channel if isinstance(channel, list) else [channel])
            ]
            fields = {channel["field"] for channel in channels if "field" in channel}
            assert {"line": {"x", "y"}, "rect": {"row", "column", "value"}}.get(mark["type"], set()) <= fields
            assert all(fields <= set(row) for row in rows if mark.get("color") != GREY)


def test_what_is_drawn_are_the_panels_rows(chart: Chart) -> None:
    for panel, spec in zip(chart.panels, chart.interactive(), strict=True):
        value, keys = ("value", ["row", "column"]) if isinstance(panel, Heat) else ("y", ["series", "x"])
        rows = panel.rows.dropna(subset=[value])
        found = pd.DataFrame(spec["data"]["values"]).dropna(subset=[value])
        assert [*map(str, found[keys[0]])] == [*map(str, rows[keys[0]])]
        for name in {
            value,
            *(keys[1:] if not isinstance(panel, Heat) else ()),
            *({"low", "high"} & set(rows)),
        }:
            expected = rows[name].astype(float).to_numpy()
            np.testing.assert_allclose(found[name].astype(float).to_numpy(), expected, rtol=1e-5)


def test_series_are_told_apart_by_the_charts_styles(chart: Chart) -> None:
    for panel, spec in zip(chart.panels, chart.interactive(), strict=True):
        if isinstance(panel, Heat):
            continue
        color = spec["encoding"]["color"]["scale"]
        assert dict(zip(color["domain"], color["range"], strict=True)) == {
            n: s.colour for n, s in chart.styles.items()
        }
        assert set(panel.names) <= set(color["domain"])
        channel, index = ("shape", 2) if "points" in panel.shows else ("strokeDash", 1)
        (scale,) = [
            e[channel]["scale"]
            for m, _, e in layers(spec["layer"][-1])
            if m["type"] in ("point", "line") and channel in e
        ][:1]
        assert [tuple(value) if index == 1 else value for value in scale["range"]] == [
            s[index] for s in chart.styles.values()
        ]


def test_axes_are_labelled_and_the_words_for_the_blind_name_every_series(chart: Chart) -> None:
    for panel, spec in zip(chart.panels, chart.spec["concat"], strict=True):
        assert spec["encoding"]["x"]["axis"]["title"] == panel.x.title != ""
        assert spec["encoding"]["y"]["axis"]["title"] == panel.y.title != ""
        assert all(name in panel.describe() for name in panel.names)
    assert chart.title in chart.alt == chart.spec["description"] and chart.caption


def test_a_logarithmic_axis_holds_what_is_positive_and_draws_nothing_else(chart: Chart) -> None:
    for panel, spec in zip(chart.panels, chart.interactive(), strict=True):
        if isinstance(panel, Heat) or not panel.y.log:
            continue
        least, most = spec["encoding"]["y"]["scale"]["domain"]
        drawn = panel.rows["y"][panel.rows["y"] > 0]
        assert 0 < least <= drawn.min() <= drawn.max() <= most
        assert all(row["foot"] is None or row["foot"] > 0 for row in spec["data"]["values"])
        assert {"filter": "datum.y > 0"} in spec["layer"][-1]["transform"]


def test_a_reader_can_hide_each_series(chart: Chart) -> None:
    for panel, spec in zip(chart.panels, chart.interactive(), strict=True):
        assert {"name": "hidden", "value": []} in spec["params"] and spec["width"] == "container"
        if not isinstance(panel, Heat):
            assert {"filter": "indexof(hidden, datum.series) < 0"} in spec["layer"][-1]["transform"]


def test_no_words_are_lost_in_a_picture(chart: Chart) -> None:
    words = "".join(ET.fromstring(chart.svg).itertext()).replace(" ", "")
    for text in {chart.title, *(n for n, _, _ in chart.legend if len(chart.legend) > 1)}:
        assert text.replace(" ", "") in words
    for panel in chart.panels:
        for text in (panel.title, panel.x.title, panel.y.title):
            assert text.replace(" ", "") in words


@pytest.mark.parametrize("name", ["pareto", "grid", "decay"])
def test_a_chart_is_saved_in_every_format_and_the_same_each_time(name: str, tmp_path: Path) -> None:
    svg, pdf, png = CHARTS[name]().save(tmp_path / "once" / "chart")
    assert ET.fromstring(svg.read_bytes()).tag.endswith("svg")
    assert pdf.read_bytes().startswith(b"%PDF") and png.read_bytes().startswith(b"\x89PNG")
    again = CHARTS[name]().save(tmp_path / "again" / "chart", ("svg", "png"))
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in (svg, png)]
    width = float(ET.fromstring(svg.read_bytes()).get("width", ""))
    assert int.from_bytes(png.read_bytes()[16:20], "big") == pytest.approx(width / 96 * 300, abs=2), "300 dpi"


def test_a_picture_has_a_mark_for_every_point() -> None:
    chart = CHARTS["pareto"]()
    colours = {style.colour for style in chart.styles.values()}
    filled = [path for path in ET.fromstring(chart.svg).iter() if path.get("fill") in colours]
    assert len(filled) == sum(len(panel.rows) for panel in chart.panels) + len(chart.legend)


def test_no_two_series_of_a_chart_look_alike(chart: Chart) -> None:
    seen = [style for _, style, _ in chart.legend]
    assert len(set(seen)) == len(seen)


@given(st.integers(1, 10), st.integers(1, 5))
def test_groups_and_members_look_different(groups: int, members: int) -> None:
    styles = series_styles((f"g{g}", f"m{m}") for g in range(groups) for m in range(members))
    assert len(set(styles.values())) == len(styles) == groups * members


def test_a_curve_is_the_seeds_mean_and_its_band_their_range() -> None:
    (panel,) = curves(sweep()).panels
    rows = panel.of("DoRA · r8")
    losses = {step: [(2 + seed / 10) / step for seed in range(3)] for step in (10, 20, 30)}
    assert list(rows.x) == [10, 20, 30]
    assert list(rows.y) == pytest.approx([np.mean(v) for v in losses.values()])
    assert list(rows.low) == pytest.approx([min(v) for v in losses.values()])
    assert list(rows.high) == pytest.approx([max(v) for v in losses.values()])
    assert panel.y.title == "training loss (nats)"


def test_seconds_are_those_logged_or_steps_times_the_median_step() -> None:
    runs = sweep(variants=("dora",), ranks=(2,))
    (panel,) = curves(runs, against="seconds").panels
    assert list(panel.rows.x) == pytest.approx([0.6, 1.2, 1.8])
    logged = results.histories(runs).assign(seconds=lambda table: table["step"] * 2.0)
    (panel,) = figures.curves(runs, logged, ["rank"], against="seconds").panels
    assert list(panel.rows.x) == [20, 40, 60] and panel.x.title == "training time (s)"


def test_a_single_seed_has_no_band_and_no_interval() -> None:
    runs = sweep(seeds=1)
    assert curves(runs).panels[0].rows.low.isna().all()
    (panel,) = figures.against(runs, "rank", ["variant"]).panels
    assert panel.rows.low.isna().all()


def test_points_are_means_with_t_intervals_along_the_sorted_axis() -> None:
    chart = figures.against(RUNS, "rank", BY)
    panel = next(panel for panel in chart.panels if panel.title == "pocket-nli")
    rows = panel.of("LoRA · q,v")
    assert list(rows.x) == [1, 2, 8, 64] and panel.x.log and list(rows.note) == ["n = 3"] * 4
    scores = RUNS.query(
        "task == 'pocket-nli' and variant == 'lora' and target_modules == 'q,v' and rank == 8"
    )
    low, high = stats.t.interval(0.95, 2, scores["test"].mean(), stats.sem(scores["test"]))
    assert tuple(rows.iloc[2][["y", "low", "high"]]) == pytest.approx((scores["test"].mean(), low, high))
    assert panel.y.title == "accuracy, test (share)"


def test_bits_are_drawn_below_all_that_there_are() -> None:
    chart = figures.learned(memory(), "rank", ["variant", "rank"])
    (panel,) = chart.panels
    assert list(panel.of("LoRA").y) == pytest.approx([1010, 2010, 4010])
    assert list(panel.of("all there is").y) == [6000, 6000] and list(panel.of("all there is").x) == [1, 8]
    uneven = memory(pd.Series([1.0, 2.0] * 9))
    assert figures.learned(uneven, "rank", ["variant", "rank"]).panels[0].baselines.empty
    with pytest.raises(Nothing, match="no bits"):
        figures.learned(sweep(), "rank", ["variant"])


def test_bits_are_drawn_by_whatever_draws_a_sweep_that_counts_them() -> None:
    views = {view.heading: view for view in figure_list(memory(), ["variant", "rank"]).views}
    assert list(views["Bits learned"].charts) == [
        f"{what}, {of}" for what in ("bits learned", "bits learned per trainable parameter")
        for of in ("rank r", "trainable parameters")
    ]  # fmt: skip
    assert "Learning and forgetting" in views
    found = figure_list(sweep(), ["variant", "rank"])
    assert "Bits learned" not in {view.heading for view in found.views}
    assert any(line.startswith("Learning and forgetting") for line in found.absent)


def test_gain_and_forgetting_have_their_intervals() -> None:
    (panel,) = figures.forgetting(memory(), ["variant", "rank"]).panels
    row = panel.rows[(panel.rows["series"] == "LoRA") & (panel.rows["note"] == "r8")].iloc[0]
    bits = np.array([4000.0, 4010.0, 4020.0])
    low, high = stats.t.interval(0.95, 2, bits.mean(), stats.sem(bits))
    assert tuple(row[["y", "low", "high"]]) == pytest.approx((4510, low + 500, high + 500))
    assert tuple(row[["x", "left", "right"]]) == pytest.approx((0.401, low / 10_000, high / 10_000))
    assert panel.y.title == "gain in bits, test"
    (alone,) = figures.forgetting(memory().drop(columns="zero_shot_test"), ["variant", "rank"]).panels
    assert alone.y.title == "bits, test" and alone.rows["y"].max() == pytest.approx(4010)


def test_a_grid_has_numbers_in_order_and_holes_where_nothing_was_run() -> None:
    runs = RUNS[(RUNS["target_modules"] != "q") | (RUNS["rank"] != 8)]
    chart = figures.grid(runs, "target_modules", "rank", ["variant"])
    assert [panel.title for panel in chart.panels] == [
        f"pocket-{task} · {variant}" for task in ("nli", "sql") for variant in ("DoRA", "LoRA")
    ]
    heat = chart.panels[-1]
    assert isinstance(heat, Heat) and heat.columns == ["1", "2", "8", "64"] and heat.lines == ["q", "q,v"]
    assert numbers(heat)[0] == pytest.approx([0.53, 0.57, math.nan, 0.77], nan_ok=True)
    assert numbers(heat)[1] == pytest.approx([0.55, 0.59, 0.67, 0.79])
    for spec in chart.interactive():
        (domain,) = [e["color"]["scale"]["domain"] for m, _, e in layers(spec) if m["type"] == "rect"]
        assert domain == pytest.approx([0.53, 0.84]), "one scale for all panels"
    assert len(chart.interactive()[-1]["data"]["values"]) == 7, "nothing is drawn in the hole"


def test_a_grid_has_no_panel_for_runs_without_its_settings() -> None:
    full = sweep(variants=("full",)).assign(rank=math.nan)
    chart = figures.grid(pd.concat([sweep(alpha=8.0), sweep(), full]), "alpha", "rank", ["variant"])
    assert [panel.title for panel in chart.panels] == ["pocket-sql · DoRA", "pocket-sql · LoRA"]
    assert len(chart.svg) > 1000


def numbers(heat: Panel) -> list[list[float]]:
    return (
        heat.rows.pivot(index="row", columns="column", values="value")
        .loc[heat.lines, heat.columns]
        .to_numpy()
        .tolist()
    )


POINT = st.tuples(st.integers(1, 9), st.integers(0, 9))


@given(st.lists(POINT, min_size=1, max_size=12))
def test_on_the_front_is_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    panel = Front("", Axis("cost"), Axis("score"), line("a", *zip(*points, strict=True)))
    beaten = {(x, y) for x, y in points if any((u <= x and v > y) or (u < x and v >= y) for u, v in points)}
    assert set(stairs(panel)) == set(points) - beaten


def stairs(panel: Front) -> list[tuple[float, float]]:
    return list(panel.front.itertuples(index=False, name=None))


@given(st.lists(POINT, min_size=1, max_size=12))
def test_where_less_is_better_the_front_is_that_of_the_mirrored_scores(points: list[tuple[int, int]]) -> None:
    x, y = zip(*points, strict=True)
    less = Front("", Axis("cost"), Axis("loss"), line("a", x, y), -1)
    tracked = Front("", Axis("cost"), Axis("score"), line("a", x, [-v for v in y]))
    assert stairs(less) == [(u, -v) for u, v in stairs(tracked)]


def test_the_front_of_a_loss_is_drawn_where_it_is_low() -> None:
    runs = sweep(metric="loss")
    known = {"metric_facts": {"loss": {"higher_is_better": False}}}
    runs["record"] = [known] * len(runs)
    (panel,) = figures.pareto(runs, "trainable", ["variant", "rank"]).panels
    assert stairs(panel)[0][1] == panel.rows.y.min()
    assert "worse at every threshold" in figures.profiles(runs, "variant", ["rank"]).caption


def test_a_point_without_a_number_is_on_no_front() -> None:
    panel = Front("", Axis("cost"), Axis("score"), line("a", [1, math.nan, 2], [1, 9, math.nan]))
    assert stairs(panel) == [(1, 1)]


def test_the_front_names_its_cells() -> None:
    chart = figures.pareto(sweep(), "trainable", ["variant", "rank"])
    (panel,) = chart.panels
    dora = panel.of("DoRA")
    assert list(dora.x) == [4100, 16100] and list(dora.note) == ["r2", "r8"]
    assert panel.describe().endswith("On the Pareto front: DoRA · r2, DoRA · r8, LoRA · r2, LoRA · r8.")
    assert list(dora.high - dora.y) == pytest.approx(list(dora.y - dora.low))
    assert list(dora.high - dora.y) == pytest.approx([0.02484] * 2, abs=1e-4)
    drawn = {mark["type"]: (rows, encoding) for mark, rows, encoding in layers(chart.interactive()[0])}
    front, _ = drawn["line"]
    np.testing.assert_allclose([(row["x"], row["y"]) for row in front], stairs(panel))
    assert drawn["text"][1]["text"] == {"field": "note"}


def test_a_profile_is_the_share_of_runs_above_each_score() -> None:
    chart = figures.profiles(RUNS, "variant", BY)
    rows = chart.panels[0].of("LoRA")
    scores = RUNS[RUNS["variant"] == "lora"]["test"].to_numpy()
    assert rows.y.iloc[0] == 1.0 and chart.panels[0].stairs
    for x, y in zip(rows.x, rows.y, strict=True):
        assert y == pytest.approx(np.mean(scores > x))


def test_a_profile_of_unequal_seeds_is_refused() -> None:
    with pytest.raises(Nothing, match="unequal numbers of seeds"):
        figures.profiles(RUNS.iloc[1:], "variant", BY)


def test_ranks_stand_at_their_layer_and_role() -> None:
    effective, numerical = figures.layer_ranks(results.updates(sweep(ranks=(8,)))).panels
    assert isinstance(effective, Heat) and isinstance(numerical, Heat)
    assert effective.lines == ["q", "v"] and effective.columns == ["0", "1"]
    assert numbers(effective) == [[8.0, 7.5], [8.0, 7.5]] and numbers(numerical) == [[8, 8], [8, 8]]


def test_a_rank_holds_until_it_changes_and_seeds_are_averaged() -> None:
    """30 steps, a column each; the third run of the setting recorded no ranks, and dora none at all."""
    chart = figures.rank_history(CHANGES, sweep(ranks=(8,)), ["variant"])
    (heat,) = chart.panels
    assert isinstance(heat, Heat) and heat.title == "LoRA" and (heat.low, heat.high) == (0, 13)
    assert heat.lines == ["q 0", "q 1"] and heat.columns == [str(step) for step in range(31)]
    assert numbers(heat)[0] == [4] * 10 + [3] * 10 + [12] * 11
    assert numbers(heat)[1] == [5] * 10 + [4] * 10 + [13] * 11 and set(heat.rows["note"]) == {"n = 2"}
    many = figures.rank_history(CHANGES.assign(rank=16), sweep(ranks=(8,)), ["variant"])
    assert "16" in ET.fromstring(many.svg).itertext(), "the colours are labelled as numbers are read"
    with pytest.raises(Nothing, match="no ranks that change"):
        figures.rank_history(CHANGES.assign(run="another"), sweep(ranks=(8,)), ["variant"])


@pytest.mark.parametrize(("last", "width"), [(1, 1), (60, 1), (61, 2), (200, 5), (1201, 50), (6000, 100)])
def test_the_columns_of_ranks_are_even_and_end_with_the_run(last: int, width: int) -> None:
    columns = even_steps(last)
    assert columns[0] == 0 and columns[-1] == last and len(columns) <= 61
    assert {b - a for a, b in itertools.pairwise(columns[:-1])} <= {width}


def test_ranks_are_in_a_report_where_runs_recorded_them() -> None:
    runs = sweep(ranks=(8,))
    made = figure_list(runs, ["variant"])
    changes = CHANGES[CHANGES["run"] == "00000000"].groupby("name")[["step", "rank"]]
    recorded = {name: part.to_numpy().tolist() for name, part in changes}
    told = figure_list(runs.assign(record=[{"ranks": recorded}, *[{}] * (len(runs) - 1)]), ["variant"])
    heading = "Ranks over the training"
    (views,) = [views for views in told.views if views.heading == heading]
    assert numbers(views.charts["all"].panels[0])[0][-1] == 16
    assert heading not in str(made.absent) and not [views for views in made.views if views.heading == heading]


def test_the_loads_of_experts_are_means_over_seeds_beside_their_evenness() -> None:
    chart = figures.routing(ROUTING, sweep(ranks=(8,)), ["variant"])
    (heat,) = chart.panels
    assert isinstance(heat, Heat) and heat.lines == ["q 0", "q 1"]
    assert heat.columns == ["1", "2", "even"]
    assert numbers(heat)[0] == pytest.approx([0.625, 0.375, 0.5]) and set(heat.rows["note"]) == {"n = 2"}
    with pytest.raises(Nothing, match="no experts"):
        figures.routing(ROUTING.assign(run="another"), sweep(ranks=(8,)), ["variant"])


def test_spectra_leave_out_what_is_zero() -> None:
    chart = figures.spectra(results.updates(sweep(ranks=(8,))))
    assert [panel.title for panel in chart.panels] == ["q", "v"]
    rows = chart.panels[0].of("layer 1")
    assert list(rows.x) == list(range(1, 9)) and list(rows.y) == pytest.approx([2 * 0.5**i for i in range(8)])


def test_subspaces_are_shown_as_given_on_a_scale_from_0_to_1() -> None:
    (heat,) = figures.subspaces({"a": SIMILARITY}).panels
    assert isinstance(heat, Heat) and numbers(heat) == SIMILARITY.to_numpy().tolist()
    assert (heat.low, heat.high) == (0, 1)


def test_beside_subspaces_stands_what_random_ones_have() -> None:
    *_, random = figures.subspaces({"a": SIMILARITY, "b": GREAT}, dimension=128).panels
    assert isinstance(random, Heat) and "128" in random.title
    assert numbers(random)[7][63] == numbers(random)[63][7] == 0.5 and numbers(random)[0][0] == 1 / 128
    assert (len(numbers(random)), len(numbers(random)[0])) == (64, 64), (
        "as great as the greatest of the others"
    )


@pytest.mark.parametrize(("rows", "columns"), [(8, 64), (64, 64), (7, 32), (2, 3)])
def test_a_great_map_fits_a_page_and_its_labels_do_not_collide(rows: int, columns: int) -> None:
    table = pd.DataFrame(0.5, index=range(1, rows + 1), columns=range(1, columns + 1))
    (spec,) = figures.subspaces({"a": table}).spec["concat"]
    assert max(spec["width"], spec["height"]) < 400
    marks = [mark["type"] for mark, _, _ in layers(spec)]
    assert ("text" in marks) is (columns <= MANY), "no numbers in cells that are too small for them"
    for axis, count in (("x", columns), ("y", rows)):
        labels = spec["encoding"][axis]["axis"]["values"]
        assert len(labels) <= MANY and labels[0] == "1" and len(labels) >= min(count, MANY / 2)


def test_numbers_of_a_map_are_readable_on_their_ground() -> None:
    for table in (SIMILARITY, SIMILARITY * 0 + 0.5):
        (spec,) = figures.subspaces({"a": table}).interactive()
        (ink,) = [e["color"] for m, _, e in layers(spec) if m["type"] == "text"]
        assert ink == {"condition": {"test": "datum.value < 0.5", "value": "white"}, "value": "black"}


def test_where_cells_are_many_there_are_more_panels_and_none_is_lost() -> None:
    runs = sweep(variants=("lora", "dora", "pissa"), ranks=(1, 2, 4, 8), targets=("q", "v", "q,v"))
    chart = figures.curves(runs, results.histories(runs), ["variant", "target_modules", "rank"])
    names = [f"{panel.title} {name}" for panel in chart.panels for name in panel.names]
    assert len(set(names)) == len(names) == 36
    assert all(len(panel.names) <= MOST for panel in chart.panels)


def test_runs_that_are_not_done_do_not_count() -> None:
    runs = sweep()
    runs.loc[runs["seed"] == 2, ["state", "test"]] = ["diverged", 99.0]
    (panel,) = figures.against(runs, "rank", ["variant"]).panels
    assert panel.rows.y.max() < 1
    with pytest.raises(Nothing, match="no run is done"):
        figures.against(runs.assign(state="failed"), "rank", ["variant"])


def test_what_is_missing_is_named() -> None:
    with pytest.raises(Nothing, match="no saved_bytes"):
        figures.pareto(RUNS, "saved_bytes", ["variant"])
    with pytest.raises(Nothing, match="no eval_accuracy"):
        curves(y="eval_accuracy")


def test_names_are_text() -> None:
    runs = sweep(variants=(r"$\frac{1$", "<b>bold</b> & co"))
    chart = figures.against(runs, "rank", ["variant"])
    words = " ".join(ET.fromstring(chart.svg).itertext())
    assert r"$\frac{1$" in words and "<b>bold</b> & co" in words


def test_large_numbers_are_short_and_few_settings_are_the_ticks() -> None:
    (panel,) = figures.pareto(RUNS[RUNS["task"] == "pocket-sql"], "peak_memory", ["variant"]).interactive()
    assert panel["encoding"]["x"]["axis"]["format"] == "~s"
    (panel, _) = figures.against(RUNS, "rank", BY).interactive()
    assert panel["encoding"]["x"]["axis"]["values"] == [1, 2, 8, 64]


def test_ticks_are_numbers_that_people_read() -> None:
    assert Axis("r", log=True).encoding([1, 64])["axis"]["values"] == [1, 2, 5, 10, 20, 50]
    assert Axis("σ", log=True).encoding([0.002, 3])["axis"]["values"] == [0.01, 0.1, 1]
    assert Axis("index").encoding([1, 2, 8])["axis"]["tickMinStep"] == 1, "there is no layer 1.5"
    assert "tickMinStep" not in Axis("score").encoding([0.5, 1])["axis"]


def test_an_interval_that_ends_below_zero_begins_at_the_foot_of_a_logarithmic_axis() -> None:
    rows = line("a", [1, 2], [1.0, 5.0], [-3.0, 4.0], [2.0, 6.0])
    spec = Marks("", Axis("x"), Axis("y", log=True), rows).responsive(series_styles([("a", "")]))
    least, most = spec["encoding"]["y"]["scale"]["domain"]
    assert 0 < least < 1 and 6 < most < 7
    assert [row["foot"] for row in spec["data"]["values"]] == pytest.approx([least, 4.0], rel=1e-4)
    assert [row["low"] for row in spec["data"]["values"]] == [-3, 4], "the numbers stay what they are"


def test_a_lone_point_of_a_curve_is_seen() -> None:
    rows = pd.concat([line("a", [1], [1.0]), line("b", [1, 2], [1.0, 2.0])])
    spec = Bands("", Axis("x"), Axis("y"), rows).sized(series_styles([("a", ""), ("b", "")]), None)
    (points,) = [found for mark, found, _ in layers(spec) if mark["type"] == "point"]
    assert [row["series"] for row in points] == ["a"]

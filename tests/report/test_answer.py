"""What a report says first: the sentence, the figure of the ranking, the table; and the leaderboard."""

import re
from pathlib import Path
from typing import Any

import browser
import pandas as pd
import pytest
from synthetic import sweep

from lora_zoo.analysis.power import seeds_needed
from lora_zoo.claims import LedgerEntry, Status
from lora_zoo.claims.rule import Verdict
from lora_zoo.core.variants import VARIANTS
from lora_zoo.report import page, site
from lora_zoo.report.answer import answers
from lora_zoo.report.figure_list import FigureList, figure_list
from lora_zoo.report.figures.axes import Axis
from lora_zoo.report.figures.dots import Dots
from lora_zoo.report.ranking import ranking
from lora_zoo.report.report import Report
from lora_zoo.report.tables import layout_of, main_table
from lora_zoo.report.titles import is_baseline, title_of, written
from lora_zoo.runs.sources import digest

NOISE = (-0.01, 0.0, 0.01, 0.005, -0.005)
CLOSE = {"lora": 0.9, "pissa": 0.902, "lora_plus": 0.7}
"""Means of which the first two differ by 0.002 on seeds whose differences vary, and the third by far."""

CLAIMS = [
    LedgerEntry(name, "paper", "", f"of {name}", needs, "", (), Verdict(status, "reason"))
    for name, needs, status in (
        ("runs", "mine", Status.SUPPORTED),
        ("shapes", "", Status.SUPPORTED),
        ("others", "another", Status.NOT_RUN),
    )
]


def runs(means: dict[str, float], **more: Any) -> pd.DataFrame:
    """Five seeds a variant; each variant's seeds are shuffled in another way, so that differences vary."""
    frame = sweep(tuple(means), ranks=(8,), seeds=5, **more)
    shift = {name: i for i, name in enumerate(means)}
    frame["test"] = [
        means[run.variant] + NOISE[(run.seed + shift[run.variant]) % 5] for run in frame.itertuples()
    ]
    return frame


def sentences(frame: pd.DataFrame) -> list[str]:
    return answers(layout_of(frame))


def test_the_sentence_names_the_best_its_ties_and_the_seeds_that_would_tell() -> None:
    (said,) = sentences(runs(CLOSE))
    assert said.startswith(
        "pocket-sql, exact match, test: PiSSA 0.902 ± 0.010 (n = 5); 1 of 2 others is not "
    )
    sd = (runs(CLOSE).pivot(index="seed", columns="variant", values="test").eval("pissa - lora")).std()
    seeds = seeds_needed(0.002, sd, level=0.05 / 3)  # three pairs
    (found,) = re.findall(r"\(LoRA\); telling it from the nearest, LoRA, takes about (\d+) seeds\.$", said)
    assert int(found) == pytest.approx(seeds, rel=0.05) and found.endswith("0")


def test_a_best_that_stands_apart_is_called_so_and_one_seed_decides_nothing() -> None:
    (said,) = sentences(runs({"lora": 0.9, "dora": 0.5, "vera": 0.4}))
    assert said.endswith("LoRA 0.900 ± 0.010 (n = 5); significantly better than both others.")
    (said,) = sentences(runs({"lora": 0.9, "dora": 0.5}).query("seed == 0"))
    assert said.endswith(
        "the other one is not significantly different; telling them apart takes more than one seed of each."
    )
    (said,) = sentences(runs({"lora": 0.9}))
    assert said == "pocket-sql, exact match, test: LoRA 0.900 ± 0.010 (n = 5)."
    level = runs({"lora": 0.9, "dora": 0.9}).assign(test=0.9)
    assert "LoRA and DoRA share the best mean, 0.900" in sentences(level)[0]


def test_each_task_has_a_sentence_and_of_a_loss_the_least_is_best() -> None:
    said = sentences(runs(CLOSE, tasks=("pocket-sql", "pocket-nli")))
    assert [one.partition(",")[0] for one in said] == ["pocket-sql", "pocket-nli"]
    loss = runs(CLOSE).assign(experiment="e")
    loss["experiment_about"] = [{"name": "e", "rows": ["variant"], "value": "loss"}] * len(loss)
    loss["loss"] = loss["test"]
    assert "LoRA+ 0.700 ± 0.010 (n = 5); significantly better than both others" in sentences(loss)[0]


def test_where_a_baseline_leads_the_adapters_are_compared_by_themselves() -> None:
    first, second = sentences(runs({"full": 0.99, **CLOSE}))
    assert "Full fine-tuning 0.990" in first and second.startswith("Among the 3 adapters alone: PiSSA 0.902")


def test_nothing_that_learned_nothing_is_called_best() -> None:
    (said,) = sentences(runs(CLOSE).assign(degenerate="one answer"))
    assert "no run behind it learned anything" in said and "PiSSA" not in said


def dots(frame: pd.DataFrame) -> Dots:
    views = ranking(layout_of(frame))
    assert views is not None
    (panel,) = next(iter(views.charts.values())).panels
    assert isinstance(panel, Dots)
    return panel


def test_the_ranking_is_sorted_with_ties_marked_and_baselines_as_lines() -> None:
    frame = runs({"full": 0.95, **CLOSE}).assign(zero_shot_test=0.6)
    panel = dots(frame)
    assert list(panel.rows["series"]) == ["Full fine-tuning", "PiSSA", "LoRA", "LoRA+"]
    assert list(dots(runs(CLOSE)).rows["tied"]) == [True, True, False]
    assert dict(zip(panel.lines["series"], panel.lines["x"].round(3), strict=True)) == {
        "before training": 0.6,
        "Full fine-tuning": 0.95,
    }
    low, high = panel.spec({}, None)["encoding"]["x"]["scale"]["domain"]
    assert 0 <= low <= 0.6 and high <= 1
    far = dots(runs({"lora": 0.9, "pissa": 0.902}).assign(zero_shot_test=0.0))
    assert far.spec({}, None)["encoding"]["x"]["scale"]["domain"][0] > 0.8
    assert "◂ before training 0" in str(far.spec({}, None)), "what lies far off is named at the edge"
    assert "Not significantly different from the best: PiSSA, LoRA." in far.describe()


def test_a_long_ranking_shows_its_first_rows_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_zoo.report.ranking.MOST", 2)
    views = ranking(layout_of(runs(CLOSE)))
    assert views and list(views.charts) == ["the first 2", "all 3"]
    assert [len(chart.panels[0].rows) for chart in views.charts.values()] == [2, 3]
    assert ranking(layout_of(runs({"lora": 0.9}))) is None


def test_an_axis_ends_where_its_values_can_go_no_further() -> None:
    share = Axis("a", range=(0, 1))
    assert share.bounded([0.97, 1.04]) == [0.96, 1.0] and share.bounded([-0.2, 0.7]) == [0.0, 0.8]
    assert Axis("a", range=(float("-inf"), float("inf"))).bounded([3.0, 3.0])[0] < 3


def test_every_variant_has_a_title_of_its_own_that_changes_no_identity() -> None:
    titles = [title_of(name) for name in VARIANTS]
    assert len({*titles}) == len(titles)
    assert (title_of("lora_plus"), title_of("rslora"), title_of("milora")) == ("LoRA+", "rsLoRA", "MiLoRA")
    assert title_of("no such") == "no such" and is_baseline("full") and not is_baseline("lora")
    assert (written("rank", "8"), written("config.task.x", "8", alone=False)) == ("8", "task.x 8")
    assert digest('class A:\n    title = "B"\n    x = 1') == digest("class A:\n    x = 1")
    assert digest("class A:\n    x = 1") != digest("class A:\n    x = 2")


def test_at_one_budget_the_cost_is_not_parameters() -> None:
    def costs(frame: pd.DataFrame) -> list[str]:
        (views,) = [v for v in figure_list(frame, ["variant"]).views if v.heading == "Outcome against cost"]
        return list(views.charts)

    assert "trainable parameters" in costs(runs(CLOSE).assign(trainable=lambda f: 1000 + f.index * 1000))
    assert costs(runs(CLOSE).assign(trainable=16_384))[0] == "time of a step, median"
    given = runs(CLOSE).assign(trainable=lambda f: 1000 + f.index * 1000, budget=16_384)
    assert "trainable parameters" not in costs(given)


def test_the_page_answers_first_and_tells_of_what_is_wrong_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "STATIC", 1)
    monkeypatch.setattr("lora_zoo.report.report.figure_list", lambda *args, **more: FigureList())
    monkeypatch.setattr("lora_zoo.report.report.ledger", lambda frame: CLAIMS)
    frame = runs(CLOSE)
    wrong = pd.concat([frame, frame.iloc[[0]].assign(test=0.1)], ignore_index=True)
    text = page.html(Report(wrong))
    order = [text.index(mark) for mark in ('class="alert"', 'class="answer"', 'class="panels"', 'id="table-')]
    order += [text.index(f'<section id="{name}">') for name in ("figures", "claims", "integrity", "settings")]
    assert order == sorted(order)
    assert re.search(r'<a href="#integrity">1 finding \(.*\): \d of 16 runs left out ↓</a>', text)
    assert Report(frame).alert == ""
    about, computed = text.split('<section id="claims">')[1].split("1 computed facts, which need no runs")
    summary = '<details class="claim"><summary><span class="verdict supported">supported</span> '
    assert f"{summary}of runs<" in about and f"{summary}of shapes<" in computed
    assert "of shapes<" not in about and "1 claims that these runs say nothing about" in computed


def test_a_table_has_its_numbers_right_aligned_and_its_notes_folded() -> None:
    frame = sweep(ranks=(2, 8))
    text = main_table(frame).html()
    assert '<th scope="col">variant</th>' in text and '<th scope="col" class="number">rank</th>' in text
    assert text.index("</ul>") < text.index("<details><summary>Notes and command") < text.index("made by")


def test_the_leaderboard_leads_from_each_number_to_its_runs_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = {"one": runs(CLOSE), "two": runs({"lora": 0.9, "dora": 0.5}).assign(model="other", rank=4)}
    for name in (*frames, "none"):
        (tmp_path / name).mkdir()

    def load(source: Path) -> pd.DataFrame:
        if source.name in frames:
            return frames[source.name]
        raise ValueError(f"{source} holds no run")

    monkeypatch.setattr(site, "load", load)
    monkeypatch.setattr(site, "merges", lambda source: None)
    monkeypatch.setattr(site, "html", lambda report, home: f"{home} {len(report.frame)}")
    index = site.write_site([tmp_path / name for name in ("one", "none", "two")], tmp_path / "out")
    text = index.read_text()
    assert (tmp_path / "out" / "one.html").read_text() == "index.html 15"
    assert {file.name for file in index.parent.iterdir()} == {"index.html", "one.html", "two.html"}
    links = re.findall(
        r'<a href="(\w+)\.html#run-(\w+)">(.*?)</a> <a href="#(number-\d+)"><small>n = 5', text
    )
    assert len(links) == 5 and all(f'<tr id="{place}"' in text for *_, place in links)
    bold = [name for name, _, shown, _ in links if "<strong>" in shown]
    assert bold == ["two"], "bold is what is significantly better than all others of its experiment"
    assert {run for _, run, *_ in links} <= {*frames["one"]["run"], *frames["two"]["run"]}
    assert "python -m lora_zoo.run" in text and "http" not in text.split("</style>")[1].split("<script>")[0]
    with pytest.raises(ValueError, match="nothing to show"):
        site.write_site([tmp_path / "none"], tmp_path / "out")


def test_of_several_settings_the_leaderboard_shows_what_validation_chose() -> None:
    frame = sweep(("lora",), ranks=(2, 8))
    frame["validation"] = frame["test"].max() - frame["test"]  # the better on test, the worse on validation
    numbers = list(site.numbers_of(Report(frame), "a.html"))
    text = site.leaderboard(numbers)
    first, second = re.findall(r"<span data-model=.*?( hidden)?><a .*?>(.*?)</a>", text)
    assert (first[0], second[0]) == ("", " hidden")
    shown = next(number for number in numbers if number.setting == "rank 2")
    assert first[1] == shown.text and shown.limits == {
        "model": "pocket",
        "parameters": "4000",
        "memory": "670",
    }


@browser.needed
def test_a_reader_sorts_the_tables_and_narrows_the_leaderboard(tmp_path: Path) -> None:
    one = runs(CLOSE)
    other = runs({"lora": 0.9, "dora": 0.5}).assign(model="other", trainable=10, rank=4)
    other["run"] = "b" + other["run"].str[1:]
    frame = pd.concat([one, other], ignore_index=True)
    path = tmp_path / "index.html"
    path.write_text(site.leaderboard(list(site.numbers_of(Report(frame), "a.html"))), encoding="utf-8")
    seen = browser.look(
        path,
        """
        const names = (table) => [...document.querySelectorAll(`${table} tbody tr`)]
          .filter((row) => !row.hidden).map((row) => row.cells[table === ".board" ? 0 : 3].innerText);
        const form = document.querySelector("form"), before = names(".board");
        document.querySelectorAll(".every thead button")[3].click();
        const greatest = names(".every");
        document.querySelectorAll(".every thead button")[3].click();
        const least = names(".every");
        form.elements.parameters.value = "10";
        form.dispatchEvent(new page.Event("input"));
        const heads = [...document.querySelectorAll(".board thead th")].filter((head) => !head.hidden).length;
        return { before, greatest, least, after: names(".board"), heads, rows: names(".every").length };
        """,
    )
    found = seen["found"]
    assert seen["errors"] == [] and found["before"] == ["LoRA", "DoRA", "LoRA+", "PiSSA"]
    means = [float(text.split()[0]) for text in found["greatest"]]
    assert means == sorted(means, reverse=True) and found["least"] == found["greatest"][::-1]
    assert found["after"] == ["LoRA", "DoRA"] and (found["heads"], found["rows"]) == (2, 2)

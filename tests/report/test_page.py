"""The page: complete, one file, no network, nothing that results can smuggle in, fit for every screen."""

import base64
import gzip
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import browser
import pandas as pd
import pytest
from synthetic import sweep
from torch import nn

from lora_zoo import inject, save_adapter
from lora_zoo.report import page as pages
from lora_zoo.report.report import Report
from lora_zoo.report.subspace_pairs import subspace_pairs

EVIL = "<script>pwned=1</script><img src=x onerror=pwned=2>"
OWN = {"data:", "#"}


class Elements(HTMLParser):
    """Start tags with their attributes, the text of scripts and styles, and all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.inside: list[tuple[str, dict[str, str], str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag in ("script", "style") and self.cdata_elem:
            self.inside.append((tag, attributes, data))
        else:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return sweep(targets=("q", "q,v"), tasks=("pocket-sql", "pocket-nli"))


@pytest.fixture(scope="module")
def text(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> str:
    ours = frame.copy()
    for index, run in ours[ours["variant"] == "lora"].drop_duplicates(["rank", "seed"]).iterrows():
        folder = tmp_path_factory.mktemp("adapter")
        ours.loc[index, "adapter"] = str(adapter(folder, int(run["rank"]), int(run["seed"])))
    return pages.html(Report(ours))


def adapter(folder: Path, rank: int, seed: int) -> Path:
    """An adapter of two layers' q and v."""
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict(projections()) for _ in range(2)])})
    injection = inject(model, "lora", rank=rank, target_modules=["q", "v"], seed=seed, init="both_random")
    return save_adapter(injection, folder)


def projections() -> dict[str, nn.Module]:
    return {f"{role}_proj": nn.Linear(96, 96) for role in "qv"}


def test_overlaps_are_of_other_seeds_in_the_middle_layer(frame: pd.DataFrame, tmp_path: Path) -> None:
    """Of one seed a greater rank begins with the rows of a smaller one: not what is asked."""
    ours = frame[frame["variant"] == "lora"].drop_duplicates(["rank", "seed"]).copy()
    assert subspace_pairs(ours) == ({}, None), "no adapters, no overlaps"
    for index, run in ours.iterrows():
        place = adapter(tmp_path / str(index), int(run["rank"]), int(run["seed"]))
        ours.loc[index, "adapter"] = str(place)
    small, great = sorted(ours["rank"].unique())[:: len(ours["rank"].unique()) - 1]
    found, dimension = subspace_pairs(ours)
    assert dimension == 96
    assert list(found) == [
        f"{role}, layer 1: rank {a:g} (seed 0) and rank {great:g} (seed 1)"
        for a in (small, great)
        for role in "qv"
    ]
    for title, table in found.items():
        assert table.shape == (min(8, small if f"rank {small:g} (seed 0)" in title else great), great)
        assert table.iloc[-1, -1] == pytest.approx(great / 96, abs=0.12), "random subspaces"
    alone = subspace_pairs(ours[ours["seed"] == 0])
    assert alone == ({}, None)
    (tmp_path / str(ours.index[0]) / "adapter.json").write_text("{}")
    assert subspace_pairs(ours)[0], "an adapter that cannot be read costs its figure alone"


@pytest.fixture(scope="module")
def hostile() -> str:
    """Markup wherever results hold words."""
    runs = sweep(variants=("lora", EVIL)).assign(name=EVIL, model=EVIL, task=EVIL, command=EVIL, commit=EVIL)
    runs["config.model.path"] = EVIL
    runs["experiment_about"] = [{"name": EVIL, "title": EVIL, "question": EVIL}] * len(runs)
    runs.loc[0, "state"] = "failed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "STATIC", 1)
        return pages.html(Report(runs))


@pytest.fixture
def file(text: str, tmp_path: Path) -> Path:
    return kept(text, tmp_path)


def kept(text: str, folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def unpacked(text: str, name: str) -> str:
    (found,) = [data for _, a, data in Elements(text).inside if a.get("id") == name]
    return gzip.decompress(base64.b64decode(found)).decode()


def numbers(report: Report) -> str:
    """All that the figures draw."""
    return json.dumps(
        [chart.interactive() for views in report.figures.views for chart in views.charts.values()]
    )


def test_nothing_in_the_page_points_outside(text: str) -> None:
    elements = Elements(text)
    for tag, attributes in elements.tags:
        for name in ("src", "href", "data", "srcset", "action", "poster", "xlink:href", "background"):
            value = attributes.get(name, "#")
            assert value.startswith(tuple(OWN)), f"<{tag} {name}={value[:40]}>"
        assert not any(name.startswith("on") for name in attributes), tag
    styles = [data for tag, _, data in elements.inside if tag == "style"]
    assert styles and not any(re.search(r"url\(|@import", style) for style in styles)


def test_the_policy_lets_the_page_ask_for_nothing(text: str) -> None:
    (policy,) = [m["content"] for m in Elements(text).of("meta") if "http-equiv" in m]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert "unsafe" not in rules["script-src"] and rules["script-src"].count("'sha256-") == 2


def test_the_script_is_in_it_once_and_whole_and_the_page_is_small(text: str) -> None:
    library = unpacked(text, "library")
    assert library == pages._library() and "vegaEmbed" in library
    assert library[:200] not in text
    (policy,) = [m["content"] for m in Elements(text).of("meta") if "http-equiv" in m]
    own = next(data for tag, a, data in Elements(text).inside if tag == "script" and not a)
    for script in (library, own):
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert len(text.encode()) < 1_200_000


def test_the_same_results_give_the_same_page(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "STATIC", 1)  # pictures have a test of their own
    few = frame[(frame["task"] == "pocket-sql") & (frame["target_modules"] == "q")]
    assert pages.html(Report(few)) == pages.html(Report(few.copy()))


def test_figures_are_captioned_and_have_words_for_the_blind(text: str) -> None:
    elements = Elements(text)
    assert all(image["alt"] for image in elements.of("img"))
    assert all(d["aria-label"] for d in elements.of("div") if d.get("role") in ("img", "region"))
    names = [tag for tag, _ in elements.tags]
    assert names.count("figcaption") == names.count("figure") > 10
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {a["href"][1:] for a in elements.of("a")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in elements.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(deeper - before <= 1 for before, deeper in itertools.pairwise(levels))


def test_every_kind_of_figure_is_there(text: str) -> None:
    headings = re.findall(r'<h3 id="figure-\d+">(.*?)</h3>', text)
    assert headings == [
        "Training",
        "Outcome against a setting",
        "Two settings at once",
        "Outcome against cost",
        "Performance profiles",
        "Ranks of ΔW",
        "Spectra of ΔW",
        "Overlap of subspaces",
    ]
    found = json.loads(unpacked(text, "charts"))
    assert [len(views) for views in found["charts"]] == [1, 4, 1, 3, 4, 3, 16, 16, 1]
    assert all(spec["width"] == "container" for views in found["charts"] for chart in views for spec in chart)
    assert found["config"]["background"] == "transparent"


def test_what_was_not_drawn_is_said_with_its_reason(text: str) -> None:
    said = " ".join(Elements(text).text.split())
    assert "activation memory: the results have no saved_bytes" in said
    assert "nothing was evaluated there (trainer.eval_steps=0)" in said


def test_every_run_is_listed_with_its_command(text: str, frame: pd.DataFrame) -> None:
    said = Elements(text).text
    for run, command in zip(frame["run"], frame["command"], strict=True):
        assert run in said and command in said
    assert "trainer.warmup_steps" in said and "0.06" in said


def test_tables_claims_and_facts_are_there(text: str) -> None:
    said = Elements(text).text
    assert "over seeds with the 95 % t interval" in said, "the table's rule"
    assert "not supported" in said and "claims that these runs say nothing about" in said
    assert "0123456789" in said and "48 done" in said


def test_markup_in_results_stays_text(hostile: str, text: str) -> None:
    elements, usual = Elements(hostile), Elements(text)
    assert len(elements.of("script")) == len(usual.of("script"))
    assert not [image for image in elements.of("img") if not image["src"].startswith("data:")]
    assert not any(name.startswith("on") for _, attributes in elements.tags for name in attributes)
    assert elements.text.count(EVIL) > 20
    assert EVIL in json.dumps(json.loads(unpacked(hostile, "charts")), ensure_ascii=False)


def test_a_run_that_may_not_be_counted_is_told_and_in_no_figure() -> None:
    runs = sweep()
    again = runs.iloc[[0]].assign(test=0.99)
    runs = pd.concat([runs, again], ignore_index=True)
    told = Report(runs)
    assert told.findings, "a seed that stands twice is a finding"
    assert "0.99" not in numbers(told)
    text = Elements(pages.html(told)).text
    assert told.findings[0].said in text and f"{len(runs)} runs, each with its command" in text


def test_of_a_tuned_experiment_the_figures_show_what_validation_chose() -> None:
    about = {"name": "tuned", "rows": ["variant"], "tune": ["lr"], "value": "test", "title": "Tuned"}
    good, bad = sweep(ranks=(8,)), sweep(ranks=(8,))
    bad = bad.assign(
        lr=9.0, task_lr=9.0, validation=0.1, test=0.99, run=[f"b{i:07x}" for i in range(len(bad))]
    )
    runs = pd.concat([good, bad], ignore_index=True).assign(experiment="tuned")
    runs["experiment_about"] = [about] * len(runs)
    told = Report(runs)
    assert told.title == "Tuned" and "0.99" not in numbers(told)
    assert told.commands == ["python -m lora_zoo.run -m +experiment=tuned"]
    assert len(told.run_list) == len(runs)


def test_figures_of_several_experiments_carry_their_names() -> None:
    one, other = sweep().assign(experiment="one"), sweep().assign(experiment="other")
    one["experiment_about"] = [{"name": "one"}] * len(one)
    other["experiment_about"] = [{"name": "other"}] * len(other)
    other["run"] = [f"c{i:07x}" for i in range(len(other))]
    told = Report(pd.concat([one, other], ignore_index=True))
    assert not told.findings, "a run may stand in two experiments"
    headings = [views.heading for views in told.figures.views]
    assert {heading.partition(":")[0] for heading in headings} == {"one", "other"}


def test_printed_figures_end_where_the_page_would_grow_too_large(
    monkeypatch: pytest.MonkeyPatch, frame: pd.DataFrame
) -> None:
    monkeypatch.setattr(pages, "STATIC", 1)
    made = pages.html(Report(frame[(frame["task"] == "pocket-sql") & (frame["target_modules"] == "q")]))
    assert len(Elements(made).of("img")) == 1 and "Drawn with JavaScript alone." in made


@browser.needed
@pytest.mark.parametrize("width", [1280, 375])
def test_a_browser_draws_it_without_errors_and_nothing_sticks_out(file: Path, width: int) -> None:
    seen = browser.look(
        file,
        """
        document.querySelectorAll("details").forEach((each) => { each.open = true; });
        await sleep(500);
        await drawn();
        const page_width = document.documentElement.clientWidth;
        const free = (each) => each.closest(".scroll, svg") === null && each.getClientRects().length > 0;
        const beyond = (each) => each.getBoundingClientRect().right > page_width + 1;
        const out = [...document.body.querySelectorAll("*")].filter((each) => free(each) && beyond(each));
        return { page_width, scroll: document.documentElement.scrollWidth,
          out: out.map((each) => each.outerHTML.slice(0, 80)),
          wide: [...document.querySelectorAll(".scroll")].filter((b) => b.scrollWidth > b.clientWidth).length,
          drawn: [...document.querySelectorAll(".drawn .plot")].every((p) => p.querySelector("svg")),
          figures: document.querySelectorAll(".drawn").length,
          requests: page.performance.getEntriesByType("resource").map((entry) => entry.name) };
        """,
        width,
        20_000,
    )
    assert seen["errors"] == []
    found = seen["found"]
    assert found["page_width"] == found["scroll"] == width and found["out"] == []
    assert found["drawn"] and found["figures"] == 9
    assert [name for name in found["requests"] if not name.startswith(("data:", "blob:"))] == []
    assert found["wide"] > 0, "wide tables scroll inside of their boxes"


@browser.needed
def test_views_series_and_numbers_answer_to_the_keyboard(file: Path) -> None:
    seen = browser.look(
        file,
        """
        const view = document.querySelector("article .view"), group = view.closest(".figure");
        const second = group.querySelectorAll("button[data-choice]")[1];
        second.focus();
        const focused = document.activeElement === second;
        second.click();
        await drawn();
        const shown = [...group.querySelectorAll(".view")].map((each) => !each.hidden);
        const now = group.querySelectorAll(".view")[1];
        const words = () => [...now.querySelectorAll(".plot text")].map((each) => each.textContent);
        const title = words().includes("training time (s)");
        const button = now.querySelector("button[data-series]");
        const curve = ".mark-line path[stroke-width='2']";
        const lines = () => now.querySelector(".plot").querySelectorAll(curve).length;
        const before = lines(); button.click(); await sleep(500);
        const after = lines(); button.click(); await sleep(500);
        now.querySelector("details").open = true; await sleep(300);
        const select = document.querySelector("select[data-choice]");
        select.value = "1"; select.dispatchEvent(new page.Event("change")); await drawn();
        const chosen = select.closest(".figure").querySelectorAll(".view")[1];
        return { focused, shown, title, before, after, back: lines(),
          pressed: button.getAttribute("aria-pressed"),
          rows: now.querySelectorAll(".numbers tbody tr").length,
          cell: now.querySelector(".numbers td").textContent,
          selected: !chosen.hidden && chosen.querySelector(".plot svg") !== null,
          boxes: [...document.querySelectorAll(".scroll")].every((box) => box.tabIndex === 0) };
        """,
    )
    assert seen["errors"] == []
    found = seen["found"]
    assert found["focused"] and found["shown"] == [False, True, False, False]
    assert found["title"] and found["before"] > 1
    assert (found["before"] - found["after"], found["back"]) == (1, found["before"]), "a line less, and back"
    assert found["pressed"] == "true" and found["rows"] > 10 and found["cell"]
    assert found["selected"] and found["boxes"]


@browser.needed
def test_print_has_every_figure_and_no_controls(file: Path) -> None:
    """With the rules for print in force on the screen."""
    seen = browser.look(
        file,
        """
        for (const sheet of document.styleSheets) for (const rule of sheet.cssRules)
          if (rule.media?.mediaText === "print") rule.media.mediaText = "all";
        page.dispatchEvent(new page.Event("beforeprint"));
        const visible = (each) => each.getClientRects().length > 0;
        const views = [...document.querySelectorAll(".view")];
        await drawn();
        const pictures = views.map((view) => view.querySelector("svg.marks"));
        const shown = pictures.filter((picture) => picture && visible(picture)).length;
        const other = [...document.querySelectorAll("nav, .choice, .numbers")].filter(visible).length;
        const out = document.documentElement.scrollWidth - document.documentElement.clientWidth;
        page.dispatchEvent(new page.Event("afterprint"));
        return { views: views.length, shown, other, out, after: views.filter((view) => !view.hidden).length };
        """,
        700,
    )
    assert seen["errors"] == []
    found = seen["found"]
    assert found["views"] == found["shown"] == 49
    assert found["other"] == 0 and found["out"] == 0 and found["after"] == 9


@browser.needed
@pytest.mark.parametrize(("dark", "darker"), [(0, True), (1, False)])
def test_the_page_and_its_figures_follow_the_scheme(file: Path, dark: int, darker: bool) -> None:
    seen = browser.look(
        file,
        """
        const parts = (colour) => colour.match(/\\d+/g).slice(0, 3).map(Number);
        const light = (colour) => parts(colour).reduce((sum, part) => sum + part, 0) / 3;
        const style = (each) => page.getComputedStyle(each);
        document.querySelector("article .view").scrollIntoView(); await drawn();
        return { ground: light(style(document.documentElement).backgroundColor),
          ink: light(style(document.body).color),
          tick: light(style(document.querySelector(".drawn .role-axis-label text")).fill) };
        """,
        1280,
        4000,
        f"--blink-settings=preferredColorScheme={dark}",
    )
    found = seen["found"]
    assert (
        (found["ground"] < 60) is darker
        and (found["ink"] > 180) is darker
        and (found["tick"] > 180) is darker
    )


def test_without_javascript_the_printed_figures_are_shown(text: str) -> None:
    """Every figure has its printed form, and what a script would have drawn into takes no room."""
    figures = re.findall(r'<article class="figure".*?</article>', text, re.DOTALL)
    printed = '<noscript><img class="static" src="data:image/svg+xml;base64,'
    assert figures and all(printed in one for one in figures)
    (rules,) = re.findall(r"<noscript><style>(.*?)</style>", text)
    assert ".view[hidden] { display: block }" in rules and ".panels { display: none }" in rules


@browser.needed
def test_a_browser_runs_nothing_of_what_results_hold(hostile: str, tmp_path: Path) -> None:
    script = """
        document.querySelectorAll("details").forEach((each) => { each.open = true; });
        await sleep(1000);
        return { pwned: page.pwned ?? null, images: document.querySelectorAll("img").length,
          legend: document.querySelector("[data-series*=script]").dataset.series };
    """
    seen = browser.look(kept(hostile, tmp_path), script, 1280, 20_000)
    assert seen["errors"] == [] and seen["found"]["pwned"] is None and seen["found"]["images"] == 0
    assert EVIL in seen["found"]["legend"]


def test_views_are_named_by_what_there_is_to_choose(frame: pd.DataFrame) -> None:
    (views,) = [views for views in Report(frame).figures.views if views.heading == "Outcome against cost"]
    costs = ["trainable parameters", "time of a step, median", "training time", "peak memory"]
    assert list(views.charts) == costs

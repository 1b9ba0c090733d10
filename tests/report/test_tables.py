"""Tables of runs: what stands in them is what was measured, and what may not be said is not."""

import csv
import io
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from lora_zoo import report
from lora_zoo import runs as results
from lora_zoo.report import FORMATS, writing
from lora_zoo.report import __main__ as front
from lora_zoo.report import page as pages
from lora_zoo.report.layout import NumberFormat
from lora_zoo.report.provenance import command
from lora_zoo.report.render import HTML, LATEX, MARKDOWN, Markup, Row, Table, TableCell
from lora_zoo.report.tables import main_table, tables
from tests.recorded import recorded, written

FAR = {"rank=2": [0.1, 0.11, 0.12, 0.1, 0.11], "rank=4": [0.9, 0.91, 0.9, 0.92, 0.91]}
FAR["rank=8"] = [0.902, 0.909, 0.901, 0.918, 0.911]
EXPERIMENT = {
    "name": "mine",
    "title": "Rank & targets_of_q",
    "question": "?",
    "paper": "arXiv:2106.09685, table 6",
    "grid": {"task": ["pocket-sql", "pocket-nli"], "rank": [8, 2], "seed": [0, 1, 2]},
    "rows": ["task"],
    "columns": ["rank"],
    "reference": [
        {"task": "pocket-sql", "rank": 2, "value": 73.3, "spread": 0.5, "of": "WikiSQL"},
        {"task": "pocket-sql", "rank": 1024, "value": 74.0, "of": "WikiSQL"},
        {"task": "pocket-nli", "rank": 8, "value": 91.6, "spread": 0.1, "of": "MultiNLI"},
    ],
}


def sweep(root: Path, values: dict[str, list[float]], **more: Any) -> pd.DataFrame:
    for overrides, outcomes in values.items():
        for seed, value in enumerate(outcomes):
            written(root, recorded(*overrides.split(), f"seed={seed}", test=value, **more))
    return results.load(root)


def test_activation_memory_is_in_megabytes_with_one_decimal(tmp_path: Path) -> None:
    frame = sweep(tmp_path, {"rank=2": [0.5, 0.52], "rank=8": [0.7, 0.71]})
    table = main_table(frame.assign(saved_bytes=frame["rank"] * 1_234_567))
    (column,) = (number for number, name in enumerate(table.columns) if name == "activation memory (MB)")
    assert [row.cells[column].text for row in table.rows] == ["9.9", "2.5"]  # the best, rank 8, first


def experiment(root: Path) -> Table:
    values = {
        "task=pocket-sql rank=2": [0.5, 0.52, 0.54],
        "task=pocket-sql rank=8": [0.7, 0.71, 0.72],
        "task=pocket-nli rank=2": [0.9, 0.91, 0.92],
        "task=pocket-nli rank=8": [0.3, 0.31, 0.32],
    }
    return main_table(sweep(root, values, experiment=EXPERIMENT))


def cells_of(table: Table) -> dict[str, list[str]]:
    """The Markdown rows by their first header."""
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    return {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in lines}


def test_a_cell_is_the_mean_over_seeds_with_its_t_interval(tmp_path: Path) -> None:
    table = main_table(sweep(tmp_path, FAR))
    half = stats.t.ppf(0.975, 4) * statistics.stdev(FAR["rank=2"]) / 5**0.5
    rows = cells_of(table)
    assert rows["2"][0] == f"{statistics.mean(FAR['rank=2']):.3f} ± {half:.3f}" and rows["2"][1] == "5"
    assert [key for key in rows if key.isdigit()] == ["8", "4", "2"]  # best first
    (record,) = [r for r in csv.DictReader(io.StringIO(table.csv())) if r["rank"] == "2"]
    assert float(record["mean"]) == pytest.approx(statistics.mean(FAR["rank=2"]))
    assert float(record["high"]) - float(record["mean"]) == pytest.approx(half)
    assert record["n"] == "5" and len(record["runs"].split()) == 5 and record["trainable"] == "1000.0"


def test_the_best_is_bold_the_second_underlined_and_what_ties_is_marked(tmp_path: Path) -> None:
    table = main_table(sweep(tmp_path, FAR))
    rows = cells_of(table)
    assert rows["8"][0].startswith("**0.908 ±") and rows["8"][0].endswith("**")
    assert re.fullmatch(r"<u>0\.908 ± \S+</u> ≈", rows["4"][0])
    assert "≈" not in rows["2"][0] and "**" not in rows["2"][0]
    marks = {r["rank"]: (r["mark"], r["tied"]) for r in csv.DictReader(io.StringIO(table.csv()))}
    assert marks == {"8": ("best", "True"), "4": ("second", "True"), "2": ("", "False")}
    assert "cannot be told" in table.markdown() and "within seed noise" in table.markdown()


def test_of_a_cost_less_is_better(tmp_path: Path) -> None:
    two = {rank: [0.5, 0.6] for rank in ("rank=2", "rank=4")}
    frame = sweep(
        tmp_path, two, experiment={"name": "costs", "rows": ["rank"], "value": "loss", "title": "Loss"}
    )
    frame["loss"] = frame["rank"] + frame["seed"] / 100
    rows = cells_of(main_table(frame))
    assert rows["2"][0].startswith("**2.005") and rows["4"][0].startswith("<u>4.005")
    assert list(rows)[2:] == ["2", "4"]


def test_one_seed_has_no_interval_and_a_lonely_cell_no_mark(tmp_path: Path) -> None:
    text = main_table(sweep(tmp_path, {"rank=2": [0.25]})).markdown()
    assert "| LoRA | 0.250 | 1 |" in text and "fewer than 3 seeds" in text


def test_an_experiment_is_laid_out_as_it_says_with_the_papers_numbers_below(tmp_path: Path) -> None:
    table = experiment(tmp_path)
    assert (table.headers, table.columns) == (("task", ""), ("rank 8", "rank 2", "rank 1024"))
    assert [row.header for row in table.rows] == [
        ("pocket-sql", "ours"),
        ("pocket-sql", "paper (WikiSQL)"),
        ("pocket-nli", "ours"),
        ("pocket-nli", "paper (MultiNLI)"),
    ]
    texts = [[MARKDOWN.cell(cell) for cell in row.cells] for row in table.rows]
    assert texts[0] == ["**71.0 ± 2.5**", "<u>52.0 ± 5.0</u>", "-"]
    assert texts[1] == ["-", "73.3 ± 0.5", "74"] and texts[3] == ["91.6 ± 0.1", "-", "-"]
    assert texts[2][1].startswith("**91.0") and texts[2][0].startswith("<u>31.0")  # each task by itself
    text = table.markdown()
    for said in ("n = 3 runs in every cell", "in percent", "arXiv:2106.09685, table 6", "accuracy"):
        assert said in text
    assert table.command == "python -m lora_zoo.run -m +experiment=mine"
    typed = "python -m lora_zoo.run +experiment=mine rank=2 steps=3 seed=0 out=/home/me"
    other = sweep(tmp_path / "b", {"rank=2 steps=3": [0.5]}, experiment=EXPERIMENT, command=typed)
    assert main_table(other).command == "python -m lora_zoo.run -m +experiment=mine rank=2 steps=3 seed=0"
    record = next(csv.DictReader(io.StringIO(table.csv())))
    assert set(record) >= {"task", "rank", "mean", "low", "high", "n", "mark", "tied", "paper", "of"}


def test_a_list_has_the_papers_numbers_in_a_column_and_its_order_is_the_grids(tmp_path: Path) -> None:
    about = {"name": "r", "title": "t", "rows": ["rank"], "grid": {"rank": [4, 2]}}
    quotes = [{"rank": 2, "value": 69.17}, {"rank": 512, "value": 68.78}]
    frame = sweep(tmp_path, {"rank=2": [0.5], "rank=4": [0.25]}, experiment=about | {"reference": quotes})
    rows = cells_of(main_table(frame))
    assert list(rows)[2:] == ["4", "2", "512"]
    assert rows["2"][:3] == ["**50.0**", "69.17", "1"] and rows["512"][:3] == ["-", "68.78", "0"]


def test_a_tuned_axis_is_shown_with_its_tries(tmp_path: Path) -> None:
    about = {"name": "t", "title": "t", "rows": ["variant"], "tune": ["task.lr"]}
    runs = {f"variant={v} task.lr={lr}": [lr * 10] * 3 for v in ("lora", "dora") for lr in (0.01, 0.02, 0.03)}
    rows = cells_of(main_table(sweep(tmp_path, runs, experiment=about)))
    assert rows["variant"][2] == "task.lr (n tried)" and rows["DoRA"][2] == "0.03 (3)"
    assert rows["LoRA"][1] == "3"


def test_unequal_numbers_of_runs_stand_in_each_cell(tmp_path: Path) -> None:
    about = {**EXPERIMENT, "reference": []}
    values = {"task=pocket-sql rank=2": [0.5, 0.6], "task=pocket-sql rank=8": [0.7, 0.71, 0.72]}
    table = main_table(sweep(tmp_path, values, experiment=about))
    texts = [MARKDOWN.cell(cell) for cell in table.rows[0].cells]
    assert texts[0].endswith("(3)") and texts[1].endswith("(2)")
    assert table.headers == ("task",)


def test_what_made_the_numbers_stands_below(tmp_path: Path) -> None:
    table = main_table(
        sweep(tmp_path, {"rank=2 out=/home/me/x": [0.5, 0.6], "rank=4 out=/home/me/x": [0.7, 0.8]})
    )
    text = table.markdown()
    for said in (
        "commit 0123456789",
        "seeds 0, 1",
        "steps 200",
        "batch 16",
        "threads 1",
        "0.946M",
        "pocket-sql",
    ):
        assert said in text
    assert "made by `python -m lora_zoo.run -m rank=2,4 seed=0,1`" in text and "/home" not in text
    uneven = sweep(tmp_path, {"rank=8": [0.9]})
    assert main_table(uneven).command == "python -m lora_zoo.run rank=2 seed=0"


def test_code_that_was_not_committed_is_said(tmp_path: Path) -> None:
    record = recorded()
    record["environment"]["dirty"] = True
    written(tmp_path, record)
    assert "(with uncommitted changes)" in main_table(results.load(tmp_path)).markdown()


@pytest.mark.parametrize("mistake", ["copied", "swapped", "stale", "failed"])
def test_a_planted_mistake_is_left_out_and_said(tmp_path: Path, mistake: str) -> None:
    sweep(tmp_path, {"rank=2": [0.5, 0.6, 0.7], "rank=4": [0.1, 0.2, 0.3]})
    wrong = recorded("rank=2", "seed=3", test=1.0)
    if mistake == "copied":
        (first,) = tmp_path.glob("lora-r2*-s0-*")
        shutil.copytree(first, tmp_path / "copy")
    else:
        if mistake == "swapped":
            wrong["variant"]["hyperparameters"]["rank"] = 4
        if mistake == "stale":
            wrong["made_of"]["source"] = "another"
        if mistake == "failed":
            wrong["state"] = "failed"
        written(tmp_path, wrong)
    table = main_table(results.load(tmp_path))
    assert cells_of(table)["2"][0].startswith("**0.600 ±") and cells_of(table)["2"][1] == "3"
    assert "left out" in table.markdown()


def test_runs_of_which_none_counts_make_no_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the 1 runs may be counted: left out"):
        main_table(sweep(tmp_path, {"rank=2": [0.5]}, state="failed"))


def test_runs_judged_on_validation_alone_are_compared_there(tmp_path: Path) -> None:
    frame = sweep(tmp_path, {"rank=2": [0.5]}, metrics={"validation": {"exact_match": 0.75}})
    assert "0.750" in main_table(frame).markdown() and "(validation)" in main_table(frame).markdown()


def test_each_experiment_has_its_table(tmp_path: Path) -> None:
    sweep(tmp_path, {"rank=2": [0.5]})
    frame = sweep(
        tmp_path, {"rank=4": [0.5]}, experiment={"name": "other", "title": "Other", "rows": ["rank"]}
    )
    assert sorted(table.name for table in tables(frame)) == ["other", "runs"]


AWKWARD = r"50 % & a_b <i>x</i> | $1 #2 {y} ~ ^ \ `c` α ≈ *d*"


def awkward() -> Table:
    cell = TableCell("0.500 ± 0.100", "best", n=3)
    rows = (
        Row((AWKWARD, "1"), (cell, TableCell(AWKWARD))),
        Row((AWKWARD, "2"), (cell, TableCell("-"))),
    )
    return Table(
        "n", AWKWARD, "rule", ("h", "k"), ("a", AWKWARD), rows, (AWKWARD,), "python -m x 'a_b=[q,v]'", ()
    )


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts, self.open, self.wrong = [""], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.wrong |= self.open.pop() != tag
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        self.texts[-1] += data


def test_html_shows_any_text_as_it_is_and_closes_what_it_opens() -> None:
    reader = Reader(awkward().html())
    assert reader.texts.count(AWKWARD) == 5 and not reader.open and not reader.wrong
    assert "python -m x 'a_b=[q,v]'" in reader.texts and "0.500 ± 0.100" in reader.texts


def test_a_grid_that_names_another_key_is_run_as_a_whole_by_its_experiment() -> None:
    about = {"name": "mine", "grid": {"rank": [2, 4], "alpha": [8, "$rank"]}}
    words = ("alpha=8", r"'alpha=$\{rank\}'")
    told = [f"python -m lora_zoo.run +experiment=mine rank={r} {alpha}" for r in (2, 4) for alpha in words]
    assert command(pd.DataFrame({"command": told}), about) == "python -m lora_zoo.run -m +experiment=mine"
    part = command(pd.DataFrame({"command": told[::2]}), about)
    assert part == "python -m lora_zoo.run -m +experiment=mine alpha=8"


def test_a_header_is_left_out_only_where_all_before_it_are_repeated() -> None:
    rows = tuple(Row(header, (TableCell("x"),)) for header in [("a", "1"), ("a", "2"), ("b", "2")])
    text = Table("n", "t", "", ("h", "k"), ("c",), rows, (), "", ()).html()
    assert re.findall('<th scope="row".*?>(.*?)</th>', text) == ["a", "1", "", "2", "b", "2"]


def test_markdown_rows_keep_their_columns_whatever_a_cell_says() -> None:
    lines = [line for line in awkward().markdown().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    assert (
        "&lt;i&gt;" in lines[0] and "a_b" in lines[0] and "`python -m x 'a_b=[q,v]'`" in awkward().markdown()
    )


def test_latex_leaves_no_special_sign_bare_and_says_a_repeated_header_once() -> None:
    text = awkward().latex()
    for rule in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\textbf{0.500 $\pm$ 0.100}",
        r"\begin{tabular}{llrr}",
    ):
        assert rule in text
    bare = re.sub(r"\\[&%$#_{}]", "", text)
    assert "%" not in bare and "#" not in bare and "α" not in bare and bare.count("$") % 2 == 0
    body = bare[bare.index(r"\midrule") : bare.index(r"\bottomrule")]
    first, second = body.splitlines()[1:]
    assert first.count("&") == second.count("&") == 3 and second.lstrip().startswith("& 2 &")
    assert text.count("50 \\%") == 5  # title, column, first row's header and cell, note


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex here")
def test_latex_compiles(tmp_path: Path) -> None:
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "t.tex").write_text(f"{head}{awkward().latex()}\\end{{document}}\n")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        (MARKDOWN, "<u>12.3 ± 2.3</u> ≈ (3)"),
        (LATEX, r"\underline{12.3 $\pm$ 2.3} $\approx$ (3)"),
        (HTML, '<u>12.3 ± 2.3</u> <span title="not significantly different from the best">≈</span> (3)'),
    ],
    ids=["md", "tex", "html"],
)
def test_each_markup_says_what_a_cell_is(markup: Markup, text: str) -> None:
    assert markup.cell(TableCell("12.3 ± 2.3", "second", True, 3)) == text
    assert markup.cell(TableCell("-")) == "-"


def test_numbers_are_rounded_where_they_are_shown() -> None:
    assert NumberFormat(100.0, 1, True).number(0.12345) == "12.3"
    assert NumberFormat(1.0, 0, False).number(12345.6) == "12,346"


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["report", *words])
    front.main()


def test_the_command_shows_writes_and_packs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path / "runs", FAR)
    pack = tmp_path / "kept" / "results.jsonl.gz"
    run(monkeypatch, str(tmp_path / "runs"), "--archive", str(pack), "--format", *FORMATS)
    said = capsys.readouterr()
    assert "| 8 | **0.908" in said.out and "15 runs packed" in said.err
    out = tmp_path / "runs" / "report"
    assert {file.name for file in out.iterdir()} >= {"runs.md", "runs.tex", "runs.csv", "runs.html"}
    assert (out / "runs.md").read_text() in said.out
    run(monkeypatch, str(pack), "--out", str(tmp_path / "again"), "--format", "md", "csv")
    for name in ("runs.md", "runs.csv"):
        assert (tmp_path / "again" / name).read_text() == (out / name).read_text()
    assert not (tmp_path / "again" / "runs.tex").exists()


def test_the_old_names_of_options_are_accepted_and_not_advertised() -> None:
    old = front.parser().parse_args(["runs", "--pack", "a", "--keep", "b"])
    new = front.parser().parse_args(["runs", "--archive", "a", "--save-experiment", "b"])
    assert vars(old) == vars(new) and new.archive == Path("a") and new.save_experiment == Path("b")
    assert not re.search("--(pack|keep)", front.parser().format_help())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{there}/nowhere",), r"lora_zoo: no result\.json .*nowhere"),
        (("{there}",), "lora_zoo: none of the 1 runs may be counted"),
        (("{there}/bad.jsonl.gz",), "lora_zoo: .*bad.jsonl.gz cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    written(tmp_path, recorded(state="failed"))
    (tmp_path / "bad.jsonl.gz").write_text("no gzip")
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, *(word.format(there=tmp_path) for word in words))
    told = capsys.readouterr()
    assert left.value.code == 2 and told.out == "" and re.fullmatch(f"{said}[^\n]*\n", told.err)
    assert not (tmp_path / "report").exists()


def test_write_is_for_the_end_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "VIEWS", 1)
    monkeypatch.setattr(pages, "STATIC", 1)  # pictures of the page have tests of their own
    sweep(tmp_path / "runs", FAR)
    assert report.write(tmp_path / "runs") == tmp_path / "runs" / "report"
    assert (tmp_path / "runs" / "report" / "runs.html").is_file()
    figures = {path.name for path in (tmp_path / "runs" / "report" / "figures").iterdir()}
    assert {f"outcome-against-a-setting-rank-r.{kind}" for kind in ("svg", "pdf", "png")} <= figures
    monkeypatch.setattr(writing, "_write", lambda report, out: out.mkdir())
    monkeypatch.chdir(tmp_path)
    assert report.write(tmp_path / "runs", tmp_path / "runs") == Path("report")
    assert (tmp_path / "report").is_dir()


def test_names_made_of_markup_and_formulas_are_texts_in_latex_and_csv() -> None:
    evil = [
        "=cmd|' /C calc'!A0",
        "@SUM(A1)",
        "+1+1",
        "-2+3",
        r"\input{/etc/passwd}",
        "}",
        "[q,v]",
        "%",
        "-5",
        "-",
    ]
    rows = tuple(Row((name,), (TableCell(name),)) for name in evil)
    records = tuple({name: name} for name in evil)
    table = Table(r"a\b}", r"t\}", r"\def", ("h",), ("c",), rows, (r"\n}",), r"x \y}", records)
    cells = [cell for line in csv.reader(table.csv().splitlines()) for cell in line if cell]
    assert not [cell for cell in cells if cell[0] in "=+@" or (cell[0] == "-" and cell not in ("-", "-5"))]
    latex = table.latex()
    assert r"\input" not in latex and r"\def" not in latex and r"\y" not in latex
    assert latex.count("{") - latex.count(r"\{") == latex.count("}") - latex.count(r"\}")
    assert not re.search(r"\\\\\s*\[", latex), "an optional argument of a row's end"

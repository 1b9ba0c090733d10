"""Every mistake of `tests/mistakes.py` ends in one line, with exit code 2, before the first step.

`docs/mistakes.md` shows them as measured: `python tests/test_mistakes.py --write` measures again.
"""

import contextlib
import io
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # also run as a script
from tests.mistakes import MISTAKES, csv, desk  # noqa: E402
from tests.processes import run  # noqa: E402

DOC = ROOT / "docs" / "mistakes.md"
HEAD = """# Mistakes, and what they are answered with

Each command below ends with exit code 2 and with this one line, before the first optimiser step. Where the
model or the data had to be read first, the line begins with `failed:` and a second one tells where the record
of the failed run lies. `…` stands for a folder, or for the rest of a line that is longer.

The table is measured: its cases are in `tests/mistakes.py`, and `python tests/test_mistakes.py --write` runs
them and writes this page.
"""
QUIET = ("tracking=none", "threads=1", "steps=1")
SMALL = ("task.sizes.train=20", "task.sizes.validation=4", "task.sizes.test=4")
SHOWN = 240


class Ending(NamedTuple):
    code: object
    text: str
    steps: int

    def lines(self) -> list[str]:
        """What was printed, without what is allowed beside the one line."""
        beside = ("note:", "the record and run.log lie in")
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith(beside)]


def given(words: str) -> list[str]:
    """The words as typed, and what keeps a run that is wrongly let through short."""
    typed = words.split(" ")
    if typed[0] == "compare":
        return typed
    keys = {word.lstrip("+").partition("=")[0] for word in typed}
    usual = QUIET if keys.isdisjoint({"steps", "epochs"}) else QUIET[:2]
    small = SMALL if "task" not in keys and "task.sizes.test" not in keys else ()
    chosen = {key.partition(".")[0] for key in keys if key.startswith("tracking")}
    return typed + [word for word in (*usual, *small) if word.partition("=")[0] not in keys | chosen]


def ended(words: str) -> Ending:
    """Run the command in this process, from the present folder."""
    import transformers

    from lora_zoo import __main__ as front
    from lora_zoo import run

    steps, out = [0], io.StringIO()
    step, argv, code = transformers.Trainer.training_step, sys.argv, None
    width = os.environ.pop("COLUMNS", None)

    def counted(*arguments: object, **more: object) -> object:
        steps[0] += 1
        return step(*arguments, **more)

    transformers.Trainer.training_step = counted
    run.OUTCOMES.clear()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            sys.argv = ["lora-zoo", *given(words)]
            front.main()
    except SystemExit as end:
        code = end.code
    finally:
        transformers.Trainer.training_step, sys.argv = step, argv
        if width is not None:
            os.environ["COLUMNS"] = width
    return Ending(code, out.getvalue(), steps[0])


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        desk(Path(name))
        yield Path(name)


CASES = [(section, words) for section, cases in MISTAKES.items() for words in cases]


def shown(line: str, folder: Path) -> str:
    """The line as the page shows it: no folder of this machine, not too long, no bar that ends a cell."""
    for place in (str(folder.resolve()), str(folder), str(ROOT)):
        line = line.replace(place, "…")
    line = line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
    return line.replace("|", "\\|")


def row(section: str, words: str, line: str) -> str:
    case = MISTAKES[section][words]
    about = "" if isinstance(case, str) else f" ({case[1]})"
    typed = words.replace("|", "\\|")
    return f"| `{typed}`{about} | {line} | 2 |"


@pytest.mark.parametrize(("section", "words"), CASES, ids=[words for _, words in CASES])
def test_a_mistake_is_one_line_and_code_2_before_the_first_step(
    section: str, words: str, folder: Path
) -> None:
    case = MISTAKES[section][words]
    end = ended(words)
    assert "Traceback" not in end.text
    assert (end.code, end.steps) == (2, 0), end.text[-3000:]
    lines = end.lines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("lora_zoo: ")
    assert (case if isinstance(case, str) else case[0]) in lines[0], lines[0]
    assert row(section, words, shown(lines[0], folder)) in DOC.read_text().splitlines()


def test_the_page_holds_every_case_and_no_other() -> None:
    page = [line for line in DOC.read_text().splitlines() if line.startswith("| `")]
    assert len(page) == len(CASES) == len({words for _, words in CASES}) >= 60
    for line, (_, words) in zip(page, CASES, strict=True):
        assert line.startswith(f"| `{words.replace('|', chr(92) + '|')}`")


@pytest.mark.parametrize(
    ("words", "new"),  # a new interpreter where the answer needs no torch
    [
        ("+variant=dorra", {"PYTHONUTF8": "1"}),
        ("--multirunn rank=1,2", {"PYTHONUTF8": "1"}),
        ("rank=129", {}),
        (csv("ragged.csv"), {}),
    ],
)
def test_a_process_says_the_same(words: str, new: dict[str, str], folder: Path) -> None:
    found = run(*given(words), at=folder, **new)
    end = Ending(found.returncode, found.stdout + found.stderr, 0)
    assert end.code == 2, end.text
    assert len(end.lines()) == 1, end.text
    assert end.lines() == ended(words).lines()


def test_a_folder_that_cannot_be_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    end = ended("out=readonly")
    assert end.code == 2
    assert end.lines()[0].endswith("cannot be written to; give another folder")
    assert not (folder / "readonly").exists()


def test_a_template_runs_nothing_of_the_data() -> None:
    """What `str.format` would reach through an attribute, an index or a format is refused, not looked up."""
    from lora_zoo.config.template import check_template

    fields = ("prompt.__class__", "prompt[0]", "prompt!r", "prompt:>9", "0", "", "prompt:{prompt}", "_a.b")
    for inside in fields:
        with pytest.raises(ValueError, match=r"task\.template"):
            check_template(f"{{{inside}}}", ["prompt", "target"])


def measured(folder: Path) -> str:
    """The page, from running every case."""
    parts = [HEAD]
    for section, cases in MISTAKES.items():
        parts += ["", f"## {section}", "", "| what was done | what is printed | code |", "|---|---|---|"]
        for words in cases:
            end = ended(words)
            wrong = end.code != 2 or end.steps or len(end.lines()) != 1
            if wrong:
                print(f"WRONG {shlex.quote(words)}: code {end.code}, {end.steps} steps: {end.text[-400:]}")
            parts.append(row(section, words, shown((end.lines() or ["?"])[-1 if wrong else 0], folder)))
    return "\n".join(parts).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    assert sys.argv[1:] == ["--write"], "usage: python tests/test_mistakes.py --write"
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        desk(Path(name))
        page = measured(Path(name))
    DOC.parent.mkdir(exist_ok=True)
    DOC.write_text(page)

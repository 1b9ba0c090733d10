"""A table as Markdown, LaTeX (booktabs), HTML and CSV. It knows what stands where, and nothing of runs."""

import csv
import html
import io
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import pandas as pd


class Style(ABC):
    """How a kind of text says what a table needs to say."""

    pm: ClassVar[str]
    tied: ClassVar[str]

    @abstractmethod
    def plain(self, text: str) -> str:
        """Any text, so that it shows as it is."""

    @abstractmethod
    def bold(self, text: str) -> str: ...

    @abstractmethod
    def underlined(self, text: str) -> str: ...

    @abstractmethod
    def code(self, text: str) -> str:
        """Any text, as something to type."""


@final
class Markdown(Style):
    pm, tied = "±", "≈"

    def plain(self, text: str) -> str:
        escaped = re.sub(r"[\\|*`\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)  # GFM leaves snake_case alone
        return html.escape(escaped, quote=False).replace("\n", " ")

    def bold(self, text: str) -> str:
        return f"**{text}**"

    def underlined(self, text: str) -> str:
        return f"<u>{text}</u>"

    def code(self, text: str) -> str:
        fence = "``" if "`" in text else "`"
        return f"{fence}{text}{fence}"


@final
class Latex(Style):
    pm, tied = r"$\pm$", r"$\approx$"
    _SAID: ClassVar[dict[int, str]] = str.maketrans(
        {
            **{c: f"\\{c}" for c in "&%$#_{}"},
            **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
            **{"<": r"$<$", ">": r"$>$", "≈": tied, "±": pm, "α": r"$\alpha$", "λ": r"$\lambda$"},
            **{"η": r"$\eta$", "√": r"$\surd$", "Δ": r"$\Delta$", "≤": r"$\leq$", "≥": r"$\geq$"},
            **{"×": r"$\times$", "−": "$-$", "…": r"\dots{}", "\n": " "},
        }
    )

    def plain(self, text: str) -> str:
        return text.translate(self._SAID)

    def bold(self, text: str) -> str:
        return f"\\textbf{{{text}}}"

    def underlined(self, text: str) -> str:
        return f"\\underline{{{text}}}"

    def code(self, text: str) -> str:
        return f"\\texttt{{{self.plain(text)}}}"


@final
class Html(Style):
    pm, tied = "±", '<span title="cannot be told from the best">≈</span>'

    def plain(self, text: str) -> str:
        return html.escape(text)

    def bold(self, text: str) -> str:
        return f"<strong>{text}</strong>"

    def underlined(self, text: str) -> str:
        return f"<u>{text}</u>"

    def code(self, text: str) -> str:
        return f"<code>{html.escape(text)}</code>"


class Content(ABC):
    """What stands in one place of a table."""

    @abstractmethod
    def text(self, style: Style) -> str: ...


@final
@dataclass(frozen=True)
class Told(Content):
    """Words, or a number that is not compared."""

    words: str

    def text(self, style: Style) -> str:
        return style.plain(self.words)


class Look(NamedTuple):
    """How a table writes its numbers: times `scale`, with so many decimals, with n in each place or not."""

    scale: float = 1.0
    decimals: int = 3
    n_shown: bool = True

    def number(self, value: float) -> str:
        return f"{value * self.scale:,.{self.decimals}f}"


MARKS: dict[str, Callable[[Style, str], str]] = {
    "best": lambda style, text: style.bold(text),
    "second": lambda style, text: style.underlined(text),
    "": lambda style, text: text,
}


@final
@dataclass(frozen=True)
class Measured(Content):
    """A mean over n runs with its interval (NaN where n = 1). `mark` is a key of MARKS."""

    mean: float
    low: float
    high: float
    n: int
    look: Look = Look()
    mark: str = ""
    tied: bool = False

    def text(self, style: Style) -> str:
        half = (self.high - self.low) / 2
        spread = "" if math.isnan(half) else f" {style.pm} {self.look.number(half)}"
        number = MARKS[self.mark](style, f"{self.look.number(self.mean)}{spread}")
        return (
            number + (f" {style.tied}" if self.tied else "") + (f" ({self.n})" if self.look.n_shown else "")
        )


@final
@dataclass(frozen=True)
class Quoted(Content):
    """The paper's own number, as printed there; `spread` is what the paper gives for it, if anything."""

    value: float
    spread: float | None = None

    def text(self, style: Style) -> str:
        return f"{self.value:g}" + ("" if self.spread is None else f" {style.pm} {self.spread:g}")


ABSENT = Told("-")


class Row(NamedTuple):
    header: tuple[str, ...]
    contents: tuple[Content, ...]


@final
@dataclass(frozen=True)
class Table:
    """`rule` stands above the rows, `notes` and the `command` below; `records` are the cells, for CSV.

    `headers` name the row headers, `columns` the contents of each row.
    """

    name: str
    title: str
    rule: str
    headers: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    command: str
    records: tuple[Mapping[str, Any], ...]

    def markdown(self) -> str:
        style = Markdown()
        lines = [*self._lines(style)]
        width = len(self.headers) + len(self.columns)
        body = ["| " + " | ".join(line) + " |" for line in lines]
        body.insert(1, "|" + "---|" * width)
        notes = [f"* {note}" for note in self._below(style)]
        parts = [f"**{style.plain(self.title)}**", style.plain(self.rule), "\n".join(body), "\n".join(notes)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def latex(self) -> str:
        """A `table` for \\usepackage{booktabs}."""
        style = Latex()
        head, *lines = self._lines(style)
        frame = pd.DataFrame(_sparse(lines, len(self.headers)), columns=head)
        form = "l" * len(self.headers) + "r" * len(self.columns)
        body = frame.to_latex(index=False, escape=False, column_format=form)
        notes = "\\\\\n".join([style.plain(self.rule), *self._below(style)])
        return (
            f"\\begin{{table}}\n\\centering\n\\caption{{{style.plain(self.title)}}}\n\\label{{tab:{self.name}}}\n"
            f"{body}\\par\\medskip\\footnotesize\\raggedright\n{notes}\n\\end{{table}}\n"
        )

    def html(self) -> str:
        """A <figure> for any page: the rule in its caption, the notes below."""
        style = Html()
        head, *lines = self._lines(style)
        first = len(self.headers)
        top = "".join(f'<th scope="col">{name}</th>' for name in head)
        rows = "\n".join(
            "<tr>"
            + "".join(f'<th scope="row">{name}</th>' for name in line[:first])
            + "".join(f"<td>{text}</td>" for text in line[first:])
            + "</tr>"
            for line in _sparse(lines, first)
        )
        notes = "\n".join(f"<li>{note}</li>" for note in self._below(style))
        return (
            f'<figure class="table" id="table-{style.plain(self.name)}">\n'
            f"<figcaption><strong>{style.plain(self.title)}</strong> {style.plain(self.rule)}</figcaption>\n"
            f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n"
            f"<ul>\n{notes}\n</ul>\n</figure>\n"
        )

    def csv(self) -> str:
        """One line a cell, numbers unrounded and in the unit of the results."""
        keys = dict.fromkeys(key for record in self.records for key in record)
        file = io.StringIO()
        writer = csv.DictWriter(file, list(keys), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return file.getvalue()

    def _below(self, style: Style) -> list[str]:
        made = [f"made by {style.code(self.command)}"] if self.command else []
        return [*map(style.plain, self.notes), *made]

    def _lines(self, style: Style) -> list[list[str]]:
        head = [style.plain(name) for name in (*self.headers, *self.columns)]
        rows = [
            [*map(style.plain, row.header), *(content.text(style) for content in row.contents)]
            for row in self.rows
        ]
        return [head, *rows]


def _sparse(lines: Sequence[Sequence[str]], headers: int) -> list[list[str]]:
    """The lines without the headers that each repeats from the line before."""
    found, before = [], [""] * headers
    for line in lines:
        same = 0
        while same < headers and line[same] == before[same]:
            same += 1
        found.append([*[""] * same, *line[same:]])
        before = list(line[:headers])
    return found

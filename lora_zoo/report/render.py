"""A table as Markdown, LaTeX (booktabs), HTML and CSV. It knows what stands where, and nothing of runs."""

import html
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import pandas as pd


class Markup(NamedTuple):
    """The markup of one kind of text; `plain` makes any text show as it is."""

    plain: Callable[[str], str]
    code: Callable[[str], str]
    best: str
    second: str
    tied: str

    def cell(self, cell: "TableCell") -> str:
        marked = {"best": self.best, "second": self.second}.get(cell.mark, "{}").format(self.plain(cell.text))
        return marked + (f" {self.tied}" if cell.tied else "") + (f" ({cell.n})" if cell.n else "")


def _markdown(text: str) -> str:
    escaped = re.sub(r"[\\|*`\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)  # GFM leaves snake_case alone
    return html.escape(escaped, quote=False).replace("\n", " ")


def csv_of(table: pd.DataFrame) -> str:
    """A frame as CSV in which no text is a formula to a spreadsheet: one that could be begins with `'`."""
    safe = table.map(_no_formula)
    return safe.rename(columns=_no_formula).to_csv(index=False)


def _no_formula(value: Any) -> Any:
    risky = isinstance(value, str) and len(value) > 1 and value[0] in "=+-@\t\r"
    return f"'{value}" if risky and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_SIGNS = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        **{
            "[": "{[}",  # after the end of a row it would open that one's argument
            "]": "{]}",
            "\\": r"\textbackslash{}",
            "~": r"\textasciitilde{}",
            "^": r"\textasciicircum{}",
        },
        **{"<": r"$<$", ">": r"$>$", "≈": r"$\approx$", "±": r"$\pm$", "α": r"$\alpha$", "λ": r"$\lambda$"},
        **{"η": r"$\eta$", "√": r"$\surd$", "Δ": r"$\Delta$", "≤": r"$\leq$", "≥": r"$\geq$"},
        **{"×": r"$\times$", "−": "$-$", "…": r"\dots{}", "\n": " "},
    }
)


def _latex(text: str) -> str:
    return text.translate(_SIGNS)


MARKDOWN = Markup(
    _markdown, lambda text: f"``{text}``" if "`" in text else f"`{text}`", "**{}**", "<u>{}</u>", "≈"
)
LATEX = Markup(
    _latex, lambda text: f"\\texttt{{{_latex(text)}}}", r"\textbf{{{}}}", r"\underline{{{}}}", r"$\approx$"
)
HTML = Markup(
    html.escape,
    lambda text: f"<code>{html.escape(text)}</code>",
    "<strong>{}</strong>",
    "<u>{}</u>",
    '<span title="not significantly different from the best">≈</span>',
)


class TableCell(NamedTuple):
    """One cell of a table. `mark`: best, second or ""; `tied`: not significantly different."""

    text: str
    mark: str = ""
    tied: bool = False
    n: int = 0
    """The number of runs, where it is to be shown."""


class Row(NamedTuple):
    header: tuple[str, ...]
    cells: tuple[TableCell, ...]


@final
@dataclass(frozen=True)
class Table:
    """`rule` stands above the rows, `notes` and the `command` below; `records` are the cells, for CSV.

    `headers` name the row headers, `columns` the cells of each row.
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
        frame = self._texts(MARKDOWN)
        rows = [[*frame.columns], ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines[1] = lines[1].replace(" ", "")
        notes = [f"* {note}" for note in self._below(MARKDOWN)]
        head = [f"**{_markdown(self.title)}**", _markdown(self.rule)]
        return "\n\n".join(filter(None, [*head, "\n".join(lines), "\n".join(notes)])) + "\n"

    def latex(self) -> str:
        """A `table` for \\usepackage{booktabs}."""
        form = "l" * len(self.headers) + "r" * len(self.columns)
        body = self._sparse(LATEX).to_latex(index=False, escape=False, column_format=form)
        notes = "\\\\\n".join([_latex(self.rule), *self._below(LATEX)])
        label = re.sub(r"[^\w:.-]+", "-", self.name)
        return (
            f"\\begin{{table}}\n\\centering\n\\caption{{{_latex(self.title)}}}\n\\label{{tab:{label}}}\n"
            f"{body}\\par\\medskip\\footnotesize\\raggedright\n{notes}\n\\end{{table}}\n"
        )

    def html(self) -> str:
        """A <figure> for any page: the rule in its caption, the legend below, the notes folded."""
        frame, first = self._sparse(HTML), len(self.headers)
        words = [[row.header[i] for row in self.rows] for i in range(first)]
        numbers = [*(all(map(_is_number, column)) for column in words), *(True for _ in self.columns)]
        kinds = [' class="number"' if number else "" for number in numbers]
        heads = [
            f'<th scope="col"{kind}>{name}</th>' for name, kind in zip(frame.columns, kinds, strict=True)
        ]
        opened = [f'<th scope="row"{kind}>{{}}</th>' for kind in kinds[:first]]
        line = f"<tr>{''.join(opened)}{'<td>{}</td>' * len(self.columns)}</tr>"
        rows = "\n".join(line.format(*row) for row in frame.to_numpy().tolist())
        legend, *notes = (f"<li>{note}</li>" for note in self._below(HTML) or [""])
        more = "\n".join(["<details><summary>Notes and command</summary><ul>", *notes, "</ul></details>"])
        return (
            f'<figure class="table" id="table-{html.escape(self.name)}">\n'
            f"<figcaption><strong>{html.escape(self.title)}</strong> {html.escape(self.rule)}</figcaption>\n"
            f"<table>\n<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n"
            f"<ul>\n{legend}\n</ul>\n{more if notes else ''}</figure>\n"
        )

    def csv(self) -> str:
        """One line a cell, numbers unrounded and in the unit of the results."""
        return csv_of(pd.DataFrame(self.records, dtype=object))

    def _below(self, markup: Markup) -> list[str]:
        made = [f"made by {markup.code(self.command)}"] if self.command else []
        return [*map(markup.plain, self.notes), *made]

    def _texts(self, markup: Markup) -> pd.DataFrame:
        names = [markup.plain(name) for name in (*self.headers, *self.columns)]
        rows = [[*map(markup.plain, row.header), *map(markup.cell, row.cells)] for row in self.rows]
        return pd.DataFrame(rows, columns=names, dtype=object)

    def _sparse(self, markup: Markup) -> pd.DataFrame:
        """The texts without the headers that each row repeats from the one before."""
        frame, first = self._texts(markup), len(self.headers)
        heads = frame.iloc[:, :first]
        shown = heads.mask(heads.eq(heads.shift()).cummin(axis=1), "")
        return pd.concat([shown, frame.iloc[:, first:]], axis=1)

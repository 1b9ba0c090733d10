"""WikiSQL, arXiv:1709.00103: a question about a table as a query, judged by its form and by its result."""

import functools
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from lora_zoo.config.schema import Task, file_of
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.core.bounded_json import parse_json
from lora_zoo.core.errors import unreadable
from lora_zoo.tasks.base import Outcome
from lora_zoo.tasks.causal_lm import CausalLM
from lora_zoo.tasks.cutting import Example

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<", "OP")
TABLES = "_tables"
"""After a split's name: its file of tables among task.data_files."""
_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")


class SqlQuery(NamedTuple):
    """A query as WikiSQL has it: `sel` and the first of each condition are numbers of columns."""

    sel: int
    agg: int
    conds: list[list[Any]]

    def form(self) -> tuple[int, int, set[tuple[int, int, str]]]:
        """The logical form: the order of conditions does not count, nor the case of their values.

        The text of a value does, as in WikiSQL's own script: 3 is another form than 3.0.
        """
        return self.sel, self.agg, {(column, op, str(value).lower()) for column, op, value in self.conds}


class SqlTable(NamedTuple):
    header: list[str]
    types: list[str]
    rows: list[list[Any]]

    @classmethod
    def of(cls, held: Mapping[str, Any]) -> "SqlTable":
        header = [" ".join(str(name).split()) for name in held["header"]]
        return cls(header, list(held["types"]), list(held["rows"]))


@TASK_TYPES.register("wikisql")
class WikiSQL(CausalLM):
    """A decoder writes `SELECT MAX Score FROM table WHERE Player = Ann AND Year > 1999`, a table's query.

    The files are the published ones: a split's questions, and its tables under its name with `_tables`. An
    outcome has `logical_form` and `execution`, each 1 or 0, by the rules of WikiSQL's own script, but that of
    two conditions on one column each keeps its value. A text that is no query is wrong in both.
    """

    sources = ("text",)
    judgements = ("logical_form", "execution")

    def __init__(self, task: Task, tokenizer: Any, splits: Mapping[str, Any]) -> None:
        super().__init__(task, tokenizer, splits)
        self.tables = {name: table for split in splits for name, table in tables_of(task, split).items()}

    @classmethod
    def prepared(cls, task: Task, splits: Mapping[str, Any]) -> tuple[Task, Mapping[str, Any]]:
        """The columns `prompt` (the question), `header`, `target` (the query's text), `query` and `table`."""
        from datasets import Dataset

        made = {}
        for name, data in splits.items():
            rows, tables = [], tables_of(task, name)
            for number, line in enumerate(data["text"] if "text" in data.column_names else [""]):
                try:
                    held = parse_json(line)
                    query, table = SqlQuery(**held["sql"]), tables[held["table_id"]]
                    if not all(isinstance(value, (str, int, float)) for *_, value in query.conds):
                        raise TypeError("a condition's value is neither a text nor a number")
                    about = {"prompt": held["question"], "header": " | ".join(table.header)}
                    of = {"target": written(query, table), "table": held["table_id"]}
                    rows.append(about | of | {"query": json.dumps(query)})
                except (ValueError, LookupError, TypeError) as error:
                    raise ValueError(
                        f"task {task.name}, {name}: line {number + 1} is no question of WikiSQL's form "
                        f"({type(error).__name__}: {error})"
                    ) from error
            made[name] = Dataset.from_list(rows)
        return replace(task, columns={}), made

    def answers(self, model: nn.Module, rows: list[Example]) -> list[Outcome]:
        found = zip(super().answers(model, rows), rows, strict=True)
        return [outcome | self.judgement(row, outcome["prediction"]) for outcome, row in found]

    def judgement(self, row: Example, text: str) -> dict[str, float]:
        """`logical_form` and `execution` of a text, the second as the score."""
        table, right = self.tables[row["table"]], SqlQuery(*json.loads(row["query"]))
        said = right if text == self._clean(row["target"]) else read(text, table)
        same = said is not None and said.form() == right.form()
        found = result(said, table) if said is not None and not same else None
        executed = same or (found is not None and found == result(right, table))
        return {"logical_form": float(same), "execution": float(executed), "score": float(executed)}


def tables_of(task: Task, split: str) -> dict[str, SqlTable]:
    """The tables of a split by their id. ValueError where there is no file of them, or it holds none."""
    if (name := task.data_files.get(f"{split}{TABLES}")) is None:
        raise ValueError(f"task {task.name}, {split}: give its tables, task.data_files.{split}{TABLES}=FILE")
    path = file_of(task, name)
    return _tables_in(path, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=3)
def _tables_in(path: Path, written_at: int) -> dict[str, SqlTable]:
    try:
        held = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {str(one["id"]): SqlTable.of(one) for one in held}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {unreadable(error)}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} holds no tables of WikiSQL's form ({type(error).__name__}: {error})"
        ) from error


def written(query: SqlQuery, table: SqlTable) -> str:
    """The text of a query. IndexError for a column or an operator that there is not."""
    conditions = [f"{table.header[c]} {OPERATORS[op]} {value}" for c, op, value in query.conds]
    chosen = f"{AGGREGATES[query.agg]} {table.header[query.sel]}".strip()
    return f"SELECT {chosen} FROM table" + (f" WHERE {' AND '.join(conditions)}" if conditions else "")


def read(text: str, table: SqlTable) -> SqlQuery | None:
    """The query that a text is; None for a text that is none about this table."""
    found = re.fullmatch(r"select (.+?) from table(?: where (.+))?", text, re.IGNORECASE)
    if not found or (chosen := _chosen(found[1], table.header)) is None:
        return None
    columns = {name.lower(): number for number, name in reversed([*enumerate(table.header)])}
    names = "|".join(map(re.escape, table.header))
    where = found[2] or ""
    places = [*re.finditer(rf"(?:^| and )({names}) ([=<>]) ", where, re.IGNORECASE)]
    if where and not (places and places[0].start() == 0):
        return None
    ends = [*(place.start() for place in places[1:]), len(where)][: len(places)]
    conditions = [
        [columns[place[1].lower()], OPERATORS.index(place[2]), where[place.end() : end]]
        for place, end in zip(places, ends, strict=True)
    ]
    return SqlQuery(*chosen, conditions)


def _chosen(text: str, header: Sequence[str]) -> tuple[int, int] | None:
    """The numbers of the column and of the aggregate that are selected."""
    names = [name.lower() for name in header]
    for number, aggregate in enumerate(AGGREGATES):
        rest = text.lower().removeprefix(f"{aggregate.lower()} " if aggregate else "")
        if rest in names and (not aggregate or rest != text.lower()):
            return names.index(rest), number
    return None


def result(query: SqlQuery, table: SqlTable) -> list[Any] | None:
    """The rows that SQLite gives, all texts in lower case; None for a query that it does not take."""
    columns = [f"col{number}" for number in range(len(table.header))]
    chosen, aggregate = f"col{query.sel}", AGGREGATES[query.agg]
    conditions = [f"col{column} {OPERATORS[op]} ?" for column, op, _ in query.conds]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    base = sqlite3.connect(":memory:")
    try:
        typed = ", ".join(
            f"{name} {kind}" for name, kind in zip(columns, map(_kind, table.types), strict=True)
        )
        base.execute(f"CREATE TABLE data ({typed})")
        marks = ", ".join("?" * len(columns))
        base.executemany(
            f"INSERT INTO data VALUES ({marks})", [[_lower(v) for v in row] for row in table.rows]
        )
        values = [_value(value, table.types[column]) for column, _, value in query.conds]
        found = base.execute(
            f"SELECT {f'{aggregate}({chosen})' if aggregate else chosen} FROM data{where}", values
        )
        return [row[0] for row in found]
    except (sqlite3.Error, ValueError, IndexError, OverflowError):  # of an integer beyond SQLite's
        return None
    finally:
        base.close()


def _kind(name: str) -> str:
    return "real" if name == "real" else "text"


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _value(value: Any, kind: str) -> Any:
    """A condition's value as its column has it. ValueError or IndexError for a text without a number."""
    if kind != "real" or isinstance(value, (int, float)):
        return _lower(value)
    try:
        return float(value.replace(",", ""))
    except ValueError:
        return float(_NUMBER.findall(value)[0])

"""DART, WebNLG and WikiSQL in their published forms, on files that are written here."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.pocket import HUB
from lora_zoo.tasks.data import load_splits
from lora_zoo.tasks.wikisql import SqlQuery, SqlTable, WikiSQL, read, result, written
from tests.test_mistakes import ended

ROOT = Path(__file__).parents[1]
DART = [
    {
        "tripleset": [["Ann", "LIVES_IN", "Rome"], ["Rome", "In", "Italy"]],
        "subtree_was_extended": False,
        "annotations": [
            {"source": "mine", "text": "Ann lives in Rome, Italy ."},
            {"source": "mine", "text": "Rome is her home ."},
        ],
    },
    {"tripleset": [["Bob", "AGE", "7"]], "annotations": [{"source": "mine", "text": "Bob is seven ."}]},
]


def entry(number: int, *texts: tuple[str, str]) -> dict[str, Any]:
    triple = {"subject": f"City_{number}", "property": "isIn", "object": "Italy"}
    lex = [{"comment": comment, "lang": "", "lex": text, "xml_id": "Id1"} for text, comment in texts]
    return {str(number): {"category": "City", "modifiedtripleset": [triple] * number, "lexicalisations": lex}}


WEBNLG = {
    "entries": [
        entry(1, ("It is .", "good"), ("No .", "bad")),
        entry(2, ("So .", "good"), ("Thus .", "good")),
    ]
}


def task_of(folder: Path, name: str, **changes: Any) -> Task:
    known = yaml.safe_load((ROOT / "conf" / "task" / f"{name}.yaml").read_text())
    return Task(**(known | {"data_dir": str(folder)} | changes))


def kind_of(task: Task) -> tuple[Any, Any]:
    splits = load_splits(task)
    return TASK_TYPES[task.type](task, PreTrainedTokenizerFast.from_pretrained(HUB), splits), splits


def test_dart_is_read_as_it_is_published(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"dart-v1.1.1-full-{split}.json").write_text(json.dumps(DART, indent=2))
    kind, splits = kind_of(task_of(tmp_path, "dart"))
    assert [row["prompt"] for row in splits["train"]] == ["Ann : lives_in : Rome | Rome : in : Italy"] * 2 + [
        "Bob : age : 7"
    ]
    assert kind.asks(kind.task, splits["train"][2]) == "Bob : age : 7 ||"
    assert kind.references(kind.items(splits["test"])) == [
        ["Ann lives in Rome, Italy .", "Rome is her home ."],
        ["Bob is seven ."],
    ]


def test_webnlg_is_read_as_it_is_published_without_the_texts_that_are_marked_as_bad(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(WEBNLG))
    kind, splits = kind_of(task_of(tmp_path, "webnlg"))
    assert splits["train"]["prompt"][0] == "City_1 : isIn : Italy"
    assert splits["train"]["prompt"][1] == "City_2 : isIn : Italy | City_2 : isIn : Italy"
    assert kind.references(kind.items(splits["test"])) == [["It is ."], ["So .", "Thus ."]]
    assert set(splits["test"]["category"]) == {"City"}


@pytest.mark.parametrize("content", ["[{}]", "{}", '{"entries": [1]}', "[1", '[{"tripleset": [["a", "b"]]}]'])
def test_another_form_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(ValueError, match="task webnlg, train: the file is not of DART's form or WebNLG's"):
        load_splits(task_of(tmp_path, "webnlg", data_files={"train": "train.json"}))


# --- WikiSQL -----------------------------------------------------------------------------------------------

TABLE = {
    "id": "1-10",
    "header": ["Player", "No.", "Best (m)", "Max best", "Best"],
    "types": ["text", "real", "real", "text", "text"],
    "rows": [["Ann Lee", 7, 3.5, "x", "b"], ["Bob", 9, 1200.0, "Y", "c"], ["Cy", 9, 2.0, "z", "d"]],
}
FORMS = [
    (SqlQuery(0, 0, []), "SELECT Player FROM table", ["ann lee", "bob", "cy"]),
    (SqlQuery(2, 1, [[1, 0, "9"]]), "SELECT MAX Best (m) FROM table WHERE No. = 9", [1200.0]),
    (
        SqlQuery(0, 3, [[1, 1, 7], [2, 2, "1,000"]]),
        "SELECT COUNT Player FROM table WHERE No. > 7 AND Best (m) < 1,000",
        [1],
    ),
    (SqlQuery(1, 0, [[0, 0, "ANN LEE"]]), "SELECT No. FROM table WHERE Player = ANN LEE", [7.0]),
    (
        SqlQuery(1, 0, [[0, 0, "a and b"], [3, 0, "y"]]),
        "SELECT No. FROM table WHERE Player = a and b AND Max best = y",
        [],
    ),
]
"""SqlQuery, its text, and the result by hand."""


@pytest.mark.parametrize("query, text, rows", FORMS)
def test_a_query_is_written_read_and_executed(query: SqlQuery, text: str, rows: list[Any]) -> None:
    table = SqlTable.of(TABLE)
    assert written(query, table) == text
    said = read(text.lower(), table)
    assert said is not None and said.form() == query.form()
    assert result(query, table) == rows == result(said, table)


def test_a_header_that_begins_with_an_aggregate_is_a_header() -> None:
    table = SqlTable.of(TABLE)
    assert read("SELECT Max best FROM table", table) == SqlQuery(3, 0, [])
    assert read("SELECT MIN Best FROM table", table) == SqlQuery(4, 2, [])


@pytest.mark.parametrize(
    "text",
    [
        *("", "SELECT", "SELECT Height FROM table", "DROP TABLE data", "SELECT Player, No. FROM table"),
        *("SELECT Player FROM table WHERE x = 1", "SELECT Player FROM table WHERE 1 AND No. = 9"),
    ],
)
def test_a_text_that_is_no_query_of_the_table_is_none(text: str) -> None:
    assert read(text, SqlTable.of(TABLE)) is None


def test_what_sqlite_does_not_take_has_no_result() -> None:
    table = SqlTable.of(TABLE)
    assert result(SqlQuery(0, 0, [[1, 0, "many"]]), table) is None, "no number for a column of numbers"
    assert result(SqlQuery(0, 0, [[1, 3, 1]]), table) is None, "OP is no operator of SQL"


@pytest.fixture
def wikisql(tmp_path: Path) -> Path:
    asked = {"phase": 1, "table_id": "1-10"}
    lines = [
        asked | {"question": "Who has number 9?", "sql": {"sel": 0, "conds": [[1, 0, 9]], "agg": 0}},
        asked
        | {"question": "Which is the best of Bob?", "sql": {"sel": 2, "conds": [[0, 0, "Bob"]], "agg": 1}},
    ]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / f"{split}.tables.jsonl").write_text(json.dumps(TABLE) + "\n")
    return tmp_path


def test_wikisql_is_judged_by_form_and_by_result(wikisql: Path) -> None:
    kind, splits = kind_of(task_of(wikisql, "wikisql"))
    assert isinstance(kind, WikiSQL)
    one, two = splits["test"]
    assert kind.asks(kind.task, one) == (
        "Table: Player | No. | Best (m) | Max best | Best\nQuestion: Who has number 9?\nSQL:"
    )
    assert kind.references([one, two]) == [
        "SELECT Player FROM table WHERE No. = 9",
        "SELECT MAX Best (m) FROM table WHERE Player = Bob",
    ]

    def judged(row: Any, text: str) -> tuple[float, float]:
        found = kind.judgement(row, text)
        assert found["score"] == found["execution"]
        return found["logical_form"], found["execution"]

    assert judged(one, one["target"]) == (1.0, 1.0)
    assert judged(two, "select max best (m) from table where player = BOB") == (1.0, 1.0)
    assert judged(two, "SELECT Best (m) FROM table WHERE Max best = y") == (0.0, 1.0)
    assert judged(two, "SELECT Best (m) FROM table WHERE Player = Cy") == (0.0, 0.0)
    assert judged(two, "SELECT nothing") == (0.0, 0.0)


def test_a_run_on_wikisql_has_both_accuracies(wikisql: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(wikisql)
    run = ended(
        f"task=wikisql task.data_dir={wikisql} steps=1 batch_size=2 task.max_new_tokens=4 tracking=none "
        "eval_before_training=false forgetting_text=null eval_splits=[test] task.max_length=96"
    )
    assert run.code in (0, None), run.text
    (held,) = wikisql.glob("runs/*/result.json")
    assert json.loads(held.read_text())["metrics"]["test"] == {"execution": 0.0, "logical_form": 0.0}


def test_questions_without_their_tables_are_refused(wikisql: Path) -> None:
    with pytest.raises(ValueError, match=r"train: give its tables, task\.data_files\.train_tables=FILE"):
        load_splits(task_of(wikisql, "wikisql", data_files={"train": "train.jsonl"}))
    (wikisql / "train.jsonl").write_text('{"question": "who?"}\n')
    with pytest.raises(ValueError, match="line 1 is no question of WikiSQL's form"):
        load_splits(task_of(wikisql, "wikisql"))
    (wikisql / "train.tables.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="holds no tables of WikiSQL's form"):
        load_splits(task_of(wikisql, "wikisql"))

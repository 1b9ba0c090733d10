"""Data to text: triples (subject, relation, object) as DART and WebNLG publish them, told in a sentence."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lora_zoo.config.schema import Task
from lora_zoo.config.task_types import TASK_TYPES
from lora_zoo.core.bounded_json import parse_json
from lora_zoo.core.errors import unknown
from lora_zoo.tasks.causal_lm import CausalLM


@TASK_TYPES.register("data_to_text")
class DataToText(CausalLM):
    """A decoder tells a set of triples; each text of a set is an example, and a reference of one item.

    A file is DART's list of `tripleset` and `annotations`, or WebNLG's `entries`, of whose texts those count
    that are marked as good. Triples are written as in the LoRA paper's code: `s : r : o | s : r : o`, DART's
    relations in lower case.
    """

    sources = ("text",)

    @classmethod
    def prepared(cls, task: Task, splits: Mapping[str, Any]) -> tuple[Task, Mapping[str, Any]]:
        """The columns `prompt` (the triples) and `target`, with WebNLG's `category`."""
        from datasets import Dataset

        made = {}
        for name, data in splits.items():
            where = f"task {task.name}, {name}"
            if "text" not in data.column_names:
                raise ValueError(
                    f"{where}: {unknown('column', 'text', data.column_names)}; give dataset=text"
                )
            try:
                made[name] = Dataset.from_list(
                    [row for text in data["text"] for row in _rows(parse_json(text))]
                )
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{where}: the file is not of DART's form or WebNLG's ({type(error).__name__}: {error})"
                ) from error
        return replace(task, columns={}), made


def _rows(held: Any) -> Iterator[dict[str, str]]:
    """The examples of a file. ValueError, LookupError, TypeError, AttributeError for one of another form."""
    if isinstance(held, list):
        for entry in held:
            triples = [(s, relation.lower(), o) for s, relation, o in entry["tripleset"]]
            yield from ({"prompt": _text(triples), "target": sent["text"]} for sent in entry["annotations"])
        return
    for numbered in held["entries"]:
        (entry,) = numbered.values()
        triples = [(t["subject"], t["property"], t["object"]) for t in entry["modifiedtripleset"]]
        about = {"prompt": _text(triples), "category": entry["category"]}
        for sent in entry["lexicalisations"]:
            if sent["comment"] == "good":
                yield about | {"target": sent["lex"]}


def _text(triples: list[tuple[str, str, str]]) -> str:
    return " | ".join(" : ".join(triple) for triple in triples)

"""Conversations in the formats in which instruction data are published, as messages of a role and a text.

| columns | format |
|---|---|
| `messages` | a list of {role, content}, as the Hub's chat data sets have it |
| `conversations` | ShareGPT: a list of {from, value} |
| `instruction`, `output`, perhaps `input` | Alpaca: one question and its answer |

Each may have a column `system`, which comes first.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lora_zoo.core.errors import unknown

Message = dict[str, str]
COLUMNS = ("messages", "conversations", "instruction", "input", "output", "system")
"""The columns that are read, by their roles."""
ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    **{"human": "user", "gpt": "assistant", "observation": "tool"},
}
"""The role of a message by the word for it, of ShareGPT's format too."""


def check_format(columns: Collection[str], where: str) -> None:
    """ValueError where the columns are of no format."""
    if not ({"messages", "conversations"} & {*columns} or {"instruction", "output"} <= {*columns}):
        raise ValueError(
            f"{where}: type=instructions reads a column messages, a column conversations, or instruction and "
            f"output; the data has {', '.join(columns)}: give for example task.columns.messages=COLUMN"
        )


def conversation(row: Mapping[str, Any]) -> list[Message]:
    """The messages of an example up to its last answer. ValueError for one without an answer to anything."""
    turns = _turns(row)
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        raise ValueError("it holds no answer (a message of the role assistant)")
    if not answers[-1]:
        raise ValueError("it is an answer to nothing")
    empty = [number for number in answers if not turns[number]["content"].strip()]
    if empty:
        raise ValueError(f"its answer, message {empty[0]}, is empty")
    return turns[: answers[-1] + 1]


def _turns(row: Mapping[str, Any]) -> list[Message]:
    given = row.get("messages") or row.get("conversations")
    if given is None:
        question = [row.get("instruction"), row.get("input")]
        turns = [_message("user", "\n\n".join(str(part) for part in question if part))]
        turns += [_message("assistant", row.get("output"))]
    elif not isinstance(given, Sequence) or isinstance(given, str):
        raise ValueError(f"its conversation is {given!r}, not a list of messages")
    else:
        turns = [_read(message) for message in given]
    system = row.get("system")
    return [_message("system", system), *turns] if system else turns


def _read(message: Any) -> Message:
    """A message by its keys, of either format."""
    if not isinstance(message, Mapping):
        raise ValueError(f"the message {message!r} has no role and content (or from and value)")
    for role, text in (("role", "content"), ("from", "value")):
        if message.get(role) is not None:
            return _message(str(message[role]), message.get(text))
    raise ValueError(f"a message has {', '.join(message)}; it needs role and content, or from and value")


def _message(word: str, text: Any) -> Message:
    if word not in ROLES:
        raise ValueError(unknown("role", word, ROLES))
    if isinstance(text, list) and all(isinstance(part, Mapping) and "text" in part for part in text):
        text = "".join(str(part["text"]) for part in text)
    if not isinstance(text, str):
        raise ValueError(f"a message of the role {word} holds {text!r}; it must be a text")
    return {"role": ROLES[word], "content": text}

"""The one place where inputs are cut to `task.max_length` tokens, in training as in evaluation.

A prompt loses its start, so that the question at its end stays; a text or a pair loses its end; a target
loses its last tokens but for those that end it. Special tokens of the tokenizer stay.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

IGNORED = -100
"""The label of a token that the loss does not see."""
Example = dict[str, Any]


class Fitted(NamedTuple):
    """An example as a model's inputs, and if any of it had to go."""

    inputs: Example
    cut: bool


def fitted(tokenizer: Any, *texts: str, room: int, side: str = "left") -> Fitted:
    """The tokens of a text or a pair; what does not fit in `room` is taken from the `side`."""
    whole = dict(tokenizer(*texts, verbose=False))
    if len(whole["input_ids"]) <= room:
        return Fitted(whole, False)
    usual, tokenizer.truncation_side = tokenizer.truncation_side, side
    try:
        return Fitted(dict(tokenizer(*texts, truncation=True, max_length=room)), True)
    finally:
        tokenizer.truncation_side = usual


def least(tokenizer: Any) -> int:
    """The least room of a prompt: its special tokens, and one of its own."""
    return int(tokenizer.num_special_tokens_to_add()) + 1


def fitted_target(body: list[int], end: Sequence[int], room: int) -> tuple[list[int], bool]:
    """A target of a body and its end in `room` tokens, and if any of the body had to go."""
    kept = body[: max(room - len(end), 0)]
    return [*kept, *end], len(kept) < len(body)


def continued(
    tokenizer: Any, prompt: str, body: list[int], end: Sequence[int], *, limit: int, reserved: int = 0
) -> Fitted:
    """Prompt, answer and its end in one sequence of at most `limit` tokens, the prompt's labels ignored.

    The prompt leaves room for so many tokens as are `reserved`, where the target has fewer.
    """
    target, short = fitted_target(body, end, limit - least(tokenizer))
    start, cut = fitted(tokenizer, prompt, room=limit - max(len(target), reserved))
    ids = start["input_ids"] + target
    labels = [IGNORED] * len(start["input_ids"]) + target
    return Fitted({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}, cut or short)


def continuation(tokenizer: Any, text: str) -> list[int]:
    """The tokens of `text` as it continues a prompt: a space before it, where the tokenizer keeps spaces."""
    ids: list[int] = tokenizer(f" {text}", add_special_tokens=False, verbose=False)["input_ids"]
    return ids

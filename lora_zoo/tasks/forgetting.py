"""Forgetting: a causal model's loss on held-out text (nats a token), before fine-tuning and after."""

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lora_zoo.core.errors import unreadable
from lora_zoo.core.train_eval import in_mode
from lora_zoo.injection.inject import Injection
from lora_zoo.pocket import HELD_OUT, HUB
from lora_zoo.tasks.base import TaskType, on_device

POCKET = "pocket"
AUTO = "auto"
"""The text that the model was pretrained on, as far as it is known."""
BLOCKS, LENGTH, BATCH = 32, 128, 32
"""The number of blocks at most, tokens of each, and blocks in one pass."""


class HeldOutLoss:
    """Blocks of tokens (N, L) of a text that no task trains on: `pocket`'s own genres, or a text file."""

    def __init__(self, source: str, tokenizer: Any) -> None:
        self.source = source
        stream = _pocket(tokenizer) if source == POCKET else _file(Path(source).expanduser(), tokenizer)
        tokens = list(islice(stream, BLOCKS * (LENGTH + 1)))
        length = min(LENGTH + 1, len(tokens))
        if length < 2:
            raise ValueError(
                f"forgetting_text={source}: the text has {len(tokens)} tokens; give at least two"
            )
        count = len(tokens) // length
        self.ids_NL = torch.tensor(tokens[: count * length]).view(count, length)

    @property
    def tokens(self) -> int:
        """Tokens that are predicted."""
        return self.ids_NL[:, 1:].numel()

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Mean cross-entropy (nats a token) of each token given those before it in its block."""
        with in_mode(model, training=False):
            return sum(float(_summed(model, ids)) for ids in self.ids_NL.split(BATCH)) / self.tokens

    def before_and_after(self, injection: Injection) -> dict[str, Any]:
        """The loss with the trained parameters left out, and with them."""
        with injection.disabled():
            before = self.loss(injection.model)
        about = {"of": self.source, "tokens": self.tokens}
        return about | {"before": before, "after": self.loss(injection.model)}


def held_out(asked: str, model: str, kind: TaskType, tokenizer: Any) -> HeldOutLoss:
    """The text that is `asked` for, AUTO among them, for the model of this source.

    ValueError where the model predicts no next token, its text is not known, or the text cannot be read.
    """
    if not reads_on(kind):
        raise ValueError(
            f"forgetting_text={asked} asks how well a decoder predicts a text, and "
            f"task={kind.task.name} ({kind.task.type}) loads another kind of model"
        )
    if asked == AUTO and model != str(HUB):
        raise ValueError(
            f"no text that {Path(model).name} was pretrained on is known; give forgetting_text=FILE"
        )
    return HeldOutLoss(POCKET if asked == AUTO else asked, tokenizer)


def reads_on(kind: TaskType) -> bool:
    """True for a task whose model predicts the next token of a text."""
    return kind.auto_class == "AutoModelForCausalLM"


def is_measured(record: Mapping[str, Any]) -> bool:
    """True if a run's record holds the loss before and after; it may say why it does not."""
    return "before" in record.get("retention", {})


def _summed(model: nn.Module, ids_NL: Tensor) -> Tensor:
    inputs = on_device({"input_ids": ids_NL, "attention_mask": torch.ones_like(ids_NL)}, model)
    logits_NLV = model(**inputs).logits[:, :-1].float()
    return cross_entropy(logits_NLV.flatten(0, 1), inputs["input_ids"][:, 1:].flatten(), reduction="sum")


def _pocket(tokenizer: Any) -> Iterator[int]:
    """Documents of the pocket's last stage of pretraining, from a seed that pretraining did not use."""
    unknown = tokenizer.unk_token_id
    for document in HELD_OUT.read_text().splitlines():
        ids = tokenizer(f"{tokenizer.bos_token or ''} {document}", add_special_tokens=False)["input_ids"]
        if unknown is not None and unknown in ids:
            raise ValueError(
                "forgetting_text=pocket is the text of the pocket model, and this model's tokenizer lacks "
                "its words; give a text file"
            )
        yield from ids


def _file(path: Path, tokenizer: Any) -> Iterator[int]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = f"forgetting_text={path}: {unreadable(error)}; give a text file, or {POCKET}"
        raise ValueError(said) from error
    lines = (
        tokenizer(line, add_special_tokens=False)["input_ids"] for line in text.splitlines(keepends=True)
    )
    return chain.from_iterable(lines)


__all__ = ["AUTO", "POCKET", "HeldOutLoss", "held_out", "is_measured", "reads_on"]

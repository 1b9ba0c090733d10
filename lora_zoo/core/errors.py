"""Third-party exceptions as one line, and the message for an unknown name."""

import difflib
from collections.abc import Iterable


def in_one_line(message: object) -> str:
    return " ".join(str(message).split())


def reason(error: BaseException) -> str:
    """The message of an exception in one line, or its type where there is no message."""
    return in_one_line(error) or type(error).__name__


def unreadable(error: OSError | UnicodeDecodeError) -> str:
    """The reason for which a text file cannot be read."""
    return getattr(error, "strerror", None) or "it is no UTF-8 text"


ELSEWHERE = {
    "r": "rank",
    "lora_r": "rank",
    "lora_alpha": "alpha",
    "init_lora_weights": "init",
    "layers_to_transform": "layers",
    "learning_rate": "lr",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "peft_type": "variant",
    "method": "variant",
    "dropout": "lora_dropout",
    "output_dir": "out",
    "resume_from_checkpoint": "resume",
    "report_to": "tracking",
}
"""Names that PEFT, transformers and others have for ours."""


def unknown(kind: str, given: str, choices: Iterable[str]) -> str:
    """The one-line message for a name that does not exist."""
    choices, own = list(choices), ELSEWHERE.get(given, "")
    near = [own] if own in choices else difflib.get_close_matches(str(given), choices, n=1, cutoff=0.5)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {given!r}.{meant} Choices: {', '.join(choices)}"

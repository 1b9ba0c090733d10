"""`task.template`: a text with columns of the data in braces, of which nothing else is looked up."""

import re
import string
from collections.abc import Iterable

from lora_zoo.core.errors import unknown

ANSWERS = ("target", "label")


def check_template(template: str, columns: Iterable[str] | None = None) -> None:
    """Raises ValueError for a field that is no plain name of a column; `columns` may be unknown yet."""
    if not (names := fields_of(template)):
        raise ValueError(f"task.template={template!r} names no column; write for example {{prompt}}")
    known = None if columns is None else [c for c in columns if c not in (*ANSWERS, "item")]
    for name in names:
        if name in ANSWERS:
            raise ValueError(f"task.template={template!r} would tell the model the answer: drop {{{name}}}")
        if known is not None and name not in known:
            raise ValueError("task.template: " + unknown("column", name, known))


def fields_of(template: str) -> list[str]:
    """The columns that a template names. ValueError where it cannot be read."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"task.template={template!r} cannot be read: {error}; write {{{{ for a brace"
        ) from error
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion or not re.fullmatch(r"[^\W\d]\w*", name)):
            raise ValueError(
                f"task.template={template!r}: a field is the plain name of a column in braces, as {{prompt}}"
            )
    return [name for _, name, _, _ in parts if name is not None]

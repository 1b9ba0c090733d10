"""Results of a finished run that are none: one answer to everything, nothing moved, no number as a score.

degenerate(record)    # {"one answer": "one class for all 500 items of test, 'yes'", …}; {} for a sound result
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROUNDING = 2.0**-24
"""Half of the distance from 1 to the next number in float32."""


def answers(
    predictions: Sequence[Any], references: Sequence[Any], names: Sequence[str] | None = None
) -> dict[str, Any]:
    """The facts of a split's answers: items, different predictions and references, the commonest class.

    `common` is the reference that most items have, where references are numbers of classes, else None;
    `only` the one prediction where all are alike, by its class's name where there are `names`.
    """
    common = None
    if references and all(isinstance(r, int) for r in references):
        common = Counter(references).most_common(1)[0][0]
    distinct = {"distinct": len(set(map(repr, predictions))), "references": len(set(map(repr, references)))}
    told = {"items": len(predictions), **distinct, "common": common}
    alike = predictions[0] if distinct["distinct"] == 1 else None
    return told | ({} if alike is None else {"only": str(names[int(alike)] if names else alike)})


def degenerate(record: Mapping[str, Any]) -> dict[str, str]:
    """Kind: a sentence's end for each way in which the result of a finished run is degenerate."""
    found: dict[str, str] = {}
    for kind, text in _kinds(record) if record.get("state", "done") == "done" else ():
        found[kind] = f"{found[kind]}, {text}" if kind in found else text
    return found


def _kinds(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for split, told in sorted(record.get("answers", {}).items()):
        if told["distinct"] == 1 < told["items"]:
            what = "one answer" if told["common"] is None else "one class"
            which = f", {told['only']!r}" if "only" in told else ""
            yield "one answer", f"{what} for all {told['items']} items of {split}{which}"
    if record.get("prior") == []:
        yield "nothing composed", "without prior adapters it is the unchanged base: give prior=[RUN, …]"
    updates = record.get("updates") or []
    if updates and all(map(_rests, updates)) and record.get("parameters", {}).get("trainable"):
        yield "nothing moved", "ΔW is 0 in every matrix after training, up to W's rounding"
    for split, values in sorted(record.get("metrics", {}).items()):
        if lost := [name for name, value in sorted(values.items()) if not math.isfinite(_number(value))]:
            yield "no number", f"{', '.join(lost)} of {split} is NaN or Inf"


def _rests(row: Mapping[str, Any]) -> bool:
    return _number(row.get("norm")) == 0 or _number(row.get("relative_norm")) < ROUNDING


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def finding(record: Mapping[str, Any]) -> str:
    """All that is degenerate about the result in one line, with the majority baseline; "" for a sound one."""
    text = "; ".join(degenerate(record).values())
    baseline = record.get("majority", {})
    values = [f"{split} {v:.4g}" for split, known in baseline.items() for v in list(known.values())[:1]]
    return f"{text}; the commonest class alone: {', '.join(values)}" if text and values else text

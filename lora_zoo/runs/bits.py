"""Bits that a run has learned, of a task that counts them (metric `bits`)."""

from collections.abc import Mapping
from typing import Any


def learned(record: Mapping[str, Any]) -> dict[str, float | None]:
    """`bits`, on the test split or else on validation, and `bits_per_parameter`, a trainable one.

    None where the task counts no bits, and where there is no such parameter. Less than 0 is what a model lost
    that is surer of wrong answers than one who knows nothing.
    """
    metrics, size = record.get("metrics", {}), record.get("parameters", {}).get("trainable")
    found = next((metrics[s]["bits"] for s in ("test", "validation") if "bits" in metrics.get(s, {})), None)
    bits = None if found is None else float(found)  # of what is no number, a record has the name
    return {"bits": bits, "bits_per_parameter": bits / size if bits is not None and size else None}


__all__ = ["learned"]

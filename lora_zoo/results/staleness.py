"""Whether a run is still what the same settings would give: `stale(record)` is "" or says why not."""

import hashlib
from collections.abc import Mapping
from typing import Any

from lora_zoo.adapters.adapter import Variant
from lora_zoo.adapters.registry import find_variant
from lora_zoo.results.identity import data_files, identity_of, source


def stale(record: Mapping[str, Any]) -> str:
    """Compares the identity that the run was given with that of its settings, code and local data now.

    Where the data are on another machine nothing is claimed of them. A record from an archive may lack the
    places of its data, so it has the hash of the variant's source as it was (`source`), too.
    """
    name = str(record["config"]["variant"]["name"])
    try:
        variant = find_variant(name)
    except (KeyError, ValueError):
        return f"there is no variant {name} here"
    if record.get("stale"):
        return str(record["stale"])
    if record.get("source", source_hash(variant)) != source_hash(variant):
        return f"the code of variant {name} has changed since"
    if "identity" not in record or record.get("moved") or not _data_here(record["config"]):
        return ""
    now = identity_of(record["config"], variant)
    if now == record["identity"]:
        return ""
    return f"the code, the data or the recorded settings have changed since: its identity would be {now} now"


def source_hash(variant: type[Variant]) -> str:
    """Eight hexadecimal digits of the variant's source file."""
    return hashlib.sha256(source(variant).encode()).hexdigest()[:8]


def _data_here(config: Mapping[str, Any]) -> bool:
    return all(file.is_file() for file in data_files(config))

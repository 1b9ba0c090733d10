"""Provenance of a record: made by today's code and data, and at one with itself, or not.

stale(record)                    # "" or why the same settings might give another result today
contradiction(record, folder)    # "" or the first two places of the record that exclude each other

Both read a record as it stands in `result.json` and change nothing.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_zoo.config.schema import INERT, INERT_TASK, INERT_TRAINER
from lora_zoo.core.adapter import Variant
from lora_zoo.core.bounded_json import read_json
from lora_zoo.core.init import known_init
from lora_zoo.core.program import PROGRAMS
from lora_zoo.core.variants import VARIANTS
from lora_zoo.runs.identity import identified_as
from lora_zoo.runs.redact import MASK
from lora_zoo.runs.summary import overrides_of

_SPOKEN = ("seed", "data_seed", "rank", "alpha", "init", "lora_dropout", "lr", "steps", "batch_size")
"""Keys that a command line gives as plain words."""


Identified = tuple[str, dict[str, Any]]
"""An identity, and what it is made of."""


def today(record: Mapping[str, Any]) -> Identified | None:
    """The identity that the record's configuration has today; None where what it names is there no more."""
    variant = _variant(record)
    return None if variant is None or _missing(record) else identified_as(record, variant)


def stale(record: Mapping[str, Any], now: Identified | None = None) -> str:
    """The reason why the variant's source or the data are no longer those of the run; "" where they are.

    What cannot be known (a data file that is not on this machine) accuses nobody. `now` is `today(record)`,
    where it is known.
    """
    variant = _variant(record)
    if variant is None:
        return f"there is no variant {_label(record)!r} any more"
    if missing := _missing(record):
        return f"there is no {missing} any more"
    before, (code, parts) = record.get("made_of"), now or identified_as(record, variant)
    if before is None:
        return _stale_as_a_whole(record, variant, code)
    if parts["source"] != before["source"]:
        return f"the source of {variant.name} has changed since"
    changed = [s for s, digest in parts["data"].items() if digest != before["data"].get(s, digest)]
    return f"the data have changed since: {', '.join(changed)}" if changed else ""


def _stale_as_a_whole(record: Mapping[str, Any], variant: type[Variant], code: str) -> str:
    """An older record has no hashes but its identity, which says that something changed and not what."""
    if "identity" not in record or record.get("moved") or not _data_is_here(record):
        return ""
    if code == record["identity"]:
        return ""
    return f"its settings have another identity today: the source of {variant.name} or the data have changed"


def _data_is_here(record: Mapping[str, Any]) -> bool:
    task = record["config"]["task"]
    return all((Path(task.get("data_dir") or ".") / f).is_file() for f in task.get("data_files", {}).values())


def changes_results(key: str) -> bool:
    """True if a dotted key of the configuration (`trainer.warmup_steps`) can change a result; seeds do."""
    first, _, rest = key.partition(".")
    inert_below: dict[str, tuple[str, ...]] = {"trainer": INERT_TRAINER, "task": INERT_TASK}
    return first not in INERT and rest not in inert_below.get(first, ())


def contradiction(
    record: Mapping[str, Any], folder: Path | None = None, now: Identified | None = None
) -> str:
    """The first statement of the record that its configuration excludes; "" where there is none.

    `folder` adds what the saved adapter says of itself; `now` is `today(record)`, where it is known.
    """
    if not record.get("config"):
        return ""
    return next(_contradictions(record, folder, now), "")


def _contradictions(record: Mapping[str, Any], folder: Path | None, now: Identified | None) -> Iterator[str]:
    config, label = record["config"], _label(record)
    yield from _differing("its record", {k: record.get(k) for k in ("seed", "data_seed")}, config)
    yield from _of_variant("its record", record.get("variant", {}), config)
    yield from _differing("its command", _spoken(record.get("command", "")), config)
    if name := record.get("name"):
        if not name.startswith(f"{label}-"):
            yield f"its name {name} is not of variant {label}, as its configuration says"
        if not name.endswith(f"-s{config['seed']}"):
            yield f"its name {name} is not of seed {config['seed']}, as its configuration says"
    if folder is not None and not config.get("program"):  # whose adapter is made of several
        yield from _of_adapter(folder, config)
    yield from _of_identity(record, now)


def _of_identity(record: Mapping[str, Any], now: Identified | None) -> Iterator[str]:
    before = record.get("made_of")
    if before is None or record.get("moved") or (now := now or today(record)) is None:
        return
    code, parts = now
    if parts["settings"] != before["settings"] and MASK not in str(record["config"]):
        yield "its configuration is not the one that it ran with: the hash of the settings is another"
    elif parts == before and code != record["identity"]:
        yield f"its identity {record['identity']} is not that of its configuration"


def _of_variant(who: str, about: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    own = config["variant"]
    if about.get("name", own["name"]) != own["name"]:
        yield f"{who} says variant={about['name']}, its configuration variant={own['name']}"
    size = getattr(VARIANTS.get(own["name"]), "sized_by", "rank") if config.get("budget") is not None else ""
    said = {k: v for k, v in about.get("hyperparameters", {}).items() if k != size}  # the budget found it
    yield from _differing(who, said, {**config, **own})


def _of_adapter(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    try:
        said = read_json(folder / "adapter" / "adapter.json")
    except (OSError, ValueError):
        return
    if not isinstance(said, dict) or not isinstance(said.get("hyperparameters", {}), dict):
        yield "its saved adapter's description cannot be read"
        return
    about = {"name": said.get("variant"), "hyperparameters": said.get("hyperparameters", {})}
    yield from _of_variant("its saved adapter", about, config)
    yield from _differing("its saved adapter", {"seed": said.get("seed")}, config)


def _differing(who: str, said: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    for key, value in said.items():
        free = value is None or any(_open(key, told) for told in (value, config.get(key, "auto")))
        if not free and not _same(value, config[key]):
            yield f"{who} says {key}={value}, its configuration {key}={config[key]}"


def _open(key: str, told: Any) -> bool:
    """True for a value that stands for what the run finds by itself."""
    return told == "auto" or (key == "alpha" and str(told).endswith("r"))


def _spoken(command: str) -> dict[str, str]:
    """The plain keys of a command line; of a key that is given twice, the last."""
    given = overrides_of(command)
    plain = {key: given[key].strip("'\"") for key in _SPOKEN if key in given}
    told = {key: value for key, value in plain.items() if value not in ("null", "~")}
    return {key: value for key, value in told.items() if "$" not in value and ".py" not in value}


def _same(a: Any, b: Any) -> bool:
    try:
        return float(a) == float(b)
    except (TypeError, ValueError):
        return str(a) == str(b)


def _label(record: Mapping[str, Any]) -> str:
    return str(record.get("config", {}).get("variant", {}).get("name"))


def _variant(record: Mapping[str, Any]) -> type[Variant] | None:
    return VARIANTS.get(_label(record))


def _missing(record: Mapping[str, Any]) -> str:
    """The record's program or init, in words, where there is none of that name; "" otherwise."""
    program = str((record["config"].get("program") or {}).get("name", ""))
    if program and program not in PROGRAMS:
        return f"program {program!r}"
    init = str(record["config"].get("init", "auto"))
    return "" if init == "auto" or known_init(init) else f"init {init!r}"


__all__ = ["changes_results", "contradiction", "stale", "today"]

"""Keys and words that have been renamed: the old ones are taken for one release, with a line that says so.

modern({"zero_shot": False, "task": {"kind": "choice"}})    # a configuration that an older version recorded
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

KEYS = {
    "retention": "forgetting_text",
    "zero_shot": "eval_before_training",
    "task.kind": "task.type",
    "task.path": "task.dataset",
    "task.validation_share": "task.validation_fraction",
    "task.terminator": "task.stop",
    "preset": "recipe",
}
"""Old key -> new key, both in the same part of the configuration."""
WORDS = {
    ("variant", "head_only"): "linear_probe",
    ("variant.name", "head_only"): "linear_probe",
    ("task", "generation"): "causal_lm",
    ("task.type", "generation"): "causal_lm",
    ("task.type", "choice"): "multiple_choice",
}
"""New key and old word -> new word."""
_OLD_KEYS = {new: old for old, new in KEYS.items()}
_OLD_WORDS = {(_OLD_KEYS.get(key, key), new): old for (key, old), new in WORDS.items()}
_log = logging.getLogger("lora_zoo")


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration with today's keys and words; what is modern already stays as it is."""
    return renamed(config, lambda key: KEYS.get(key, key), lambda key, word: WORDS.get((key, word), word))


def original(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the keys and words of the first release, of which identities are made.

    So a renamed key changes no identity.
    """
    return renamed(
        config, lambda key: _OLD_KEYS.get(key, key), lambda key, word: _OLD_WORDS.get((key, word), word)
    )


def renamed(
    config: Mapping[str, Any],
    key_of: Callable[[str], str],
    word_of: Callable[[str, str], str],
    parent: str = "",
) -> dict[str, Any]:
    """The configuration (or its part below `parent`, "task.") with each dotted key and word renamed."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = key_of(f"{parent}{name}")
        place = key.removeprefix(parent)
        if isinstance(value, Mapping) and key in ("task", "variant"):
            found[place] = renamed(value, key_of, word_of, f"{key}.")
        elif key == "experiment":
            found[place] = _axes(value, key_of)
        else:
            found[place] = word_of(key, value) if isinstance(value, str) else value
    return found


def _axes(about: Any, key_of: Callable[[str], str]) -> Any:
    """The part `experiment` of a configuration, with the keys of its grid and its table renamed."""
    if not isinstance(about, Mapping):
        return about
    lists = {k: about[k] for k in ("rows", "columns", "tune") if isinstance(about.get(k), list)}
    found = {**about, **{name: [key_of(str(key)) for key in keys] for name, keys in lists.items()}}
    if isinstance(about.get("grid"), Mapping):
        found["grid"] = {key_of(str(key)): values for key, values in about["grid"].items()}
    return found


def modern_key(key: str) -> str:
    """Today's name of a dotted key; for an old one, with a warning."""
    new = KEYS.get(key, key)
    return new if new == key else _warned(key, new)


def modern_word(key: str, word: str) -> str:
    """Today's name of a word that `key` may have; for an old one, with a warning."""
    new = WORDS.get((key, word), word)
    if new != word:
        _warned(f"{key}={word}", f"{key}={new}")
    return new


def _warned(old: str, new: str) -> str:
    if old not in _WARNED:
        _WARNED.add(old)
        _log.warning("note: %s is called %s now; the old name goes with the next release", old, new)
    return new


_WARNED: set[str] = set()

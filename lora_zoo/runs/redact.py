"""Keys and tokens, masked before anything is written or shown.

redacted({"hub_token": "abc", "path": "https://me:abc@host/x"})    # {"hub_token": "***", "path": "https://***@host/x"}

A secret is known by the name that it goes under, by its shape (hf_…, Bearer …, user:password@), or because
the environment, netrc or the Hub's token file hold it. What contains none comes back as it is.
"""

import contextlib
import functools
import json
import logging
import netrc
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final
from urllib.parse import quote

MASK = "***"
SHORTEST = 8  # characters; a shorter value of a variable may well be an ordinary word, or a number

_NAME = re.compile(
    r"(?:token|api_?key|access_?key|account_?key|private_?key|secret_?key|signature|credentials?|authorization"
    r"|cookie|connection_string|webhook(?:_url)?)$|secret|passw(?:or)?d|passphrase|storage_options|pgpass$"
)
_OF_VARIABLES = re.compile(r"(?:^|_)(?:key|pat|pass|pw|pwd|auth|dsn|jwt|sas|credentials?|webhook(?:_url)?)$")
"""Names of the environment that hold secrets, beside those above; a setting called `…_key` need not."""
_OF_TOKENIZERS = re.compile(
    r"(?:^|_)(?:pad|eos|bos|sep|cls|mask|unk|start|end|begin|stop|special|image|audio|video|per|each|new|extra)_token$"
)
# One entry of a mapping in text: YAML, JSON, Python, an override, a query, an HTTP header.
_ENTRY = re.compile(
    r"""(?P<name>[\w./-]*\w)(?P<sign>\\?["']?\s*[=:]\s*)"""
    r"""(?P<value>\{[^}]*\}?|\\?"[^"]*"?|'[^']*'?|(?:(?:bearer|basic|token|digest)\s+)?[^\s"'&}\])\\]+)""",
    re.IGNORECASE,
)
_OVERRIDE = re.compile(r"([+~]*[\w.@/-]+=)(.+)", re.DOTALL)
_PLAIN = re.compile(r"(?:none|null|true|false|\*\*\*)[,;.]*", re.IGNORECASE)
_SHAPES = (
    (re.compile(r"(?<=://)[^/\s?#\"']+(?=@)"), MASK),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), rf"\1{MASK}"),
    (re.compile(r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|hf_(?:oauth|jwt)_[\w.-]{20,})"), MASK),
    (re.compile(r"(?<![A-Za-z0-9])wandb_v\d+_[\w.-]{20,}"), MASK),
    (re.compile(r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|AKIA[A-Z0-9]{16})"), MASK),
    (re.compile(r"(?<![A-Za-z0-9])(?:sk|pk|rk)-(?=[\w-]*\d)[\w-]{8,}"), MASK),
    (re.compile(r"(?<![A-Za-z0-9])(?:xox[abeprs]-[\w-]{10,}|glpat-[\w-]{16,}|AIza[\w-]{30,})"), MASK),
    (re.compile(r"(?<![A-Za-z0-9])eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]{5,}"), MASK),
    (re.compile(r"(https://(?:hooks\.slack\.com/services|discord\.com/api/webhooks)/)[\w/-]+"), rf"\1{MASK}"),
    (re.compile(r"([?&](?:sig|x-amz-[\w-]+)=)[^&\s\"']+", re.IGNORECASE), rf"\1{MASK}"),
)
# W&B's older keys look like a commit: forty hexadecimal digits.
_FORTY = re.compile(r"(?<![\w/@-])(?:local-)?[0-9a-f]{40}(?![\w-])")
_COMMIT = re.compile(r"(?:commit|revision|sha\d*|hash|branch|tag|rev)\W{0,4}$", re.IGNORECASE)


def redacted(value: Any) -> Any:
    """`value`, a text or a tree of dicts and lists, with "***" for every secret in it."""
    return _masked(value, _known())


def by_name_and_shape(value: Any) -> Any:
    """The same, whatever this process's environment holds: for hashes, equal for equal values."""
    return _masked(value, [])


@functools.lru_cache(4096)
def is_secret(name: str) -> bool:
    """True if a value of this name (an option, a variable, a dotted key) is a secret."""
    lower = name.lower().replace("-", "_")
    return bool(_NAME.search(lower)) and not _OF_TOKENIZERS.search(lower)


@final
class RedactingFormatter(logging.Formatter):
    """A log's lines as they would be, messages, arguments and tracebacks, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return str(redacted(super().format(record)))


def _masked(value: Any, known: list[str], name: str = "") -> Any:
    if value and not isinstance(value, bool) and is_secret(name):
        return MASK
    if isinstance(value, Mapping):
        return {key: _masked(held, known, str(key)) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        items = (_masked(item, known, name) for item in value)
        return tuple(items) if isinstance(value, tuple) else list(items)
    if isinstance(value, os.PathLike):
        text = _text(str(value), known, name)
        return value if text == str(value) else Path(text)
    return _text(value, known, name) if isinstance(value, str) else value


def _text(text: str, known: list[str], name: str) -> str:
    for secret in known:
        if len(secret) >= SHORTEST:
            text = text.replace(secret, MASK)
        elif secret in text:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
    return _by_shape(text, bool(_COMMIT.search(name)))


@functools.lru_cache(4096)
def _by_shape(text: str, commit: bool) -> str:
    """The text without what is a secret by its form; forty digits are none in a value of a `commit`."""
    if (override := _OVERRIDE.fullmatch(text)) and is_secret(override[1].rstrip("=")):
        return text if _PLAIN.fullmatch(override[2]) else override[1] + MASK
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    text = _ENTRY.sub(_assigned, text)
    return text if commit else _FORTY.sub(_unless_commit, text)


def _assigned(entry: re.Match[str]) -> str:
    name, sign, value = entry["name"], entry["sign"], entry["value"]
    if not is_secret(name):
        # its value may hold an entry of its own: url=https://host?token=…
        return name + sign + _ENTRY.sub(_assigned, value)
    if _PLAIN.fullmatch(value):
        return entry[0]
    mark = value[: value.find('"') + 1] if value[0] == "\\" else value[0] if value[0] in "\"'" else ""
    end = "" if mark else value[len(value.rstrip(",;.")) :]
    return f"{name}{sign}{mark}{MASK}{mark}{end}"


def _unless_commit(digits: re.Match[str]) -> str:
    before = digits.string[max(digits.start() - 16, 0) : digits.start()]
    return digits[0] if _COMMIT.search(before) else MASK


def _known() -> list[str]:
    """The secrets that this process could use, as they are and as addresses and JSON write them."""
    plain = [value for value in (*_variables(), *_stored()) if len(value) >= SHORTEST or _is_mixed(value)]
    written = {form for value in plain for form in (value, quote(value, safe=""), json.dumps(value)[1:-1])}
    return sorted(written, key=len, reverse=True)


def _is_mixed(value: str) -> bool:
    """True for a short value that is no word and no number."""
    return len(value) >= 4 and any(map(str.isdigit, value)) and any(map(str.isalpha, value))


def _variables() -> Iterator[str]:
    for name, value in os.environ.items():
        secret = is_secret(name) or _OF_VARIABLES.search(name.lower())
        place = name.upper().endswith(("_FILE", "_PATH", "_DIR", "_URL")) and "WEBHOOK" not in name.upper()
        if secret and not place and not value.startswith("/"):
            yield value.strip()


def _stored() -> Iterator[str]:
    home, hub = Path("~").expanduser(), os.environ.get("HF_HOME", "~/.cache/huggingface")
    own = os.environ.get("NETRC")
    for path in [Path(own).expanduser()] if own else [home / ".netrc", home / "_netrc"]:
        with contextlib.suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
            yield from (password for *_, password in netrc.netrc(path).hosts.values() if password)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        yield Path(os.environ.get("HF_TOKEN_PATH", f"{hub}/token")).expanduser().read_text().strip()

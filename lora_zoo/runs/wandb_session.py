"""The process's dealings with wandb: its mode and login, its failures, and how it is kept quiet."""

import contextlib
import netrc
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lora_zoo.core.errors import unknown
from lora_zoo.runs.redact import redacted

MODES = ("auto", "online", "offline", "disabled")
_STAGED = "_detect_and_apply_job_inputs"
"""wandb's method that applies the inputs of a job of W&B Launch to a run."""
OLD_MODES = {"run": "online", "shared": "online", "dryrun": "offline"}


def mode(asked: str) -> str:
    """`asked`, or WANDB_MODE where auto was asked. ValueError for a mode that does not exist."""
    given = (os.environ.get("WANDB_MODE") or "auto") if asked == "auto" else asked
    if OLD_MODES.get(given, given) not in MODES:
        raise ValueError(unknown("tracking.mode" if given == asked else "WANDB_MODE", given, MODES))
    return OLD_MODES.get(given, given)


def goes_online(mode: str) -> bool:
    """True if a run in this mode can be online; warns where online was asked without a login."""
    ready = mode != "offline" and logged_in()
    if mode == "online" and not ready:
        _say("W&B has no login (`wandb login`, or WANDB_API_KEY), so this run is tracked offline")
    return ready


def logged_in() -> bool:
    """True if the environment, the session, wandb's settings or netrc hold credentials. Asks nobody."""
    import wandb

    settings = wandb.setup().settings
    if any(os.environ.get(key) for key in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")) or settings.api_key:
        return True
    host = urlsplit(settings.base_url).netloc
    hosts = {host, "api.wandb.ai"} if host.endswith((".wandb.ai", ".coreweave.com")) else {host}
    try:
        entries = [_netrc().authenticators(h) for h in hosts]
    except (netrc.NetrcParseError, OSError):
        return False
    return any(entry is not None and entry[2] for entry in entries)


def _netrc() -> netrc.netrc:
    own, unix, windows = os.environ.get("NETRC"), Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()
    return netrc.netrc(Path(own).expanduser() if own else unix if unix.exists() else windows)


@contextlib.contextmanager
def environment(home: Path) -> Iterator[None]:
    """Inside, wandb says nothing, stages and caches under `home`, and transformers uploads no models.

    The command line that wandb keeps beside a run is the process's own, here without secrets.
    """
    home.mkdir(parents=True, exist_ok=True)
    wanted = {"WANDB_SILENT": "true", "WANDB_LOG_MODEL": "false"}
    for key, folder in (("WANDB_DATA_DIR", home), ("WANDB_CACHE_DIR", home / "cache")):
        wanted[key] = os.environ.get(key, str(folder))
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    words, sys.argv = sys.argv, redacted(sys.argv)
    try:
        yield
    finally:
        sys.argv = words
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def without_launch() -> None:
    """Keep wandb from importing W&B Launch, a third of its start, where nothing has been staged by it."""
    from wandb.sdk.wandb_run import Run

    apply = getattr(Run, _STAGED, None)
    if apply is None or getattr(apply, "lora_zoo", False):
        return

    def apply_staged(run: Any) -> None:
        if "wandb.sdk.launch" in sys.modules:
            apply(run)

    apply_staged.lora_zoo = True  # type: ignore[attr-defined]
    setattr(Run, _STAGED, apply_staged)


def failures() -> tuple[type[BaseException], ...]:
    """The exceptions of wandb where it cannot work. Its own share no base: they are read off its modules."""
    modules = [sys.modules[m] for m in ("wandb", "wandb.sdk.mailbox") if m in sys.modules]
    named = (value for module in modules for value in vars(module).values())
    own = [kind for kind in named if isinstance(kind, type) and issubclass(kind, Exception)]
    return (OSError, RuntimeError, ImportError, TypeError, ValueError, AttributeError, *own)


@contextlib.contextmanager
def survived(trouble: str) -> Iterator[None]:
    """A failure of wandb inside ends the block with a warning "W&B `trouble`" and goes no further."""
    try:
        yield
    except failures() as error:
        warn(trouble, error)


def warn(trouble: str, error: BaseException) -> None:
    reason = redacted((str(error).splitlines() or [""])[0])
    _say(f"W&B {trouble} ({type(error).__name__}: {reason}); the local record is not affected")


def _say(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The scalars of a tree of dicts by their path: {"a": {"b": 1}} gives {"a/b": 1}. Lists are left out."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, (str, int, float)):
            leaves[f"{prefix}{key}"] = value
    return leaves


def artifact_name(run_name: str) -> str:
    """`run_name` in the letters and the length that W&B allows; the end, which holds the hash, stays."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", run_name)[-128:].strip("-.") or "adapter"

"""The options of each group, read from `conf/` alone."""

from pathlib import Path

import lora_zoo

GROUPS = ("variant", "model", "task", "trainer", "tracking", "experiment")


def folder() -> Path:
    """The configuration folder: inside an installed package, or beside it in a checkout."""
    package = Path(lora_zoo.__file__).parent
    return next(p for p in (package / "conf", package.parent / "conf") if (p / "config.yaml").is_file())


def options(group: str) -> dict[str, str]:
    """The options of a group by name, each with the one line that its file says of itself."""
    return {path.stem: _about(path) for path in sorted((folder() / group).glob("*.yaml"))}


def _about(path: Path) -> str:
    comments = [line.lstrip("# ").strip() for line in path.read_text().splitlines() if line.startswith("#")]
    return next((line for line in comments if line and not line.startswith("@package")), "")

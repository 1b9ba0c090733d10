"""The options of each group, read from `conf/` alone, and files of the user's own that are like them."""

from pathlib import Path
from typing import Any

import lora_zoo
from lora_zoo.config.outside import read_yaml
from lora_zoo.core.errors import unknown

OWN_FILES = (
    "variant=FILE.py, init=FILE.py, program=FILE.py, task=FILE.yaml and experiment=FILE.yaml take files of "
    "your own"
)
"""Said where someone asks for folders of options."""
GROUPS = ("variant", "program", "model", "task", "trainer", "tracking", "recipe", "experiment")


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


def option_file(group: str, value: str) -> tuple[str, dict[str, Any]]:
    """The name and the content of an option, or of a YAML file like one. ValueError where it is none."""
    path = folder() / group / f"{value}.yaml" if value in options(group) else Path(value).expanduser()
    if not path.is_file() or path.suffix not in (".yaml", ".yml"):
        raise ValueError(unknown(group, value, options(group)) + ", or a YAML file of your own")
    try:
        return path.stem, read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{group}={value}: {error}; conf/{group} holds examples") from error

"""`lora_zoo.compare("./mine.py", ["lora", "dora"], hours=2)`: one candidate judged against references.

The module is itself the function, since both are called by this name.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_zoo.compare.judging import Ruling

__all__ = ["compare"]


def compare(candidate: str, against: Any, *overrides: str, hours: float = 1.0, **more: Any) -> "list[Ruling]":
    """Compare at equal rank and at equal parameters, and return the verdicts.

    `candidate` and each of `against` are a variant's name, FILE.py[:NAME], `init=NAME` or 'dora init=NAME'.
    `overrides` (`task=pocket-sql`, `rank=8`) hold for all; `more` as in `lora_zoo.compare.comparing.Request`.
    ValueError where anything cannot be run as given, before the first step.
    """
    from lora_zoo.compare.comparing import Request, run

    references = [against] if isinstance(against, str) else list(against)
    more = {key: Path(value) if key == "out" else value for key, value in more.items()}
    return run(Request(candidate, tuple(references), tuple(overrides), hours=hours, **more))


class _CallableModule(ModuleType):
    def __call__(self, *arguments: Any, **named: Any) -> "list[Ruling]":
        return compare(*arguments, **named)


sys.modules[__name__].__class__ = _CallableModule

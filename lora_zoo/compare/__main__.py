"""Judge one variant against others: `lora-zoo compare ./mine.py --against lora,dora --hours 2`.

Every contender gets the same tuning. The same command again continues, or finds that all is done. The page
begins with the answer.

Exit codes: 0 every comparison has a verdict (which may be: not distinguishable); 1 one has none; 2 the
request cannot be run as given; 128 + n stopped by signal n, the same command continues.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from lora_zoo.core.errors import unknown
from lora_zoo.runs.processes import refuse_several, wait_passively
from lora_zoo.terminal import say

QUICK = 1 / 6
"""Hours of `--quick`."""


class _OneLine(argparse.ArgumentParser):
    """A parser whose refusals are ValueErrors."""

    def error(self, message: str) -> NoReturn:
        if strange := re.match(r"unrecognized arguments: (-[^\s=]*)", message):
            raise ValueError(unknown("flag", strange[1], sorted(self._option_string_actions)))
        raise ValueError(message)


def parser() -> argparse.ArgumentParser:
    made = _OneLine(
        prog="lora-zoo compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("candidate", help="FILE.py[:NAME], a variant's name, init=NAME, or 'dora init=NAME'")
    made.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="keys of the runs, for all contenders"
    )
    made.add_argument(
        "--against", required=True, help="references, separated by commas; the first sets the size"
    )
    made.add_argument("--task", help="task=; default: pocket-sql")
    made.add_argument("--model", help="model=; default: pocket")
    made.add_argument("--rank", type=int, help="rank=; default: each variant's own, 8 for most")
    made.add_argument("--hours", type=float, help="time for runs, without cost trials; default: 1")
    made.add_argument("--quick", action="store_true", help="ten minutes")
    made.add_argument(
        "--at", choices=("rank", "parameters", "both"), default="both", help="equal rank or parameters"
    )
    made.add_argument("--jobs", type=int, help="workers; default: one per GPU, else per core")
    made.add_argument(
        "--rates", help="3 or more multiples of each contender's default rate; default: 1,2,0.5,4,0.25"
    )
    made.add_argument("--seeds", type=int, help="the largest number of seeds; default: 30")
    made.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs; default: runs")
    made.add_argument("--plan", action="store_true", help="only show the plan")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Compare as the command line says, and leave with the exit code."""
    wait_passively()
    try:
        refuse_several()
        given = parser().parse_intermixed_args(arguments)
        fields = _request(given)
        from lora_zoo.compare.comparing import Request, run
        from lora_zoo.compare.judging import Standing

        found = run(Request(**fields))
    except (ValueError, OSError) as mistake:
        say(str(mistake))
        sys.exit(2)
    except KeyboardInterrupt as stop:
        say("stopped; the same command continues")
        sys.exit(getattr(stop, "code", 130))
    sys.exit(int(any(ruling.finding == Standing.NONE for ruling in found)))


def _request(given: argparse.Namespace) -> dict[str, Any]:
    """The request's fields. ValueError for what the flags contradict."""
    from lora_zoo.compare.contenders import split_names
    from lora_zoo.sweeps.cells import key_of

    if given.quick and given.hours is not None:
        raise ValueError("--quick means ten minutes, and --hours something else; give one of them")
    keys = {"task": given.task, "model": given.model, "rank": given.rank}
    for key, value in keys.items():
        if value is not None and key in map(key_of, given.overrides):
            raise ValueError(f"--{key} and {key}= are given; give one of them")
    found: dict[str, Any] = {
        "candidate": given.candidate,
        "references": tuple(split_names(given.against)),
        "overrides": (*(f"{k}={v}" for k, v in keys.items() if v is not None), *given.overrides),
        "hours": QUICK if given.quick else 1.0 if given.hours is None else given.hours,
        "sizes": ("rank", "parameters") if given.at == "both" else (given.at,),
        "jobs": given.jobs,
        "out": given.out,
        "plan_only": given.plan,
    }
    if given.rates is not None:
        found["factors"] = _factors(given.rates)
    return found | ({} if given.seeds is None else {"seeds": given.seeds})


def _factors(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--rates {text} are no numbers; write for example 1,2,0.5") from error


if __name__ == "__main__":
    main()

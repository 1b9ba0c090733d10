"""Measure the adapters: steps, memory, starts, files, sweeps and scaling, beside PEFT and the frozen model.

Tables, numbers and figures go to --out. Exit codes: 0 measured; 1 the guard found a variant slower than its
reference, or a sweep to be timed failed; 2 the command line cannot be run as given.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_zoo.terminal import on_the_terminal, say

if TYPE_CHECKING:
    from lora_zoo.benchmark.options import Options
    from lora_zoo.benchmark.report import Report


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    with on_the_terminal():
        import torch

        from lora_zoo.benchmark import guard, report
        from lora_zoo.benchmark.options import parse
        from lora_zoo.benchmark.sweeps import Failed

        options = parse(given, __doc__ or "")
        torch.set_num_threads(options.threads)
        made_by = report.origin(options, given)
        try:
            code = guard.run(options, made_by) if options.guard else measure(options, made_by)
        except Failed as failure:
            say(str(failure))
            code = 1
    sys.exit(code)


def measure(options: "Options", made_by: dict[str, object]) -> int:
    """Measure, print and write everything that was asked for, in order."""
    from lora_zoo.benchmark import goals, report

    done: dict[str, Report] = {}

    def tell(measured: "Report") -> None:
        done[measured.name] = measured
        print(measured.markdown(made_by))
        for path in report.write(measured, options.out, made_by):
            print(path)

    for name, make in measurements().items():
        if name in options.what:
            tell(make(options))
    if "targets" in options.what:
        tell(goals.measure(options, done))
    return 0


def measurements() -> "dict[str, Callable[[Options], Report]]":
    """What each word of --what measures; the targets are read off these."""
    from lora_zoo.benchmark import files, memory, scaling, starts, step, sweeps

    return {
        "step": step.measure,
        "memory": memory.measure,
        "init": starts.measure,
        "io": files.measure,
        "sweep": sweeps.measure,
        "scaling": scaling.measure,
    }


if __name__ == "__main__":
    main()

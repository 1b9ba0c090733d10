"""Measure the adapters: steps, memory, initialisation, files, sweeps, scaling; beside PEFT and the frozen model.

Tables, numbers and figures go to --out. Exit codes: 0 measured; 1 the regression test (--guard) found a variant
slower than its reference, or a sweep to be timed failed; 2 the command line cannot be run as given.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lora_zoo.terminal import on_the_terminal, say

if TYPE_CHECKING:
    from lora_zoo.bench.options import Options
    from lora_zoo.bench.report import Measurement


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    with on_the_terminal():
        import torch

        from lora_zoo.bench import regression, report
        from lora_zoo.bench.options import parse
        from lora_zoo.bench.sweeps import SweepFailed

        options = parse(given, __doc__)
        torch.set_num_threads(options.threads)
        provenance = report.provenance(options, given)
        try:
            code = regression.run(options, provenance) if options.guard else measure(options, provenance)
        except SweepFailed as failure:
            say(str(failure))
            code = 1
    sys.exit(code)


def measure(options: "Options", provenance: dict[str, Any]) -> int:
    """Measure, print and write everything that was asked for, in order."""
    from lora_zoo.bench import report, targets

    done: dict[str, Measurement] = {}
    steps = measurements() | {"targets": lambda options: targets.measure(options, done)}
    for name, make in steps.items():
        if name in options.what:
            done[name] = make(options)
            print(done[name].markdown(provenance))
            for path in report.write(done[name], options.out, provenance):
                print(path)
    return 0


def measurements() -> "dict[str, Callable[[Options], Measurement]]":
    """The function behind each word of --what, except `targets`, which is read off these."""
    from lora_zoo.bench import init_time, io, memory, scaling, step, sweeps

    return {
        "step": step.measure,
        "memory": memory.measure,
        "init": init_time.measure,
        "io": io.measure,
        "sweep": sweeps.measure,
        "scaling": scaling.measure,
    }


if __name__ == "__main__":
    main()

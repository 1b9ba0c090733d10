"""Measure the variants beside PEFT and the frozen base.

Steps, passes without gradients, memory, initialisation, files, sweeps, scaling, DropBP, switching.

Tables, numbers and figures go to --out. Exit codes: 0 measured; 1 the regression test (--guard) found a
variant slower than its reference, or a sweep to be timed failed; 2 the command line cannot be run as given.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lora_zoo.terminal import on_the_terminal, say

if TYPE_CHECKING:
    from lora_zoo.bench.options import Options


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    code = 0
    with on_the_terminal():
        import torch

        from lora_zoo.bench import regression, report
        from lora_zoo.bench.options import parse
        from lora_zoo.bench.sweeps import SweepFailed

        options = parse(given, __doc__)
        torch.set_num_threads(options.threads)
        provenance = report.provenance(options, given)
        try:
            if options.guard:
                code = regression.run(options, provenance)
            else:
                measure(options, provenance)
        except SweepFailed as failure:
            say(str(failure))
            code = 1
    sys.exit(code)


def measure(options: "Options", provenance: dict[str, Any]) -> None:
    """Measure, print and write everything that was asked for, in order; targets are read off the others."""
    from lora_zoo.bench import (
        dropbp,
        inference,
        init_time,
        io,
        memory,
        report,
        scaling,
        step,
        sweeps,
        switching,
        targets,
    )

    done: dict[str, report.Measurement] = {}
    measurements = {
        "step": step.measure,
        "inference": inference.measure,
        "memory": memory.measure,
        "init": init_time.measure,
        "io": io.measure,
        "sweep": sweeps.measure,
        "scaling": scaling.measure,
        "dropbp": dropbp.measure,
        "switching": switching.measure,
        "targets": lambda options: targets.measure(options, done),
    }
    for name in filter(options.what.__contains__, measurements):
        done[name] = measurements[name](options)
        print(done[name].markdown(provenance))
        for path in report.write(done[name], options.out, provenance):
            print(path)


if __name__ == "__main__":
    main()

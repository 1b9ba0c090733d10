"""Measure the adapters: steps, memory, starts, files, sweeps and scaling, beside PEFT and the frozen model.

Tables, numbers and figures go to --out. Exit codes: 0 measured; 1 the guard found a variant slower than its
reference; 2 the command line cannot be run as given.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_zoo.terminal import on_the_terminal

if TYPE_CHECKING:
    from lora_zoo.benchmark.options import Options
    from lora_zoo.benchmark.report import Report


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    with on_the_terminal():
        import torch

        from lora_zoo.benchmark import report
        from lora_zoo.benchmark.options import parse

        options = parse(given, __doc__ or "")
        torch.set_num_threads(options.threads)
        made_by = report.origin(options, given)
        for name, measure in measurements().items():
            if name in options.what:
                measured = measure(options)
                print(measured.markdown(made_by))
                for path in report.write(measured, options.out, made_by):
                    print(path)


def measurements() -> "dict[str, Callable[[Options], Report]]":
    from lora_zoo.benchmark import step

    return {"step": step.measure}


if __name__ == "__main__":
    main()

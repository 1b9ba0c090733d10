"""`python -m lora_zoo.export RUN OUT`: a run's adapter in PEFT's format, for `PeftModel.from_pretrained`."""

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_zoo.core.errors import unknown
from lora_zoo.models.classes import TASKS
from lora_zoo.terminal import add_files, on_the_terminal

if TYPE_CHECKING:
    from lora_zoo.formats.peft.write import Written
    from lora_zoo.injection.inject import Injection


class Exported(NamedTuple):
    """The written adapter, and the largest |Δlogit| between it and the same adapter read from OUT."""

    written: "Written"
    difference: float


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.export", description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or a folder with an adapter")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument(
        "--as",
        dest="form",
        choices=("peft", "lora"),
        default="peft",
        help="peft: PEFT's own form of the variant, where it has one (default); lora: plain LoRA",
    )
    parser.add_argument("--rank", type=int, help="plain LoRA of this rank at most; prints the error")
    parser.add_argument("--model", help="the base; default: the one that the adapter names")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code from the base's repository"
    )
    parser.add_argument("--view", help="write a view of the run (`rank=2` of DyLoRA) instead of the whole")
    add_files(parser)
    given = parser.parse_args(arguments)
    with on_the_terminal(given.__dict__.pop("files")):
        written, difference = export(**vars(given))
    print(f"{written.config['peft_type']} adapter in {given.out}: peft's PeftModel.from_pretrained loads it")
    for note in written.notes:
        print(note)
    if written.errors:
        worst = max(written.errors, key=lambda name: written.errors[name])
        print(
            f"largest relative error of a matrix at rank {given.rank}: {written.errors[worst]:.2g} ({worst})"
        )
    print(f"largest logit difference, adapter and what was written: {difference:.2g}")


def export(
    run: Path,
    out: Path,
    *,
    form: Any = "peft",
    rank: int | None = None,
    model: str | None = None,
    view: str | None = None,
    trust_remote_code: bool = False,
) -> Exported:
    """Write the adapter in `run` to `out`, read it again and compare.

    Raises FileNotFoundError where `run` holds no adapter, ValueError where its base is not known or does not
    fit, where PEFT's format does not hold the adapter, for an unknown `view`, or where `out` holds something.
    """
    from lora_zoo.formats.native import load_adapter
    from lora_zoo.formats.peft.write import save_peft
    from lora_zoo.models.base import adapter_in, base_of
    from lora_zoo.models.compare import logits
    from lora_zoo.models.loading import load_model, load_processor, source
    from lora_zoo.models.saving import refuse_to_overwrite

    refuse_to_overwrite(out)
    folder = adapter_in(run)
    base = base_of(folder, model, trust_remote_code=trust_remote_code)
    network = load_model(
        base.model, base.auto_class, base.head, load_processor(base.model, base.auto_class), seed=0
    ).model
    injection = load_adapter(network, folder)
    with contextlib.nullcontext() if view is None else _view(injection, view):
        adapted = logits(network)
        written = save_peft(
            injection,
            out,
            base=source(base.model),
            task_type=TASKS.get(base.auto_class),
            form=form,
            rank=rank,
        )
    injection.remove()
    load_adapter(network, out)
    return Exported(written, float((logits(network) - adapted).abs().max()))


def _view(injection: "Injection", name: str) -> contextlib.AbstractContextManager[Any]:
    views = injection.hooks.views()
    if name not in views:
        raise ValueError(unknown(f"view of {injection.variant.name}", name, views))
    return views[name]


if __name__ == "__main__":
    main()

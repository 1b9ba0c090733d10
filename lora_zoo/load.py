"""`python -m lora_zoo.load ADAPTER OUT`: convert an adapter of PEFT or loralib to this project's format."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lora_zoo.models.classes import TASKS
from lora_zoo.terminal import on_the_terminal

if TYPE_CHECKING:
    from lora_zoo.injection.inject import Injection


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.load", description=__doc__)
    parser.add_argument("adapter", type=Path, help="PEFT's folder, or loralib's file (.pt or .safetensors)")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--model", help="the base; default: the one that PEFT's configuration names")
    parser.add_argument("--auto-class", choices=TASKS, help="the class that loads the base")
    parser.add_argument("--num-labels", type=int, help="number of labels of a classifier's head")
    parser.add_argument("--dtype", default="float32", help="dtype of the base (float32)")
    parser.add_argument("--alpha", type=float, help="alpha of a loralib file, which does not hold it")
    parser.add_argument("--enable", default="", help="loralib: the adapted parts of fused layers, e.g. q,v")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code from the base's repository"
    )
    given = parser.parse_args(arguments)
    with on_the_terminal():
        injection = load(**vars(given) | {"enable": [role for role in given.enable.split(",") if role]})
    whole = f" and {len(injection.fully_trained)} parameters in full" if injection.fully_trained else ""
    print(
        f"{injection.variant.name} on {len(injection)} matrices{whole} in {given.out}: load_adapter loads it"
    )


def load(
    adapter: Path,
    out: Path,
    *,
    model: str | None = None,
    auto_class: str | None = None,
    num_labels: int | None = None,
    dtype: str = "float32",
    alpha: float | None = None,
    enable: list[str] | None = None,
    trust_remote_code: bool = False,
) -> "Injection":
    """Inject the adapter into its base and save it to `out` in our format.

    Raises FileNotFoundError where there is no adapter, ValueError where it or the base cannot be read, where
    they do not fit each other, or where `out` holds something.
    """
    from lora_zoo.formats.native import load_adapter, save_adapter
    from lora_zoo.models.base import base_of
    from lora_zoo.models.loading import load_model, load_processor
    from lora_zoo.models.saving import refuse_to_overwrite

    refuse_to_overwrite(out)
    if not adapter.exists():
        raise FileNotFoundError(f"{adapter} does not exist")
    base = base_of(adapter, model, auto_class=auto_class or "", trust_remote_code=trust_remote_code)
    settings = base.model
    settings.dtype = dtype
    head = {"num_labels": num_labels} if num_labels else base.head
    network = load_model(
        settings, base.auto_class, head, load_processor(settings, base.auto_class), seed=0
    ).model
    injection = load_adapter(network, adapter, alpha=alpha, enable=enable or ())
    about = {"name": settings.name, "path": settings.path, "dtype": dtype, "revision": settings.revision}
    save_adapter(injection, out, model=about, auto_class=base.auto_class, head=head)
    return injection


if __name__ == "__main__":
    main()

"""`python -m lora_zoo.merge RUN OUT`: a run's adapter merged into its base, a folder in Hub format.

OUT is loaded again as anybody would load it, and its logits are compared with those of the adapted model. It
appears whole or not at all. A quantised base is dequantised: what was trained on its values is added to them.
"""

import argparse
from pathlib import Path

from lora_zoo.terminal import add_files, on_the_terminal, say


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.merge", description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or an adapter: ours, PEFT's or loralib's")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--model", help="the base; default: the one that the adapter names")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, help="dtype of the merged weights; default: the run's")
    parser.add_argument("--alpha", type=float, help="alpha of a loralib file, which does not hold it")
    parser.add_argument("--enable", default="", help="loralib: the adapted parts of fused layers, e.g. q,v")
    parser.add_argument(
        "--slice", dest="sliced", action="store_true", help="take out heads and channels that are masked"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code from the base's repository"
    )
    parser.add_argument(
        "--evaluate",
        default="",
        metavar="TASKS",
        help="evaluate OUT on these tasks of lm-evaluation-harness, comma-separated",
    )
    add_files(parser)
    given = parser.parse_args(arguments)
    tasks = [task for task in given.__dict__.pop("evaluate").split(",") if task]
    with on_the_terminal(given.__dict__.pop("files")):
        from lora_zoo.models.harness import harness, judged
        from lora_zoo.models.merging import merge

        if tasks:
            harness()  # a merge that could not be judged is not begun
        merged = merge(**vars(given) | {"enable": [role for role in given.enable.split(",") if role]})
    print(f"merged model in {given.out}: transformers' {merged.auto_class}.from_pretrained loads it")
    print(f"largest logit difference, adapted and reloaded: {merged.difference:.2g}", end=" ")
    print(f"(largest logit {merged.largest:.4g}, {merged.dtype})")
    for note in merged.notes:
        print(note)
    if not merged.explained:
        say(f"warning: rounding in {merged.dtype} does not explain that difference")
    if tasks:
        with on_the_terminal():
            for line in judged(given.out, tasks, trust_remote_code=given.trust_remote_code):
                print(line)


if __name__ == "__main__":
    main()

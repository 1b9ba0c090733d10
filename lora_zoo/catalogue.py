"""`python -m lora_zoo.catalogue [--write README.md]`: the table of variants, from the registry."""

import argparse
import re
from pathlib import Path

from lora_zoo.adapters.registry import hyperparameters, variants

BEGIN, END = "<!-- variants: made by python -m lora_zoo.catalogue --write README.md -->", "<!-- /variants -->"


def table() -> str:
    """One Markdown row a variant: name, equation, trainable parameters per (O, I) matrix, own keys, paper."""
    rows = ["| `variant=` | equation | trainable per matrix | keys | paper |", "|---|---|---|---|---|"]
    for name, cls in variants().items():
        keys = ", ".join(f"`{key}`" for key in hyperparameters(cls)) or "-"
        count = f"`{cls.count}`" if cls.count else "-"
        equation = cls.equation.replace("|", "\\|")
        rows.append(f"| `{name}` | {equation} | {count} | {keys} | {_link(cls.paper)} |")
    return "\n".join(rows)


def _link(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    return f"[{number}](https://arxiv.org/abs/{number})" if number != paper else paper


def written(text: str) -> str:
    """`text` with the part between the markers replaced. ValueError where there are none."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the file lacks the markers {BEGIN} … {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n{table()}\n{END}", text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.catalogue", description=__doc__)
    parser.add_argument("--write", type=Path, help="replace the table in this file")
    path = parser.parse_args().write
    if path is None:
        print(table())
    else:
        path.write_text(written(path.read_text()))


if __name__ == "__main__":
    main()

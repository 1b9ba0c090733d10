"""`lora-zoo COMMAND …`: the commands of lora_zoo. `lora-zoo +variant=dora` is a run."""

import sys
from importlib import import_module
from typing import NamedTuple

from lora_zoo import __version__


class Command(NamedTuple):
    """A module, the function of it that runs the command, and what it does."""

    module: str
    about: str
    function: str = "main"
    before: tuple[str, ...] = ()
    """Words that stand before the user's."""


COMMANDS = {
    "run": Command("lora_zoo.run", "train and evaluate one adapter: lora-zoo run +variant=dora rank=8"),
    "sweep": Command(
        "lora_zoo.run", "one run per combination: lora-zoo sweep +variant=lora,dora", before=("-m",)
    ),
    "compare": Command("lora_zoo.compare.__main__", "a fair comparison within a number of hours"),
    "report": Command("lora_zoo.report.__main__", "tables, figures and a page of recorded runs"),
    "claims": Command("lora_zoo.claims.__main__", "the papers' claims, judged by recorded runs"),
    "spectra": Command("lora_zoo.spectra", "singular values, norms and subspaces of weight updates"),
    "list": Command("lora_zoo.choices", "what can be chosen: variants, inits, tasks, recipes, …"),
    "show": Command("lora_zoo.choices", "one choice: equation, keys, defaults, paper", "show"),
    "load": Command("lora_zoo.load", "an adapter of this project, PEFT or loralib: check it, write it"),
    "export": Command("lora_zoo.export", "an adapter in PEFT's or loralib's format"),
    "merge": Command("lora_zoo.merge", "the model with the adapter in its weights, as a plain Hub folder"),
    "compose": Command("lora_zoo.compose", "several runs' adapters as one"),
    "quantization": Command("lora_zoo.quantization", "errors of a model's quantised weights, by init"),
    "bench": Command("lora_zoo.bench.__main__", "time and memory beside PEFT and the frozen model"),
    "doctor": Command("lora_zoo.doctor", "what this machine lacks: packages, GPU, disk, logins"),
    "completion": Command("lora_zoo.completion", "a shell script: Tab completes commands, keys and choices"),
}
"""Each has `--help` of its own."""


def main() -> None:
    """Run the command that the first word names, with the words after it; without a word, list them."""
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in ("-h", "--help", "help"):
        print(help_text())
        return
    if word == "--version":
        print(f"lora_zoo {__version__}")
        return
    command = COMMANDS.get(word)
    if command is None:
        import_module("lora_zoo.run").main()
        return
    sys.argv = [f"lora-zoo {word}", *command.before, *sys.argv[2:]]
    getattr(import_module(command.module), command.function)()


def help_text() -> str:
    """The commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {word:<{width}}  {command.about}" for word, command in COMMANDS.items()]
    usage = "usage: lora-zoo COMMAND …, lora-zoo COMMAND --help; without a COMMAND: lora-zoo run"
    return "\n".join([usage, "", *lines])


if __name__ == "__main__":
    main()

"""`lora-zoo COMMAND …` is `python -m lora_zoo.COMMAND …`; `lora-zoo +variant=dora` is a run."""

import sys
from importlib import import_module

COMMANDS = {
    "run": "lora_zoo.run",
    "compare": "lora_zoo.compare.__main__",
    "report": "lora_zoo.report.__main__",
    "claims": "lora_zoo.claims.__main__",
    "bench": "lora_zoo.bench.__main__",
    "merge": "lora_zoo.merge",
    "compose": "lora_zoo.compose",
    "export": "lora_zoo.export",
    "load": "lora_zoo.load",
    "spectra": "lora_zoo.spectra",
}
"""Word -> the module whose `main` it runs."""


def main() -> None:
    """Run the command that the first word names, with the words after it."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in COMMANDS:
        sys.argv = [f"lora-zoo {word}", *sys.argv[2:]]
    import_module(COMMANDS.get(word, "lora_zoo.run")).main()


if __name__ == "__main__":
    main()

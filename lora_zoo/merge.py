"""`python -m lora_zoo.merge RUN OUT`: a run's adapter merged into its base, a folder in Hub format."""

import argparse
import sys
from pathlib import Path

from lora_zoo.configuration.settings import Model


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.merge", description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or its adapter folder")
    parser.add_argument("out", type=Path, help="the folder to make")
    given = parser.parse_args(arguments)
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"{given.out} is not empty")
    try:
        merge(given.run, given.out)
    except (ValueError, FileNotFoundError) as mistake:
        print(f"lora_zoo: {mistake}", file=sys.stderr)
        sys.exit(2)
    print(f"merged model in {given.out}: transformers' from_pretrained loads it")


def merge(run: Path, out: Path) -> None:
    """Raises FileNotFoundError where `run` holds no adapter, ValueError where its base cannot be loaded."""
    from lora_zoo.adapters.checkpoint import load_adapter, read_description
    from lora_zoo.models.loading import load_model, load_tokenizer

    folder = run / "adapter" if (run / "adapter").is_dir() else run
    about = read_description(folder)["about"]
    if "model" not in about:
        raise ValueError(f"{folder} does not say which model it adapts; use load_adapter and merge() on it")
    settings = Model(**about["model"])
    tokenizer = load_tokenizer(settings)
    model = load_model(settings, about["auto_class"], about["head"], tokenizer, seed=0).model
    load_adapter(model, folder).merge()
    model.save_pretrained(out)  # type: ignore[operator]
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()

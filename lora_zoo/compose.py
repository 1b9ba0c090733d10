"""`python -m lora_zoo.compose OUT RUN… --by ties`: several runs' adapters as one model, or as one adapter.

--as adapters keeps them apart, for what weighs them by the input: --by arrow, token_level, whose centroids
are of each run's own examples, or xlora, trained on --data.

--by names a composition of `lora_zoo.compositions`; its options are the command's (`--by ties --help`). OUT
is loaded again as anybody would load it, and its logits are compared with those of the composed model. It
appears whole or not at all.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_zoo.core.composition import COMPOSITIONS, Composition, composition_of
from lora_zoo.core.hyperparameters import keywords, type_words
from lora_zoo.terminal import add_files, on_the_terminal, say

if TYPE_CHECKING:
    from torch import nn

    from lora_zoo.models.write_composed import ComposedFiles

FORMS = ("model", "adapter", "adapters")
_OURS = ("rank", "examples")


def main(arguments: list[str] | None = None) -> None:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--by")
    add_files(first)
    early, _ = first.parse_known_args(arguments)
    with on_the_terminal(early.files):
        given = vars(_parser(early.by).parse_args(arguments))
        given.pop("files")
        own = {key: given.pop(f"of_{key}", None) for key in _own_options(early.by)}
        done = compose(**given, options={key: value for key, value in own.items() if value is not None})
    merged, out = done.merged, given["out"]
    if done.ranks:
        ranks = sorted({*done.ranks.values()})
        words = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        print(f"one LoRA of {words} on {len(done.ranks)} matrices in {out}: load_adapter loads it")
    elif given["form"] == "adapters":
        print(f"{len(given['runs'])} adapters, composed by {given['by']}, in {out}: load_composed loads them")
    else:
        print(f"composed model in {out}: transformers' {merged.auto_class}.from_pretrained loads it")
    for note in done.notes:
        print(note)
    print(f"largest logit difference, composed and reloaded: {merged.difference:.2g}", end=" ")
    print(f"(largest logit {merged.largest:.4g}, {merged.dtype})")
    if not merged.explained and not given["rank"]:
        say(f"warning: rounding in {merged.dtype} does not explain that difference")


def _parser(by: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.compose", description=__doc__)
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("runs", type=Path, nargs="+", help="runs' folders, or adapters: ours or PEFT's")
    parser.add_argument("--by", default="sum", help=f"{', '.join(COMPOSITIONS)} (sum)")
    parser.add_argument("--as", dest="form", choices=FORMS, default="model")
    parser.add_argument("--rank", type=int, help="rank for svd, byom_lora and --as adapter; prints the error")
    parser.add_argument(
        "--data", type=Path, help="the run whose task the weights are fitted to (lorahub, controlpe, xlora)"
    )
    parser.add_argument(
        "--examples", type=int, help="the number of each run's examples that a composition uses"
    )
    parser.add_argument(
        "--evaluate", metavar="SPLIT", help="evaluate the result on this split of each run's task"
    )
    parser.add_argument("--model", help="the base; default: the one that the adapters name")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, help="dtype of the written weights; default: the base's")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code from the base's repository"
    )
    add_files(parser)
    for key, parameter in _own_options(by).items():
        words = type_words(parameter.annotation)
        several: dict[str, Any] = {"nargs": "+"} if "list" in words else {}
        default = "" if parameter.default in (parameter.empty, None) else f" ({parameter.default})"
        several |= {"type": partial(_value, words), "help": f"{words}{default}", "metavar": key.upper()}
        parser.add_argument(f"--{key.replace('_', '-')}", dest=f"of_{key}", **several)
    return parser


def _own_options(by: str | None) -> dict[str, Any]:
    """The options of a composition, beside those of the command."""
    cls = COMPOSITIONS.find(by) if by else COMPOSITIONS.find("sum")
    return {key: parameter for key, parameter in keywords(cls).items() if key not in _OURS}


def _value(words: str, text: str) -> Any:
    """`text` as the number or truth value that the `words` for its type allow, else as it is."""
    if "true or false" in words:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return float(text) if "a number" in words else int(text) if "an integer" in words else text
    except ValueError:
        return text


def compose(
    out: Path,
    runs: Sequence[Path],
    *,
    by: str = "sum",
    options: Mapping[str, Any] | None = None,
    form: Literal["model", "adapter", "adapters"] = "model",
    rank: int | None = None,
    data: Path | None = None,
    examples: int | None = None,
    evaluate: str | None = None,
    model: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> "ComposedFiles":
    """Compose the adapters of `runs` and write a merged model, one adapter, or all of them, to `out`.

    All of them (`form="adapters"`) are what a composition needs that weighs them by the input.

    `options` are those of the composition `by`, adapters called like their folders. `rank` is the
    composition's where it has one, and the most that one adapter has. `data` is the run to whose task a
    composition is fitted; `examples` of it, or of each run, are looked at. `evaluate` is a split on which
    the result is judged by each run's task: the notes then say what that run had reached, and what is left,
    and so does `retained.json` in `out`, for reports.

    Raises FileNotFoundError where a run holds no adapter, ValueError for adapters that cannot be composed
    (other bases, other shapes, no effective weight) or a wrong option, before anything is written.
    """
    from lora_zoo.models.composing import common_base, load_adapters_of, named_runs
    from lora_zoo.models.loading import load_processor
    from lora_zoo.models.saving import refuse_to_overwrite
    from lora_zoo.models.write_composed import write_adapter, write_adapters, write_model
    from lora_zoo.runs.retained import keep_retained
    from lora_zoo.training.retention import tasks_of

    out = Path(out).resolve()
    refuse_to_overwrite(out)
    if dtype and form != "model":
        raise ValueError(f"--dtype={dtype} has no effect on an adapter, which is float32")
    named = named_runs([Path(run) for run in runs])
    composition = _composition(by, tuple(named), dict(options or {}), form, rank)
    _check_form(composition, form)
    _check_data(composition, data, examples)
    tasks = tasks_of(named, evaluate) if evaluate else []
    base = common_base(named, model, trust_remote_code)
    as_loaded = base._replace(model=replace(base.model, dtype="float32")) if form != "model" else base
    tokenizer = load_processor(base.model, base.auto_class)
    network = load_adapters_of(as_loaded, named, tokenizer).model
    prepare(network, composition, named, data, examples)
    left = [task.retained(network) for task in tasks]
    if form == "model":
        done = write_model(network, out, base, tokenizer, composition, dtype=dtype)
    elif form == "adapters":
        done = write_adapters(network, out, base, composition, options or {})
    else:
        made_of = {"by": by, "options": dict(options or {}), "runs": [str(run) for run in runs]}
        done = write_adapter(network, out, base, composition, rank=rank, made_of=made_of)
    if evaluate:
        keep_retained(out, by, options or {}, evaluate, [task._asdict() for task in left])
    return done._replace(notes=[*done.notes, *map(str, left)])


def _composition(
    by: str, names: Sequence[str], options: dict[str, Any], form: str, rank: int | None
) -> Composition:
    if rank is not None:
        if "rank" in keywords(COMPOSITIONS.find(by)):
            options["rank"] = rank
        elif form != "adapter":
            raise ValueError(f"--rank has no effect on a model by {by}: use --by svd, or --as adapter")
        if rank < 1:
            raise ValueError(f"rank must be at least 1; got {rank}")
    return composition_of(by, names, options)


def _check_form(composition: Composition, form: str) -> None:
    """Raise ValueError where the result has not the form that was asked for."""
    if composition.routes and form != "adapters":
        text = "weighs adapters by the input, which is no one weight: give --as adapters"
        raise ValueError(f"{composition.name} {text}")
    if form == "adapters" and not composition.routes:
        raise ValueError(
            f"--as adapters is for what weighs them by the input; {composition.name} has one weight"
        )


def _check_data(composition: Composition, data: Path | None, examples: int | None) -> None:
    """Raise ValueError for examples that nothing looks at, and where those to compose to are missing."""
    fitted = composition.examples not in ("", "own")
    if fitted and data is None:
        raise ValueError(f"{composition.name} is fitted to a task: give --data, a run on that task")
    if data is not None and not fitted:
        raise ValueError(f"--data has no effect on {composition.name}, which is fitted to no task")
    if examples is not None and (examples < 1 or not composition.examples):
        raise ValueError(f"--examples={examples}: {composition.name} looks at no such number")


def prepare(
    network: "nn.Module",
    composition: Composition,
    named: Mapping[str, Path],
    data: Path | None,
    examples: int | None,
) -> None:
    """Let the composition look at its data, and make it the active one."""
    from lora_zoo.injection.adapter_set import adapters_of
    from lora_zoo.injection.composition_data import AdapterData
    from lora_zoo.training.run_data import examples_of_run

    if split := composition.examples:
        number = examples or composition.looks_at
        own = {
            name: examples_of_run(run, network, split="train", number=number)
            for name, run in named.items()
            if split == "own"
        }
        target = [*examples_of_run(data, network, split=split, number=number)] if data else []
        composition.prepare(AdapterData(network, [*named], own=own, target=target))
    adapters_of(network).activate(*named, composition=composition)


if __name__ == "__main__":
    main()

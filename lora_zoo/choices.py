"""Choices, and what is known of each: `lora-zoo list KIND` and `lora-zoo show NAME`."""

import argparse
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lora_zoo.config.groups import GROUPS, option_file, options
from lora_zoo.core.errors import unknown
from lora_zoo.terminal import add_files, on_the_terminal

Lines = Iterable[str]


def main(arguments: list[str] | None = None) -> None:
    """List the choices of one kind, or the kinds."""
    parser = argparse.ArgumentParser(prog="lora-zoo list", description="List what can be chosen.")
    parser.add_argument(
        "kind", nargs="?", default="", help=f"one of {', '.join(KINDS)}; all of them if left out"
    )
    add_files(parser)
    given = parser.parse_args(arguments)
    with on_the_terminal(given.files):
        kind = given.kind if not given.kind or given.kind in KINDS else f"{given.kind}s"
        if kind and kind not in KINDS:
            raise ValueError(unknown("kind", given.kind, KINDS))
        for name in [kind] if kind else KINDS:
            heading = [] if kind else ["", f"{name}:"]
            print("\n".join([*heading, *_columns(KINDS[name]())]))


def show(arguments: list[str] | None = None) -> None:
    """Show one choice, of whatever kind it is."""
    parser = argparse.ArgumentParser(prog="lora-zoo show", description="Show what is known about a choice.")
    parser.add_argument("name", help="a variant, an initialisation, a program, a task, a recipe, …")
    add_files(parser)
    given = parser.parse_args(arguments)
    with on_the_terminal(given.files):
        every = {kind: of() for kind, of in KINDS.items()}
        kinds = [kind for kind, known in every.items() if given.name in known]
        if not kinds:
            names = dict.fromkeys(name for known in every.values() for name in known)
            mistake = unknown("name", given.name, names).partition(" Choices:")[0]
            raise ValueError(f"{mistake} `lora-zoo list` has them all")
        print("\n\n".join("\n".join(_lines_of(kind, given.name)) for kind in kinds))


def _lines_of(kind: str, name: str) -> Lines:
    return _SHOWN[kind](name) if kind in _SHOWN else _option(kind.removesuffix("s"), name)


def _columns(known: Mapping[str, str]) -> Lines:
    width = max(map(len, known), default=0)
    return (f"  {name:<{width}}  {about}".rstrip() for name, about in known.items())


def _first_line(of: object) -> str:
    return (inspect.getdoc(of) or "").partition("\n")[0]


def _variants() -> dict[str, str]:
    from lora_zoo.core.variants import VARIANTS

    return {name: cls.equation for name, cls in VARIANTS.items()}


def _inits() -> dict[str, str]:
    from lora_zoo.core.init import INITS, InitFamily

    return {
        f"{name}_K" if isinstance(init, InitFamily) else name: init.source for name, init in INITS.items()
    }


def _programs() -> dict[str, str]:
    from lora_zoo.core.program import PROGRAMS

    return {name: _first_line(program) for name, program in PROGRAMS.items()}


def _compositions() -> dict[str, str]:
    from lora_zoo.core.composition import COMPOSITIONS

    return {name: cls.equation for name, cls in COMPOSITIONS.items()}


def _metrics() -> dict[str, str]:
    from lora_zoo.metrics import METRICS

    return dict.fromkeys(METRICS, "")


def _of(group: str) -> Callable[[], dict[str, str]]:
    return lambda: options(group)


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "variants": _variants,
    "inits": _inits,
    "programs": _programs,
    "compositions": _compositions,
    "tasks": _of("task"),
    "models": _of("model"),
    "recipes": _of("recipe"),
    "experiments": _of("experiment"),
    "metrics": _metrics,
}


def _keys(found: Mapping[str, inspect.Parameter]) -> Lines:
    """A line a hyperparameter: its name, its default and its type."""
    from lora_zoo.core.hyperparameters import type_words

    told = {f"{name}={written_default(p.default)}": type_words(p.annotation) for name, p in found.items()}
    return ["keys, with their defaults:", *_columns(told)] if told else []


def written_default(value: Any) -> str:
    """A default as one writes it on the command line."""
    if value is inspect.Parameter.empty:
        return "(must be given)"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _about(of: object) -> Lines:
    return [*(inspect.getdoc(of) or "").splitlines(), ""]


def _show_variant(name: str) -> Lines:
    from lora_zoo.core.hyperparameters import hyperparameters
    from lora_zoo.core.variants import VARIANTS

    cls = VARIANTS[name]
    facts = _columns({"W'": cls.equation, "paper": cls.paper, **variant_facts(cls)})
    return [f"variant={name}", *_about(cls), *facts, "", *_keys(hyperparameters(cls))]


def variant_facts(cls: Any) -> dict[str, str]:
    """Facts that a variant declares, as words by word."""
    from lora_zoo.core.init import init_names

    otherwise = "as LoRA, where its update has low rank" if cls.pointwise else "no"
    return {
        "trainable": f"{cls.count} a matrix (O, I)" if cls.count else "no adapter on a matrix",
        "targets": ", ".join(cls.targets) if cls.adapts else "-",
        "looks at data": ", ".join(cls.needs) or "no",
        "merges": "yes" if cls.pointwise else "no: its output is no product of x with one matrix",
        "exports to PEFT": "in PEFT's own form" if cls.peft else otherwise,
        "init": ", ".join(init_names(cls.accepts_init)) or "-",
    }


def _show_init(name: str) -> Lines:
    from lora_zoo.core.init import INITS

    init = INITS[name.removesuffix("_K")]
    return [f"init={name}", *_about(init.draw), *_columns({"source": init.source, **init_facts(init)})]


def init_facts(init: Any) -> dict[str, str]:
    """Facts that an initialisation, or a family of them, declares, as words by word."""
    from lora_zoo.core.init import InitFamily
    from lora_zoo.core.variants import VARIANTS

    one = init.member(4) if isinstance(init, InitFamily) else init
    takers = [cls.name for cls in VARIANTS.values() if cls.accepts_init(one)]
    return {
        "residual": "yes: its first product is taken off W" if one.residual else "no",
        "looks at data": ", ".join(one.needs) or "no",
        "variants": ", ".join(takers),
    }


def _show_program(name: str) -> Lines:
    from lora_zoo.core.program import PROGRAMS, hyperparameters_of

    program = PROGRAMS[name]
    return [f"program={name}", *_about(program), *_keys(hyperparameters_of(program))]


def _show_composition(name: str) -> Lines:
    from lora_zoo.core.composition import COMPOSITIONS
    from lora_zoo.core.hyperparameters import keywords

    cls = COMPOSITIONS[name]
    return [f"--by {name}", *_about(cls), *_columns({"equation": cls.equation}), "", *_keys(keywords(cls))]


def _option(group: str, name: str) -> Lines:
    """An option of a group of the configuration: what its file says of itself, and what it sets."""
    import yaml

    if group not in GROUPS:
        return [f"{group} {name}"]
    content = yaml.safe_dump(option_file(group, name)[1], sort_keys=False, allow_unicode=True)
    return [f"{group}={name}", options(group)[name], "", *content.splitlines()]


_SHOWN: dict[str, Callable[[str], Lines]] = {
    "variants": _show_variant,
    "inits": _show_init,
    "programs": _show_program,
    "compositions": _show_composition,
}


if __name__ == "__main__":
    main()

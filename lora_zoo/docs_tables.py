"""`python -m lora_zoo.docs_tables [--write docs]`: the tables of what can be chosen (`TABLES`)."""

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

from lora_zoo.config.groups import option_file, options
from lora_zoo.core.composition import COMPOSITIONS
from lora_zoo.core.generators import GENERATORS
from lora_zoo.core.hyperparameters import check_hyperparameters, hyperparameters, keywords
from lora_zoo.core.init import init_names
from lora_zoo.core.variants import VARIANTS

_MARKERS = "<!-- {0}: made by python -m lora_zoo.docs_tables --write docs -->", "<!-- /{0} -->"


def variants_table() -> str:
    """One Markdown row a variant: name, equation, trainable parameters per (O, I) matrix, own keys, paper."""
    rows = ["| `variant=` | equation | trainable per matrix | keys | paper |", "|---|---|---|---|---|"]
    for name, cls in VARIANTS.items():
        keys = ", ".join(f"`{key}`" for key in _choices(cls)) or "-"
        count = f"`{cls.count}`" if cls.count else "-"
        equation = cls.equation.replace("|", "\\|")
        rows.append(f"| `{name}` | {equation} | {count} | {keys} | {link(cls.paper)} |")
    return "\n".join(rows)


def _choices(cls: Any) -> list[str]:
    """The hyperparameters that leave a choice: `init` is none where one start alone is accepted."""
    single = len(init_names(cls.accepts_init)) < 2
    return [key for key in hyperparameters(cls) if not (key == "init" and single)]


def hosts_table() -> str:
    """One Markdown row a kind of layer: what it is, which variants adapt it, whether with dropout."""
    from lora_zoo.core.adapter import Adapter
    from lora_zoo.hosts.find import HOSTS

    rows = ["| host | matrix | variants | `lora_dropout` |", "|---|---|---|---|"]
    adapters = [cls for cls in VARIANTS.values() if issubclass(cls, Adapter)]
    for host in HOSTS.values():
        about = inspect.cleandoc(host.__doc__ or "").partition("\n")[0].rstrip(".")
        refusing = [f"`{cls.name}`" for cls in adapters if refuses(cls, host)]
        who = f"all {len(adapters)}{' but ' if refusing else ''}{', '.join(refusing)}"
        dropout = "yes" if host.sees_input else "refused: an adapter there never sees the input"
        rows.append(f"| {host.kind} | {about} | {who} | {dropout} |")
    return "\n".join(rows)


def refuses(cls: Any, host: Any) -> bool:
    """True if a variant with its defaults adapts no matrix, however large, of this type of layer."""
    hyper = cls.complete(check_hyperparameters(cls, {}))
    if (cls.adds_bias and not host.can_have_bias) or not (cls.pointwise or host.sees_input):
        return True
    return cls.refusal(host.kind, (1024, 1024), hyper) is not None


def tasks_table() -> str:
    """One Markdown row a task of `conf/task`: what it says of itself, and its generator's options."""
    rows = ["| `task=` | about | `task.options` |", "|---|---|---|"]
    for name, about in options("task").items():
        held = option_file("task", name)[1]
        given = held.get("options", {}) if held["dataset"] in GENERATORS else {}
        escaped = about.replace("|", "\\|")
        shown = ", ".join(f"`{key}={value}`" for key, value in given.items()) or "-"
        rows.append(f"| `{name}` | {escaped} | {shown} |")
    return "\n".join(rows)


def recipes_table() -> str:
    """One Markdown row a recipe of `conf/recipe`: the variant that it chooses, and what it says of itself."""
    rows = ["| `recipe=` | variant | from |", "|---|---|---|"]
    for name, about in options("recipe").items():
        defaults = option_file("recipe", name)[1].get("defaults", [])
        chosen = next((entry["override /variant"] for entry in defaults), "any")
        rows.append(f"| `{name}` | {chosen} | {about} |")
    return "\n".join(rows)


def compositions_table() -> str:
    """One Markdown row a composition: what it makes of the ΔW or factors, its options, what it looks at."""
    rows = ["| composition | equation | options | looks at |", "|---|---|---|---|"]
    for name, cls in COMPOSITIONS.items():
        keys = ", ".join(f"`{key}`" for key in keywords(cls)) or "-"
        equation = cls.equation.replace("|", "\\|").replace("[", "\\[")  # no references of Markdown
        looks = _LOOKS.get(cls.examples, f"a run's {cls.examples} examples")
        looks = ", ".join(filter(None, ("each input", cls.examples and looks))) if cls.routes else looks
        rows.append(f"| `{name}` | {equation} | {keys} | {looks} |")
    return "\n".join(rows)


_LOOKS = {"": "-", "own": "each run's own examples"}
TABLES = {
    "variants": variants_table,
    "hosts": hosts_table,
    "recipes": recipes_table,
    "compositions": compositions_table,
    "tasks": tasks_table,
}


def link(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    return f"[{number}](https://arxiv.org/abs/{number})" if number != paper else paper


def written(text: str) -> str:
    """`text` with what stands between the markers of each table that it has replaced."""
    for name, table in TABLES.items():
        begin, end = (marker.format(name) for marker in _MARKERS)
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if pattern.search(text):
            made = f"{begin}\n{table()}\n{end}"
            text = pattern.sub(lambda _, made=made: made, text)  # type: ignore[misc]
    return text


def tables_in(text: str) -> list[str]:
    """The names of the tables whose markers `text` has."""
    return [name for name in TABLES if all(marker.format(name) in text for marker in _MARKERS)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lora_zoo.docs_tables", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="replace the tables in its pages (*.md)")
    folder = parser.parse_args().write
    if folder is None:
        print("\n\n".join(table() for table in TABLES.values()))
        return
    for path in sorted(folder.glob("*.md")):
        if tables_in(text := path.read_text()):
            path.write_text(written(text))


if __name__ == "__main__":
    main()

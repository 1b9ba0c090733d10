"""Pages of the site that are made when it is built: variants, initialisations, claims, the interface.

Facts come from the registries, numbers from the tables of experiments/: nothing is measured or kept here.
"""

import functools
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lora_zoo
from lora_zoo import docs_evidence
from lora_zoo.choices import init_facts, variant_facts, written_default
from lora_zoo.claims import claims
from lora_zoo.core.hyperparameters import hyperparameters, type_words
from lora_zoo.core.init import INITS, InitFamily
from lora_zoo.core.variants import VARIANTS
from lora_zoo.docs_tables import link, refuses

ROOT = Path(lora_zoo.__file__).parents[1]


def pages() -> dict[str, str]:
    """The text of every generated page, by its path on the site."""
    made = {f"variants/{name}.md": variant_page(name) for name in VARIANTS}
    made |= {f"initialisations/{_init_name(name)}.md": init_page(name) for name in INITS}
    return made | {"ledger.md": ledger_page(), "api.md": interface_page()}


def navigation() -> dict[str, list[Any]]:
    """The sections of the navigation that consist of generated pages or of experiments."""
    names = sorted(path.name for path in (ROOT / "experiments").iterdir() if (path / "README.md").is_file())
    experiments = [{name: f"experiments/{name}/README.md"} for name in names]
    return {
        "Variants": [{name: f"variants/{name}.md"} for name in VARIANTS],
        "Initialisations": [{_init_name(name): f"initialisations/{_init_name(name)}.md"} for name in INITS],
        "Experiments": ["experiments/README.md", "ledger.md", *experiments],
    }


def page_of(path: str) -> str:
    """The page of the variant whose class a file of the repository holds; "" where it holds none."""
    return _homes().get(path, "")


def linked(table: str) -> str:
    """The table of variants with each name a link to its page."""
    return re.sub(r"^\| `(\w+)` \|", r"| [`\1`](variants/\1.md) |", table, flags=re.MULTILINE)


@functools.cache
def _homes() -> Mapping[str, str]:
    homes: dict[str, str] = {}
    for name, cls in VARIANTS.items():
        homes.setdefault(_path(cls), f"variants/{name}.md")
    return homes


def _path(of: Any) -> str:
    """The path in the repository of the file that defines a class or function."""
    return Path(inspect.getfile(of)).relative_to(ROOT).as_posix()


def _init_name(name: str) -> str:
    return f"{name}_K" if isinstance(INITS[name], InitFamily) else name


def variant_page(name: str) -> str:
    """All that is known of a variant: its definition, keys and code, and what was measured here."""
    cls = VARIANTS[name]
    facts = variant_facts(cls) | {"layer types": _layer_types(cls)} if cls.adapts else variant_facts(cls)
    facts["init"] = ", ".join(_init_link(one) for one in facts["init"].split(", "))
    return _page(
        f"# {name}",
        inspect.getdoc(cls) or "",
        f"Paper: {link(cls.paper)}." if cls.paper != "-" else "",
        f"Run it with `python -m lora_zoo.run +variant={name}`.",
        f"```text\n{cls.equation}\n```\n\nShapes: O out, I in, R rank.",
        "## Facts\n\n" + _table(("fact", ""), facts.items()),
        "## Keys\n\n" + _keys(cls),
        "## What was measured\n\n" + _measured(name),
        "## Claims about it\n\n" + _claims(_numbers(cls.paper), name),
        f"## Code\n\n`{_path(cls)}`\n\n" + _code(inspect.getsource(sys.modules[cls.__module__])),
    )


def init_page(name: str) -> str:
    """All that is known of an initialisation, or of a family of them."""
    init = INITS[name]
    shown, facts = _init_name(name), init_facts(init)
    variants = facts["variants"].split(", ")
    facts["variants"] = ", ".join(f"[{one}](../variants/{one}.md)" for one in variants)
    example = "lora" if "lora" in variants else variants[0]
    command = f"python -m lora_zoo.run +variant={example} init={shown.replace('_K', '_4')}"
    return _page(
        f"# {shown}",
        init.source + ".",
        inspect.getdoc(init.draw) or "",
        f"Run it with `{command}`.",
        "## Facts\n\n" + _table(("fact", ""), facts.items()),
        "## Claims about it\n\n" + _claims(_numbers(init.source), name),
        f"## Code\n\n`{_path(init.draw)}`\n\n" + _code(inspect.getsource(init.draw)),
    )


def _page(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in lines)


def _code(text: str) -> str:
    return f"```python\n{text.rstrip()}\n```"


def _init_link(name: str) -> str:
    page = re.sub(r"_4$", "_K", name)
    return f"[{page}](../initialisations/{page}.md)" if name != "-" else name


def _layer_types(cls: Any) -> str:
    from lora_zoo.hosts.find import HOSTS

    return ", ".join(host.kind for host in HOSTS.values() if not refuses(cls, host))


def _keys(cls: Any) -> str:
    rows = [
        (f"`{name}`", f"`{written_default(one.default)}`", _escaped(type_words(one.annotation)))
        for name, one in hyperparameters(cls).items()
    ]
    return _table(("key", "default", "type"), rows) if rows else "It has none of its own."


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _measured(name: str) -> str:
    """The rows of a variant in the experiments that run every variant, and LoRA's beside them."""
    parts = []
    for page in docs_evidence.ALL_VARIANTS:
        found, lora = docs_evidence.rows_of(page, name), docs_evidence.rows_of(page, "lora")
        if found:
            tasks = {row.cells[0] for row in found}
            beside = [row for row in lora if name != "lora" and row.cells[0] in tasks]
            parts.append(f"From [{page}](../experiments/{page}){', LoRA beside it' if beside else ''}:")
            parts.append(_table(found[0].head, [row.cells for row in (*found, *beside)]))
    return "\n\n".join(parts) or "It is not in the experiments that run every variant."


def _claims(numbers: Sequence[str], name: str) -> str:
    """The claims of a paper, or whose names begin as the member's, with the verdicts of the experiments."""
    short = name.replace("_", "-")
    known = [
        claim
        for claim in claims().values()
        if claim.id.startswith(f"{short}/")
        or any(number in f"{claim.paper} {claim.where}" for number in numbers)
    ]
    if not known:
        return "The [ledger](../ledger.md) has none."
    rows = [(_escaped(claim.statement), _source(claim), _verdicts(claim.id, "../")) for claim in known]
    return _table(("claim", "source", "verdict of the committed runs"), rows)


def _source(claim: Any) -> str:
    return _escaped(f"{claim.paper}, {claim.where}".strip(", "))


def _verdicts(claim: str, up: str) -> str:
    found = docs_evidence.verdicts().get(claim, ())
    told = (
        f"{one.verdict} ({one.effect}, n = {one.n}): [{one.experiment}]({up}experiments/{one.page})"
        for one in found
    )
    return "; ".join(told) or "in no committed experiment's table"


def _numbers(text: str) -> list[str]:
    """The arXiv identifiers in a text."""
    return re.findall(r"\b\d{4}\.\d{4,5}\b", text)


def ledger_page() -> str:
    """Every claim with the verdicts that the tables of experiments/ print."""
    rows = [
        (f"`{id}`", _escaped(claim.statement), _source(claim), _verdicts(id, ""))
        for id, claim in claims().items()
    ]
    return _page(
        "# The ledger of claims",
        "Every claim that the project knows, and what the committed experiments say of it. "
        "`python -m lora_zoo.claims` computes all verdicts anew, those that need no runs too.",
        _table(("claim", "it says", "source", "verdict of the committed runs"), rows),
    )


def interface_page() -> str:
    """The interface from Python: every name that the package exports, from its docstring."""
    names = (name for name in lora_zoo.__all__ if name not in ("__version__", "BASE"))
    objects = {name: getattr(lora_zoo, name) for name in names}
    listed = [
        f"::: {of.__module__}.{of.__qualname__}"
        for of in objects.values()
        if inspect.isroutine(of) or inspect.isclass(of)
    ]
    return _page("# Interface from Python", "All of these are names of `lora_zoo` itself.", *listed)

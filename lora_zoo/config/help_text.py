"""`--help`: the choices and the keys, from the configuration files and the schema."""

from dataclasses import MISSING, fields

from lora_zoo.config.auto import Rates, Seeds
from lora_zoo.config.groups import options
from lora_zoo.config.schema import Settings

_EXAMPLES = """\
  python -m lora_zoo.run +variant=dora rank=8
  python -m lora_zoo.run -m +variant=lora,dora,pissa rank=2,8 seed=0,1,2
  python -m lora_zoo.run -m +variant=lora,dora,pissa seed=auto seeds.most=20 seeds.hours=2
  python -m lora_zoo.run -m +variant=lora,dora,full lr=auto seed=auto
  python -m lora_zoo.run -m hydra/sweeper=optuna variant=lora,dora 'lr=tag(log,interval(1e-4,1e-1))'
  python -m lora_zoo.run +variant=lora init=olora target_modules=[q,k,v,o] task=pocket-nli
  python -m lora_zoo.run +variant=lora model=FOLDER_OR_HUB_NAME task=sick task.data_dir=FOLDER epochs=3
  python -m lora_zoo.run -m +experiment=lora_table5
  python -m lora_zoo.run +variant=adalora --cfg job --resolve      (what would run)"""


def text() -> str:
    """The whole help page."""
    parts = [
        "usage: python -m lora_zoo.run [-m] [+variant=NAME or FILE.py] [KEY=VALUE …]",
        "",
        "Examples",
        _EXAMPLES,
    ]
    for group in ("variant", "program", "model", "task", "tracking", "recipe", "experiment"):
        parts += ["", f"{group}=", *_rows(options(group))]
    parts += ["", "Keys", *_rows({f.name: _about(f) for f in fields(Settings) if f.metadata})]
    parts += [
        "",
        "Keys of a sweep with seed=auto",
        *_rows({f"seeds.{f.name}": _about(f) for f in fields(Seeds)}),
    ]
    parts += [
        "",
        "Keys of a sweep with lr=auto (or task.lr=auto)",
        *_rows({f"rates.{f.name}": _about(f) for f in fields(Rates)}),
    ]
    parts += ["", "Hydra's own flags (-m, --cfg, --info, --resolve, hydra.*) work as always."]
    return "\n".join(parts)


def _about(f: object) -> str:
    default = f.default if f.default is not MISSING else f.default_factory()  # type: ignore[attr-defined]
    shown = "" if default in (None, "???", {}) else f" [{default}]"
    return f.metadata["help"] + shown  # type: ignore[attr-defined]


def _rows(table: dict[str, str]) -> list[str]:
    width = max(map(len, table))
    return [f"  {name:<{width}}  {about}" for name, about in table.items()]

"""A pytest plugin (entry point `pytest11`): `--variant` chooses what `lora_zoo.conformance` tests."""

from typing import Any

SELECTED: list[str] = []
"""The names of the variants that `--variant` chooses; all registered ones where it is not given."""


def pytest_addoption(parser: Any) -> None:
    parser.getgroup("lora_zoo").addoption(
        "--variant",
        action="append",
        default=[],
        metavar="NAME or FILE.py",
        help="of pytest --pyargs lora_zoo.conformance: test this variant alone; may be given again",
    )


def pytest_configure(config: Any) -> None:
    """Run the files that `--variant` names. UsageError where one cannot be run, or a name is unknown."""
    chosen = config.getoption("--variant")
    if not chosen:
        return
    from lora_zoo.core.user_files import run_file
    from lora_zoo.core.variants import VARIANTS

    try:
        for value in chosen:
            names = run_file(value) if value.endswith(".py") else [VARIANTS.find(value).name]
            SELECTED.extend(name for name in names if name in VARIANTS)
    except ValueError as error:
        import pytest

        raise pytest.UsageError(f"--variant {error}") from error


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out, of the conformance suite, what is not about one of the chosen variants."""
    if not SELECTED:
        return
    left = [item for item in items if _concerns_others(item)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def _concerns_others(item: Any) -> bool:
    ours = item.module.__name__.startswith("lora_zoo.conformance.") if hasattr(item, "module") else False
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return ours and parameters.get("name") not in SELECTED

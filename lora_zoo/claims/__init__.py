"""The ledger of claims: what papers and sources say, as statements that results support or do not.

    for entry in ledger(load("runs")):
        print(entry.id, entry.verdict.status, entry.verdict.reason)

rule.py says when a claim counts as supported, forms.py has the forms that claims take, and each file of
catalogue/ the claims of a paper or a theme. A new claim is a row (rows.py) or a function there, and three
frames in tests/claims/trios.py. The names below are imported on first use: `--help` costs no pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_zoo.claims.entries import LedgerEntry, ledger
    from lora_zoo.claims.registry import claims
    from lora_zoo.claims.rule import Status, Verdict

_HOMES = {
    "LedgerEntry": "entries",
    "ledger": "entries",
    "claims": "registry",
    "Status": "rule",
    "Verdict": "rule",
}
__all__ = ["LedgerEntry", "Status", "Verdict", "claims", "ledger"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

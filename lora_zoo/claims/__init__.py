"""The ledger of claims: what papers and sources say, as statements that results support or do not.

    for entry in ledger(load("runs")):
        print(entry.id, entry.verdict.status, entry.verdict.reason)

rule.py says when a claim counts as supported, forms.py has the forms that claims take, and each file of
catalogue/ the claims of a paper or a theme. A new claim is a row (rows.py) or a function there, and three
frames in tests/claims/trios.py. The names below are imported on first use: `--help` costs no pandas.
"""

from typing import TYPE_CHECKING

from lora_zoo.core.lazy import lazy

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

__getattr__ = lazy(__name__, _HOMES)

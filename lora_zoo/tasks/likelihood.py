"""The negative log-likelihood (nll) of references, in nats, of single examples and of a split.

Of a text it is -Σ_t log p(token t | prompt, tokens before t) over the target's tokens, its end among them; of
a class, -log softmax of the classes' logits at the right one. Letters: N examples, L positions, V words,
T tokens of all targets, C classes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from lora_zoo.tasks.cutting import IGNORED
from lora_zoo.tasks.judgeable import NotFinite

LOGITS = 1 << 28
"""The logits of one pass at most, so that a large vocabulary takes no more memory than training does."""


def of_class(logits_C: Tensor, reference: int) -> dict[str, Any]:
    """nll of the right class; it counts as one token."""
    return {"nll": float(-logits_C.double().log_softmax(dim=-1)[reference]), "tokens": 1}


def of_targets(logits_NLV: Tensor, labels_NL: Tensor) -> list[dict[str, Any]]:
    """nll and tokens of each row's target; the logits at a position are of the label at the same one.

    ValueError for an nll that is NaN or inf.
    """
    counted_NL = labels_NL != IGNORED
    nll_T = cross_entropy(logits_NLV[counted_NL].float(), labels_NL[counted_NL], reduction="none").double()
    if not bool(nll_T.isfinite().all()):
        raise NotFinite("the model gives a reference the likelihood NaN or 0; there is nothing to judge")
    tokens_N = counted_NL.sum(dim=1).tolist()
    return [{"nll": float(own.sum()), "tokens": len(own)} for own in nll_T.cpu().split(tokens_N)]


def mean(references: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """nll and tokens of an item that has several references: the mean over them, each of which counts alike.

    It is the cross-entropy of the references' own distribution: least for the model that writes each as often
    as it occurs, and then their entropy, not 0. The least nll of them, or that of any of them, is 0 for a
    model that knows one reference alone.
    """
    if len(references) == 1:
        return dict(references[0])
    return {key: math.fsum(one[key] for one in references) / len(references) for key in ("nll", "tokens")}


def summary(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The likelihood of a split's references; {} where its outcomes have none.

    nll and bits_per_example are means over items, nats_per_token and bits_per_token shares of all tokens.
    """
    known = [outcome for outcome in outcomes if "nll" in outcome]
    if not known:
        return {}
    items, tokens = len(known), math.fsum(outcome["tokens"] for outcome in known)
    total = math.fsum(outcome["nll"] for outcome in known)
    bits = total / math.log(2)
    return {
        "nll": total / items,
        "nats_per_token": total / tokens,
        "bits_per_example": bits / items,
        "bits_per_token": bits / tokens,
        "items": items,
        "tokens": tokens,
    }


__all__ = ["LOGITS", "mean", "of_class", "of_targets", "summary"]

"""Targets by role: `target_modules=[q, v]` means the same on every architecture.

A target is a role (q, k, v, o, gate, up, down, embed, head), `all-linear`, a module's name or the end of one,
or a regular expression that matches whole names.
"""

import re
from collections.abc import Iterable, Sequence

from torch import nn

from lora_zoo.adapters.hosts import DENSE, find_host
from lora_zoo.adapters.registry import unknown

Targets = str | Sequence[str]

_HEADS = r"(?:.*\.)?(?:lm_head|embed_out|score|classifier|classification_head|qa_outputs)"
# Each pattern matches a whole name; the first role that matches wins.
_ROLES: dict[str, str] = {
    "head": rf"{_HEADS}|{_HEADS}\.(?:out_proj|decoder)|(?:.*\.)?cls\.predictions\.decoder",
    "": rf"(?:{_HEADS}|(?:.*\.)?(?:cls|pooler|vocab_\w+|pre_classifier))(?:\..*)?",  # what belongs to a head
    "embed": r"(?:.*\.)?(?:embed_tokens|word_embeddings|wte|embed_in)",  # T5's `shared` is never called
    "q": r"(?:.*\.)?(?:q_proj|query|query_proj|q_lin|q)",
    "k": r"(?:.*\.)?(?:k_proj|key|key_proj|k_lin|k)",
    "v": r"(?:.*\.)?(?:v_proj|value|value_proj|v_lin|v)",
    "o": r"(?:.*\.)?(?:o_proj|out_proj|out_lin|attention\.output\.dense|attention\.dense|attn\.c_proj|o)",
    "gate": r"(?:.*\.)?(?:gate_proj|wi_0)",
    "up": r"(?:.*\.)?(?:up_proj|fc1|lin1|intermediate\.dense|dense_h_to_4h|mlp\.c_fc|wi|wi_1)",
    "down": r"(?:.*\.)?(?:down_proj|fc2|lin2|output\.dense|dense_4h_to_h|mlp\.c_proj|wo)",
}
ROLES: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down", "embed", "head")
_FUSED = re.compile(r"(?:.*\.)?(?:c_attn|query_key_value|qkv_proj|Wqkv|in_proj)")


def role_of(name: str) -> str:
    """The role of the module called `name`, or "" where it plays none."""
    return next((role for role, pattern in _ROLES.items() if re.fullmatch(pattern, name)), "")


def resolve(model: nn.Module, target_modules: Targets) -> list[str]:
    """The names of the modules that `target_modules` means, in the model's order.

    Raises ValueError for a target that matches no module that can be adapted.
    """
    asked = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if not asked:
        raise ValueError("target_modules is empty; name at least one role, e.g. target_modules=[q,v]")
    names = [name for name, module in model.named_modules() if name and find_host(module)]
    chosen = {name for target in asked for name in _matches(model, names, str(target))}
    return [name for name in names if name in chosen]


def _matches(model: nn.Module, names: list[str], target: str) -> list[str]:
    if target == "all-linear":
        dense = [n for n in names if find_host(model.get_submodule(n), DENSE)]
        found = [n for n in dense if not re.fullmatch(rf"{_ROLES['head']}|{_ROLES['']}", n)]
    elif target in ROLES:
        found = [n for n in names if role_of(n) == target]
    elif re.fullmatch(r"[\w.]+", target):
        found = [n for n in names if n == target or n.endswith(f".{target}")]
    else:
        found = _fullmatches(target, names)
    if not found:
        raise ValueError(_missed(model, names, target))
    return found


def _fullmatches(pattern: str, names: Iterable[str]) -> list[str]:
    try:
        return [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ValueError(f"target_modules: {pattern!r} is no regular expression: {error}") from error


def _missed(model: nn.Module, names: list[str], target: str) -> str:
    """Why `target` matched nothing, and what would match."""
    exists = [n for n, _ in model.named_modules() if n == target or n.endswith(f".{target}")]
    if exists:
        kinds = {type(model.get_submodule(n)).__name__ for n in exists}
        return f"target_modules: {target!r} is a {'/'.join(sorted(kinds))}, which holds no matrix to adapt"
    fused = sorted({n.rpartition(".")[2] for n in names if _FUSED.fullmatch(n)})
    if fused and target in {"q", "k", "v"}:
        return (
            f"target_modules: role {target!r} is fused into {', '.join(fused)} in this model and cannot be "
            f"adapted apart; target_modules=[{fused[0]}] adapts the whole fused matrix"
        )
    roles = [role for role in ROLES if any(role_of(n) == role for n in names)]
    if target in ROLES:
        return f"target_modules: this model has no role {target!r}. It has: {', '.join(roles) or 'none'}"
    ends = sorted({n.rpartition(".")[2] for n in names})
    return "target_modules: " + unknown("target", target, [*roles, "all-linear", *ends])


def parameters_of(model: nn.Module, modules: Sequence[str]) -> list[str]:
    """The names of all parameters under `modules` (names, or the ends of names). ValueError for a miss."""
    found: list[str] = []
    for module in modules:
        owners = [n for n, _ in model.named_modules() if n == module or n.endswith(f".{module}")]
        if not owners:
            children = [n for n, _ in model.named_children()]
            raise ValueError("modules_to_save: " + unknown("module", module, children))
        found += [f"{n}.{p}" for n in owners for p, _ in model.get_submodule(n).named_parameters()]
    return list(dict.fromkeys(found))


def heads(model: nn.Module) -> list[str]:
    """The names of the model's topmost head modules (what `modules_to_save` usually means)."""
    found = [
        n for n, m in model.named_modules() if role_of(n) == "head" and any(True for _ in m.parameters())
    ]
    return [n for n in found if not any(n.startswith(f"{other}.") for other in found)]

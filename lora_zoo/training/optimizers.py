"""Optimisers by name: transformers', Flora, and those of pytorch_optimizer where it is installed."""

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from lora_zoo.core.errors import unknown
from lora_zoo.training.flora import Flora
from lora_zoo.training.transformers_trainer import Trainer

Groups = Iterable[Mapping[str, Any]]
LIBRARY = "pytorch_optimizer"
OWN: dict[str, type[torch.optim.Optimizer]] = {"flora": Flora}
GRAPH = ("adahessian", "sophiah")
"""Those that estimate curvature in a step: they differentiate the gradient."""
_OF_GROUPS = {"galore": ("rank", "update_proj_gap", "scale", "projection_type")}
"""Options that stand in the groups and not in the signature."""
_ADAMS = ("adam_beta1", "adam_beta2", "adam_epsilon")


@dataclass
class RunArguments(TrainingArguments):
    """transformers' arguments, and the name of an optimiser that it does not have."""

    library_optim: str = field(default="", metadata={"help": "a name of pytorch_optimizer, instead of optim"})


def split_optim(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with `optim` as `library_optim` where transformers does not know it.

    ValueError where nobody does.
    """
    name = given.get("optim", "")
    if name in {known.value for known in OptimizerNames} or name in ("", None):
        return dict(given)
    names = library_names()
    if name not in names:
        every = [*(known.value for known in OptimizerNames), *names]
        near = difflib.get_close_matches(str(name), every, n=8, cutoff=0.3)
        more = "" if len(names) > len(OWN) else f"; more by `pip install {LIBRARY}`"
        raise ValueError(f"{unknown('optim', name, near)}, …{more}")
    if foreign := [key for key in _ADAMS if key in given]:
        raise ValueError(
            f"{foreign[0]} is AdamW's; optim={name} takes its own: optim_args='betas=(0.9,0.99)'"
        )
    rest = {key: value for key, value in given.items() if key != "optim"}
    return rest | {"library_optim": name}


def library_names() -> list[str]:
    """The names of `OWN`, and of pytorch_optimizer where it is installed."""
    try:
        return [*OWN, *importlib.import_module(LIBRARY).get_supported_optimizers()]
    except ImportError:
        return [*OWN]


def optimizer_of(arguments: TrainingArguments, model: nn.Module | None) -> tuple[Callable[..., Any], dict]:
    """The maker of the optimiser from parameter groups, and its keyword arguments."""
    name = getattr(arguments, "library_optim", "")
    if not name:
        return Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    cls = OWN.get(name) or importlib.import_module(LIBRARY).load_optimizer(name)
    if name in _OF_GROUPS:  # what its state holds beside tensors, for checkpoints
        projector = importlib.import_module(f"{LIBRARY}.optimizer.utils.galore").GaLoreProjector
        torch.serialization.add_safe_globals([projector])
    made = partial(_by_dimension, cls) if "use_muon" in inspect.getsource(cls) else cls
    return made, {"lr": arguments.learning_rate, **_options(name, cls, arguments.optim_args or "")}


def needs_graph(arguments: TrainingArguments, model: nn.Module | None = None) -> bool:
    """True where the optimiser differentiates the gradient. ValueError where the model's attention cannot."""
    name = getattr(arguments, "library_optim", "")
    attention = getattr(getattr(model, "config", None), "_attn_implementation", "eager")
    if name in GRAPH and attention != "eager":
        said = f"optim={name} differentiates the gradient, which attention by {attention} does not allow"
        raise ValueError(f"{said}: give model.attn_implementation=eager")
    return name in GRAPH


def _options(name: str, cls: type, text: str) -> dict[str, Any]:
    """`KEY=VALUE,…`, literals of Python or words. ValueError for a key that the optimiser lacks."""
    parameters = [p for p in inspect.signature(cls).parameters if p not in ("params", "lr", "kwargs")]
    known, found = [*parameters, *_OF_GROUPS.get(name, ())], dict[str, Any]()
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"optim_args={text!r} is not KEY=VALUE,KEY=VALUE ({error.msg})") from error
    assert isinstance(call, ast.Call)
    if call.args:
        raise ValueError(f"optim_args={text!r} is not KEY=VALUE,KEY=VALUE")
    for word in call.keywords:
        key = str(word.arg)
        if key not in known:
            raise ValueError(unknown(f"option of optim={name}", key, known))
        value = word.value
        found[key] = value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
    return found


def _by_dimension(cls: type, groups: Groups, **options: Any) -> torch.optim.Optimizer:
    """Muon's form: matrices are its own, vectors AdamW's, each at the rate of its group."""
    split = []
    for group in groups:
        for of_matrices in (True, False):
            own = [p for p in group["params"] if (p.ndim >= 2) == of_matrices]
            if own:
                split.append({"lr": options["lr"], **group, "params": own, "use_muon": of_matrices})
    made: torch.optim.Optimizer = cls(split, **options)
    return made

"""torch's attention in PEFT: one adapter called like the module, on `in_proj_weight` and on `out_proj`."""

from dataclasses import replace

from torch import nn

from lora_zoo.formats.peft.experts import version_of
from lora_zoo.formats.peft.forms import PeftFolder
from lora_zoo.formats.peft.patterns import selects
from lora_zoo.injection.base_model import named_base_modules


def by_matrix(model: nn.Module, folder: PeftFolder) -> PeftFolder:
    """`folder` with the two adapters of each attention under the names of their matrices.

    ValueError where one of the two is missing, or both although the module is a target.
    """
    modules, targets = dict(folder.modules), dict[str, str]()
    for name, module in named_base_modules(model):
        if not isinstance(module, nn.MultiheadAttention):
            continue
        theirs = {name: f"{name}.in_proj_weight", f"{name}.base_layer.out_proj": f"{name}.out_proj"}
        if not modules.keys() & theirs.keys() and not selects(folder.config, name):
            continue
        for key, ours in theirs.items():
            if key not in modules:
                raise ValueError(f"{name} is among target_modules, but the tensors of {key} are missing")
            modules[ours] = modules.pop(key)
            targets[ours] = name
    return replace(folder, modules=modules, targets=targets)


def times_added(folder: PeftFolder, module: str) -> int:
    """The times that PEFT adds the update of `module`: two for an attention's `out_proj`, in training too.

    So do 0.17 to 0.21. ValueError for a version that is not known.
    """
    if module not in folder.targets:
        return 1
    version_of(folder, "nn.MultiheadAttention")
    return 2 if module.endswith(".out_proj") else 1

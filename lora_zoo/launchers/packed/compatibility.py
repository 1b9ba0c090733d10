"""Find out by trying if jobs can share the passes of a model."""

import torch
from torch import Tensor, nn

from lora_zoo.core.train_eval import in_mode
from lora_zoo.injection.base_model import base_buffers
from lora_zoo.launchers.packed.backbone import Backbone
from lora_zoo.launchers.packed.joining import Inputs


@torch.no_grad()
def unfit(model: nn.Module) -> str:
    """Return the reason why jobs cannot share a pass of `model`, "" if they can. Changes nothing.

    Two made-up batches of different lengths must come out of the backbone in training mode as they do alone,
    to rounding, while no random number is drawn and no buffer changes.
    """
    if getattr(model, "base_model", model) is model:
        return f"{type(model).__name__} has no part below its head that is called by itself"
    if not hasattr(model.get_input_embeddings(), "num_embeddings"):  # type: ignore[operator]
        return f"{type(model).__name__} reads no tokens, of which jobs could make one batch"
    backbone, streams = Backbone(model), _streams()
    buffers = {name: tensor.clone() for name, tensor in base_buffers(model).items()}
    batches = [_made_up(model, rows, length, backbone.padding) for rows, length in ((1, 3), (2, 5))]
    with in_mode(model, training=True):
        alone = [backbone.plain(**batch)[0] for batch in batches]
        drawn = any(not torch.equal(a, b) for a, b in zip(streams, _streams(), strict=True))
        now = base_buffers(model)
        counted = [name for name, tensor in now.items() if not torch.equal(tensor, buffers[name])]
        for name, tensor in now.items():
            tensor.copy_(buffers[name])
        if drawn:
            return "its model draws at random while it trains (dropout), which jobs cannot share"
        if counted:
            return f"its model keeps {counted[0]} of all batches, which jobs cannot share"
        together, _ = backbone.forward(("", "-"), batches)
    if all(_near(a, b[0]) for a, b in zip(alone, together, strict=True)):
        return ""
    return "in its model a row's outcome depends on the rows and the padding beside it"


def _streams() -> list[Tensor]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


def _made_up(model: nn.Module, rows: int, length: int, padding: int) -> Inputs:
    words = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    known = torch.tensor([token for token in range(min(words, 64)) if token != padding])
    tokens = known[torch.arange(rows * length) % len(known)].view(rows, length)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {name: tensor.to(next(model.parameters()).device) for name, tensor in inputs.items()}


def _near(one: Tensor, other: Tensor) -> bool:
    """True if two states are equal but for rounding: a thousandth in float32."""
    bound = max(1e-3, 8 * torch.finfo(one.dtype).eps)
    return bool((one - other).float().norm() <= bound * one.float().norm())

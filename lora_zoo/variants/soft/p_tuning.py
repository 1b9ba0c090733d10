"""P-tuning: GPT Understands, Too (Liu et al., 2021).

Shapes: R virtual tokens, D the width of an embedding, H the hidden units of the encoder.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.init import is_blank
from lora_zoo.core.seeding import generator, normal
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.virtual_tokens import VirtualTokenFormat
from lora_zoo.variants.soft.networks import drawn
from lora_zoo.variants.soft.prompted import Prompted
from lora_zoo.variants.soft.virtual_tokens import VirtualTokens


class PromptEncoder(nn.Module):
    """A prompt (R, D) that an encoder makes of R trained rows."""

    def __init__(self, rows_RD: Tensor, recurrent: nn.Module | None, network: nn.Module, hidden: int) -> None:
        super().__init__()
        self.rows_RD, self.recurrent, self.network = nn.Parameter(rows_RD), recurrent, network
        self.hidden = hidden

    def forward(self) -> Tensor:
        read = self.rows_RD if self.recurrent is None else self.recurrent(self.rows_RD)[0]
        P_RD: Tensor = self.network(read)
        return P_RD


class PTuningHooks(Prompted):
    def __init__(
        self,
        adapters: Mapping[str, Any],
        *,
        rank: int = 20,
        encoder: Literal["mlp", "lstm"] = "mlp",
        hidden: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(adapters)
        self.rank = rank
        if hidden != "auto" and hidden < 1:
            raise ValueError(f"p_tuning: hidden must be at least 1; got {hidden}")

    @classmethod
    def made(cls, model: Any, like: Tensor, seed: int, hyper: Mapping[str, Any]) -> PromptEncoder:
        rank, D = hyper["rank"], cls.width(model)
        rows_RD, H = like.new_zeros(rank, D), D if hyper["hidden"] == "auto" else hyper["hidden"]
        if not is_blank():
            rows_RD.copy_(normal(rank, D, 1.0, generator("init", seed, "shared", "P")))
        recurrent, network = encoder_of(hyper["encoder"], D, H)
        recurrent = None if recurrent is None else drawn(recurrent, like, seed)
        return PromptEncoder(rows_RD, recurrent, drawn(network, like, seed), H)


def encoder_of(kind: str, D: int, H: int) -> tuple[nn.Module | None, nn.Module]:
    """The recurrent part, and the network that gives D numbers a token, without numbers yet."""
    with torch.device("meta"):
        if kind == "mlp":
            middle = nn.Linear(D, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, D)
            return None, nn.Sequential(*middle)
        both = nn.LSTM(D, H, num_layers=2, bidirectional=True, batch_first=True)
        return both, nn.Sequential(nn.Linear(2 * H, 2 * H), nn.ReLU(), nn.Linear(2 * H, D))


@register("p_tuning")
class PTuning(VirtualTokens):
    """§3.2: the embeddings of R = `rank` virtual tokens are what an encoder makes of R trained rows.

    `encoder=lstm` is the paper's, a bidirectional LSTM of two layers under a network of one hidden layer,
    `mlp` PEFT's default, of two. The paper puts its tokens between the words of a template; here, as in PEFT,
    they stand before the input. PEFT's files hold P alone, and are read as prompt_tuning.
    """

    title = "P-tuning"
    paper = "arXiv:2103.10385"
    equation = "W' = W, the input [P; x], P (R, D) = MLP(E) or MLP(LSTM(E)), E (R, D) trained"
    hooks = PTuningHooks
    peft = VirtualTokenFormat(
        "P_TUNING",
        "prompt_tuning",
        fields={"encoder": "encoder_reparameterization_type", "hidden": "encoder_hidden_size"},
        idle=("encoder_dropout", "encoder_num_layers"),
    )

    @classmethod
    def trainable_beside(cls, model: Any, hyper: Mapping[str, Any]) -> int:
        R, D = hyper["rank"], PTuningHooks.width(model)
        H = D if hyper["hidden"] == "auto" else hyper["hidden"]
        mlp = H * (D + 1) + H * (H + 1) + D * (H + 1)
        lstm = 8 * H * (D + H + 2) + 8 * H * (3 * H + 2) + 2 * H * (2 * H + 1) + D * (2 * H + 1)
        return int(R * D + (mlp if hyper["encoder"] == "mlp" else lstm))

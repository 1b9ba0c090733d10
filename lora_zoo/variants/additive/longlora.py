"""LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models (Chen et al., ICLR 2024).

Shapes: H heads, Q queries, K keys (as many), G tokens of a group.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lora_zoo.core.hooks import AdapterHooks, Progress
from lora_zoo.core.variants import register
from lora_zoo.injection.attention import attentions, out_of_reach, with_kept_keys
from lora_zoo.variants.low_rank import Additive


class ShiftedSparseAttention(AdapterHooks):
    """§3.2, S²-Attn: in training a token attends within its group; half of the heads have shifted groups.

    A group is `group_size_ratio` of the padded length, rounded up; one group is full attention. Groups of the
    later half of the heads begin half a group later, and the half groups at both ends stay apart, as in the
    official code with flash attention; its eager code joins them and lets the first tokens see the last
    ones. The model's own mask holds within groups. What lies more than a group back cannot be learned to be
    used: texts of a few tokens ask for a greater ratio.
    """

    def __init__(self, adapters: Mapping[str, "LongLoRA"], *, group_size_ratio: float = 0.25) -> None:
        super().__init__(adapters)
        if not 0 < group_size_ratio <= 1:
            raise ValueError(f"longlora: group_size_ratio must lie in (0, 1]; got {group_size_ratio}")
        self.ratio = group_size_ratio

    def on_train_begin(self, total: int) -> None:
        """ValueError for a model of transformers' whose attention S²-Attn cannot reach, or has none for."""
        config = getattr(self.model, "config", None)
        if self.ratio == 1 or not hasattr(config, "_attn_implementation"):
            return  # full attention, or no model of transformers'
        if reason := out_of_reach(self.model):
            raise ValueError(
                f"longlora cannot group the tokens: {reason}; use variant.group_size_ratio=1 (full attention)"
            )
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                "longlora groups the tokens of one sequence, and the model attends to another: "
                "use variant.group_size_ratio=1 (full attention)"
            )

    @contextlib.contextmanager
    def forward_context(self, progress: Progress) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for module in attentions(self.model).values() if self.ratio < 1 else ():
                stack.enter_context(with_kept_keys(module, self._grouped))
            yield

    def _grouped(self, ones_BHQK: Tensor) -> Tensor:
        _, H, Q, K = ones_BHQK.shape
        assert Q == K, "a training pass has a key for each query"
        return together(H, K, math.ceil(K * self.ratio)).to(ones_BHQK.device)

    @torch.no_grad()
    def law(self) -> None:
        """8 tokens in 2 groups: 0-3, 4-7 in the first half of the heads, 0-1, 2-5, 6-7 in the second."""
        found_HQK = together(2, 8, 4)
        for seen_QK, groups in zip(found_HQK, ([4, 4], [2, 4, 2]), strict=True):
            assert torch.equal(seen_QK, torch.block_diag(*(torch.ones(G, G) for G in groups)).bool())


def together(H: int, K: int, G: int) -> Tensor:
    """True (H, K, K) where two of K tokens are in one group of G; the later half of the heads is shifted."""
    place_K = torch.arange(K)
    plain_K, shifted_K = place_K // G, (place_K - G // 2).div(G, rounding_mode="floor")
    group_HK = torch.stack([plain_K if head < H // 2 or G >= K else shifted_K for head in range(H)])
    return group_HK[:, :, None] == group_HK[:, None]


@register("longlora")
class LongLoRA(Additive):
    """§3.3: LoRA (r = 8, α = 16), in full attention when it is used, with trained embeddings and norms.

    These are the paper's LoRA⁺, and `modules_to_save=[all-embeddings,all-norms]`, which is the default of a
    run: V h numbers, and the norms' own. Positions stay as they are: a longer context needs scaled ones.
    """

    paper = "arXiv:2309.12307"
    by_row = "attends in groups of each row"
    equation = "W' = W + (α/r) B A, S²-Attn in training"
    count = "R * (O + I)"
    hooks = ShiftedSparseAttention
    targets = ("q", "k", "v", "o")
    paper_alpha = 16.0

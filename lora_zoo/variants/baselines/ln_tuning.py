"""LN-tuning: Tuning LayerNorm in Attention (Zhao et al., ICLR 2024); Qi et al. 2022 before them."""

from collections.abc import Sequence

from torch import nn

from lora_zoo.core.adapter import Baseline
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.norms import LNTuningFormat
from lora_zoo.injection.trained_kinds import norm_names


@register("ln_tuning")
class LNTuning(Baseline):
    """§3: the gains, and the biases where there are any, of all layer norms; everything else is frozen.

    RMS norms count as layer norms, final ones and those of queries and keys as well; `modules_to_save` train
    beside them.
    """

    title = "LN-tuning"
    paper = "arXiv:2312.11420"
    equation = "W' = W, γ and β of all layer norms γ (x - E[x]) / σ(x) + β trained"
    peft = LNTuningFormat()

    @classmethod
    def fully_trained(cls, model: nn.Module, modules_to_save: Sequence[str] | None) -> list[str]:
        found = norm_names(model)
        if not found:
            raise ValueError("ln_tuning: the model has no layer norm with a gain or a bias")
        return list(dict.fromkeys([*found, *(modules_to_save or ())]))

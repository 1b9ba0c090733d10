"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., ICLR 2022), and its presets."""

from lora_zoo.core.variants import register, register_preset
from lora_zoo.formats.peft.lora import LoraFormat
from lora_zoo.variants.low_rank import Additive


@register("lora")
class LoRA(Additive):
    """§4.1, eq. 3: h = W x + (α/r) B A x."""

    paper = "arXiv:2106.09685"
    equation = "W' = W + (α/r) B A"
    count = "R * (O + I)"
    peft = LoraFormat()
    shared_form = "shared_lora"


PiSSA = register_preset(
    "pissa",
    LoRA,
    "PiSSA",
    inits=("pissa", "pissa_niter", "pissa_halko"),
    paper="arXiv:2404.02948",
    equation="W' = W + (α/r) (B A - B₀ A₀), B₀ A₀ = top-r SVD of W",
)
MiLoRA = register_preset(
    "milora",
    LoRA,
    "MiLoRA",
    inits=("milora",),
    paper="arXiv:2406.09044",
    equation="W' = W + (α/r) (B A - B₀ A₀), B₀ A₀ = bottom-r SVD of W",
)

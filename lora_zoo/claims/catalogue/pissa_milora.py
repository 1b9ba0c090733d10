"""PiSSA (Meng et al., NeurIPS 2024) and MiLoRA (Wang et al., 2024): starts from the singular vectors of W."""

from lora_zoo.claims.forms import better, lower
from lora_zoo.claims.measures import EARLY_LOSS, FORGOTTEN
from lora_zoo.claims.registry import Source

PISSA, MILORA = "2404.02948", "2406.09044"

Source(PISSA, "svd_starts").claim(
    "pissa/faster-early", "section 5, figure 2; H36", lower("pissa", "lora", of=EARLY_LOSS)
).says("At one learning rate, PiSSA's mean loss over the first quarter of training is below LoRA's.")
Source(PISSA, "bakeoff_rank").claim(
    "pissa/over-lora", "section 5; H27", better("pissa", "lora"), against=["milora/lora-over-pissa"]
).says("At one rank, each at its own best learning rate, PiSSA scores higher than LoRA.")

milora = Source(MILORA, "bakeoff_rank")

milora.claim(
    "milora/lora-over-pissa", "table 1; H27", better("lora", "pissa"), against=["pissa/over-lora"]
).says("At one rank, LoRA scores higher than PiSSA: the order in MiLoRA's own setting (learning rate 3e-4).")
milora.claim("milora/over-pissa", "table 1; H27", better("milora", "pissa")).says(
    "At one rank, each at its own best learning rate, MiLoRA scores higher than PiSSA."
)
milora.claim("milora/over-lora", "tables 1 and 2; H27", better("milora", "lora")).says(
    "At one rank, each at its own best learning rate, MiLoRA scores higher than LoRA."
)
Source(MILORA, "svd_starts").claim(
    "milora/forgets-less", "section 5", lower("milora", "lora", "pissa", of=FORGOTTEN)
).says("The loss on text of pretraining grows less with MiLoRA than with LoRA and than with PiSSA.")
Source("source S1", "svd_starts").claim("lora/forgets-less", "H16", lower("lora", "full", of=FORGOTTEN)).says(
    "The loss on text of pretraining grows less with LoRA than with full fine-tuning."
)
Source("source S1", "bakeoff_rank").claim("lora/learns-less", "H16", better("full", "lora")).says(
    "Each at its own best learning rate, full fine-tuning scores higher than LoRA."
)

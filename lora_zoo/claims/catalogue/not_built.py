"""Statements of the sources that wait for a variant or an analysis, and those that no measurement decides.

H01 to H40 are the numbers of the project's list of testable statements; S0 to S4 its source documents.
"""

from lora_zoo.claims.registry import NotBuilt, Untestable


def waiting(name: str, source: str, waits_for: str) -> NotBuilt:
    where = name if name.startswith("H") else ""
    return NotBuilt(f"waiting/{name}", source, where, waits_for=waits_for)


def on_record(name: str, source: str, known: str) -> Untestable:
    return Untestable(f"record/{name}", source, name, known=known)


waiting("H05-a", "S1", "a variant that trains A alone (2402.16842)").says(
    "Training A alone is worse than training B alone."
)
waiting("H05-ood", "S1", "tasks with a shifted test split (lora_fa with init=orthogonal is built)").says(
    "A random orthogonal frozen A generalises better out of distribution."
)
waiting("H06", "S1", "the alignment analysis of A and B between tasks").says(
    "A's of different tasks are alike, B's differ."
)
waiting("H12", "S0 against S2", "QLoRA: training on a 4-bit base (2305.14314)").says(
    "QLoRA is slower than LoRA (S0); it is slightly faster (S2)."
)
waiting("H15", "S0", "a two-stage experiment").says(
    "Full fine-tuning followed by LoRA on a second task nearly reaches full fine-tuning on both."
)
waiting(
    "H17",
    "S1, ReLoRA and COLA against MELoRA",
    "ReLoRA (2307.05695), COLA (2401.04151), MELoRA (2402.17263)",
).says("Merging after each stage raises the rank of ΔW; overlap of the stages can prevent it.")
waiting("H18", "S1", "Flora (2402.03293)").says("Resampling the projection recovers full SGD.")
waiting(
    "H19",
    "S1",
    "SoRA (2311.11696), dynamic DoRA (2405.17357), AutoLoRA (2403.09113), ALoRA (2403.16187) beside AdaLoRA",
).says("Methods that score importance agree on which layers need rank.")
waiting("H20", "S1", "PRILoRA (2401.11316)").says("Higher layers need more rank.")
waiting("H21", "S1", "LoftQ (2310.08659), LQ-LoRA (2311.12023), LQER (2402.02446)").says(
    "LoftQ and LQ-LoRA reduce QLoRA's error; LQER does so after the fact."
)
waiting("H22", "S1", "HiddenKey (2403.00812)").says(
    "A symmetric KL term, column-wise DropKey and element-wise HiddenCut help LoRA."
)
waiting("H23", "S1", "O-LoRA (2310.14152)").says(
    "Orthogonality prevents forgetting, but blocks what tasks share."
)
waiting("H24", "S1", "AM-LoRA (2409.19611)").says("Sparsity helps AM-LoRA to select.")
waiting("H25", "S1", "LoRAHub (2307.13269), X-LoRA (2402.07148), TIES and DARE merges").says(
    "Mixing adapters linearly is unstable, learned mixing is better."
)
waiting("H26", "S0", "replay in the data pipeline (merge, then continue)").says(
    "Continuing to train needs replay."
)
waiting("H31", "S1 against itself", "LoRA-drop (2402.07721)").says(
    "LoRA-drop's other layers keep fixed parameters (section 2.3.3); they share one LoRA (section 6.1.2)."
)
waiting("H33", "S1", "a pooled task and a router").says(
    "At equal parameters, several small LoRAs by task beat one on the pooled data."
)
waiting("H34", "S1", "intrinsic dimension and d90 (2012.13255)").says(
    "Larger pretrained models have smaller intrinsic dimensions."
)
waiting("H35", "S1", "a scan over s after training").says(
    "The value of s in W + s ΔW decides; a single s aligns the directions."
)
waiting("H37", "S1", "LoRA-drop (2402.07721), XGBLoRA (2410.19694)").says(
    "LoRA-drop loses almost nothing with half the parameters; XGBLoRA's random layers add diversity."
)
waiting("H38", "S1", "Delta-LoRA (2309.02411)").says("Delta-LoRA needs no extra memory.")
waiting("H39", "S1", "the empirical neural tangent kernel before and after").says(
    "LoRA keeps the kernel of the pretrained model."
)
waiting("corda", "2406.05223", "CorDA").says("CorDA keeps more knowledge of pretraining than LoRA and PiSSA.")
waiting("eva", "2410.07170", "EVA").says("Starts from activations learn faster than random ones.")
waiting("lora-ga", "2407.05000", "LoRA-GA").says(
    "Starts from the gradient converge two to four times as fast."
)
waiting("qpissa", "2404.02948", "a quantised base for PiSSA").says(
    "Quantising PiSSA's residual leaves about a fifth less error than quantising W."
)
on_record(
    "H29",
    "S2",
    "contradicted by the papers: Microsoft (2021) and the University of Washington (2023)",
).says("LoRA and QLoRA come from Meta.")
on_record(
    "H30",
    "S1",
    "contradicted by the papers: QA-LoRA has fixed groups in INT4, LQER quantises without tuning, DropBP "
    "drops the backward pass of whole residual branches",
).says(
    "QA-LoRA adjusts precision dynamically; LoftQ is mixed precision; LQER works after fine-tuning; DropBP "
    "drops LoRA's gradients."
)
on_record("H32", "S1 against itself", "a matter of naming").says("SoRA is based on SVD; it is not.")

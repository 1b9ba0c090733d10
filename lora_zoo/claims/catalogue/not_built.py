"""Statements of the sources that wait for a variant or an analysis, and those that no measurement decides.

H01 to H40 are the numbers of the project's list of testable statements; S0 to S4 its source documents.
"""

from lora_zoo.analysis.claims.registry import OnRecord, Unbuilt, enter

WAITING = {
    "H05-a": (
        "S1",
        "Training A alone is worse than training B alone.",
        "a variant that trains A alone (2402.16842)",
    ),
    "H05-ood": (
        "S1",
        "A random orthogonal frozen A generalises better out of distribution.",
        "tasks with a shifted test split (lora_fa with init=orthogonal is built)",
    ),
    "H06": (
        "S1",
        "A's of different tasks are alike, B's differ.",
        "the alignment analysis of A and B between tasks",
    ),
    "H12": (
        "S0 against S2",
        "QLoRA is slower than LoRA (S0); it is slightly faster (S2).",
        "QLoRA: training on a 4-bit base (2305.14314)",
    ),
    "H15": (
        "S0",
        "Full fine-tuning followed by LoRA on a second task nearly reaches full fine-tuning on both.",
        "a two-stage experiment",
    ),
    "H17": (
        "S1, ReLoRA and COLA against MELoRA",
        "Merging after each stage raises the rank of ΔW; overlap of the stages can prevent it.",
        "ReLoRA (2307.05695), COLA (2401.04151), MELoRA (2402.17263)",
    ),
    "H18": ("S1", "Resampling the projection recovers full SGD.", "Flora (2402.03293)"),
    "H19": (
        "S1",
        "Methods that score importance agree on which layers need rank.",
        "SoRA (2311.11696), dynamic DoRA (2405.17357), AutoLoRA (2403.09113), ALoRA (2403.16187) "
        "beside AdaLoRA",
    ),
    "H20": ("S1", "Higher layers need more rank.", "PRILoRA (2401.11316)"),
    "H21": (
        "S1",
        "LoftQ and LQ-LoRA reduce QLoRA's error; LQER does so after the fact.",
        "LoftQ (2310.08659), LQ-LoRA (2311.12023), LQER (2402.02446)",
    ),
    "H22": (
        "S1",
        "A symmetric KL term, column-wise DropKey and element-wise HiddenCut help LoRA.",
        "HiddenKey (2403.00812)",
    ),
    "H23": (
        "S1",
        "Orthogonality prevents forgetting, but blocks what tasks share.",
        "O-LoRA (2310.14152)",
    ),
    "H24": ("S1", "Sparsity helps AM-LoRA to select.", "AM-LoRA (2409.19611)"),
    "H25": (
        "S1",
        "Mixing adapters linearly is unstable, learned mixing is better.",
        "LoRAHub (2307.13269), X-LoRA (2402.07148), TIES and DARE merges",
    ),
    "H26": ("S0", "Continuing to train needs replay.", "replay in the data pipeline (merge, then continue)"),
    "H31": (
        "S1 against itself",
        "LoRA-drop's other layers keep fixed parameters (section 2.3.3); they share one LoRA "
        "(section 6.1.2).",
        "LoRA-drop (2402.07721)",
    ),
    "H33": (
        "S1",
        "At equal parameters, several small LoRAs by task beat one on the pooled data.",
        "a pooled task and a router",
    ),
    "H34": (
        "S1",
        "Larger pretrained models have smaller intrinsic dimensions.",
        "intrinsic dimension and d90 (2012.13255)",
    ),
    "H35": (
        "S1",
        "The value of s in W + s ΔW decides; a single s aligns the directions.",
        "a scan over s after training",
    ),
    "H37": (
        "S1",
        "LoRA-drop loses almost nothing with half the parameters; XGBLoRA's random layers add diversity.",
        "LoRA-drop (2402.07721), XGBLoRA (2410.19694)",
    ),
    "H38": ("S1", "Delta-LoRA needs no extra memory.", "Delta-LoRA (2309.02411)"),
    "H39": (
        "S1",
        "LoRA keeps the kernel of the pretrained model.",
        "the empirical neural tangent kernel before and after",
    ),
    "corda": (
        "2406.05223",
        "CorDA keeps more knowledge of pretraining than LoRA and PiSSA.",
        "CorDA",
    ),
    "eva": ("2410.07170", "Starts from activations learn faster than random ones.", "EVA"),
    "lora-ga": ("2407.05000", "Starts from the gradient converge two to four times as fast.", "LoRA-GA"),
    "qpissa": (
        "2404.02948",
        "Quantising PiSSA's residual leaves about a fifth less error than quantising W.",
        "a quantised base for PiSSA",
    ),
}

RECORD = {
    "H29": (
        "S2",
        "LoRA and QLoRA come from Meta.",
        "contradicted by the papers: Microsoft (2021) and the University of Washington (2023)",
    ),
    "H30": (
        "S1",
        "QA-LoRA adjusts precision dynamically; LoftQ is mixed precision; LQER works after fine-tuning; "
        "DropBP drops LoRA's gradients.",
        "contradicted by the papers: QA-LoRA has fixed groups in INT4, LQER quantises without "
        "tuning, DropBP drops "
        "the backward pass of whole residual branches",
    ),
    "H32": ("S1 against itself", "SoRA is based on SVD; it is not.", "a matter of naming"),
}

for name, (source, says, needs) in WAITING.items():
    enter(Unbuilt(f"waiting/{name}", source, name if name.startswith("H") else "", says, (), needs))
for name, (source, says, known) in RECORD.items():
    enter(OnRecord(f"record/{name}", source, name, says, (), known))

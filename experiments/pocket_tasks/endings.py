"""pocket-nli with other words around its sentences: what the base knows, what one matrix learns.

python experiments/pocket_tasks/endings.py known       # zero-shot, 300 test examples a form
python experiments/pocket_tasks/endings.py learned     # LoRA of rank 8 on one role; 150 steps of 16
"""

import random
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_zoo import inject
from lora_zoo.pocket import HUB, nli

Row = tuple[list[int], int]
FORMS = {
    "premise : {P} . hypothesis : {H} . label :": "as the task asks",
    "premise : {P} . hypothesis : {H} . label ?": "",
    "premise : {P} . hypothesis : {H} ?": "",
    "{P} . {H} ?": "",
    "{P} . is it true that {H} . label :": "",
    "{P} . is it true that {H} ?": "as pretraining asks",
}
ASKED, _, ENDED = list(FORMS)[:3]
TRAINED = [(ASKED, "v"), (ENDED, "v"), (ASKED, "o"), (ENDED, "o"), (ASKED, "q")]
STEPS, BATCH, WARMUP, LR = 150, 16, 15, 5e-3
TOKENS = AutoTokenizer.from_pretrained(HUB)
LABELS = TOKENS.convert_tokens_to_ids(list(nli.LABELS))


def rows(form: str, split: str, size: int) -> list[Row]:
    """Tokens of each prompt in this form, and the number of its label."""
    made = []
    for example in nli.examples(split, size, 0):
        body = example["prompt"].removeprefix("premise : ").removesuffix(" . label :")
        premise, hypothesis = body.split(" . hypothesis : ")
        words = ["<s>", *form.format(P=premise, H=hypothesis).split()]
        made.append((TOKENS.convert_tokens_to_ids(words), nli.LABELS.index(example["label"])))
    return made


def last(model: Any, batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at the end of each prompt, (batch, vocabulary), and the token of its label."""
    width = max(len(prompt) for prompt, _ in batch)
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt, _ in batch])
    ends = torch.tensor([len(prompt) - 1 for prompt, _ in batch])
    return model(input_ids=ids).logits[range(len(batch)), ends], torch.tensor([LABELS[n] for _, n in batch])


@torch.no_grad()
def accuracy(model: Any, data: list[Row]) -> float:
    logits, right = last(model.eval(), data)
    return float((torch.tensor(LABELS)[logits[:, LABELS].argmax(1)] == right).float().mean())


def learned(form: str, role: str) -> float:
    """Accuracy on 300 test examples after training LoRA on one role of matrices."""
    model: Any = AutoModelForCausalLM.from_pretrained(HUB, dtype="float32")
    inject(model, "lora", rank=8, target_modules=[role], seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0)
    data = rows(form, "train", STEPS * BATCH)
    random.Random(0).shuffle(data)
    for step in range(STEPS):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = LR * min((step + 1) / WARMUP, 1) * (STEPS - step) / STEPS
        loss = torch.nn.functional.cross_entropy(*last(model, data[step * BATCH : (step + 1) * BATCH]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return accuracy(model, rows(form, "test", 300))


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1:] == ["known"]:
        base = AutoModelForCausalLM.from_pretrained(HUB, dtype="float32")
        for form, what in FORMS.items():
            print(f"{accuracy(base, rows(form, 'test', 300)):.3f}  {form}  {what}", flush=True)
    else:
        for form, role in TRAINED:
            print(f"{learned(form, role):.3f}  {role}  {form}", flush=True)

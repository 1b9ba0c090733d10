"""A tiny pretrained Llama and two generated tasks: comparisons that run offline, in seconds, on a CPU."""

from pathlib import Path

HUB = Path(__file__).parent / "hub"
"""The shipped model in Hub format: pass it to `AutoModelForCausalLM.from_pretrained`."""
HELD_OUT = HUB.with_name("held_out.txt")
"""Text of the model's pretraining that it was not trained on, one document a line."""

"""A tiny pretrained Llama and two generated tasks: comparisons that run offline, in seconds, on a CPU."""

from pathlib import Path

HUB = Path(__file__).parent / "hub"
"""The shipped model in Hub format: pass it to `AutoModelForCausalLM.from_pretrained`."""

"""Adapters: everything that a LoRA variant is, with torch and the standard library alone."""

"""Training: transformers' Trainer with an adapter's hooks, and one run from settings to record."""

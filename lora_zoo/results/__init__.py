"""The record of a run: its identity, its folder, its result, and the mirror of it in Weights & Biases."""

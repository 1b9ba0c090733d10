"""Sweeps that look at their own runs: seeds are added where they decide."""

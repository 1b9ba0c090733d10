"""Sweeps that look at their own runs: rates are chosen for each cell, seeds are added where they decide."""

"""Analysis of runs: statistics over seeds and items, the protocol of a table, and the runs that may count.

Pure functions on the frames of `lora_zoo.runs`; nothing here trains, or knows tasks or Hydra.
"""

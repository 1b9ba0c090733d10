"""What runs tell: statistics over seeds and items, the protocol of a table, and whether runs may be counted.

Pure functions on the frames of `lora_zoo.runs`; nothing here trains, or knows tasks or Hydra.
"""

"""The claims of papers and sources: rows in *.yaml, and in *.py what fits no row."""

from pathlib import Path

from lora_zoo.claims.registry import add
from lora_zoo.claims.rows import read

for claim in [claim for path in sorted(Path(__file__).parent.glob("*.yaml")) for claim in read(path)]:
    add(claim)

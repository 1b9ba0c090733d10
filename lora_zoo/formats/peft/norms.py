"""PEFT's LN-tuning: norms that train in full, which its files hold as copies of the layers."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from lora_zoo.formats.peft.forms import ParsedAdapter, PeftContent, PeftFolder, PeftFormat, Unfit
from lora_zoo.injection.inject import Injection

COPY = ".ln_tuning_layers."


class LNTuningFormat(PeftFormat):
    """Read as modules that train in full; written as `modules_to_save`, which PEFT has for any module."""

    peft_type, names = "LN_TUNING", ()

    def in_full(self, folder: PeftFolder, rest: Mapping[str, Tensor]) -> tuple[PeftFolder, dict[str, Tensor]]:
        trained = {name.partition(COPY)[0] for name in rest if COPY in name}
        also = [*trained, *(folder.config.get("modules_to_save") or [])]
        config = {**folder.config, "modules_to_save": sorted(also), "target_modules": None}
        return replace(folder, config=config), {name.replace(COPY, "."): t for name, t in rest.items()}

    def to_peft(self, injection: Injection) -> PeftContent:
        raise Unfit("norms that train are modules_to_save")

    def from_peft(self, folder: PeftFolder, model: nn.Module) -> ParsedAdapter:
        return ParsedAdapter({}, {}, [], {})

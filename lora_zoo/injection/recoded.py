"""Layers of a quantised base to which the start of an adapter gives codes of its own."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lora_zoo.core.adapter import Adapter
from lora_zoo.core.dtypes import wide
from lora_zoo.core.host import Host
from lora_zoo.core.init import Factors, Recoding, find_init
from lora_zoo.injection.originals import original_weights


class RecodedLayers:
    """Keeps the former codes of the layers, on the CPU, and the factors from which they have theirs now.

    ValueError where other adapters stand on the former codes.
    """

    def __init__(
        self, model: nn.Module, init: str | None, hosts: Mapping[str, Host], others: Sequence[str]
    ) -> None:
        self.model, self.taken = model, dict[str, Factors]()
        recodes = init not in (None, "auto") and find_init(str(init)).recodes
        if recodes and others:
            raise ValueError(
                f"init={init} gives the base other codes, and {', '.join(others)} stand on those that it "
                "has: remove them first"
            )
        self.coders = {name: host.coder for name, host in hosts.items()} if recodes else {}
        for name, coder in self.coders.items():
            if coder is None:
                kind = hosts[name].kind
                raise ValueError(
                    f"init={init} makes the codes of {name} anew, which is known for whole layers of "
                    f"bitsandbytes and of the reference quantisers, and not for this {kind}"
                )
        self.former: dict[str, Any] = {name: coder.codes() for name, coder in self.coders.items()}

    def know(self, adapters: Mapping[str, Adapter]) -> None:
        """Note the factors with which new adapters have made the codes; of blank ones that is not so."""
        for name in self.coders:
            coded = adapters[name].coded()
            if coded is not None and bool(coded.A_RI.any()):
                self.taken[name] = _copied(coded)

    @torch.no_grad()
    def follow(self, adapters: Mapping[str, Adapter]) -> None:
        """Make the codes anew where the factors are others now: an adapter was loaded."""
        coded = {name: adapters[name].coded() for name in self.coders}
        moved = {name: own for name, own in coded.items() if own and not self._same(name, own)}
        if not moved:
            return
        weights = original_weights(self.model, moved)
        for name, own in moved.items():
            like, scale = adapters[name], adapters[name].factor_scale()
            device = next(like.buffers()).device
            Recoding(self.coders[name], wide(weights[name]).to(device), scale).take(own)
            self.taken[name] = _copied(own)

    def _same(self, name: str, own: Factors) -> bool:
        before = self.taken.get(name)
        return before is not None and all(map(torch.equal, before, _copied(own)))

    def undo(self) -> None:
        """Give the layers the codes that they had."""
        for name, codes in self.former.items():
            self.coders[name].put(codes)
        self.taken = {}

    @contextlib.contextmanager
    def undone_by_an_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.undo()
            raise


def _copied(factors: Factors) -> Factors:
    """Copies on the CPU, where the model may have been when its codes were made."""
    return Factors(factors.A_RI.detach().cpu().clone(), factors.B_OR.detach().cpu().clone())


__all__ = ["RecodedLayers"]

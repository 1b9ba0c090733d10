"""FourierFT: Parameter-Efficient Fine-Tuning with Discrete Fourier Transform (Gao et al., ICML 2024).

Shapes: O out, I in; N frequencies.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_zoo.core.adapter import Adapter, LayerContext
from lora_zoo.core.dtypes import at_least_float32
from lora_zoo.core.hooks import AdapterHooks
from lora_zoo.core.variants import register
from lora_zoo.formats.peft.plain import PlainFormat


class Places(nn.Module):
    """The random places in the spectrum (row after row), once for each shape: PEFT's draw, to the number."""

    def __init__(self, seed: int, device: torch.device) -> None:
        super().__init__()
        self.seed, self.device, self.found = seed, device, dict[tuple[int, int], Tensor]()

    def of(self, size: int, number: int) -> Tensor:
        """The first `number` of all `size` places, in random order."""
        if (size, number) not in self.found:
            drawn = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed))[:number]
            self.found[size, number] = drawn.to(self.device)
        return self.found[size, number]


class SharedPlaces(AdapterHooks):
    """Shares the places among all matrices of one size."""

    @classmethod
    def shared(
        cls, shapes: Mapping[str, tuple[int, int]], like: Tensor, *, seed: int, **hyper: Any
    ) -> Places:
        return Places(hyper["random_loc_seed"], like.device)


@register("fourierft")
class FourierFT(Adapter):
    """§3: n coefficients at random places of the spectrum, which all matrices of a shape share, are trained.

    They begin at zero (PEFT's `init_weights=True`), so that step 0 is the base; the paper's N(0, 1) is not.
    The places are those that PEFT draws from `random_loc_seed` (777 there, 0 here), and are not saved.
    `n_frequency=auto` is the paper's 1000, and all O I of a matrix that has no more.
    """

    paper = "arXiv:2405.03003"
    equation = "W' = W + α Re(IDFT2(F)), F = c at N frozen random places and 0 elsewhere"
    count = "min(1000, O * I) if n_frequency == 'auto' else n_frequency"
    sized_by = "n_frequency"
    peft = PlainFormat(
        "FourierFT",
        {"c_N": "fourierft_spectrum"},
        {
            "n_frequency": ("n_frequency", 1000),
            "scaling": ("scaling", 150.0),
            "random_loc_seed": ("random_loc_seed", 777),
        },
        conv1d=True,
    )

    hooks = SharedPlaces
    places_N: Tensor

    def __init__(
        self,
        context: LayerContext,
        *,
        n_frequency: int | Literal["auto"] = "auto",
        scaling: float = 150.0,
        random_loc_seed: int = 0,
    ) -> None:
        super().__init__(context)
        (O, I), self.scaling = context.shape, scaling
        N = self.n_frequency = min(1000, O * I) if n_frequency == "auto" else n_frequency
        places: Places = context.shared  # type: ignore[assignment]
        self.register_buffer("places_N", places.of(O * I, N), persistent=False)
        self.c_N = nn.Parameter(context.full((N,)))

    @classmethod
    def refusal(cls, kind: str, shape: tuple[int, int], hyper: Mapping[str, Any]) -> str | None:
        n, most = hyper["n_frequency"], shape[0] * shape[1]
        if n == "auto" or 1 <= n <= most:
            return None
        return f"n_frequency must lie between 1 and its {most} entries; got {n}"

    def weight(self, W_OI: Tensor) -> Tensor:
        c_N = self.c_N.to(at_least_float32(self.c_N.dtype))  # no transform is narrower
        flat = c_N.new_zeros(W_OI.numel()).index_copy(0, self.places_N, c_N)
        return W_OI + self.scaling * torch.fft.ifft2(flat.view(W_OI.shape)).real

    @torch.no_grad()
    def law(self, W_OI: Tensor) -> None:
        """The spectrum of ΔW is c / 2 at the chosen places and their mirror images, and nothing elsewhere."""
        spectrum_OI = torch.fft.fft2(self.weight(W_OI) - W_OI) / self.scaling
        chosen_OI = (
            torch.zeros_like(spectrum_OI)
            .flatten()
            .index_copy(0, self.places_N, self.c_N.to(spectrum_OI.dtype))
        )
        chosen_OI = chosen_OI.view(W_OI.shape)
        mirrored_OI = chosen_OI.flip(0, 1).roll((1, 1), (0, 1))
        torch.testing.assert_close(spectrum_OI, (chosen_OI + mirrored_OI) / 2, rtol=1e-3, atol=1e-3)

"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko et al., ICLR 2024)."""

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lora_zoo.adapters.adapter import Product, Site, trainable
from lora_zoo.adapters.exchange.forms import (
    PREFIX,
    Form,
    Packed,
    Saved,
    Unfit,
    Unpacked,
    in_peft,
    pick,
    stored,
    whole_dense,
)
from lora_zoo.adapters.injection import Injection
from lora_zoo.adapters.method import Method
from lora_zoo.adapters.places import places
from lora_zoo.adapters.randomness import derived_seed, kaiming_bound
from lora_zoo.adapters.registry import register


class Pair(nn.Module):
    """One frozen A (R, I_max) and B (O_max, R) for all layers, made from a seed and never stored.

    `nested`: each row of A and column of B has a seed of its own, so that a layer's slice does not depend on
    which other layers are adapted. `peft`: PEFT's draw, A then B, to the bit; its bound comes from I_max.
    """

    def __init__(
        self, O: int, I: int, rank: int, *, seed: int, projection: str, device: torch.device
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1; got {rank}")
        if device.type == "meta":
            A_RI, B_OR = torch.empty(rank, I, device=device), torch.empty(O, rank, device=device)
        elif projection == "peft":
            g = torch.Generator().manual_seed(seed)
            A_RI = torch.empty(rank, I).uniform_(-bound(I), bound(I), generator=g)
            B_OR = torch.empty(O, rank).uniform_(-bound(rank), bound(rank), generator=g)
        else:
            A_RI = torch.stack([ray(I, derived_seed(seed, "A", r)) for r in range(rank)])
            B_OR = torch.stack([ray(O, derived_seed(seed, "B", r)) for r in range(rank)], dim=1)
        self.register_buffer("A_RI", A_RI.to(device), persistent=False)
        self.register_buffer("B_OR", B_OR.to(device), persistent=False)

    A_RI: Tensor
    B_OR: Tensor


def bound(fan_in: int) -> float:
    return kaiming_bound(fan_in, gain=math.sqrt(2))


def ray(length: int, seed: int) -> Tensor:
    """U(-1, 1), prefix-stable in its length."""
    return 2 * torch.rand(length, generator=torch.Generator().manual_seed(seed)) - 1


class SharedPair(Method):
    @classmethod
    def shared(cls, shapes: Mapping[str, tuple[int, int]], device: torch.device, **hyper: Any) -> Pair:
        O, I = (max(side) for side in zip(*shapes.values(), strict=True))
        seed, projection = hyper["projection_prng_key"], hyper["projection"]
        return Pair(O, I, hyper["rank"], seed=seed, projection=projection, device=device)


class SharedForm(Form):
    """PEFT's VeRA, the pair stored too: `nested` has each site's gain within d, for want of another place."""

    peft_type = "VERA"
    shared = ("vera_A", "vera_B")

    def pack(self, injection: Injection) -> Packed:
        adapters = cast("dict[str, VeRA]", injection.adapters)
        for name, place in injection.places.items():
            if not whole_dense(place):
                raise Unfit(f"PEFT's VeRA adapts whole linear layers, {name} is none")
        pair = next(iter(adapters.values())).pair
        tensors = {"base_model.vera_A": stored(pair.A_RI), "base_model.vera_B": stored(pair.B_OR)}
        for name, adapter in adapters.items():
            d_R = adapter.gain * adapter.d_R.detach().double()
            padded = d_R.new_zeros(len(pair.A_RI)).index_copy_(0, torch.arange(len(d_R)).to(d_R.device), d_R)
            tensors[f"{PREFIX}{name}.vera_lambda_d"] = stored(padded)
            tensors[f"{PREFIX}{name}.vera_lambda_b"] = stored(adapter.b_O)
        config = {"peft_type": "VERA", "target_modules": sorted(adapters), "save_projection": True}
        config |= {"r": len(pair.A_RI), "projection_prng_key": injection.hyper["projection_prng_key"]}
        config |= {"d_initial": injection.hyper["d_initial"], "vera_dropout": injection.hyper["lora_dropout"]}
        config["fan_in_fan_out"] = any(place.host.kind != "linear" for place in injection.places.values())
        return Packed(config, tensors, [])

    def accepts(self, config: Mapping[str, Any]) -> bool:
        return bool(config["peft_type"] == self.peft_type)

    def unpack(self, saved: Saved, model: nn.Module) -> Unpacked:
        known = {place.name: place for place in places(model) if place.name in saved.modules}
        R, key = saved.config.get("r", 256), saved.config.get("projection_prng_key", 0)
        O, I = (max(side) for side in zip(*(place.shape for place in known.values()), strict=True))
        projection, state = found_pair(saved, O, I, R, key), dict[str, Tensor]()
        for module, tensors in saved.modules.items():
            if not whole_dense(known[module]):
                raise ValueError(f"{module}, a {known[module].host.kind}, has no VeRA in PEFT")
            (O, I), shapes = (
                known[module].shape,
                {"vera_lambda_b": (known[module].shape[0],), "vera_lambda_d": (R,)},
            )
            state[f"{module}.b_O"], d_R = pick(module, tensors, shapes)
            state[f"{module}.d_R"] = without(gain_of(projection, I, R), d_R)
        hyper = {"rank": R, "projection": projection, "projection_prng_key": key}
        hyper |= {"d_initial": float(saved.config.get("d_initial", 0.1))}
        hyper |= {"lora_dropout": float(saved.config.get("vera_dropout", 0.0))}
        return Unpacked(hyper, {}, [known[module] for module in saved.modules], state)


def found_pair(saved: Saved, O: int, I: int, rank: int, seed: int) -> str:
    """Which of our projections PEFT's file was made with. ValueError for one that its seed does not give."""
    if not saved.config.get("save_projection", True):
        return "peft"
    shapes = {"vera_A": (rank, I), "vera_B": (O, rank)}
    A_RI, B_OR = pick("base_model", saved.shared, shapes)
    for projection in ("peft", "nested"):
        pair = Pair(O, I, rank, seed=seed, projection=projection, device=torch.device("cpu"))
        # PEFT rounds the pair where the base is of half precision.
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            ours = (pair.A_RI.to(dtype).float(), pair.B_OR.to(dtype).float())
            if torch.equal(ours[0], A_RI.float()) and torch.equal(ours[1], B_OR.float()):
                return projection
    raise ValueError(f"base_model.vera_A and vera_B are not those that projection_prng_key={seed} gives here")


def gain_of(projection: str, I: int, rank: int) -> float:
    """What the entries of a pair U(-1, 1) are to be multiplied by at one site."""
    return 1.0 if projection == "peft" else bound(I) * bound(rank)


def without(gain: float, d_R: Tensor) -> Tensor:
    """The float32 vector that `gain` makes into `d_R` again, if there is one: a quotient may be one off."""
    near_R = (d_R.double() / gain).float()
    tries_NR = torch.stack(
        [near_R, *(near_R.nextafter(near_R.new_tensor(to)) for to in (-math.inf, math.inf))]
    )
    misses_NR = ((tries_NR.double() * gain).float() - d_R.float()).abs()
    return tries_NR.gather(0, misses_NR.argmin(0, keepdim=True))[0]


@register("vera")
@in_peft(SharedForm())
class VeRA(Product):
    """Eq. 2: h = W x + Λ_b B Λ_d A x, with A and B frozen, random and shared."""

    paper = "arXiv:2310.11454"
    equation = "W' = W + diag(b) B diag(d) A"
    count = "O + R"
    method = SharedPair
    inits = ("kaiming",)

    def __init__(
        self,
        site: Site,
        *,
        rank: int = 256,
        init: str = "kaiming",
        d_initial: float = 0.1,
        projection: Literal["nested", "peft"] = "nested",
        projection_prng_key: int = 0,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(site)
        if not d_initial:
            raise ValueError("vera: with d_initial=0 neither vector ever gets a gradient; the paper's is 0.1")
        O, self.I = site.shape
        W_OI = site.host.matrix()
        self.pair: Pair = site.shared.to(W_OI.device)  # type: ignore[assignment, union-attr]
        self.gain = gain_of(projection, self.I, rank)
        self.d_R, self.b_O = trainable(W_OI, (rank,), d_initial), trainable(W_OI, (O,))
        self.dropout = site.dropout(lora_dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        O, R = len(self.b_O), len(self.d_R)
        B_OR = self.pair.B_OR[:O, :R].to(self.b_O.dtype)
        A_RI = self.pair.A_RI[:R, : self.I].to(self.b_O.dtype)
        return self.b_O[:, None] * B_OR * (self.gain * self.d_R), A_RI

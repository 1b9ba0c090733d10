"""X-LoRA: Mixture of Low-Rank Adapter Experts (Buehler and Buehler, 2024, arXiv:2402.07148).

Shapes: B sequences, L tokens, H hidden states, K adapters, P layers (1 where all share their weights).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_zoo.compositions.of_passes import OfPasses
from lora_zoo.core.composition import CompositionData, register
from lora_zoo.core.routing import top_softmax
from lora_zoo.core.seeding import generator


@register("xlora")
class XLoRA(OfPasses):
    """§2: a classifier of the base's last hidden states weighs frozen adapters, for each token and layer.

    It reads the input twice: first with the weight `first_pass` for every adapter (PEFT's
    `scaling_pass_value`), without gradients, for the states; then with the classifier's weights. `classifier`
    alone trains: the adapters take no gradient while they are composed so. `depth=1` is one linear map, more
    are a perceptron `size` wide. `top_k` keeps the greatest weights, all of them with 0; `renormalised` takes
    the softmax over those alone (PEFT's `enable_softmax_topk` without `enable_softmax`). `prepare` trains the
    classifier for `steps` steps of `batch_size` examples at the rate `lr`, all of them ours.
    """

    equation = "W' x = W x + scale Σ ωₖ(t, layer) ΔWₖ x, ω = softmax(MLP(h_t) / temperature)"
    examples, looks_at = "train", 512
    classifier: nn.Sequential

    def __init__(
        self,
        names: Sequence[str],
        *,
        layerwise: bool = False,
        depth: int = 1,
        size: int = 2048,
        dropout: float = 0.2,
        temperature: float = 1.0,
        top_k: int = 0,
        renormalised: bool = False,
        first_pass: float = 0.0,
        scale: float = 1.0,
        steps: int = 200,
        lr: float = 1e-3,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(names)
        if depth < 1 or size < 1 or not temperature > 0 or not 0 <= dropout < 1:
            needs = "depth >= 1, size >= 1, temperature > 0 and 0 <= dropout < 1"
            raise ValueError(f"xlora needs {needs}; got {depth}, {size}, {temperature} and {dropout}")
        if steps < 0 or batch_size < 1 or not lr > 0:
            raise ValueError(
                f"xlora needs steps >= 0, lr > 0 and batch_size >= 1; got {steps}, {lr} and {batch_size}"
            )
        if not 0 <= top_k <= len(self.names):
            raise ValueError(f"xlora: top_k must lie between 0 (all) and {len(self.names)}; got {top_k}")
        self.layerwise, self.depth, self.size, self.dropout = layerwise, depth, size, dropout
        self.temperature, self.top_k, self.renormalised = temperature, top_k, renormalised
        self.first_pass, self.scale, self.seed = first_pass, scale, seed
        self._training: dict[str, Any] = {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": seed}
        self.losses: tuple[float, float] | None = None
        """The mean loss on the examples before training and after it."""
        self._layers: tuple[str, ...] = ()
        self._frozen: list[nn.Parameter] = []

    def enter(self, model: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> None:
        super().enter(model, layers)
        if not hasattr(self, "classifier"):
            self.learns(model, [*layers])
        if self.layerwise and {*layers} - {*self._layers}:
            raise ValueError(f"xlora: its classifier knows nothing of {min({*layers} - {*self._layers})}")
        adapters = (a for own in layers.values() for entries in own.values() for _, a in entries)
        self._frozen = [p for adapter in adapters for p in adapter.parameters() if p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def leave(self) -> None:
        super().leave()
        while self._frozen:
            self._frozen.pop().requires_grad_(True)

    def learns(self, model: nn.Module, layers: Sequence[str]) -> nn.Module:
        self._layers = tuple(layers) if self.layerwise else ("",)
        self.classifier = self._made(model)
        return self.classifier

    def prepare(self, data: CompositionData) -> None:
        before = data.loss(self)
        data.fit(self, self.classifier, **self._training)
        self.losses = before, data.loss(self)

    def notes(self) -> list[str]:
        if self.losses is None:
            return []
        n = sum(p.numel() for p in self.classifier.parameters())
        said = "loss {:.4g} before training, {:.4g} after".format(*self.losses)
        return [f"classifier of {n:,} parameters, {self._training['steps']} steps: {said}"]

    def tensors(self) -> Mapping[str, Tensor]:
        return self.classifier.state_dict()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        try:
            self.classifier.load_state_dict(dict(tensors))
        except RuntimeError as error:
            raise ValueError(
                f"xlora: the classifier is of another form: {' '.join(str(error).split())}"
            ) from error

    def _made(self, model: Any) -> nn.Sequential:
        """The classifier, drawn as torch draws linear maps, from the seed."""
        like: Tensor = next(model.parameters())
        outputs = len(self.names) * len(self._layers)
        widths = [model.config.get_text_config().hidden_size, *[self.size] * (self.depth - 1), outputs]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator("init", self.seed, "xlora").initial_seed())
            maps: list[nn.Module] = []
            for inner, outer in itertools.pairwise(widths):
                between = [nn.ReLU(), nn.Dropout(self.dropout)] if maps else []
                maps += [*between, nn.Linear(inner, outer)]
        return nn.Sequential(*maps).to(like.device)

    def weigh(self, model: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Mapping[str, Tensor]:
        h_BLH = self._states(model, given, named)
        self.classifier.train(model.training)
        logits = self.classifier(h_BLH.to(next(self.classifier.parameters())))
        logits_BLPK = logits.unflatten(-1, (len(self._layers), len(self.names))) / self.temperature
        weights_BLPK = self.scale * self._chosen(logits_BLPK)
        return {layer: weights_BLPK[:, :, place] for place, layer in enumerate(self._layers)}

    def _states(self, model: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        """The last hidden states (B, L, H) with equal weights for all adapters."""
        ids = named.get("input_ids", given[0] if given else None)
        first: Tensor = named["inputs_embeds"] if ids is None else ids
        equal, shape = self.scale * self.first_pass, (*first.shape[:2], len(self.names))
        self.weights = {"": first.new_full(shape, equal, dtype=torch.float32)} if equal else {}
        self.reading = True
        rest = {key: value for key, value in named.items() if key != "labels"}
        try:
            with torch.no_grad():
                states = model(*given, **{**rest, "use_cache": False, "output_hidden_states": True})
        finally:
            self.reading = False
        h_BLH: Tensor = states.hidden_states[-1]
        return h_BLH

    def _chosen(self, logits: Tensor) -> Tensor:
        weights = logits.softmax(-1)
        if not self.top_k:
            return weights
        if self.renormalised:
            return top_softmax(logits, self.top_k)
        return weights * torch.zeros_like(weights).scatter(-1, logits.topk(self.top_k).indices, 1.0)

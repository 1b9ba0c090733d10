"""Hybrid: LoRA and the bottleneck adapter as they are alone, in one injection; counts, files, refusals."""

import pytest
import torch
from torch.testing import assert_close

from lora_zoo.conformance.cases import batch, fresh, perturb
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.native import load_adapter, save_adapter
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import inject
from lora_zoo.runs.sources import with_imports

KINDS = ["llama", "gpt2", "bert"]


def hybrid(kind, **hyper):
    model = fresh(kind)[0].double()
    injection = inject(model, "hybrid", rank=3, alpha="2r", rank_pattern={"down": 5}, seed=4, **hyper)
    perturb(injection, 0.1)
    return model, injection


def apart(kind):
    """LoRA on q, k, v and a bottleneck behind down, as two named adapters that are active together."""
    model = fresh(kind)[0].double()
    lora = inject(model, "lora", target_modules=["q", "k", "v"], rank=3, alpha="2r", seed=4, name="lora")
    bottleneck = inject(model, "bottleneck", target_modules="down", rank=5, scale=2.0, seed=4, name="behind")
    adapters_of(model).activate("lora", "behind")
    return model, lora, bottleneck


@pytest.mark.parametrize("kind", KINDS)
def test_each_part_is_what_it_is_alone_and_counts_add_up(kind):
    (model, whole), (other, lora, bottleneck) = hybrid(kind), apart(kind)
    mine = {name.replace(".inner.", "."): p for name, p in whole.named_parameters().items()}
    theirs = lora.named_parameters() | bottleneck.named_parameters()
    assert mine.keys() == theirs.keys()
    assert whole.trainable() == lora.trainable() + bottleneck.trainable()
    sizes = [
        (m.shape, {"role": m.role, "rank": 5 if m.role == "down" else 3}) for m in whole.matrices.values()
    ]
    assert whole.trainable() == whole.variant.trainable_count(sizes), "the stated formula"
    for name, parameter in theirs.items():
        parameter.data = mine[name].data.clone()
    given = batch(kind)
    ours, expected = model(**given), other(**given)
    assert_close(ours.logits, expected.logits)
    found, wanted = (
        torch.autograd.grad(out.loss, list(own.values())) for out, own in ((ours, mine), (expected, theirs))
    )
    for name, pair in zip(
        mine, zip(found, (wanted[list(theirs).index(n)] for n in mine), strict=True), strict=True
    ):
        assert_close(*pair, msg=lambda text, name=name: f"{name}: {text}")


def test_the_start_of_each_part_is_its_own():
    model = fresh("llama")[0]
    whole = inject(model, "hybrid", rank=3, seed=4)
    _, lora, bottleneck = apart("llama")
    alone = lora.adapters | bottleneck.adapters
    q, down = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
    assert_close(whole.adapters[q].inner.A_RI, alone[q].A_RI.float())
    assert_close(whole.adapters[down].inner.D_RH, alone[down].D_RH[:3].float(), atol=1e-6, rtol=1e-6)


def test_files_keep_it_and_its_nonlinear_part_refuses_a_merge(tmp_path):
    model, injection = hybrid("llama")
    save_adapter(injection, tmp_path)
    other = fresh("llama")[0].double()
    load_adapter(other, tmp_path)
    assert torch.equal(other(**batch("llama")).logits, model(**batch("llama")).logits)
    with pytest.raises(ValueError, match=r"hybrid has no effective weight.*merged"):
        injection.merge()


def test_the_code_of_its_parts_is_a_part_of_a_runs_identity():
    source = with_imports(VARIANTS.find("hybrid"), {"variant": {"name": "hybrid"}})
    for name in ("nonlinear.hybrid", "nonlinear.bottleneck", "additive.lora"):
        assert any(line.startswith(f"lora_zoo.variants.{name} ") for line in source.splitlines()), name


def test_a_budget_sizes_both_parts():
    injection = inject(fresh("llama")[0], "hybrid", budget=1200)
    assert 900 < injection.trainable() <= 1200

"""A dropout mask belongs to its call: gradients under gradient checkpointing are those without it.

Whatever runs between a pass and its backward pass, and whichever entry point of the model is called.
"""

from functools import partial

import pytest
import torch
import transformers as tf
from torch.utils.checkpoint import checkpoint

from lora_zoo import inject

IDS = torch.randint(1, 40, (2, 2, 6), generator=torch.Generator().manual_seed(1))


def llama(**changes):
    torch.manual_seed(0)
    usual = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = tf.LlamaConfig(**(usual | {"num_attention_heads": 2, "pad_token_id": 0} | changes))
    return tf.LlamaForCausalLM(config)


def adapted(variant="lora", p=0.3, targets=("q", "v"), base_dropout=0.0):
    model = llama(attention_dropout=base_dropout).train()
    model.config._attn_implementation = "eager"
    injection = inject(model, variant, target_modules=targets, rank=2, lora_dropout=p)
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return model, injection


def loss(model, ids):
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def one_pass(model, injection):
    loss(model, IDS[0]).backward()


def seeded_anew(model, injection):
    """Each step begins with the same seed, and so with the same state of torch's stream."""
    torch.manual_seed(7)
    one_pass(model, injection)


def reference(model, injection):
    """A step of DPO: the policy, then the model without its adapter, then backward."""
    policy = loss(model, IDS[0])
    with injection.disabled(), torch.no_grad():
        base = loss(model, IDS[0])
    (policy - base).square().backward()


def pair(model, injection):
    (loss(model, IDS[0]) - loss(model, IDS[1])).backward()


def same_batch_twice(model, injection):
    """R-Drop: two masks of one batch."""
    first, second = loss(model, IDS[0]), loss(model, IDS[0])
    assert first != second
    (first - 2 * second).backward()


def first_pass_first(model, injection):
    first, second = loss(model, IDS[0]), loss(model, IDS[1])
    first.backward()
    (3 * second).backward()


def generation_between(model, injection):
    policy = loss(model, IDS[0])
    with torch.no_grad():
        model.generate(IDS[1], max_new_tokens=2, do_sample=True, attention_mask=torch.ones_like(IDS[1]))
    policy.backward()


def entry_point_below_the_top(model, injection):
    first, second = (model.model(input_ids=ids, use_cache=False).last_hidden_state for ids in IDS)
    (first.square().sum() - second.sum()).backward()


FLOWS = [
    one_pass,
    seeded_anew,
    reference,
    pair,
    same_batch_twice,
    first_pass_first,
    generation_between,
    entry_point_below_the_top,
]


def gradients(flow, checkpointed, **more):
    """All gradients of two steps of `flow`, then what torch's stream draws next."""
    model, injection = adapted(**more)
    if checkpointed is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointed})
        model.enable_input_require_grads()
    torch.manual_seed(3)
    for _ in range(2):
        flow(model, injection)
    return [p.grad for p in injection.parameters()] + [torch.rand(3)]


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("more", [{}, {"p": 0.1, "variant": "dora"}, {"base_dropout": 0.5}], ids=str)
def test_checkpointing_changes_no_gradient(flow, more):
    expected = gradients(flow, None, **more)
    assert all(bool(g.any()) for g in expected)
    for reentrant in (False, True):
        for got, want in zip(gradients(flow, reentrant, **more), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


def test_checkpoints_within_checkpoints_know_their_pass():
    found = []
    for nested in (False, True):
        model, injection = adapted()
        call = partial(model.model, use_cache=False)
        if nested:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            call = partial(checkpoint, call, use_reentrant=False)
        first, second = (call(ids).last_hidden_state for ids in IDS)
        (first.square().sum() - second.sum()).backward()
        found.append([p.grad for p in injection.parameters()])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def masks(targets, entry=lambda model: model, site="model.layers.1.self_attn.v_proj"):
    """What a site, `v` of the last layer, drops in three calls."""
    model, injection = adapted(targets=targets)
    seen, drop = [], injection.adapters[site].dropout
    mask = drop.mask
    drop.mask = lambda x: seen.append(mask(x)) or seen[-1]
    for ids in (*IDS, IDS[0]):
        entry(model)(input_ids=ids, use_cache=False)
    return [m.entries for m in seen]


def test_masks_depend_on_their_site_and_call_alone():
    expected = masks(("q", "v"))
    assert len(expected) == 3 and not torch.equal(expected[0], expected[2])
    for site in ("model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.q_proj"):
        assert not torch.equal(masks(("q", "v"), site=site)[0], expected[0])
    for other in (masks(("q", "k", "v", "up")), masks(("q", "v"), lambda model: model.model)):
        assert all(torch.equal(a, b) for a, b in zip(other, expected, strict=True))


def test_counts_of_calls_are_kept_by_site():
    """What a checkpoint of training holds, where sites were not called equally often."""
    counter = adapted()[1].counter
    counts = {name: 3 * number for number, name in enumerate(counter.counts)}
    counter.counts = counts
    assert counter.counts == counts and len(counts) == 4


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_mask_that_cannot_be_found_again_is_refused(reentrant):
    def run(**kept):
        model, _ = adapted()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant} | kept)
        model.enable_input_require_grads()
        losses = []
        for ids in IDS:
            torch.manual_seed(7)
            losses.append(loss(model, ids))
        with pytest.raises(RuntimeError, match="preserve_rng_state=True, no seed set between"):
            sum(losses).backward()

    run()
    run(preserve_rng_state=False)

"""Virtual tokens against PEFT and against a base that is given them by hand.

Labels leave out the first token, which PEFT's loss has as well: its last virtual token foretells it.
"""

import json
import warnings

import peft
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from lora_zoo.conformance.cases import MODELS, SIZES, batch, fresh, perturb
from lora_zoo.core.variants import VARIANTS
from lora_zoo.formats.native import load_adapter
from lora_zoo.formats.peft.write import save_peft
from lora_zoo.injection.adapter_set import adapters_of
from lora_zoo.injection.inject import inject
from lora_zoo.injection.plan import plan_injection
from lora_zoo.injection.preview import preview
from lora_zoo.tasks.reading import Reading
from lora_zoo.training.evaluation import check_positions
from lora_zoo.variants.soft.prefix_tuning import of_words
from lora_zoo.variants.soft.virtual_tokens import VirtualTokens

VIRTUAL = [name for name, cls in VARIANTS.items() if issubclass(cls, VirtualTokens)]
TRAINED = [
    ("prompt_tuning", "llama", {}),
    ("prompt_tuning", "bert", {"start": "vocabulary"}),
    ("prefix_tuning", "llama", {}),
    ("prefix_tuning", "gpt2", {"projection": True, "hidden": 5}),
    ("p_tuning", "llama", {"hidden": 5}),
    ("p_tuning", "bert", {"encoder": "lstm", "hidden": 5}),
]
FILES = [
    ("prompt_tuning", "llama", {}),
    ("prompt_tuning", "bert", {}),
    ("prefix_tuning", "llama", {}),
    ("prefix_tuning", "gpt2", {"projection": True}),
    ("p_tuning", "llama", {"encoder": "lstm"}),
]
_HIDDEN = {"hidden": "encoder_hidden_size"}
OF_PEFT = {
    "prompt_tuning": (peft.PromptTuningConfig, {}),
    "prefix_tuning": (peft.PrefixTuningConfig, {"projection": "prefix_projection", **_HIDDEN}),
    "p_tuning": (peft.PromptEncoderConfig, {"encoder": "encoder_reparameterization_type", **_HIDDEN}),
}
TASKS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "SEQ_CLS"}
STARTS = ("vocabulary", "uniform", "normal")
GENERATED = {"max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": 99, "do_sample": False}
pytestmark = pytest.mark.filterwarnings("ignore:.*tied.*", "ignore:.*past_key_values.*")


def adapted(kind, name, size=0.5, **hyper):
    """(model, injection), the virtual tokens moved away from their start."""
    model, where = fresh(kind)
    injection = inject(model, name, modules_to_save=where["modules_to_save"], **{"rank": 3, **hyper})
    perturb(injection, size)
    return model, injection


def given(kind):
    """The batch, with a padded end, and without a label of the first token."""
    inputs = batch(kind)
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, -2:] = 0
    if kind != "bert":
        inputs["labels"] = inputs["labels"].masked_fill(mask == 0, -100)
        inputs["labels"][:, 0] = -100
    return inputs | {"attention_mask": mask}


@torch.no_grad()
def twin(kind, name, injection):
    """PEFT's model of the same adapter, and the pairs of tensors that train in both."""
    make, fields = OF_PEFT[name]
    given_ = {theirs: injection.hyper[ours] for ours, theirs in fields.items()}
    own = {k: v.upper() if isinstance(v, str) else v for k, v in given_.items() if v != "auto"}
    config = make(task_type=TASKS[kind], num_virtual_tokens=3, **own)
    other = peft.get_peft_model(fresh(kind)[0], config).eval()
    encoder = other.prompt_encoder["default"]
    pairs = [*zip(injection.shared.parameters(), encoder.parameters(), strict=True)]
    if kind == "bert":
        head = other.base_model.classifier.modules_to_save["default"]
        pairs += [(injection.trained[f"classifier.{n}"], p) for n, p in head.named_parameters()]
    for ours, theirs in pairs:
        theirs.copy_(ours)
    return other, pairs


def logits_of(model, kind):
    with torch.no_grad():
        inputs = {key: value for key, value in given(kind).items() if key != "labels"}
        return model(**inputs).logits[:, -6:]


# --- against PEFT -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "hyper"), TRAINED)
def test_ten_steps_are_pefts(name, kind, hyper):
    """Losses, gradients and the tensors after ten steps of AdamW."""
    model, injection = adapted(kind, name, **hyper)
    other, pairs = twin(kind, name, injection)
    own = sum(p.numel() for p in injection.shared.parameters())
    assert own == VARIANTS[name].trainable_beside(model, injection.hyper)
    assert {id(p) for p, _ in pairs} == {id(p) for p in injection.parameters()}
    optimizers = [torch.optim.AdamW(own, lr=0.05) for own in zip(*pairs, strict=True)]
    for _ in range(10):
        losses = [m(**given(kind)).loss for m in (model, other)]
        assert_close(*losses)
        for loss in losses:
            loss.backward()
        for ours, theirs in pairs:
            assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for ours, theirs in pairs:
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert_close(logits_of(model, kind), logits_of(other, kind), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "kind", "hyper"), FILES)
def test_files_go_both_ways(name, kind, hyper, tmp_path):
    model, injection = adapted(kind, name, **hyper)
    save_peft(injection, tmp_path / "ours", task_type=TASKS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        other = peft.PeftModel.from_pretrained(fresh(kind)[0], tmp_path / "ours").eval()
    assert_close(logits_of(other, kind), logits_of(model, kind))
    other.save_pretrained(tmp_path / "theirs")
    again = fresh(kind)[0]
    read = load_adapter(again, tmp_path / "theirs")
    assert torch.equal(logits_of(again, kind), logits_of(model, kind))
    assert read.variant.name == VARIANTS[name].peft.read_as and read.hyper["rank"] == 3
    for change in ({"num_virtual_tokens": 4}, {"num_virtual_tokens": 0}, {"num_transformer_submodules": 2}):
        path = tmp_path / "theirs" / "adapter_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | change))
        with pytest.raises(
            ValueError, match=f"{'P|prompt_embeddings|' if 4 in change.values() else ''}{next(iter(change))}"
        ):
            load_adapter(fresh(kind)[0], tmp_path / "theirs")
        path.write_text(json.dumps(config))


def test_pefts_loss_has_the_first_token_as_well():
    """Theirs is the mean of ours, over five tokens, and of what the last virtual token makes of the first."""
    model, injection = adapted("llama", "prompt_tuning")
    other, _ = twin("llama", "prompt_tuning", injection)
    inputs = batch("llama")
    with torch.no_grad():
        ours, theirs = model(**inputs).loss, other(**inputs)
    first = torch.nn.functional.cross_entropy(theirs.logits[:, 2], inputs["labels"][:, 0])
    assert_close(theirs.loss, (5 * ours + first) / 6)


# --- against the base ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_a_prompt_of_words_is_those_words(kind):
    """tokens=[5, 7] three long is 5, 7, 5 before the input; an encoder's head reads the first of them."""
    model, _ = adapted(kind, "prompt_tuning", 0.0, start="vocabulary", tokens=[5, 7])
    inputs, plain = batch(kind), fresh(kind)[0]
    ids = torch.cat([torch.tensor([5, 7, 5]).expand(3, -1), inputs["input_ids"]], dim=1)
    found, expected = model(input_ids=inputs["input_ids"]).logits, plain(input_ids=ids).logits
    assert found.shape == plain(input_ids=inputs["input_ids"]).logits.shape
    assert_close(found, expected if kind == "bert" else expected[:, 3:])


def test_the_head_of_a_classifier_reads_the_first_position_as_in_peft():
    """DistilBERT has its pooler beside the head; it takes no cache that a prefix could be in."""
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=37, dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    model = DistilBertForSequenceClassification(config).eval()
    ids = batch("bert")["input_ids"]
    whole = torch.cat([torch.tensor([5, 7]).expand(3, -1), ids], dim=1)
    expected = model(input_ids=whole).logits
    with pytest.raises(ValueError, match="a DistilBertModel takes no cache"):
        inject(model, "prefix_tuning")
    inject(model, "prompt_tuning", rank=2, start="vocabulary", tokens=[5, 7])
    assert_close(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_prefix_of_words_is_those_words(kind):
    """What a decoder has in its cache after three words is those words before its input."""
    model, injection = adapted(kind, "prefix_tuning", 0.0)
    plain, ids = fresh(kind)[0], batch(kind)["input_ids"]
    injection.shared.P.data.copy_(of_words(plain, torch.tensor([5, 7, 5])))
    whole = torch.cat([torch.tensor([5, 7, 5]).expand(3, -1), ids], dim=1)
    assert_close(model(input_ids=ids).logits, plain(input_ids=whole).logits[:, 3:])


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_attention_is_over_the_prefix_and_the_tokens(kind):
    """softmax(q [P_K; K]ᵀ / √d) [P_V; V] of each head, by hand, without the keys of padding."""
    model, injection = adapted(kind, "prefix_tuning")
    seen, inputs = {}, given(kind)
    attentions = [m for m in model.modules() if type(m).__name__ in ("GPT2Attention", "BertSelfAttention")]
    for layer, module in enumerate(attentions):
        inside = module.c_proj if kind == "gpt2" else module
        keep = lambda _, given, out, layer=layer: seen.update({layer: (given, out)})  # noqa: E731
        inside.register_forward_hook(keep)
        project = [module.c_attn] if kind == "gpt2" else [module.query, module.key, module.value]
        for place, projection in enumerate(project):
            take = lambda _, __, out, at=(layer, place): seen.update({at: out})  # noqa: E731
            projection.register_forward_hook(take)
    model(**inputs)
    heads = model.config.num_attention_heads
    both = injection.shared.P.view(3, 4, heads, -1).permute(1, 2, 0, 3)
    hidden = torch.nn.functional.pad(inputs["attention_mask"], (3, 0), value=1)[:, None, None] == 0
    if kind == "gpt2":
        hidden = hidden | ~torch.ones(6, 9, dtype=torch.bool).tril(3)
    for layer in range(2):
        projected = seen[layer, 0].chunk(3, -1) if kind == "gpt2" else [seen[layer, i] for i in range(3)]
        q, k, v = (t.view(3, 6, heads, -1).transpose(1, 2) for t in projected)
        k, v = (torch.cat([both[2 * layer + i].expand(3, -1, -1, -1), t], 2) for i, t in enumerate((k, v)))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        expected = (weights @ v).transpose(1, 2).flatten(2)
        found = seen[layer][0][0] if kind == "gpt2" else seen[layer][1][0]
        assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", VIRTUAL)
def test_a_decoders_classifier_reads_the_last_token_that_was_sent(name):
    """Padding after it changes nothing, as without virtual tokens."""
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=3, pad_token_id=0)).eval()
    perturb(inject(model, name, rank=3), 0.5)
    ids = 1 + batch("llama")["input_ids"] % 36
    padded = torch.nn.functional.pad(ids, (0, 2))
    found = model(input_ids=padded, attention_mask=(padded > 0).long()).logits
    assert_close(found, model(input_ids=ids).logits)


@pytest.mark.parametrize("name", VIRTUAL)
def test_it_is_composed_with_adapters_of_matrices(name):
    """The hybrid of LoRA on q, k, v, an adapter behind the feed-forward part and virtual tokens."""
    model, soft = adapted("llama", name)
    perturb(inject(model, "lora", name="lora", rank=2, target_modules=["q", "k", "v"]), 0.3)
    perturb(inject(model, "bottleneck", name="ffn", rank=2, target_modules=["down"]), 0.3)
    names, seen = ("default", "lora", "ffn"), []
    for left_out in (None, *names):
        adapters_of(model).activate(*(own for own in names if own != left_out))
        seen.append(logits_of(model, "llama"))
    assert all(not torch.allclose(one, two) for i, one in enumerate(seen) for two in seen[:i])
    adapters_of(model).activate(*names)
    soft.hooks.law()
    with pytest.raises(ValueError, match="cannot be merged"):
        adapters_of(model).merge()
    adapters_of(model).remove()
    assert torch.equal(logits_of(model, "llama"), logits_of(fresh("llama")[0], "llama"))


def test_every_argument_of_a_token_makes_room():
    """Positions, token types, states and a plain tuple are those of the tokens that were sent."""
    model, _ = adapted("bert", "prompt_tuning")
    ids = batch("bert")["input_ids"]
    places, types = torch.arange(6).expand(3, -1), torch.zeros_like(ids)
    same = model(input_ids=ids, position_ids=places, token_type_ids=types).logits
    assert_close(same, model(input_ids=ids).logits)
    bare, _ = fresh("llama")
    inject(bare.model, "prompt_tuning", rank=3)
    seen = bare.model(input_ids=ids, output_hidden_states=True)
    assert {state.shape[1] for state in (seen.last_hidden_state, *seen.hidden_states)} == {6}
    assert_close(bare.model(ids, return_dict=False)[0], seen.last_hidden_state)
    assert_close(
        bare.model(inputs_embeds=bare.model.embed_tokens(ids)).last_hidden_state, seen.last_hidden_state
    )


def test_starts_differ_as_they_say():
    of = {start: adapted("llama", "prompt_tuning", 0.0, start=start, rank=30)[1] for start in STARTS}
    words = fresh("llama")[0].get_input_embeddings().weight
    P = of["vocabulary"].shared.P
    assert all(any(torch.equal(row, word) for word in words) for row in P) and len(set(P[:, 0].tolist())) > 9
    assert 0.4 < of["uniform"].shared.P.abs().max() <= 0.5 and of["normal"].shared.P.abs().max() > 2
    few = adapted("llama", "prompt_tuning", 0.0, start="vocabulary", rank=4)[1].shared.P
    assert torch.equal(few, P[:4])


# --- generation ---------------------------------------------------------------------------------------------


def written(model, ids, mask, **more):
    """The tokens that are written, and the logits (B, 5, V) that they were chosen from."""
    asked = {**GENERATED, **more}
    found = model.generate(
        ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **asked
    )
    return found.sequences[:, -5:], torch.stack(found.logits, dim=1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", VIRTUAL)
def test_a_generation_is_the_same_with_a_cache_with_padding_and_step_by_step(name, kind):
    model, injection = adapted(kind, name, 2.0)
    ids = batch(kind)["input_ids"]
    mask = torch.ones_like(ids)
    tokens, logits = written(model, ids, mask)
    whole = torch.cat([ids, tokens], dim=1)
    with torch.no_grad():
        assert_close(logits, model(input_ids=whole).logits[:, 5:-1])
    assert_close(logits, written(model, ids, mask, use_cache=False)[1])
    left = torch.zeros(3, 2, dtype=torch.long)
    padded = [torch.cat([left, own], dim=1) for own in (ids, mask)]
    assert_close(written(model, *padded)[1], logits)
    beams = [written(model, ids, mask, num_beams=3, use_cache=use)[0] for use in (True, False)]
    assert torch.equal(*beams)
    with injection.disabled():
        assert not torch.allclose(written(model, ids, mask)[1], logits)


@pytest.mark.parametrize("name", VIRTUAL)
def test_a_cache_or_a_mask_that_does_not_fit_is_refused(name):
    model, injection = adapted("llama", name)
    ids = batch("llama")["input_ids"]
    with injection.disabled():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="attention mask is of 7 tokens; input and cache hold 4"):
        model(input_ids=ids[:, :1], past_key_values=cache, attention_mask=torch.ones(3, 7))
    with pytest.raises(ValueError, match="an attention mask of each token"):
        model(input_ids=ids, attention_mask=torch.ones(3, 1, 6, 6))


# --- what it is in a model and a run ------------------------------------------------------------------------


@pytest.mark.parametrize("name", VIRTUAL)
def test_it_is_counted_by_its_formula_and_meets_a_budget(name):
    for kind in MODELS:
        model = fresh(kind)[0]
        seen, made = preview(model, name, rank=5), inject(model, name, rank=5)
        assert seen.trainable == made.trainable() == VARIANTS[name].trainable_beside(model, made.hyper)
        assert VARIANTS[name].virtual_tokens(made.hyper) == 5 and not seen.rows
    most = VARIANTS[name].trainable_beside(model, made.hyper)
    made.remove()
    for budget, rank in ((most, 5), (most - 1, 4)):
        assert plan_injection(model, name, budget=budget).hyperparameters["rank"] == rank
    with pytest.raises(ValueError, match=f"{name} at rank 1 has .* trainable parameters here"):
        plan_injection(model, name, budget=1)


@pytest.mark.parametrize("name", VIRTUAL)
def test_what_cannot_be_is_refused_in_one_line(name, tmp_path):
    model, injection = adapted("llama", name)
    with pytest.raises(ValueError, match=f"{name} has no effective weight.*cannot be merged"):
        injection.merge()
    with pytest.raises(ValueError, match=f"{name} has no effective weight.*format as LoRA"):
        save_peft(injection, tmp_path, form="lora")
    with pytest.raises(ValueError, match="'default' and 'two' both put virtual tokens before the input"):
        inject(model, name, name="two")
        adapters_of(model).activate("default", "two")
    assert VARIANTS[name].hooks.not_packable() == "switch"
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=9, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2)
    )
    for other, words in ((t5, "has an encoder and a decoder"), (torch.nn.Linear(2, 2), "Linear is none")):
        with pytest.raises(ValueError, match=words):
            inject(other, name)
    with pytest.raises(ValueError, match="rank must be at least 1; got 0"):
        inject(model, name, name="none", rank=0)


def test_a_prompts_words_must_be_words():
    with pytest.raises(ValueError, match="tokens must lie between 0 and 36; got 37"):
        inject(fresh("llama")[0], "prompt_tuning", start="vocabulary", tokens=[3, 37])
    with pytest.raises(ValueError, match="start=normal takes none"):
        inject(fresh("llama")[0], "prompt_tuning", tokens=[3])


def test_its_positions_count():
    """Of 32 positions, 24 tokens leave no room for nine more."""
    readings = {"test": Reading({}, 0, 20, 4, 0)}
    check_positions(fresh("llama")[0], readings, 8)
    with pytest.raises(ValueError, match="max_new_tokens=4 beside 9 virtual tokens needs 33 positions"):
        check_positions(fresh("llama")[0], readings, 9)

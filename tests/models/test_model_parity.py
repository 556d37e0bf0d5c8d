"""Our model against transformers on the same random weights, in float32: equal as the project means it.

Equal is max|a - b| <= 1e-5 max|b| over rows that are not padding (`reference.assert_equal`).
"""

import pytest
import torch
from reference import SOFT, TOKENS_PER_IMAGE, WINDOW, assert_equal, image_prompt, left_padded, pixels
from transformers import Gemma3ForCausalLM as ReferenceCausalLM
from transformers import Gemma3ForConditionalGeneration as ReferenceModel

from gemma3_core.config.gemma3 import GLOBAL, LOCAL
from gemma3_core.errors import PromptError
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.models.weights import module_name
from gemma3_core.nn import cache as cache_module
from gemma3_core.nn.cache import KVCache

LAYOUTS = {
    "text": "t9",
    "text beyond the window": f"t{3 * WINDOW}",
    "image only": "i",
    "image first": "i t9",
    "image in the middle": "t7 i t11",
    "two images": "t3 i t1 i t8",
    "three in several turns, beyond the window": "t20 i t30 i t5 i t40",
    "image and its crops, blocks in a row": "t4 i i i i t6",
}


def prompt_of(layout: str, seed: int = 0) -> dict[str, torch.Tensor]:
    input_ids, token_type_ids = image_prompt(layout, seed)
    prompt = {"input_ids": input_ids, "token_type_ids": token_type_ids}
    if "i" in layout.split():
        prompt["pixel_values"] = pixels(layout.split().count("i"), seed)
    return prompt


def batch_of(layouts: list[str]) -> dict[str, torch.Tensor]:
    """Left-padded; the pictures of all rows in order."""
    prompts = [prompt_of(layout, seed) for seed, layout in enumerate(layouts)]
    input_ids, attention_mask = left_padded([prompt["input_ids"] for prompt in prompts])
    token_type_ids, _ = left_padded([prompt["token_type_ids"] for prompt in prompts])
    pictures = [prompt["pixel_values"] for prompt in prompts if "pixel_values" in prompt]
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
    return {**batch, "pixel_values": torch.cat(pictures)} if pictures else batch


def test_the_small_model_has_what_these_tests_are_about(ours):
    text = ours.config.text_config
    assert {text.layer_type(i) for i in range(text.num_hidden_layers)} == {LOCAL, GLOBAL}
    assert text.layer_type(text.num_hidden_layers - 1) == LOCAL, "an error of a global layer must pass a local one"
    assert text.rope_for(GLOBAL) != text.rope_for(LOCAL)
    assert text.attention_scale != text.head_dim**-0.5
    assert text.num_key_value_groups > 1
    assert text.sliding_window == WINDOW < max(prompt_of(layout)["input_ids"].shape[1] for layout in LAYOUTS.values())
    assert all(parameter.abs().max() > 0 for parameter in ours.parameters())


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_logits_and_every_hidden_state(ours, theirs, layout):
    prompt = prompt_of(layout)
    mine = ours(**prompt, output_hidden_states=True)
    reference = theirs(**prompt, output_hidden_states=True)
    assert_equal(mine.logits, reference.logits)
    assert len(mine.hidden_states) == len(reference.hidden_states) == ours.config.text_config.num_hidden_layers + 1
    for own, other in zip(mine.hidden_states, reference.hidden_states, strict=True):
        assert_equal(own, other)


@pytest.mark.parametrize("layout", ["t5", f"t{WINDOW}", f"t{4 * WINDOW + 3}"])
@torch.no_grad()
def test_text_only_model_logits_and_every_hidden_state(our_text, their_text, layout):
    input_ids, _ = image_prompt(layout)
    mine = our_text(input_ids=input_ids, output_hidden_states=True)
    reference = their_text(input_ids=input_ids, output_hidden_states=True)
    assert_equal(mine.logits, reference.logits)
    for own, other in zip(mine.hidden_states, reference.hidden_states, strict=True):
        assert_equal(own, other)


@torch.no_grad()
def test_image_features(ours, theirs):
    pictures = pixels(3, seed=5)
    mine, reference = ours.get_image_features(pictures), theirs.get_image_features(pictures)
    assert mine.pooler_output.shape == (3, TOKENS_PER_IMAGE, ours.config.text_config.hidden_size)
    assert_equal(mine.last_hidden_state, reference.last_hidden_state)
    assert_equal(mine.pooler_output, reference.pooler_output)


@torch.no_grad()
def test_soft_tokens_are_the_image_hidden_states_and_may_stand_in_for_pixels(ours, theirs):
    prompt = prompt_of("t4 i t3 i t2")
    mine, reference = ours(**prompt), theirs(**prompt)
    assert_equal(mine.image_hidden_states, reference.image_hidden_states)
    soft_tokens = ours.get_image_features(prompt.pop("pixel_values")).pooler_output
    assert torch.equal(ours(**prompt, soft_tokens=soft_tokens).logits, mine.logits)


@pytest.mark.parametrize("layout", ["t9", "t20 i t30 i t5", "i i t40"])
@torch.no_grad()
def test_eager_attention_and_its_weights(reference_folder, layout):
    mine = Gemma3ForConditionalGeneration.from_pretrained(reference_folder, attn_implementation="eager")
    reference = ReferenceModel.from_pretrained(reference_folder, attn_implementation="eager").eval()
    prompt = prompt_of(layout)
    own, other = mine(**prompt, output_attentions=True), reference(**prompt, output_attentions=True)
    assert_equal(own.logits, other.logits)
    assert len(own.attentions) == mine.config.text_config.num_hidden_layers
    for weights, expected in zip(own.attentions, other.attentions, strict=True):
        assert_equal(weights, expected)
    assert_equal(own.attentions[0].sum(-1), torch.ones_like(own.attentions[0].sum(-1)))


@torch.no_grad()
def test_asking_for_attentions_changes_nothing_else(ours):
    prompt = prompt_of("t9 i t30")
    plain, open_form = ours(**prompt), ours(**prompt, output_attentions=True)
    assert plain.attentions is None
    assert plain.hidden_states is None
    assert_equal(open_form.logits, plain.logits)


@torch.no_grad()
def test_left_padded_batch_equals_transformers_and_each_row_alone(ours, theirs):
    layouts = ["t3", "t7 i t30", f"t{3 * WINDOW}", "t2 i t4 i t1"]
    batch = batch_of(layouts)
    position_ids = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    mine = ours(**batch, position_ids=position_ids).logits
    reference = theirs(**batch, position_ids=position_ids).logits
    real = batch["attention_mask"].bool()
    assert_equal(mine[real], reference[real])
    for row, layout in enumerate(layouts):
        alone = ours(**prompt_of(layout, seed=row)).logits[0]
        assert_equal(mine[row][real[row]], alone)


@torch.no_grad()
def test_right_padded_batch_equals_transformers(our_text, their_text):
    rows = [image_prompt(layout, seed)[0] for seed, layout in enumerate(["t3", "t50", "t11"])]
    input_ids, mask = (tensor.flip(1) for tensor in left_padded([row.flip(1) for row in rows]))
    mine = our_text(input_ids=input_ids, attention_mask=mask).logits
    reference = their_text(input_ids=input_ids, attention_mask=mask).logits
    assert_equal(mine[mask.bool()], reference[mask.bool()])


@torch.no_grad()
def test_padding_leaves_no_nan_anywhere(ours):
    batch = batch_of(["t1", "t7 i t30"])
    for attentions in (False, True):
        out = ours(**batch, output_hidden_states=True, output_attentions=attentions)
        assert all(torch.isfinite(state).all() for state in [*out.hidden_states, out.logits])


@torch.no_grad()
def test_without_token_types_image_blocks_are_causal_as_in_transformers(ours, theirs):
    prompt = prompt_of("t5 i t9")
    blockwise = ours(**prompt).logits
    del prompt["token_type_ids"]
    mine = ours(**prompt).logits
    assert_equal(mine, theirs(**prompt).logits)
    assert (mine - blockwise).abs().max() > 1e-3, "the block must make a difference, or this tests nothing"


@torch.no_grad()
def test_with_and_without_cache(ours):
    prompt = prompt_of("t20 i t30 i t5")
    with_cache, without = ours(**prompt, use_cache=True), ours(**prompt, use_cache=False)
    assert without.past_key_values is None
    assert with_cache.past_key_values.get_seq_length() == prompt["input_ids"].shape[1]
    assert_equal(with_cache.logits, without.logits)


@torch.no_grad()
def test_decoding_far_past_the_ring_equals_one_pass(ours, theirs):
    prompt = prompt_of("t4 i t9")
    more = image_prompt(f"t{5 * WINDOW}", seed=3)[0][:, 1:]
    whole = {**prompt, "input_ids": torch.cat([prompt["input_ids"], more], 1)}
    whole["token_type_ids"] = (whole["input_ids"] == SOFT).long()
    reference = theirs(**whole).logits
    cache = KVCache(ours.config.text_config)
    steps = [ours(**prompt, past_key_values=cache).logits]
    steps += [ours(input_ids=token[None], past_key_values=cache).logits for token in more.T]
    assert_equal(torch.cat(steps, 1), reference)


@pytest.mark.parametrize("reserve", [0, 1, WINDOW - 1])
@pytest.mark.parametrize("layouts", [["t4", "t9", f"t{WINDOW}"], ["t2 i t3", "t1"], [f"t{3 * WINDOW} i t2"]], ids=str)
@torch.no_grad()
def test_a_growing_ring_gives_the_very_logits_of_a_full_one(ours, monkeypatch, reserve, layouts):
    """Step by step over the window's edge, rows of a padded batch too."""
    monkeypatch.setattr(cache_module, "_LEAST_GROWTH", 1)
    batch = batch_of(layouts)
    more = image_prompt(f"t{3 * WINDOW}", seed=5)[0][:, 1:].repeat(len(layouts), 1)
    results = []
    for room in (reserve, 10 * WINDOW):
        cache = KVCache(ours.config.text_config, reserve=room)
        steps = [ours(**batch, past_key_values=cache).logits]
        steps += [ours(input_ids=tokens[:, None], past_key_values=cache).logits for tokens in more.T]
        results.append(torch.cat(steps, 1))
    assert torch.equal(*results)


@pytest.mark.parametrize("chunks", [[1, 3], [WINDOW - 1, 1, WINDOW + 1], [2 * WINDOW, 7], [5, WINDOW, 3 * WINDOW]])
@torch.no_grad()
def test_prefill_in_chunks_equals_one_pass(our_text, their_text, chunks):
    total = sum(chunks) + 4
    input_ids = image_prompt(f"t{total - 1}")[0]
    cache = KVCache(our_text.config)
    parts = [our_text(input_ids=part, past_key_values=cache).logits for part in input_ids.split([*chunks, 4], dim=1)]
    assert_equal(torch.cat(parts, 1), their_text(input_ids=input_ids).logits)


@pytest.mark.parametrize("first", ["t6 i t2", f"t{2 * WINDOW} i t3", "t2"])
@torch.no_grad()
def test_second_turn_with_new_images_on_an_existing_cache_equals_one_pass(ours, theirs, first):
    turns = [prompt_of(first, 1), prompt_of("t3 i i t8", 2), prompt_of(f"t{WINDOW} i t1", 3)]
    together = {name: torch.cat([turn[name] for turn in turns], 1) for name in ("input_ids", "token_type_ids")}
    together["pixel_values"] = torch.cat([turn["pixel_values"] for turn in turns if "pixel_values" in turn])
    cache = KVCache(ours.config.text_config)
    parts = [ours(**turn, past_key_values=cache).logits for turn in turns]
    assert_equal(torch.cat(parts, 1), theirs(**together).logits)


@torch.no_grad()
def test_padded_batch_decoded_step_by_step_equals_one_pass(ours, theirs):
    batch = batch_of(["t3", f"t9 i t{WINDOW}"])
    more = image_prompt(f"t{2 * WINDOW}", seed=4)[0][:, 1:].repeat(2, 1)
    more[1] = more[1].flip(0)
    input_ids = torch.cat([batch["input_ids"], more], 1)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(more)], 1)
    whole = {**batch, "input_ids": input_ids, "attention_mask": mask, "token_type_ids": (input_ids == SOFT).long()}
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    reference = theirs(**whole, position_ids=position_ids).logits
    first = batch["input_ids"].shape[1]
    cache = KVCache(ours.config.text_config)
    steps = [ours(**batch, position_ids=position_ids[:, :first], past_key_values=cache).logits]
    for column in range(first, input_ids.shape[1]):
        step = {"input_ids": input_ids[:, column : column + 1], "position_ids": position_ids[:, column : column + 1]}
        if column % 2:  # the mask may be given or left out: the cache remembers what is padding
            step["attention_mask"] = mask[:, : column + 1]
        steps.append(ours(**step, past_key_values=cache).logits)
    assert_equal(torch.cat(steps, 1)[mask.bool()], reference[mask.bool()])


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 7, 11]), torch.tensor([-1])], ids=str)
@torch.no_grad()
def test_logits_to_keep(ours, theirs, keep):
    prompt = prompt_of("t5 i t9")
    mine = ours(**prompt, logits_to_keep=keep).logits
    assert_equal(mine, theirs(**prompt, logits_to_keep=keep).logits)
    assert mine.shape[1] == (keep if isinstance(keep, int) else len(keep))


@torch.no_grad()
def test_inputs_embeds_instead_of_ids(our_text, their_text):
    input_ids = image_prompt("t40")[0]
    embeds = our_text.model.embed_tokens(input_ids)
    assert_equal(embeds, their_text.model.embed_tokens(input_ids))
    assert torch.equal(our_text(inputs_embeds=embeds).logits, our_text(input_ids=input_ids).logits)


@torch.no_grad()
def test_logit_softcapping_of_the_text_model(reference_text_folder, our_text):
    from reference import reference_text_config

    reference = ReferenceCausalLM.from_pretrained(reference_text_folder, config=_capped(reference_text_config())).eval()
    mine = Gemma3ForCausalLM(our_text.config.replace(final_logit_softcapping=3.0)).eval()
    mine.load_state_dict(our_text.state_dict())
    input_ids = image_prompt("t30")[0]
    logits = mine(input_ids=input_ids).logits
    assert_equal(logits, reference(input_ids=input_ids).logits)
    assert logits.abs().max() <= 3.0


def _capped(config):
    config.final_logit_softcapping = 3.0
    return config


@torch.no_grad()
def test_a_soft_token_id_beyond_the_vocabulary(ours):
    """Some published vocabularies end before it."""
    beyond = ours.config.text_config.vocab_size + 5
    prompt = prompt_of("t5 i t9")
    expected = ours(**prompt).logits
    ids = prompt["input_ids"]
    moved = {**prompt, "input_ids": ids.masked_fill(ids == SOFT, beyond)}
    config = ours.config
    ours.model.config = config.replace(image_token_index=beyond)
    try:
        assert torch.equal(ours(**moved).logits, expected)
    finally:
        ours.model.config = config


@pytest.mark.parametrize("use_cache", [None, False])
@pytest.mark.parametrize("layout", ["t9", "t20 i t30 i t5"])
def test_loss_and_gradients(reference_folder, layout, use_cache):
    mine = Gemma3ForConditionalGeneration.from_pretrained(reference_folder).train()
    reference = ReferenceModel.from_pretrained(reference_folder).train()
    prompt = prompt_of(layout)
    labels = prompt["input_ids"].masked_fill(prompt["token_type_ids"] == 1, -100)
    labels[:, :3] = -100
    own = mine(**prompt, labels=labels, use_cache=use_cache).loss
    other = reference(**prompt, labels=labels).loss
    assert_equal(own, other)
    own.backward()
    other.backward()
    theirs = {module_name(name, multimodal=True): p.grad for name, p in reference.named_parameters()}
    assert_gradients_equal({name: p.grad for name, p in mine.named_parameters()}, theirs)


def assert_gradients_equal(ours: dict[str, torch.Tensor | None], theirs: dict[str, torch.Tensor | None]) -> None:
    """Per tensor, as everywhere; one that should be zero (a bias on keys) may be so by rounding only."""
    assert ours.keys() == theirs.keys()
    largest = max(grad.abs().max() for grad in theirs.values() if grad is not None)
    for name, expected in theirs.items():
        grad = ours[name]
        if expected is None or grad is None:
            assert grad is expected, name
        elif expected.abs().max() < 1e-7 * largest:
            assert grad.abs().max() < 1e-6 * largest, name
        else:
            assert_equal(grad, expected)


def test_gradients_of_a_left_padded_batch(reference_text_folder):
    mine = Gemma3ForCausalLM.from_pretrained(reference_text_folder).train()
    reference = ReferenceCausalLM.from_pretrained(reference_text_folder).train()
    rows = [image_prompt(layout, seed)[0] for seed, layout in enumerate(["t3", "t50"])]
    input_ids, mask = left_padded(rows)
    labels = input_ids.masked_fill(mask == 0, -100)
    own = mine(input_ids=input_ids, attention_mask=mask, labels=labels).loss
    other = reference(input_ids=input_ids, attention_mask=mask, labels=labels).loss
    assert_equal(own, other)
    own.backward()
    other.backward()
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert_gradients_equal({name: parameter.grad for name, parameter in mine.named_parameters()}, theirs)


@torch.no_grad()
def test_results_are_read_by_attribute_key_and_number(ours):
    out = ours(**prompt_of("t9"), use_cache=False)
    assert out["logits"] is out.logits is out[0]
    assert "loss" not in out
    assert list(out) == ["logits"]
    with pytest.raises(KeyError):
        out["loss"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pixel_values": pixels(2)}, ["16 soft tokens", "2 x 16"]),
        ({"pixel_values": pixels(1)[..., :56]}, ["112", "56"]),
        ({"pixel_values": pixels(1)[0]}, ["[pictures, 3, 112, 112]", "[3, 112, 112]"]),
        ({"pixel_values": pixels(1)[:, :1]}, ["[pictures, 3, 112, 112]", "[1, 1, 112, 112]"]),
        ({"attention_mask": torch.ones(1, 5)}, ["attention_mask", "[1, 5]"]),
        ({"attention_mask": torch.ones(2, 31)}, ["attention_mask", "[2, 31]"]),
        ({"attention_mask": torch.ones(31)}, ["attention_mask", "[31]"]),
        ({"input_ids": None}, ["input_ids", "inputs_embeds"]),
    ],
)
@torch.no_grad()
def test_inputs_that_do_not_fit_are_refused_with_both_counts(ours, change, words):
    with pytest.raises(PromptError) as error:
        ours(**{**prompt_of("t5 i t7"), **change})
    assert all(word in str(error.value) for word in words), str(error.value)

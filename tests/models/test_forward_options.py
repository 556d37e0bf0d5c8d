"""What forward takes and returns, against transformers: tuples, masks, embeddings, losses; and bad input."""

from typing import Any

import pytest
import torch
from reference import SOFT, WINDOW, assert_equal, image_prompt, left_padded, pixels
from transformers import Gemma3Model as ReferenceBase
from transformers import Gemma3TextModel as ReferenceTextModel

from gemma3_core.config.gemma3 import GLOBAL, LOCAL
from gemma3_core.errors import PromptError, UnsupportedOptionError
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration, Gemma3Model
from gemma3_core.models.text import Gemma3TextModel
from gemma3_core.nn.cache import KVCache
from gemma3_core.nn.masks import image_blocks

LONG = f"t{2 * WINDOW} i t9 i t30"


def prompt_of(layout: str, seed: int = 0) -> dict[str, torch.Tensor]:
    input_ids, types = image_prompt(layout, seed)
    prompt = {"input_ids": input_ids, "token_type_ids": types}
    count = layout.split().count("i")
    return {**prompt, "pixel_values": pixels(count, seed)} if count else prompt


def assert_results_equal(own: Any, other: Any) -> None:
    """The same keys in the same order, and every tensor equal, however deep in tuples."""
    assert list(own.keys()) == list(other.keys())
    assert len(own) == len(other)
    for key in own.keys() - {"past_key_values"}:
        mine, expected = own[key], other[key]
        if isinstance(expected, torch.Tensor):
            mine, expected = (mine,), (expected,)
        assert len(mine) == len(expected), key
        for one, another in zip(mine, expected, strict=True):
            assert_equal(one, another)


EVERYTHING = {"output_hidden_states": True, "output_attentions": True}


@torch.no_grad()
def test_the_base_models_return_what_those_of_transformers_do(reference_folder, reference_text_folder):
    """Loaded from a whole checkpoint, its head left out; weights of both layer kinds, in the open form."""
    eager = {"attn_implementation": "eager"}
    mine = Gemma3Model.from_pretrained(reference_folder, **eager)
    reference = ReferenceBase.from_pretrained(reference_folder, **eager).eval()
    prompt = prompt_of(LONG)
    assert_results_equal(mine(**prompt, **EVERYTHING), reference(**prompt, **EVERYTHING))
    pictures = pixels(3)
    assert_results_equal(mine.get_image_features(pictures), reference.get_image_features(pictures))
    mine_text = Gemma3TextModel.from_pretrained(reference_text_folder, **eager)
    reference_text = ReferenceTextModel.from_pretrained(reference_text_folder, **eager).eval()
    ids, mask = left_padded([image_prompt("t3")[0], image_prompt(f"t{3 * WINDOW}", 1)[0]])
    own, other = (m(ids, attention_mask=mask).last_hidden_state for m in (mine_text, reference_text))
    assert_equal(own[mask.bool()], other[mask.bool()])
    assert_results_equal(mine_text(ids[1:], **EVERYTHING), reference_text(ids[1:], **EVERYTHING))


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"use_cache": False}], ids=["", "everything", "no cache"])
@torch.no_grad()
def test_results_have_the_keys_and_the_order_of_transformers(ours, theirs, options):
    prompt = prompt_of("t5 i t3")
    own, other = ours(**prompt, **options), theirs(**prompt, **options)
    assert list(own.keys()) == list(other.keys())
    assert [type(value) for value in own.values() if not isinstance(value, KVCache)] == [
        type(value) for key, value in other.items() if key != "past_key_values"
    ]
    assert own["logits"] is own.logits is own[0]
    assert own[:1] == (own.logits,)
    assert own[-1] is own.image_hidden_states
    assert own.get("loss") is None
    assert "loss" not in own
    assert dict(own)["logits"] is own.logits
    with pytest.raises(KeyError):
        own["loss"]
    own["loss"] = own.logits.sum()
    assert own[0] is own.loss
    with pytest.raises(KeyError):
        own["gain"] = 1


@torch.no_grad()
def test_tuples_instead_of_objects(ours, theirs, our_text, their_text):
    prompt = {**prompt_of("t5 i t3"), "labels": prompt_of("t5 i t3")["input_ids"]}
    own, other = ours(**prompt, return_dict=False), theirs(**prompt, return_dict=False)
    assert isinstance(own, tuple)
    assert len(own) == len(other)
    assert_equal(own[0], other[0])
    assert_equal(own[1], other[1])
    own, other = (m(prompt["input_ids"] % 200, return_dict=False, use_cache=False) for m in (our_text, their_text))
    assert_equal(own[0], other[0])
    assert len(own) == len(other) == 1
    own, other = (m.get_image_features(pixels(1), return_dict=False) for m in (ours, theirs))
    assert_equal(own[1], other[1])
    assert isinstance(ours.model(prompt["input_ids"], return_dict=False), tuple)
    assert isinstance(our_text.model(prompt["input_ids"] % 200, return_dict=False), tuple)


@torch.no_grad()
def test_pictures_take_their_places_in_embeddings(ours, theirs):
    prompt = prompt_of(LONG)
    expected = theirs(**prompt).logits
    prompt["inputs_embeds"] = ours.get_input_embeddings()(prompt.pop("input_ids"))
    assert_equal(ours(**prompt).logits, expected)
    assert_equal(theirs(**prompt).logits, expected)
    with pytest.raises(PromptError, match="one picture for each place"):
        ours(**{**prompt, "pixel_values": pixels(1)})


@torch.no_grad()
def test_pictures_may_be_encoded_before(ours, theirs):
    prompt = prompt_of(LONG)
    pictures = prompt.pop("pixel_values")
    own = ours(**prompt, mm_encoder_outputs={"image": ours.get_image_features(pictures)})
    other = theirs(**prompt, mm_encoder_outputs={"image": theirs.get_image_features(pictures)})
    assert_equal(own.logits, other.logits)
    assert_equal(own.image_hidden_states, other.image_hidden_states)
    with pytest.raises(PromptError, match="twice"):
        ours(**prompt, pixel_values=pictures, soft_tokens=own.image_hidden_states)


def causal(tokens: int, dtype: torch.dtype) -> torch.Tensor:
    allowed = torch.ones(2, 1, tokens, tokens, dtype=torch.bool).tril()
    allowed[1, :, :, :2] = False
    allowed[1, :, :2, 0] = True  # a row that sees nothing would be no softmax
    if dtype == torch.bool:
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
@torch.no_grad()
def test_one_ready_mask_for_all_layers(our_text, their_text, dtype):
    """As in transformers it takes the place of the window, too."""
    ids = image_prompt(f"t{2 * WINDOW}")[0].repeat(2, 1)
    mask = causal(ids.shape[1], dtype)
    own = our_text(input_ids=ids, attention_mask=mask).logits
    assert_equal(own, their_text(input_ids=ids, attention_mask=mask).logits)
    assert (own[0] - our_text(input_ids=ids).logits[0]).abs().max() > 1e-3, "the window must make a difference"
    assert_equal(our_text(input_ids=ids, attention_mask=mask, use_cache=False).logits, own)


@torch.no_grad()
def test_ready_masks_by_layer_kind(ours, theirs, reference_folder):
    prompt = prompt_of(LONG)
    tokens = prompt["input_ids"].shape[1]
    blocks, columns = image_blocks(prompt["token_type_ids"]), torch.arange(tokens)[None]
    from gemma3_core.nn.masks import attention_mask

    window = ours.config.text_config.sliding_window
    ready = {
        GLOBAL: attention_mask(columns, columns, blocks, blocks, None)[:, None],
        LOCAL: attention_mask(columns, columns, blocks, blocks, window)[:, None],
    }
    del prompt["token_type_ids"]
    own = ours(**prompt, attention_mask=dict(ready)).logits
    assert_equal(own, theirs(**prompt, attention_mask=dict(ready)).logits)
    assert_equal(own, ours(**prompt_of(LONG)).logits)
    eager = Gemma3ForConditionalGeneration.from_pretrained(reference_folder, attn_implementation="eager")
    assert_equal(eager(**prompt, attention_mask=dict(ready)).logits, own)


@pytest.mark.parametrize("size", [1, 40])
def test_loss_over_a_larger_batch_and_of_the_text_model(ours, theirs, our_text, their_text, size):
    prompt = prompt_of("t5 i t9")
    labels = prompt["input_ids"].masked_fill(prompt["token_type_ids"] == 1, -100)
    with torch.no_grad():
        own, other = (m(**prompt, labels=labels, num_items_in_batch=torch.tensor(size)).loss for m in (ours, theirs))
        assert_equal(own, other)
    ids = image_prompt(f"t{2 * WINDOW}")[0]
    own, other = (m(input_ids=ids, labels=ids).loss for m in (our_text, their_text))
    assert_equal(own, other)
    own.backward()
    other.backward()
    assert_equal(our_text.model.embed_tokens.weight.grad, their_text.model.embed_tokens.weight.grad)
    our_text.zero_grad()
    their_text.zero_grad()


@pytest.mark.parametrize("first", [4_000, 131_000])
@torch.no_grad()
def test_positions_up_to_the_longest_context(our_text, their_text, first):
    """131,072 tokens: both layer kinds turn by them as transformers does, in float32."""
    ids = image_prompt(f"t{2 * WINDOW}")[0]
    positions = torch.arange(first, first + ids.shape[1])[None]
    assert int(positions[0, -1]) < 131_072
    own = our_text(input_ids=ids, position_ids=positions).logits
    assert_equal(own, their_text(input_ids=ids, position_ids=positions).logits)
    spread = torch.linspace(0, 131_071, ids.shape[1]).long()[None]
    own, other = (m(input_ids=ids, position_ids=spread).logits for m in (our_text, their_text))
    assert_equal(own, other)
    assert (own - our_text(input_ids=ids).logits).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "either"),
        ({"input_ids": torch.zeros(1, 3)}, "float32"),
        ({"input_ids": [[1, 2]]}, "return_tensors"),
        ({"input_ids": torch.tensor([1, 2])}, r"\[2\]"),
        ({"input_ids": torch.empty(1, 0, dtype=torch.long)}, "not empty"),
        ({"inputs_embeds": torch.zeros(1, 3, dtype=torch.long)}, "inputs_embeds"),
        ({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(3, 3)}, r"\[3, 3\]"),
        ({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 4)}, r"\[2, 4\]"),
        ({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(3, 1, 3, 3)}, r"\[3, 1, 3, 3\]"),
        ({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 1, 3, 3)}, "0 and -inf"),
        ({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 1, 3, 4)}, r"\[2, 1, 3, 4\]"),
        ({"input_ids": torch.ones(2, 3).long(), "attention_mask": {LOCAL: torch.ones(1)}}, GLOBAL),
        ({"input_ids": torch.ones(2, 3).long(), "position_ids": torch.ones(2, 4).long()}, "position_ids"),
        ({"input_ids": torch.ones(2, 3).long(), "token_type_ids": torch.ones(2, 4).long()}, "token_type_ids"),
        ({"input_ids": torch.ones(2, 3).long(), "labels": torch.ones(2, 4).long()}, "labels"),
        ({"input_ids": torch.ones(2, 3).long(), "pixel_values": torch.ones(1, 3, 8, 8)}, "pixel_values"),
        ({"input_ids": torch.full((1, 16), SOFT), "pixel_values": pixels(1).byte()}, "uint8"),
        ({"input_ids": torch.full((1, 15), SOFT), "pixel_values": pixels(1)}, "15 soft tokens"),
    ],
    ids=str,
)
@torch.no_grad()
def test_bad_input_is_told(ours, given, word):
    with pytest.raises(PromptError, match=word):
        ours(**given)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"cache_position": torch.arange(3)}, "cache_position"),
        ({"shiny": True}, "shiny"),
        ({"past_key_values": ((torch.zeros(1),),)}, "KVCache, got tuple"),
    ],
)
@torch.no_grad()
def test_options_that_forward_does_not_know_are_named(ours, our_text, options, word):
    for model in (ours, ours.model, our_text, our_text.model):
        with pytest.raises(UnsupportedOptionError, match=word):
            model(input_ids=torch.ones(1, 3).long(), **options)
        assert model(input_ids=torch.ones(1, 3).long(), cache_position=None) is not None
    with pytest.raises(UnsupportedOptionError, match="interpolate"):
        ours.get_image_features(pixels(1), interpolate=True)


@torch.no_grad()
def test_a_cache_has_as_many_rows_as_the_prompt_and_takes_no_ready_masks(our_text):
    cache = our_text(input_ids=torch.ones(2, 3).long()).past_key_values
    assert cache.batch_size == 2
    with pytest.raises(PromptError, match="1 rows, past_key_values 2"):
        our_text(input_ids=torch.ones(1, 1).long(), past_key_values=cache)
    with pytest.raises(PromptError, match="on top of past_key_values"):
        our_text(input_ids=torch.ones(2, 1).long(), attention_mask=torch.ones(2, 1, 1, 4).bool(), past_key_values=cache)
    with pytest.raises(PromptError, match=r"\[2, 4\] with what the cache holds"):
        our_text(input_ids=torch.ones(2, 1).long(), attention_mask=torch.ones(2, 3), past_key_values=cache)

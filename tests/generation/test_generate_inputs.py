"""What `generate` begins with, against transformers: prompts of every form, caches handed in; and bad prompts."""

import copy

import pytest
import torch
from reference import (
    NEVER,
    WINDOW,
    assert_equal,
    ids_of,
    picture_prompt,
    pixels,
    text_batch,
)

from gemma3_core.errors import PromptError, UnsupportedOptionError
from gemma3_core.nn.cache import KVCache


@pytest.fixture(scope="module")
def weights(sharp_weights):
    return sharp_weights


def test_pad_and_mask_are_worked_out_as_in_transformers(our_text, their_text):
    """Without a mask padding is where the pad id stands; without a pad id the first stop fills rows up."""
    input_ids = text_batch()["input_ids"]
    expected = their_text.generate(input_ids, max_new_tokens=9, eos_token_id=NEVER)
    assert torch.equal(our_text.generate(input_ids, max_new_tokens=9, eos_token_id=NEVER), expected)
    masked = our_text.generate(**text_batch(), max_new_tokens=9, eos_token_id=NEVER)
    assert torch.equal(masked, expected), "the mask that is worked out is the right one"
    stops = expected[1:2, -6].tolist()
    given = {**text_batch(), "max_new_tokens": 9, "eos_token_id": stops, "pad_token_id": None}
    assert torch.equal(our_text.generate(**given), their_text.generate(**given))


def test_without_a_prompt_a_text_begins_with_bos(our_text, their_text):
    expected = their_text.generate(max_new_tokens=7, bos_token_id=5)
    assert torch.equal(our_text.generate(max_new_tokens=7, bos_token_id=5), expected)
    assert torch.equal(our_text.generate(max_new_tokens=7), their_text.generate(max_new_tokens=7))
    with pytest.raises(PromptError, match="bos_token_id"):
        our_text.generate(max_new_tokens=7, bos_token_id=None)


def test_positions_may_be_given(our_text, their_text):
    given = {"input_ids": ids_of("t9"), "position_ids": torch.arange(50, 60)[None], "max_new_tokens": 12}
    expected = their_text.generate(**given)
    assert torch.equal(our_text.generate(**given), expected)
    assert torch.equal(our_text.generate(**given, use_cache=False), expected)


@pytest.mark.parametrize("with_ids", [False, True])
def test_embeddings_instead_of_ids(our_text, their_text, with_ids):
    """A prompt in several chunks; without ids only what is new comes back."""
    ids = ids_of(f"t{3 * WINDOW}")
    given = {"inputs_embeds": their_text.get_input_embeddings()(ids).detach(), "max_new_tokens": 20}
    given |= {"input_ids": ids} if with_ids else {}
    expected = their_text.generate(**given)
    assert torch.equal(our_text.generate(**given, prefill_chunk_size=20), expected)
    assert expected.shape[1] == (ids.shape[1] if with_ids else 0) + 20
    with pytest.raises(UnsupportedOptionError, match="use_cache"):
        our_text.generate(**given, use_cache=False)
    longer = {**given, "max_new_tokens": None, "max_length": ids.shape[1] + 4}
    assert torch.equal(our_text.generate(**longer), their_text.generate(**longer))


@pytest.mark.parametrize("chunk", [None, 20])
@pytest.mark.parametrize("with_types", [True, False])
def test_pictures_take_their_places_in_embeddings(ours, theirs, chunk, with_types):
    """transformers' generate takes no embeddings for this class; its forward does."""
    prompt = picture_prompt("t5 i t9 i t30")
    if not with_types:
        del prompt["token_type_ids"]
    expected = theirs.generate(**prompt, max_new_tokens=9)[:, -9:]
    prompt["inputs_embeds"] = theirs.get_input_embeddings()(prompt.pop("input_ids")).detach()
    assert torch.equal(ours.generate(**prompt, max_new_tokens=9, prefill_chunk_size=chunk), expected)


def test_the_naive_loop_without_a_cache_gives_the_cached_tokens(ours, theirs):
    given = {**picture_prompt("t9 i t5"), "max_new_tokens": 12, "eos_token_id": NEVER}
    expected = ours.generate(**given)
    naive = ours.generate(**given, use_cache=False, return_dict_in_generate=True)
    assert torch.equal(naive.sequences, expected)
    assert naive.past_key_values is None
    assert torch.equal(theirs.generate(**given, use_cache=False), expected)
    padded = {**text_batch(), "max_new_tokens": 12, "eos_token_id": NEVER}
    del padded["attention_mask"]
    rows = {**padded, "token_type_ids": torch.zeros_like(padded["input_ids"])}
    assert torch.equal(ours.generate(**rows, use_cache=False), ours.generate(**rows))


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"input_ids": [[2, 5]]}, "list"),
        ({"input_ids": torch.zeros(1, 3)}, "float32"),
        ({"input_ids": torch.tensor([2, 5])}, r"\[batch, tokens\]"),
        ({"input_ids": torch.empty(1, 0, dtype=torch.long)}, "empty"),
        ({"input_ids": torch.tensor([[2, 251]])}, "251"),
        ({"input_ids": torch.tensor([[2, -5]])}, "-5"),
        ({"input_ids": torch.tensor([[2, 5]]), "attention_mask": torch.ones(2, 2)}, r"\[1, 2\]"),
        ({"input_ids": torch.tensor([[2, 5]]), "attention_mask": torch.ones(1, 3)}, r"\[1, 3\]"),
        ({"input_ids": torch.tensor([[2, 5]]), "attention_mask": torch.ones(1, 1, 2, 2)}, "ready masks"),
        ({"input_ids": torch.tensor([[2, 5]]), "attention_mask": torch.tensor([[1, 0]])}, "left"),
        ({"input_ids": torch.tensor([[2, 5], [0, 0]])}, "empty"),
        ({"input_ids": torch.tensor([[2, 5]]), "position_ids": torch.zeros(1, 3)}, "position_ids"),
        ({"inputs": torch.tensor([[2]]), "input_ids": torch.tensor([[2]])}, "twice"),
        ({"inputs_embeds": torch.zeros(1, 3, 63)}, "63"),
        ({"inputs_embeds": torch.zeros(1, 3, 64), "input_ids": torch.tensor([[2]])}, "inputs_embeds"),
        ({"attention_mask": torch.ones(1, 3)}, "no prompt"),
        ({"input_ids": torch.tensor([[2, 5, 6]]), "max_length": 3}, "max_length=3"),
    ],
    ids=str,
)
def test_prompts_that_can_not_be_answered(our_text, given, word):
    with pytest.raises(PromptError, match=word):
        our_text.generate(**given)


def test_pictures_must_fit_their_places(ours):
    prompt = picture_prompt("t5 i t3 i t2")
    for count in (1, 3):
        with pytest.raises(PromptError, match=f"2 pictures, pixel_values hold {count}"):
            ours.generate(**{**prompt, "pixel_values": pixels(count)})
    with pytest.raises(PromptError, match="hold 0"):
        ours.generate(**{name: value for name, value in prompt.items() if name != "pixel_values"})
    cut = {name: value if name == "pixel_values" else value[:, :-9] for name, value in prompt.items()}
    with pytest.raises(PromptError, match="cut off inside a picture"):
        ours.generate(**cut)
    with pytest.raises(PromptError, match="token_type_ids"):
        ours.generate(**{**prompt, "token_type_ids": prompt["token_type_ids"][:, 1:]})


def turns(count: int) -> list[dict[str, torch.Tensor]]:
    return [
        picture_prompt(layout, seed) for seed, layout in enumerate(["t6 i t9", "t3 i t30", f"t{WINDOW} i t2"][:count])
    ]


def joined(before: torch.Tensor, turn: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ids = torch.cat([before, turn["input_ids"]], 1)
    return {"input_ids": ids, "token_type_ids": (ids == 250).long(), "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("form", ["whole", "whole without mask", "all pictures", "new alone"])
def test_a_conversation_goes_on_from_its_cache(ours, theirs, form):
    """Each turn gives the tokens of one call over everything, and only what the cache lacks is read."""
    cache, ids, pictures = None, torch.empty(1, 0, dtype=torch.long), []
    for turn in turns(3):
        pictures.append(turn["pixel_values"])
        whole = joined(ids, turn)
        expected = theirs.generate(**whole, pixel_values=torch.cat(pictures), max_new_tokens=9, eos_token_id=NEVER)
        given = {**whole, "pixel_values": torch.cat(pictures) if form == "all pictures" else turn["pixel_values"]}
        if form == "whole without mask":
            del given["attention_mask"]
        before = 0 if cache is None else cache.get_seq_length()
        if form == "new alone" and cache is not None:
            given |= {name: whole[name][:, before:] for name in ("input_ids", "token_type_ids")}
        out = ours.generate(
            **given, past_key_values=cache, max_new_tokens=9, eos_token_id=NEVER, return_dict_in_generate=True
        )
        assert torch.equal(out.sequences[:, -9:], expected[:, -9:])
        assert cache is None or out.past_key_values is cache
        cache, ids = out.past_key_values, expected
        assert cache.get_seq_length() == expected.shape[1] - 1, "the last token is read with the next turn"


def test_a_cache_of_forward_serves_generate_and_the_other_way_round(our_text, their_text):
    first, second = ids_of("t30"), ids_of("t9", 4)
    with torch.no_grad():
        cache = our_text(input_ids=first).past_key_values
    whole = torch.cat([first, second], 1)
    expected = their_text.generate(whole, max_new_tokens=12, eos_token_id=NEVER)
    for _ in range(2):  # a copy may be used again: the prompt's beginning is read once for many
        own = copy.deepcopy(cache)
        got = our_text.generate(
            whole, past_key_values=own, max_new_tokens=12, eos_token_id=NEVER, return_dict_in_generate=True
        )
        assert torch.equal(got.sequences, expected)
    with torch.no_grad():
        after = our_text(input_ids=expected[:, -1:], past_key_values=got.past_key_values).logits
        assert_equal(after, their_text(input_ids=expected).logits[:, -1:])


def test_padded_rows_go_on_from_a_cache(our_text, their_text):
    prompt = text_batch()
    first = our_text.generate(**prompt, max_new_tokens=5, eos_token_id=NEVER, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, ids_of("t5", 7).repeat(3, 1)], 1)
    mask = torch.cat([prompt["attention_mask"], torch.ones(3, 11, dtype=torch.long)], 1)
    expected = their_text.generate(ids, attention_mask=mask, max_new_tokens=9, eos_token_id=NEVER)
    got = our_text.generate(
        ids, attention_mask=mask, past_key_values=first.past_key_values, max_new_tokens=9, eos_token_id=NEVER
    )
    assert torch.equal(got, expected)


def test_what_does_not_follow_on_a_cache_is_refused(ours, our_text):
    cache = our_text.generate(ids_of("t20"), max_new_tokens=2, return_dict_in_generate=True).past_key_values
    with pytest.raises(PromptError, match="hold 22 tokens already, the prompt has 4"):
        our_text.generate(ids_of("t3"), past_key_values=cache)
    with pytest.raises(PromptError, match="2 rows"):
        our_text.generate(ids_of("t40").repeat(2, 1), past_key_values=cache)
    with pytest.raises(UnsupportedOptionError, match="use_cache=False"):
        our_text.generate(ids_of("t40"), past_key_values=cache, use_cache=False)
    with pytest.raises(UnsupportedOptionError, match="cache_implementation"):
        our_text.generate(ids_of("t40"), past_key_values=cache, cache_implementation="static")
    prompt = picture_prompt("t5 i t2")
    cache = KVCache(ours.config.text_config)
    with torch.no_grad():
        ours(input_ids=prompt["input_ids"][:, :12], past_key_values=cache)
    with pytest.raises(PromptError, match="inside a picture"):
        ours.generate(**prompt, past_key_values=cache)


def test_ids_of_32_bits_and_masks_of_any_type_are_taken(our_text):
    prompt, count = text_batch(), {"max_new_tokens": 4}
    expected = our_text.generate(**prompt, **count)
    assert torch.equal(our_text.generate(**{**prompt, "input_ids": prompt["input_ids"].int()}, **count), expected)
    for dtype in (torch.bool, torch.float32, torch.uint8):
        mask = prompt["attention_mask"].to(dtype)
        assert torch.equal(our_text.generate(**{**prompt, "attention_mask": mask}, **count), expected)

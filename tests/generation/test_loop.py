"""Generation: tokens against transformers.generate, stops, limits, defaults, and ending early."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import (
    NEVER,
    SOFT,
    TOKENS_PER_IMAGE,
    WINDOW,
    assert_equal,
    image_prompt,
    left_padded,
    pixels,
)
from transformers import Gemma3ForConditionalGeneration as ReferenceModel
from transformers import GenerationConfig as ReferenceGenerationConfig

from gemma3_core.errors import ContextLengthError, PromptError, SamplingError, UnsupportedOptionError
from gemma3_core.generation import loop as generation
from gemma3_core.generation.chunks import chunk_ends
from gemma3_core.generation.config import DEFAULT_NEW_TOKENS, GenerationConfig, read_generation_config
from gemma3_core.generation.loop import PREFILL_CHUNK_SIZE, PrefillProgress, generate_tokens, prefill_in_chunks
from gemma3_core.generation.sampling import SamplingParams, SamplingSettings
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.nn.cache import KVCache
from gemma3_core.nn.masks import image_blocks

GREEDY = SamplingSettings(temperature=0.0)


@pytest.fixture(scope="module")
def weights(sharp_weights):
    return sharp_weights


def prompt_of(layout: str, seed: int = 0) -> dict[str, torch.Tensor]:
    input_ids, token_type_ids = image_prompt(layout, seed)
    prompt = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": torch.ones_like(input_ids)}
    count = layout.split().count("i")
    return {**prompt, "pixel_values": pixels(count, seed)} if count else prompt


def batch_of(layouts: list[str]) -> dict[str, torch.Tensor]:
    prompts = [prompt_of(layout, seed) for seed, layout in enumerate(layouts)]
    input_ids, attention_mask = left_padded([prompt["input_ids"] for prompt in prompts])
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    batch["token_type_ids"] = (input_ids == SOFT).long()
    return {**batch, "pixel_values": torch.cat([p["pixel_values"] for p in prompts if "pixel_values" in p])}


def greedy(model: Any, prompt: dict[str, torch.Tensor], count: int, stops: int | list[int] = NEVER) -> torch.Tensor:
    return model.generate(**prompt, max_new_tokens=count, do_sample=False, eos_token_id=stops)


@pytest.mark.parametrize("layout", ["t3", "t9 i t5", "t20 i t30 i t5", "i i i t2", f"t{4 * WINDOW}"])
def test_greedy_tokens_far_beyond_the_window(ours, theirs, layout):
    prompt, count = prompt_of(layout), 3 * WINDOW
    expected = greedy(theirs, prompt, count)
    assert expected.shape[1] == prompt["input_ids"].shape[1] + count, "a stop in the way would shorten this test"
    assert len(set(expected[0, -count:].tolist())) > 15, "a model that repeats itself would prove little"
    assert torch.equal(greedy(ours, prompt, count), expected)


def test_greedy_tokens_of_a_text_model(our_text, their_text):
    input_ids, _ = image_prompt("t30")
    prompt = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    expected = greedy(their_text, prompt, 3 * WINDOW)
    assert torch.equal(greedy(our_text, prompt, 3 * WINDOW), expected)
    assert torch.equal(greedy(our_text, {"input_ids": input_ids}, 3 * WINDOW), expected)


def test_left_padded_batch_equals_transformers_and_each_row_alone(ours, theirs):
    layouts = ["t3", f"t7 i t{WINDOW}", "t2 i t4 i t1", f"t{3 * WINDOW}"]
    batch, count = batch_of(layouts), 2 * WINDOW
    mine = greedy(ours, batch, count)
    assert torch.equal(mine, greedy(theirs, batch, count))
    for row, layout in enumerate(layouts):
        alone = greedy(ours, prompt_of(layout, seed=row), count)
        assert torch.equal(mine[row, -count:], alone[0, -count:])


def test_rows_that_stop_at_different_places_are_filled_with_padding(ours, theirs):
    batch, count = batch_of(["t3", "t7 i t9", "t11"]), 40
    free = greedy(ours, batch, count)[:, -count:]
    stops = [int(free[0, 4]), int(free[1, 15])]
    mine = greedy(ours, batch, count, stops)
    assert torch.equal(mine, greedy(theirs, batch, count, stops))
    new = mine[:, batch["input_ids"].shape[1] :]
    ends = [next((i for i, token in enumerate(row) if token in stops), None) for row in new.tolist()]
    assert ends[0] is not None
    assert ends[0] <= 4
    assert len(set(ends)) > 1, "the rows must differ, or this tests nothing"
    assert all((row[end + 1 :] == 0).all() for row, end in zip(new, ends, strict=True) if end is not None)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_stop_ends_the_answer_and_is_part_of_it(our_text, their_text, as_list):
    prompt = prompt_of("t9")
    prompt.pop("token_type_ids")
    free = greedy(our_text, prompt, 30)[0, -30:].tolist()
    stop = free[7]
    mine = greedy(our_text, prompt, 30, [NEVER, stop] if as_list else stop)
    assert mine[0, -1] == stop
    assert mine.shape[1] == 10 + free.index(stop) + 1
    assert torch.equal(mine, greedy(their_text, prompt, 30, [NEVER, stop] if as_list else stop))


@pytest.mark.parametrize(
    "form", [torch.tensor, lambda ids: torch.tensor(ids, dtype=torch.int32)], ids=["int64", "int32"]
)
def test_ids_of_stops_may_come_as_tensors(our_text, their_text, form):
    prompt = prompt_of("t9")
    prompt.pop("token_type_ids")
    stop = greedy(our_text, prompt, 30)[0, -20].item()
    for stops in (form([NEVER, stop]), form(stop)):
        given = {**prompt, "max_new_tokens": 30, "eos_token_id": stops, "pad_token_id": form(0)}
        mine = our_text.generate(**given)
        assert mine.shape[1] < 40
        assert torch.equal(mine, their_text.generate(**given, do_sample=False))


def write_generation_config(folder: Path, **content: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(content))


def test_stops_come_from_generation_config_json(reference_folder, tmp_path):
    shutil.copytree(reference_folder, tmp_path, dirs_exist_ok=True)
    prompt = prompt_of("t9 i t3")
    write_generation_config(tmp_path, eos_token_id=NEVER)
    free = Gemma3ForConditionalGeneration.from_pretrained(tmp_path).generate(**prompt, max_new_tokens=30)[0, -30:]
    stop = int(free[3])
    write_generation_config(tmp_path, eos_token_id=[NEVER, stop], pad_token_id=0)
    mine = Gemma3ForConditionalGeneration.from_pretrained(tmp_path)
    assert mine.generation_config.stop_ids == (NEVER, stop)
    expected = ReferenceModel.from_pretrained(tmp_path).eval().generate(**prompt, max_new_tokens=30)
    assert torch.equal(mine.generate(**prompt, max_new_tokens=30), expected)


def test_without_a_generation_config_stops_come_from_config_json(reference_folder, tmp_path):
    """The published multimodal configs name their stops at the top, not in text_config."""
    shutil.copytree(reference_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": [1, 106]}))
    theirs = ReferenceModel.from_pretrained(tmp_path).generation_config.eos_token_id
    assert theirs == [1, 106]
    assert Gemma3ForConditionalGeneration.from_pretrained(tmp_path).generation_config.stop_ids == (1, 106)


def test_the_published_sampling_defaults(shared_data):
    content = json.loads((shared_data / "configs" / "generation_config.json").read_text())
    config = GenerationConfig.from_dict(content)
    assert config.stop_ids == (1, 106)
    assert (config.pad_id, config.bos_token_id) == (0, 2)
    assert config.sampling() == SamplingSettings(temperature=1.0, top_k=64, top_p=0.95, seed=None)
    assert config.to_dict() == content, "a file that is saved again loses nothing"


@pytest.fixture
def chosen(monkeypatch) -> list[SamplingParams]:
    """The parameters that tokens were sampled with."""
    seen: list[SamplingParams] = []

    def remember(logits, params, *_):
        seen.append(params)
        return logits.argmax(-1)

    monkeypatch.setattr(generation, "sample", remember)
    return seen


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SamplingParams(0.7, 33, 0.8)),
        ({"do_sample": False}, SamplingParams(0.0, 33, 0.8)),
        ({"temperature": 1.5}, SamplingParams(1.5, 33, 0.8)),
        ({"top_k": 0, "top_p": 1.0, "seed": 4}, SamplingParams(0.7, 0, 1.0, 4)),
        ({"top_k": None, "top_p": None, "temperature": None}, SamplingParams(1.0, 0, 1.0)),
        ({"generation_config": GenerationConfig(top_p=0.5), "min_p": 0.1}, SamplingParams(0.7, 33, 0.5, None, 0.1)),
        ({"repetition_penalty": 1.3}, SamplingParams(0.7, 33, 0.8, repetition_penalty=1.3)),
    ],
)
def test_options_left_out_come_from_generation_config_json(reference_text_folder, tmp_path, chosen, options, expected):
    shutil.copytree(reference_text_folder, tmp_path, dirs_exist_ok=True)
    write_generation_config(tmp_path, do_sample=True, temperature=0.7, top_k=33, top_p=0.8, max_new_tokens=3)
    model = Gemma3ForCausalLM.from_pretrained(tmp_path)
    out = model.generate(image_prompt("t5")[0], **options)
    assert chosen == [expected] * 3
    assert out.shape[1] == 6 + 3


@pytest.mark.parametrize("do_sample", [False, True])
def test_defaults_where_nothing_is_said_are_those_of_transformers(our_text, chosen, do_sample):
    theirs = ReferenceGenerationConfig._get_default_generation_params()
    our_text.generate(image_prompt("t5")[0], do_sample=do_sample, max_new_tokens=1)
    heat = theirs["temperature"] if do_sample else 0.0
    assert chosen == [SamplingParams(heat, theirs["top_k"], theirs["top_p"], None, None, theirs["repetition_penalty"])]
    assert not theirs["do_sample"]


def test_without_a_word_it_is_twenty_tokens_as_in_transformers(our_text, their_text):
    prompt = prompt_of("t5")
    prompt.pop("token_type_ids")
    mine = our_text.generate(**prompt)
    assert mine.shape[1] == 6 + DEFAULT_NEW_TOKENS == 26
    assert torch.equal(mine, their_text.generate(**prompt))


@pytest.mark.parametrize("count", [1, 2, 17])
def test_max_new_tokens_is_exact(our_text, count):
    assert our_text.generate(image_prompt("t5")[0], max_new_tokens=count, eos_token_id=NEVER).shape[1] == 6 + count


@pytest.mark.parametrize("count", [0, -1])
def test_no_new_tokens_is_an_error_that_says_so(our_text, count):
    with pytest.raises(UnsupportedOptionError, match=rf"max_new_tokens.*{count}"):
        our_text.generate(image_prompt("t5")[0], max_new_tokens=count)


def test_a_generation_config_written_is_read_again_by_both(our_text, tmp_path):
    options = {"do_sample": True, "temperature": 0.5, "top_k": 9, "top_p": 0.5, "min_p": 0.1, "max_new_tokens": 7}
    config = GenerationConfig(eos_token_id=[1, 106], pad_token_id=3, **options)
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == config == read_generation_config(tmp_path, our_text.config)
    theirs = ReferenceGenerationConfig.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id) == ([1, 106], 3)
    assert {name: getattr(theirs, name) for name in options} == options


def test_a_seed_gives_the_same_sampled_tokens_again(our_text):
    def draw(seed):
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": NEVER}
        return our_text.generate(image_prompt("t5")[0], max_new_tokens=30, seed=seed, **options).tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_the_same_question_again_gets_the_same_answer(ours):
    prompt = prompt_of("t5 i t9")
    first = greedy(ours, prompt, 30)
    greedy(ours, prompt_of("t40 i", seed=8), 30)
    assert torch.equal(greedy(ours, prompt, 30), first)


class Counted:
    """A model that counts its passes."""

    def __init__(self, model):
        self._model, self.passes = model, 0
        self.text_config, self.device, self.config = model.text_config, model.device, model.config

    def __call__(self, **inputs):
        self.passes += 1
        return self._model(**inputs)


def test_tokens_come_one_by_one_and_closing_ends_the_work(our_text):
    model = Counted(our_text)
    steps = generate_tokens(model, {"input_ids": image_prompt("t5")[0]}, GREEDY, 100, ())
    assert model.passes == 0, "nothing is computed before it is asked for"
    for passes in range(1, 6):
        next(steps)
        assert model.passes == passes, "no token is computed ahead"
    steps.close()
    assert model.passes == 5
    assert next(steps, None) is None


def test_the_last_token_and_a_stop_cost_no_further_pass(our_text):
    model = Counted(our_text)
    tokens = [int(t.tokens[0]) for t in generate_tokens(model, {"input_ids": image_prompt("t5")[0]}, GREEDY, 8, ())]
    assert model.passes == len(tokens) == 8
    model.passes = 0
    again = generate_tokens(model, {"input_ids": image_prompt("t5")[0]}, GREEDY, 8, (tokens[3],))
    assert len(list(again)) == tokens.index(tokens[3]) + 1 == model.passes


@pytest.mark.parametrize("with_mask", [False, True])
def test_a_second_turn_on_an_existing_cache_gives_the_tokens_of_one_pass(ours, with_mask):
    first, second = prompt_of("t6 i t2"), prompt_of(f"t{WINDOW} i t1", seed=3)
    whole = {name: torch.cat([first[name], second[name]], 1) for name in ("input_ids", "token_type_ids")}
    whole["pixel_values"] = torch.cat([first["pixel_values"], second["pixel_values"]])
    cache = KVCache(ours.config.text_config, reserve=first["input_ids"].shape[1])
    generation.prefill(ours, cache, **first)
    turn = {**second, "attention_mask": torch.ones_like(whole["input_ids"])} if with_mask else dict(second)
    if not with_mask:
        turn.pop("attention_mask")
    expected = [int(t.tokens[0]) for t in generate_tokens(ours, whole, GREEDY, 30, ())]
    assert [int(t.tokens[0]) for t in generate_tokens(ours, turn, GREEDY, 30, (), cache)] == expected
    total = whole["input_ids"].shape[1] + 30
    assert max(columns._buffer.shape[2] for columns in cache._keys) == total, "room is taken for this turn, no more"


def test_chunks_in_a_picture():
    """Chunks of 4:  t t [ | I I I ] | t"""
    soft = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0]])
    assert chunk_ends(image_blocks(soft), 8, 4) == [3, 7, 8]
    assert chunk_ends(image_blocks(soft), 8, 2) == [2, 3, 6, 8], "a block longer than a chunk is one chunk"
    assert chunk_ends(image_blocks(soft), 8, 8) == [8]
    assert chunk_ends(None, 8, 3) == [3, 6, 8]


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 15, 16, 17, 18, 24, 40, 1000])
def test_no_chunk_divides_a_block_of_any_row(chunk_size):
    rows = [(image_prompt(layout)[0] == SOFT).long() for layout in ("t9 i t5 i i t40", "i t30 i", "t120")]
    soft, _ = left_padded(rows)
    blocks = image_blocks(soft)
    total = soft.shape[1]
    ends = chunk_ends(blocks, total, chunk_size)
    assert ends == sorted(set(ends))
    assert ends[-1] == total
    may_end = [c for c in range(1, total) if not ((soft[:, c] == 1) & (soft[:, c - 1] == 1)).any()] + [total]
    for start, end in zip([0, *ends], ends, strict=False):
        assert end in may_end
        within = [c for c in may_end if start < c <= start + chunk_size]
        assert end == (within[-1] if within else min(c for c in may_end if c > start)), "as long as it may be"


def chunked(model: Any, cache: KVCache, chunk_size: int, inputs: dict[str, Any]) -> tuple[list[int], torch.Tensor]:
    """How many tokens each chunk had, and the last logits."""
    steps = list(prefill_in_chunks(model, cache, chunk_size, **inputs))
    total = inputs["input_ids"].shape[1]
    assert [progress.total for progress, _ in steps] == [total] * len(steps)
    reads = [progress.read for progress, _ in steps]
    assert reads[-1] == total
    return [end - start for start, end in zip([0, *reads], reads, strict=False)], steps[-1][1]


CHUNKED_PROMPTS = {
    "text": lambda: prompt_of(f"t{6 * WINDOW + 1}"),
    "one picture": lambda: prompt_of(f"t{WINDOW} i t{2 * WINDOW}"),
    "a picture first": lambda: prompt_of("i t61"),
    "several pictures": lambda: prompt_of("t3 i t2 i i i t30 i t9"),
    "crops": lambda: prompt_of("t9 i t7 i t1 i t1 i t40"),
    "left padding": lambda: batch_of(["t3", f"t7 i t{WINDOW}", "t2 i t4 i t1", f"t{4 * WINDOW}"]),
    "more padding than a chunk": lambda: batch_of(["t2", "i t1 i t90"]),
}
CHUNK_SIZES = [7, WINDOW, 2 * WINDOW + 5]


@pytest.mark.parametrize("name", CHUNKED_PROMPTS)
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_logits_of_chunks_equal_those_of_one_pass(mild, name, chunk_size):
    """Chunks shorter and longer than the window (24) and than a picture (16 soft tokens)."""
    inputs = CHUNKED_PROMPTS[name]()
    whole, parts = KVCache(mild.text_config), KVCache(mild.text_config)
    expected = generation.prefill(mild, whole, **inputs)
    sizes, logits = chunked(mild, parts, chunk_size, inputs)
    assert len(sizes) > 1, "one pass would prove nothing"
    assert max(sizes) <= max(chunk_size, TOKENS_PER_IMAGE * (1 + 3 * (inputs["input_ids"].shape[0] > 1)))
    assert_equal(logits, expected)
    assert parts.length == whole.length
    # What is read next sees the same past, too.
    mask = inputs["attention_mask"]
    more = image_prompt(f"t{WINDOW + 2}", seed=9)[0].repeat(len(mask), 1)
    after = {"input_ids": more, "attention_mask": torch.cat([mask, torch.ones_like(more)], 1)}
    expected = generation.prefill(mild, whole, **after)
    assert_equal(chunked(mild, parts, chunk_size, after)[1], expected)


@pytest.fixture(scope="module")
def mild(reference_folder):
    """Pictures and text, without the sharp attention of `ours`: rounding does not grow with it."""
    return Gemma3ForConditionalGeneration.from_pretrained(reference_folder)


@pytest.mark.parametrize("chunk_size", [1, WINDOW - 1, WINDOW + 1])
def test_a_text_models_chunks_equal_one_pass(reference_text_folder, chunk_size):
    model = Gemma3ForCausalLM.from_pretrained(reference_text_folder)
    input_ids = image_prompt(f"t{5 * WINDOW}")[0]
    expected = generation.prefill(model, KVCache(model.config), input_ids=input_ids)
    sizes, logits = chunked(model, KVCache(model.config), chunk_size, {"input_ids": input_ids, "attention_mask": None})
    assert set(sizes[:-1]) == {chunk_size}
    assert_equal(logits, expected)


@pytest.mark.parametrize("leave_out", ["attention_mask", "token_type_ids"])
def test_chunks_equal_one_pass_where_an_input_is_left_out(mild, leave_out):
    """Without token types pictures are causal, as in one pass; they are still encoded where they stand."""
    inputs = {name: value for name, value in prompt_of("t3 i t9 i t40").items() if name != leave_out}
    expected = generation.prefill(mild, KVCache(mild.text_config), **inputs)
    assert_equal(chunked(mild, KVCache(mild.text_config), 20, inputs)[1], expected)


def test_ready_soft_tokens_are_read_chunk_by_chunk(mild):
    inputs = batch_of(["t30 i t2", "i t9 i t5"])
    expected = generation.prefill(mild, KVCache(mild.text_config), **inputs)
    with torch.inference_mode():
        inputs["soft_tokens"] = mild.get_image_features(inputs.pop("pixel_values")).pooler_output
    assert_equal(chunked(mild, KVCache(mild.text_config), 20, inputs)[1], expected)


def test_pictures_are_encoded_with_the_chunk_that_reads_them(mild, monkeypatch):
    encoded = []
    encode = type(mild.model).get_image_features
    monkeypatch.setattr(
        type(mild.model), "get_image_features", lambda model, x: (encoded.append(len(x)), encode(model, x))[1]
    )
    chunked(mild, KVCache(mild.text_config), 40, prompt_of("t3 i i t20 i t30"))
    assert encoded == [2, 1]


@pytest.mark.parametrize("count", [1, 3])
def test_chunks_refuse_a_wrong_number_of_pictures(mild, count):
    inputs = {**prompt_of("t3 i t9 i t40"), "pixel_values": pixels(count)}
    with pytest.raises(PromptError, match="one picture for each place"):
        list(prefill_in_chunks(mild, KVCache(mild.text_config), 20, **inputs))


@pytest.mark.parametrize("size", [0, -3])
def test_chunks_of_nothing_are_refused(our_text, size):
    with pytest.raises(UnsupportedOptionError, match=str(size)):
        our_text.generate(image_prompt("t5")[0], prefill_chunk_size=size)


def test_unknown_inputs_of_chunks_are_named(our_text):
    with pytest.raises(UnsupportedOptionError, match="shiny"):
        next(prefill_in_chunks(our_text, KVCache(our_text.config), input_ids=image_prompt("t5")[0], shiny=1))


def test_generate_with_chunks_gives_the_tokens_of_one_pass(ours, theirs):
    batch = batch_of([f"t7 i t{WINDOW}", "t2 i t4 i t1", f"t{3 * WINDOW}"])
    expected = greedy(theirs, batch, 2 * WINDOW)
    for size in (10, WINDOW, 50):
        mine = ours.generate(
            **batch, max_new_tokens=2 * WINDOW, do_sample=False, eos_token_id=NEVER, prefill_chunk_size=size
        )
        assert torch.equal(mine, expected)


def test_progress_comes_between_chunks_and_closing_ends_the_work_there(our_text):
    model = Counted(our_text)
    prompt = {"input_ids": image_prompt("t34")[0]}  # 35 tokens
    steps = generate_tokens(model, prompt, GREEDY, 5, (), prefill_chunk_size=10)
    assert next(steps) == PrefillProgress(10, 35)
    assert model.passes == 1
    assert next(steps) == PrefillProgress(20, 35)
    steps.close()
    assert model.passes == 2
    rest = list(generate_tokens(model, prompt, GREEDY, 5, (), prefill_chunk_size=10))
    assert [isinstance(step, PrefillProgress) for step in rest] == [True] * 3 + [False] * 5
    assert model.passes == 2 + 4 + 4
    whole = list(generate_tokens(model, prompt, GREEDY, 5, ()))
    assert [int(step.tokens) for step in whole] == [int(step.tokens) for step in rest[3:]]


def test_a_long_prompt_is_read_in_chunks_without_a_word(our_text):
    prompt = {"input_ids": image_prompt(f"t{2 * PREFILL_CHUNK_SIZE}")[0]}
    steps = list(generate_tokens(our_text, prompt, GREEDY, 1, ()))
    total = 2 * PREFILL_CHUNK_SIZE + 1
    assert steps[:-1] == [PrefillProgress(PREFILL_CHUNK_SIZE * n, total) for n in (1, 2)]


def test_masks_and_attention_of_a_chunk_stay_small(our_text, monkeypatch):
    """Local layers: no more keys than window and chunk, however long the prompt; global ones: no more queries."""
    from gemma3_core.nn import layers

    shapes, attend = set(), layers.attend

    def watched(queries, keys, values, mask, scale, with_weights):
        shapes.add((queries.shape[2], keys.shape[2], None if mask is None else tuple(mask.shape)))
        return attend(queries, keys, values, mask, scale, with_weights)

    monkeypatch.setattr(layers, "attend", watched)
    chunk, total = 40, 1000
    input_ids = image_prompt(f"t{total - 1}")[0]
    chunked(our_text, KVCache(our_text.config, total), chunk, {"input_ids": input_ids})
    assert max(queries for queries, _, _ in shapes) == chunk
    widths = sorted({keys for _, keys, _ in shapes if keys <= WINDOW + chunk})
    assert widths[-1] == WINDOW + chunk
    assert {keys for _, keys, _ in shapes if keys > WINDOW + chunk} == set(range(2 * chunk, total + 1, chunk))
    assert all(mask == (1, 1, queries, keys) for queries, keys, mask in shapes if mask is not None)


def test_a_small_model_run_past_its_window_many_times_gives_the_tokens_of_an_uncached_run(our_text, ours):
    """Each token must be the best of one pass without a cache over everything before it; the rings never grow."""
    for model, prompt in ((our_text, {"input_ids": image_prompt("t40")[0]}), (ours, prompt_of("t9 i t3 i t20"))):
        fields = {name: value for name, value in prompt.items() if name != "attention_mask"}
        cache, count = KVCache(model.text_config), 15 * WINDOW
        steps = generate_tokens(model, fields, GREEDY, count, (), cache, prefill_chunk_size=30)
        tokens = [step.tokens for step in steps if not isinstance(step, PrefillProgress)]
        ids = torch.cat([prompt["input_ids"], torch.stack(tokens, 1)], 1)
        types = {"token_type_ids": (ids == SOFT).long()} if "token_type_ids" in fields else {}
        pictures = {"pixel_values": fields["pixel_values"]} if "pixel_values" in fields else {}
        with torch.no_grad():
            uncached = model(input_ids=ids, **types, **pictures, use_cache=False).logits.argmax(-1)
        assert torch.equal(uncached[:, -count - 1 : -1], ids[:, -count:])
        kept = {columns._buffer.shape[2] for columns in cache._keys}
        assert kept == {WINDOW, prompt["input_ids"].shape[1] + count}, "rings, and global layers as reserved"


def test_a_conversation_longer_than_the_context_says_all_three_lengths(our_text):
    room = our_text.config.max_position_embeddings
    input_ids = torch.full((1, room - 5), 7)
    with pytest.raises(ContextLengthError) as error:
        our_text.generate(input_ids, max_new_tokens=6)
    assert all(word in str(error.value) for word in (f"{room - 5:,}", "6", f"{room:,}"))


def test_what_a_cache_holds_counts_towards_the_context(our_text):
    config = our_text.config.replace(max_position_embeddings=20)
    model = Counted(our_text)
    model.text_config = config
    cache = KVCache(config)
    generation.prefill(model, cache, input_ids=image_prompt("t11")[0])
    with pytest.raises(ContextLengthError, match="20"):
        next(generate_tokens(model, {"input_ids": image_prompt("t4")[0]}, GREEDY, 4, (), cache))


def test_a_conversation_that_just_fits_is_answered(reference_text_folder, tmp_path):
    shutil.copytree(reference_text_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 12}))
    model = Gemma3ForCausalLM.from_pretrained(tmp_path)
    assert model.generate(image_prompt("t5")[0], max_new_tokens=6, eos_token_id=NEVER).shape[1] == 12
    with pytest.raises(ContextLengthError):
        model.generate(image_prompt("t5")[0], max_new_tokens=7)


def test_options_that_are_not_supported_are_named(our_text):
    with pytest.raises(UnsupportedOptionError, match=r"no_repeat_ngram_size=2, num_beams=4"):
        our_text.generate(image_prompt("t5")[0], num_beams=4, no_repeat_ngram_size=2)


def test_sampling_out_of_range_is_refused(our_text):
    with pytest.raises(SamplingError, match="top_p"):
        our_text.generate(image_prompt("t5")[0], do_sample=True, top_p=1.5)


def test_nothing_of_generation_is_kept_for_gradients(our_text):
    out = our_text.generate(image_prompt("t5")[0], max_new_tokens=2)
    assert not out.requires_grad
    assert not out.is_inference(), "the result must be usable like any tensor"

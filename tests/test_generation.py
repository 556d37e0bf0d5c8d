"""Generation: tokens against transformers.generate, stops, limits, defaults, and ending early."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import SHARP, SOFT, WINDOW, image_prompt, left_padded, pixels, save_reference
from transformers import Gemma3ForCausalLM as ReferenceCausalLM
from transformers import Gemma3ForConditionalGeneration as ReferenceModel

from gemma3_core import generation
from gemma3_core.cache import KVCache
from gemma3_core.errors import ContextLengthError, SamplingError, UnsupportedOptionError
from gemma3_core.generation import DEFAULT_NEW_TOKENS, GenerationConfig, generate_tokens
from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.sampling import SamplingSettings
from gemma3_core.text import Gemma3ForCausalLM

GREEDY = SamplingSettings(temperature=0.0)
NEVER = 9_999
"""A stop that never comes: it lies beyond the small models' vocabulary."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sharp")
    save_reference(path / "both", sharpness=SHARP)
    save_reference(path / "text", multimodal=False, sharpness=SHARP)
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    return ReferenceModel.from_pretrained(folder / "both").eval()


@pytest.fixture(scope="module")
def ours(folder):
    return Gemma3ForConditionalGeneration.from_pretrained(folder / "both")


@pytest.fixture(scope="module")
def their_text(folder):
    return ReferenceCausalLM.from_pretrained(folder / "text").eval()


@pytest.fixture(scope="module")
def our_text(folder):
    return Gemma3ForCausalLM.from_pretrained(folder / "text")


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


def write_generation_config(folder: Path, **content: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(content))


def test_stops_come_from_generation_config_json(tmp_path):
    save_reference(tmp_path)
    prompt = prompt_of("t9 i t3")
    write_generation_config(tmp_path, eos_token_id=NEVER)
    free = Gemma3ForConditionalGeneration.from_pretrained(tmp_path).generate(**prompt, max_new_tokens=30)[0, -30:]
    stop = int(free[3])
    write_generation_config(tmp_path, eos_token_id=[NEVER, stop], pad_token_id=0)
    mine = Gemma3ForConditionalGeneration.from_pretrained(tmp_path)
    assert mine.generation_config.stop_ids == (NEVER, stop)
    expected = ReferenceModel.from_pretrained(tmp_path).eval().generate(**prompt, max_new_tokens=30)
    assert torch.equal(mine.generate(**prompt, max_new_tokens=30), expected)


def test_without_a_generation_config_stops_come_from_config_json(tmp_path):
    """The published multimodal configs name their stops at the top, not in text_config."""
    save_reference(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": [1, 106]}))
    theirs = ReferenceModel.from_pretrained(tmp_path).generation_config.eos_token_id
    assert theirs == [1, 106]
    assert Gemma3ForConditionalGeneration.from_pretrained(tmp_path).generation_config.stop_ids == (1, 106)


def test_the_published_sampling_defaults(shared_data, our_text):
    content = json.loads((shared_data / "configs" / "generation_config.json").read_text())
    config = GenerationConfig.from_dict(content, our_text.config)
    assert config.stop_ids == (1, 106)
    assert config.sampling() == SamplingSettings(temperature=1.0, top_k=64, top_p=0.95, seed=None)
    assert config.max_new_tokens == 20


def test_defaults_where_nothing_is_said_are_those_of_transformers(our_text):
    from transformers import GenerationConfig as ReferenceGenerationConfig

    theirs = ReferenceGenerationConfig._get_default_generation_params()
    mine = GenerationConfig.from_dict({}, our_text.config)
    assert not mine.do_sample
    for name in ("temperature", "top_k", "top_p"):
        assert getattr(mine, name) == theirs[name], name


@pytest.fixture
def chosen(monkeypatch) -> list[SamplingSettings]:
    """The settings that tokens were sampled with."""
    seen: list[SamplingSettings] = []

    def remember(logits, settings, _):
        seen.append(settings)
        return logits.argmax(-1)

    monkeypatch.setattr(generation, "sample", remember)
    return seen


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SamplingSettings(0.7, 33, 0.8)),
        ({"do_sample": False}, SamplingSettings(0.0, 33, 0.8)),
        ({"temperature": 1.5}, SamplingSettings(1.5, 33, 0.8)),
        ({"top_k": 0, "top_p": 1.0, "seed": 4}, SamplingSettings(0.7, 0, 1.0, 4)),
    ],
)
def test_options_left_out_come_from_generation_config_json(tmp_path, chosen, options, expected):
    save_reference(tmp_path, multimodal=False)
    write_generation_config(tmp_path, do_sample=True, temperature=0.7, top_k=33, top_p=0.8, max_new_tokens=3)
    model = Gemma3ForCausalLM.from_pretrained(tmp_path)
    out = model.generate(image_prompt("t5")[0], **options)
    assert chosen == [expected] * 3
    assert out.shape[1] == 6 + 3


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


def test_a_generation_config_written_is_read_again(our_text, tmp_path):
    config = GenerationConfig(stop_ids=(1, 106), pad_id=3, do_sample=True, temperature=0.5, top_k=9, top_p=0.5)
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path, our_text.config) == config
    from transformers import GenerationConfig as ReferenceGenerationConfig

    theirs = ReferenceGenerationConfig.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.do_sample) == ([1, 106], 3, True)
    assert (theirs.temperature, theirs.top_k, theirs.top_p) == (0.5, 9, 0.5)


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
        self.text_config, self.device = model.text_config, model.device

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
    tokens = [int(t[0]) for t in generate_tokens(model, {"input_ids": image_prompt("t5")[0]}, GREEDY, 8, ())]
    assert model.passes == len(tokens) == 8
    model.passes = 0
    again = generate_tokens(model, {"input_ids": image_prompt("t5")[0]}, GREEDY, 8, (tokens[3],))
    assert len(list(again)) == tokens.index(tokens[3]) + 1 == model.passes


def test_after_prefill_is_told_once_before_the_first_token(our_text):
    told = []
    steps = generate_tokens(
        our_text, {"input_ids": image_prompt("t5")[0]}, GREEDY, 3, (), after_prefill=lambda: told.append(1)
    )
    next(steps)
    assert told == [1]
    list(steps)
    assert told == [1]


@pytest.mark.parametrize("with_mask", [False, True])
def test_a_second_turn_on_an_existing_cache_gives_the_tokens_of_one_pass(ours, with_mask):
    first, second = prompt_of("t6 i t2"), prompt_of(f"t{WINDOW} i t1", seed=3)
    whole = {name: torch.cat([first[name], second[name]], 1) for name in ("input_ids", "token_type_ids")}
    whole["pixel_values"] = torch.cat([first["pixel_values"], second["pixel_values"]])
    cache = KVCache(ours.config.text_config)
    generation.prefill(ours, cache, **first)
    turn = {**second, "attention_mask": torch.ones_like(whole["input_ids"])} if with_mask else dict(second)
    if not with_mask:
        turn.pop("attention_mask")
    expected = [int(t[0]) for t in generate_tokens(ours, whole, GREEDY, 30, ())]
    assert [int(t[0]) for t in generate_tokens(ours, turn, GREEDY, 30, (), cache)] == expected


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


def test_a_conversation_that_just_fits_is_answered(tmp_path):
    save_reference(tmp_path, multimodal=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 12}))
    model = Gemma3ForCausalLM.from_pretrained(tmp_path)
    assert model.generate(image_prompt("t5")[0], max_new_tokens=6, eos_token_id=NEVER).shape[1] == 12
    with pytest.raises(ContextLengthError):
        model.generate(image_prompt("t5")[0], max_new_tokens=7)


def test_options_that_are_not_supported_are_named(our_text):
    with pytest.raises(UnsupportedOptionError, match=r"num_beams.*repetition_penalty"):
        our_text.generate(image_prompt("t5")[0], num_beams=4, repetition_penalty=1.2)


def test_sampling_out_of_range_is_refused(our_text):
    with pytest.raises(SamplingError, match="top_p"):
        our_text.generate(image_prompt("t5")[0], do_sample=True, top_p=0.0)


def test_nothing_of_generation_is_kept_for_gradients(our_text):
    out = our_text.generate(image_prompt("t5")[0], max_new_tokens=2)
    assert not out.requires_grad
    assert not out.is_inference(), "the result must be usable like any tensor"

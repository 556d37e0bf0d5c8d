"""Options of `generate` against transformers: sampling, stops, lengths, outputs; and what is refused."""

import copy
import logging
from typing import Any

import pytest
import torch
from reference import (
    NEVER,
    assert_equal,
    ids_of,
    picture_prompt,
    text_batch,
)
from transformers import Gemma3ForCausalLM as ReferenceCausalLM
from transformers import GenerationConfig as ReferenceGenerationConfig

from gemma3_core.errors import CheckpointError, ContextLengthError, SamplingError, UnsupportedOptionError
from gemma3_core.generation import generate
from gemma3_core.generation.config import UNSUPPORTED, GenerationConfig
from gemma3_core.models.text import Gemma3ForCausalLM


@pytest.fixture(scope="module")
def weights(sharp_weights):
    return sharp_weights


SAMPLED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_k": 12},
    {"top_k": 0, "top_p": 0.8},
    {"temperature": 3.5, "min_p": 0.2, "top_k": None},
    {"repetition_penalty": 1.4, "temperature": 1.3, "top_p": 0.9, "min_p": 0.02},
]


@pytest.mark.parametrize("options", SAMPLED, ids=str)
def test_the_same_random_numbers_give_the_tokens_of_transformers(our_text, their_text, options):
    """A batch with left padding; torch.manual_seed rules both."""
    given = {**text_batch(), **options, "do_sample": True, "max_new_tokens": 12, "eos_token_id": NEVER}
    torch.manual_seed(5)
    expected = their_text.generate(**given)
    torch.manual_seed(5)
    assert torch.equal(our_text.generate(**given), expected)
    torch.manual_seed(6)
    assert not torch.equal(our_text.generate(**given), expected), "random numbers must count, or this tests nothing"


def test_a_limit_of_the_whole_context_is_not_reserved_at_once(our_text, monkeypatch):
    """As generation_config.json may name it, with max_length: the cache grows while tokens come."""
    ids, new = torch.tensor([[2, 5, 6]]), 100
    endless = {"eos_token_id": NEVER, "return_dict_in_generate": True}
    at_once = our_text.generate(ids, max_new_tokens=new, **endless)
    with monkeypatch.context() as patch:
        patch.setattr(generate, "_RESERVED_AHEAD", 40)
        growing = our_text.generate(ids, max_length=3 + new, **endless)
    assert torch.equal(growing.sequences, at_once.sequences)
    assert growing.past_key_values.num_bytes > at_once.past_key_values.num_bytes  # it grew by more than was needed
    ends = {"eos_token_id": list(range(our_text.vocab_size)), "return_dict_in_generate": True}
    context = our_text.config.max_position_embeddings
    assert our_text.generate(ids, max_length=context, **ends).past_key_values.reserved == 3 + 1024
    assert our_text.generate(ids, max_new_tokens=2000, **ends).past_key_values.reserved == 3 + 2000


def test_a_generator_gives_the_same_tokens_again_and_leaves_torchs_own_alone(our_text):
    def draw(generator: torch.Generator) -> torch.Tensor:
        return our_text.generate(**text_batch(), do_sample=True, max_new_tokens=20, generator=generator)

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = draw(torch.Generator().manual_seed(3))
    assert torch.equal(draw(torch.Generator().manual_seed(3)), first)
    assert not torch.equal(draw(torch.Generator().manual_seed(4)), first)
    assert torch.equal(our_text.generate(**text_batch(), do_sample=True, max_new_tokens=20, seed=3), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.6, "min_new_tokens": 9},
        {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_scores_and_logits_are_those_of_transformers(reference_text_folder, options):
    our_text = Gemma3ForCausalLM.from_pretrained(reference_text_folder)
    their_text = ReferenceCausalLM.from_pretrained(reference_text_folder).eval()
    free = our_text.generate(**text_batch(), max_new_tokens=12, eos_token_id=NEVER)[:, -12:]
    stops = [int(free[0, 3]), int(free[2, 6])]
    extra = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "pad_token_id": 3}
    given = {**text_batch(), **options, **extra, "max_new_tokens": 12, "eos_token_id": stops}
    torch.manual_seed(1)
    other = their_text.generate(**given)
    torch.manual_seed(1)
    own = our_text.generate(**given)
    assert torch.equal(own.sequences, other.sequences)
    assert (
        len(own.scores)
        == len(own.logits)
        == len(other.scores)
        == own.sequences.shape[1] - text_batch()["input_ids"].shape[1]
    )
    for mine, expected in zip((*own.scores, *own.logits), (*other.scores, *other.logits), strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine.isinf(), expected.isinf())
        assert_equal(mine.nan_to_num(neginf=0), expected.nan_to_num(neginf=0))
    assert list(own) == ["sequences", "scores", "logits", "past_key_values"] == list(other)
    assert own.past_key_values.get_seq_length() == other.past_key_values.get_seq_length()
    assert own.scores[0].add_(1).requires_grad is False, "an ordinary tensor"


def test_repetition_penalty_counts_the_prompts_pictures_too(ours, theirs):
    given = {**picture_prompt("t9 i t5"), "max_new_tokens": 15, "repetition_penalty": 1.5, "eos_token_id": NEVER}
    expected = theirs.generate(**given, do_sample=False)
    assert torch.equal(ours.generate(**given, do_sample=False), expected)
    assert not torch.equal(ours.generate(**{**given, "repetition_penalty": 1.0}, do_sample=False), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 20},
        {"max_length": 20, "max_new_tokens": 5},
        {"max_new_tokens": 30, "min_new_tokens": 20},
        {"max_new_tokens": 30, "min_length": 24},
        {"max_length": 40, "min_length": 24, "min_new_tokens": 3},
        {"generation_config": {"max_new_tokens": 6, "repetition_penalty": 1.2}},
        {"max_new_tokens": 30, "eos_token_id": None},
        {"max_new_tokens": 30, "pad_token_id": 7},
        {"max_new_tokens": 30, "num_beams": 1, "length_penalty": 1.0, "use_cache": True},
        {"max_new_tokens": 9, "cache_implementation": "static", "disable_compile": True},
        {"max_new_tokens": 9, "cache_implementation": "dynamic"},
        {"max_new_tokens": 9, "use_cache": False},
    ],
    ids=str,
)
def test_lengths_stops_and_caches_are_those_of_transformers(our_text, their_text, options):
    prompt = {"input_ids": ids_of("t9"), "attention_mask": torch.ones(1, 10, dtype=torch.long)}
    free = our_text.generate(**prompt, max_new_tokens=30, eos_token_id=NEVER)[0, 10:].tolist()
    stop = next(token for token in free[4:] if token not in free[:4])
    given = {"eos_token_id": [NEVER, stop], "pad_token_id": 0, **options}
    mine, other = dict(given), dict(given)
    if config := given.get("generation_config"):
        mine["generation_config"], other["generation_config"] = (
            GenerationConfig(**config),
            ReferenceGenerationConfig(**config),
        )
    assert torch.equal(our_text.generate(**prompt, **mine), their_text.generate(**prompt, **other))


@pytest.mark.parametrize("stops", [None, -1, [-1], torch.tensor(-1), "both"], ids=str)
@pytest.mark.parametrize("more", [{}, {"pad_token_id": None}, {"min_new_tokens": 3}], ids=str)
def test_no_stopping_token(our_text, their_text, caplog, monkeypatch, stops, more):
    """None and negative ids stop nothing, whatever the checkpoint says; a negative one is told in the same words."""
    prompt = {"input_ids": ids_of("t9"), "attention_mask": torch.ones(1, 10, dtype=torch.long)}
    free = our_text.generate(**prompt, max_new_tokens=20, eos_token_id=[])[0, 10:].tolist()
    stop = next(token for token in free[4:] if token not in free[:4])
    models = [copy.copy(model) for model in (our_text, their_text)]
    for model in models:
        model.generation_config = copy.deepcopy(model.generation_config)
        model.generation_config.eos_token_id = stop
    given = {"eos_token_id": [stop, -1] if stops == "both" else stops, "max_new_tokens": 20, **more}
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    own, other = (model.generate(**prompt, **given) for model in models)
    assert torch.equal(own, other)
    assert (own.shape[1] == 30) is (stops != "both")
    told = {
        record.name.partition(".")[0]: record.getMessage()
        for record in caplog.records
        if "positive integers" in record.getMessage()
    }
    assert told.keys() == (set() if stops is None else {"gemma3_core", "transformers"})
    assert len(set(told.values())) <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 4, "typical_p": 0.5}, ["num_beams=4", "typical_p=0.5"]),
        ({"max_new_token": 4}, ["max_new_token"]),
        ({"logits_processor": [print]}, ["logits_processor"]),
        ({"cache_position": torch.arange(3)}, ["cache_position"]),
        ({"negative_prompt_ids": torch.zeros(1, 2)}, ["negative_prompt_ids"]),
        ({"num_return_sequences": 2, "do_sample": True}, ["num_return_sequences=2"]),
        ({"output_attentions": True, "return_dict_in_generate": True}, ["output_attentions"]),
        ({"cache_implementation": "quantized"}, ["quantized", "static"]),
        ({"cache_implementation": "static", "use_cache": False}, ["cache_implementation", "use_cache"]),
        ({"max_cache_len": 50}, ["max_cache_len", "static"]),
        ({"output_scores": True}, ["return_dict_in_generate"]),
        ({"stop_strings": "a"}, ["tokenizer="]),
        ({"stop_strings": "a", "tokenizer": object()}, ["Gemma3Tokenizer", "object"]),
        ({"generation_config": {"max_new_tokens": 3}}, ["GenerationConfig", "dict"]),
        ({"past_key_values": ((1, 2),)}, ["KVCache", "tuple"]),
        ({"seed": 1, "generator": torch.Generator()}, ["not both"]),
        ({"generator": 7}, ["torch.Generator", "int"]),
        ({"pixel_values": torch.zeros(1, 3, 8, 8)}, ["pixel_values"]),
        ({"min_new_tokens": -1}, ["min_new_tokens", "-1"]),
        ({"max_new_tokens": 2.5}, ["max_new_tokens", "2.5"]),
        ({"eos_token_id": "<eos>"}, ["eos_token_id"]),
        ({"eos_token_id": torch.tensor([1.5])}, ["eos_token_id", "1.5"]),
        ({"eos_token_id": 2.5}, ["eos_token_id", "2.5"]),
        ({"no_repeat_ngram_size": 2}, ["no_repeat_ngram_size=2"]),
        ({"max_time": 3.0}, ["max_time=3.0"]),
        ({"assistant_model": object()}, ["assistant_model"]),
        ({"stopping_criteria": [len]}, ["stopping_criteria"]),
        ({"streamer": "x"}, ["streamer", "str"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_named(our_text, options, words):
    with pytest.raises(UnsupportedOptionError) as error:
        our_text.generate(ids_of("t5"), **options)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("options", "word"),
    [({"temperature": 0.0}, "do_sample=False"), ({"min_p": 2}, "min_p"), ({"repetition_penalty": 0}, "penalty")],
)
def test_sampling_options_out_of_range_are_refused(our_text, options, word):
    with pytest.raises(SamplingError, match=word):
        our_text.generate(ids_of("t5"), do_sample=True, **options)


def test_sampling_options_without_sampling_are_told_in_the_log(our_text, caplog):
    with caplog.at_level(logging.WARNING):
        our_text.generate(ids_of("t5"), temperature=0.7, max_new_tokens=1)
    assert "temperature has no effect without do_sample=True" in caplog.text


def test_unsupported_options_of_a_file_are_kept_and_refused_where_they_count(our_text):
    config = GenerationConfig.from_dict({"num_beams": 4, "_from_model_config": True, "transformers_version": "4"})
    assert config.num_beams == 4
    assert config.to_dict()["transformers_version"] == "4"
    with pytest.raises(UnsupportedOptionError, match="num_beams=4"):
        our_text.generate(ids_of("t5"), generation_config=config)
    config.num_beams = 1
    assert our_text.generate(ids_of("t5"), generation_config=config).shape[1] == 26
    with pytest.raises(UnsupportedOptionError, match="max_tokens"):
        config.max_tokens = 4
    with pytest.raises(UnsupportedOptionError, match="beams"):
        GenerationConfig(beams=4)


def test_every_option_of_transformers_is_known_and_its_default_does_nothing():
    options = {name: value for name, value in vars(ReferenceGenerationConfig()).items() if not name.startswith("_")}
    ours = {*GenerationConfig.names(), *UNSUPPORTED, "transformers_version", "continuous_batching_config"}
    assert set(options) <= ours
    config = GenerationConfig()
    assert config.update(**ReferenceGenerationConfig._get_default_generation_params()) == {}
    config.require_supported()


def test_nothing_said_writes_what_the_context_has_left(our_text):
    model = Gemma3ForCausalLM(our_text.config.replace(max_position_embeddings=40)).eval()
    assert model.generate(torch.full((1, 37), 7), eos_token_id=[]).shape[1] == 40
    with pytest.raises(ContextLengthError):
        model.generate(torch.full((1, 40), 7))


def test_a_model_keeps_the_options_that_are_set_on_it(weights):
    """As users of transformers do; the cache that published files ask for is the one there is."""
    model = Gemma3ForCausalLM.from_pretrained(weights.text)
    model.generation_config.max_new_tokens = 3
    model.generation_config.cache_implementation = "hybrid"
    out = model.generate(ids_of("t5"), return_dict_in_generate=True)
    assert out.sequences.shape[1] == 6 + 3
    assert model.generate(out.sequences, past_key_values=out.past_key_values).shape[1] == 9 + 3
    model.generation_config.num_beams = 2
    with pytest.raises(UnsupportedOptionError, match="num_beams=2"):
        model.generate(ids_of("t5"))


def test_a_generation_config_is_copied_compared_and_found_missing(tmp_path):
    config = GenerationConfig(max_new_tokens=3, num_beams=2, eos_token_id=[1, 106])
    twin = copy.deepcopy(config)
    assert twin == config
    assert "max_new_tokens=3" in repr(twin)
    twin.top_k = 5
    assert twin != config
    assert (config.num_beams, config.max_time, config.stop_ids, config.pad_id) == (2, None, (1, 106), 1)
    with pytest.raises(CheckpointError, match="generation_config"):
        GenerationConfig.from_pretrained(tmp_path)

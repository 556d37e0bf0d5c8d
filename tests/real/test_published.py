"""A checkpoint that Google published, from its GGUF file: as transformers computes it, and in the app."""

import asyncio
import lzma
import time
from copy import deepcopy

import pytest
import torch
from browsing import answered
from places import DEMO_MODEL, REPOSITORY
from running_app import opened, running_app, unfold
from tokenizers import Tokenizer

from gemma3_core import AutoModelForCausalLM, TorchAoConfig
from gemma3_core.engine import DoneEvent, Request, Turn
from gemma3_core.int4.linear import Int4Linear
from gemma3_core.replicas.options import HEALTH_TIMEOUT_S
from gemma3_core.replicas.replica import Replica
from gemma3_core.replicas.wire import program_version

pytestmark = pytest.mark.long

PROMPTS = (
    "Plants create energy through a process known as",
    "The first president of the United States was George",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "天地玄黃，宇宙洪荒。",
)
NEXT_WORDS = {
    "Plants create energy through a process known as": " photosynthesis",
    "Monday, Tuesday, Wednesday,": " Thursday",
    "The opposite of hot is": " cold",
    "Paris is the capital of": " France",
    "Romeo and": " Juliet",
    "The first president of the United States was George": " Washington",
    "Once upon a": " time",
}


@pytest.fixture(scope="module")
def text_ids(tokenizer):
    """A text of ours, longer than the sliding window of 512 tokens."""
    text = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    return tokenizer(text, return_tensors="pt")["input_ids"][:, :600]


def logits_of(model, ids, places: torch.Tensor | int = 0) -> torch.Tensor:
    """float32, of these places or of all."""
    with torch.inference_mode():
        return model(input_ids=ids, logits_to_keep=places).logits[0].float()


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


PLACES = torch.arange(0, 599, 5)
"""Of the text's tokens each fifth: a token's 262,144 logits are the larger part of the work."""


def perplexity(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Of the tokens after PLACES."""
    return torch.nn.functional.cross_entropy(logits, ids[0, PLACES + 1]).exp().item()


@pytest.fixture(scope="module")
def expected(reference, text_ids):
    return logits_of(reference, text_ids, PLACES)


def test_its_tokenizer_gives_the_published_ids(tokenizer, shared_data):
    packed = (shared_data / "gemma3_tokenizer.json.xz").read_bytes()
    theirs = Tokenizer.from_str(lzma.decompress(packed).decode())
    for file in (*REPOSITORY.glob("*.md"), *REPOSITORY.glob("assets/*.js"), *REPOSITORY.glob("assets/words/*.json")):
        text = file.read_text(encoding="utf-8")
        assert tokenizer.encode(text) == theirs.encode(text).ids, file.name


def test_logits_and_perplexity_are_transformers(model, expected, text_ids):
    ours = logits_of(model, text_ids, PLACES)
    assert apart(ours, expected) <= 1e-5
    assert perplexity(ours, text_ids) == pytest.approx(perplexity(expected, text_ids), rel=1e-4)


def test_64_greedy_tokens_are_those_that_transformers_finds_likeliest(model, reference, tokenizer):
    """Prompts that are written on together; of each, one pass of transformers alone says it for all 64 tokens: each is
    the likeliest after those before it, and so the one that it would write."""
    prompts = list(PROMPTS)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    ours = model.generate(**dict(inputs), max_new_tokens=64, do_sample=False)
    stops = torch.tensor(model.generation_config.stop_ids)
    for prompt, row in zip(prompts, ours[:, inputs["input_ids"].shape[1] :], strict=True):
        ends = torch.isin(row, stops).nonzero().flatten().tolist()
        written = row[: ends[0] + 1] if ends else row
        assert ends or len(written) == 64
        ids = torch.cat([tokenizer(prompt, return_tensors="pt")["input_ids"], written[None]], dim=1)
        likeliest = logits_of(reference, ids, len(written) + 1)[:-1].argmax(dim=-1)
        assert written.tolist() == likeliest.tolist(), prompt


def test_the_likeliest_next_word_is_one_that_a_person_expects(model, tokenizer):
    for beginning, word in NEXT_WORDS.items():
        logits = logits_of(model, tokenizer(beginning, return_tensors="pt")["input_ids"])[-1]
        assert tokenizer.decode([int(logits.argmax())]) == word, beginning


def test_bfloat16_is_as_near_to_float32_as_transformers(published, reference, expected, text_ids):
    model = AutoModelForCausalLM.from_pretrained(published)
    assert model.dtype == torch.bfloat16
    ours, theirs = logits_of(model, text_ids, PLACES), logits_of(deepcopy(reference).bfloat16(), text_ids, PLACES)
    assert (ours - expected).norm() <= 1.5 * (theirs - expected).norm()
    assert perplexity(ours, text_ids) == pytest.approx(perplexity(expected, text_ids), rel=0.01)


def test_int4_computes_what_transformers_computes_with_the_same_weights(published, reference, text_ids):
    model = AutoModelForCausalLM.from_pretrained(published, dtype="float32", quantization_config=TorchAoConfig(32))
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Int4Linear)}
    assert len(layers) == 7 * 18 + 1
    before = {name: reference.get_submodule(name).weight for name in layers}
    try:
        for name, layer in layers.items():
            weight = torch.nn.Parameter(layer.int4_weight().dequantize(), requires_grad=False)
            reference.get_submodule(name).weight = weight
        theirs = logits_of(reference, text_ids, PLACES)
    finally:
        for name, weight in before.items():
            reference.get_submodule(name).weight = weight
    ours = logits_of(model, text_ids, PLACES)
    assert apart(ours, theirs) <= 1e-4
    assert perplexity(ours, text_ids) == pytest.approx(perplexity(theirs, text_ids), rel=1e-3)


def test_a_replica_that_loads_it_goes_on_answering_the_health_check(published):
    """Its tokenizer has 262,144 tokens, which libraries read without leaving the interpreter to others.

    Counted in this process's own time: beside other test processes the clock counts several times as much. A processor
    that others use as well takes longer for the same work too, so a second load may show it.
    """
    asked = Request((Turn("user", "Why? " * 100),), max_new_tokens=2)

    async def loaded(replica: Replica) -> None:
        answer = replica.stream(program_version(), "key", published.name, asked)
        assert isinstance([item async for batch in answer for item in batch][-1], DoneEvent)

    async def slowest() -> float:
        replica = Replica({"model": str(DEMO_MODEL), "also": [str(published)], "device": "cpu"})
        loading, waits = asyncio.create_task(loaded(replica)), []
        while not loading.done():
            began = time.process_time()
            await replica.check_health()
            await asyncio.sleep(0.02)
            waits.append(time.process_time() - began)
        await loading
        return max(waits)

    if (first := asyncio.run(slowest())) >= HEALTH_TIMEOUT_S:
        assert asyncio.run(slowest()) < HEALTH_TIMEOUT_S, first


def test_a_chat_page_that_continues_text(published, browser):
    with running_app("--model", str(published)) as url, opened(browser, url) as page:
        assert "It is a base model" in page.locator("#chat .placeholder-content").inner_text()
        assert page.locator("#continue-text input").is_checked()
        page.set_default_timeout(120_000)
        unfold(page, "Sampling", "#seed input")
        page.get_by_label("number input for Temperature").fill("0")
        page.get_by_label("number input for Longest answer").fill("12")
        page.get_by_label("number input for Longest answer").press("Tab")
        page.locator("#chat button.example", has_text="Plants create energy").click()
        assert answered(page).startswith("photosynthesis. The process of photosynthesis is a process that")
        page.get_by_role("button", name="Look inside answer 1").click()
        page.locator("#inside button", has_text="photosynthesis").first.wait_for()
        # The switch asks it as a chat, for which it was not trained.
        page.get_by_role("button", name="New chat").click()
        page.locator("#chat .placeholder-content").wait_for()
        page.locator("#continue-text input").uncheck()
        page.locator("#composer textarea").fill("Plants create energy through a process known as")
        page.locator("#composer textarea").press("Enter")
        assert not answered(page).startswith("photosynthesis. The process of photosynthesis")

"""Streamers: what is shown, and when, is what transformers' streamers show."""

from queue import Empty
from threading import Thread

import pytest
import torch
from transformers import GemmaTokenizer as ReferenceTokenizer
from transformers import TextIteratorStreamer as ReferenceIteratorStreamer
from transformers import TextStreamer as ReferenceStreamer

from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.generation.streamers import BaseStreamer, TextIteratorStreamer, TextStreamer
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer


@pytest.fixture(scope="module")
def tokenizer(small_tokenizer_folder) -> Gemma3Tokenizer:
    return Gemma3Tokenizer.from_pretrained(small_tokenizer_folder)


@pytest.fixture(scope="module")
def their_tokenizer(small_tokenizer_folder):
    return ReferenceTokenizer.from_pretrained(small_tokenizer_folder)


TEXTS = [
    "a few words. And more",
    "lines\nof\n\ntext",
    "漢字 and 仮 x",
    "",
    "é à Ω",
    " leading",
    "end\n",
    "a<end_of_turn>",
]


def pieces(streamer, prompt: list[int], tokens: list[int]) -> list[tuple[str, bool]]:
    """The finished pieces of a prompt and an answer, one token at a time; True with the last."""
    got: list[tuple[str, bool]] = []
    streamer.on_finalized_text = lambda text, stream_end=False: got.append((text, stream_end))
    streamer.put(torch.tensor([prompt]))
    for token in tokens:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return got


@pytest.mark.parametrize("options", [{}, {"skip_prompt": True}, {"skip_prompt": True, "skip_special_tokens": True}])
@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_each_piece_comes_when_that_of_transformers_does(tokenizer, their_tokenizer, text, options):
    prompt, tokens = tokenizer.encode("a prompt"), tokenizer.encode(text, add_special_tokens=False)
    mine, reference = TextStreamer(tokenizer, **options), ReferenceStreamer(their_tokenizer, **options)
    for _ in range(2):  # a streamer may serve several calls
        assert pieces(mine, prompt, tokens) == pieces(reference, prompt, tokens)


def test_it_prints_words_and_a_line_at_the_end(tokenizer, capsys):
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    for ids in (
        torch.tensor([[2, 5]]),
        *map(torch.tensor, [[i] for i in tokenizer.encode("one two", add_special_tokens=False)]),
    ):
        streamer.put(ids)
    assert capsys.readouterr().out == "one "
    streamer.end()
    assert capsys.readouterr().out == "two\n"


@pytest.mark.parametrize("kind", [TextStreamer, TextIteratorStreamer])
@pytest.mark.parametrize("given", ["google/gemma-3-1b-it", b"x", None, 5], ids=repr)
def test_what_decodes_nothing_is_refused(kind, given):
    with pytest.raises(UnsupportedOptionError, match="needs the tokenizer or processor"):
        kind(given)


def test_several_rows_are_refused(tokenizer):
    with pytest.raises(UnsupportedOptionError, match="one row, got 2"):
        TextStreamer(tokenizer).put(torch.zeros(2, 3, dtype=torch.long))


def test_generate_streams_prompt_and_answer_to_another_thread(chat_folder, tokenizer, their_tokenizer):
    model = Gemma3ForConditionalGeneration.from_pretrained(chat_folder)
    prompt = dict(tokenizer(["some words"], return_tensors="pt"))
    shown = []
    for kind, own in ((TextIteratorStreamer, tokenizer), (ReferenceIteratorStreamer, their_tokenizer)):
        streamer = kind(own, timeout=60.0, skip_special_tokens=True)
        options = {**prompt, "streamer": streamer, "max_new_tokens": 20, "eos_token_id": []}
        worker = Thread(target=model.generate, kwargs=options)
        worker.start()
        shown.append(list(streamer))
        worker.join()
    assert shown[0] == shown[1]
    assert "".join(shown[0]).startswith("some words")
    assert len("".join(shown[0])) > len("some words") + 10


def test_waiting_ends_with_the_timeout(tokenizer):
    with pytest.raises(Empty):
        next(TextIteratorStreamer(tokenizer, timeout=0.01))


def test_any_streamer_gets_the_ids_as_they_come(chat_folder, tokenizer):
    class Kept(BaseStreamer):
        def __init__(self):
            self.got: list[torch.Tensor] = []
            self.ended = 0

        def put(self, value):
            self.got.append(value)

        def end(self):
            self.ended += 1

    model = Gemma3ForConditionalGeneration.from_pretrained(chat_folder)
    prompt = dict(tokenizer(["one", "another"], padding=True, return_tensors="pt"))
    streamer = Kept()
    ids = model.generate(**prompt, streamer=streamer, max_new_tokens=6, eos_token_id=[])
    assert torch.equal(streamer.got[0], prompt["input_ids"])
    assert torch.equal(torch.stack(streamer.got[1:], 1), ids[:, -6:])
    assert streamer.ended == 1

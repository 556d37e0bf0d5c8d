"""Trains the demo model's tokenizer: `python -m training.tokenizer --out assets/demo_model`.

The form is that of Gemma's published tokenizer (byte-fallback BPE, spaces written as "▁"), so that
transformers' GemmaTokenizer rebuilds it unchanged; only the vocabulary is small.
"""

import argparse
import json
import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from training.colors import COLORS
from training.geometry import SHAPES
from training.ordinary_text import ORDINARY_TEXT
from training.phrasings import HELDOUT_PHRASINGS, PHRASINGS
from training.questions import NUMBERS, PLACES, plural

VOCABULARY_SIZE = 1024
CONTROL_TOKENS = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>",
    "<start_of_image>", "<end_of_image>", "<image_soft_token>",
)  # fmt: skip
NEWLINES = tuple("\n" * count for count in range(1, 5))  # added, so that no merge holds a newline
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
ALPHABET = (*(chr(code) for code in range(33, 127)), "▁")

# How the text is cut for training alone: a word with the space before it, a digit, a mark.
_PIECES = Regex("▁?[A-Za-z]+|▁|[^▁A-Za-z]")

CHAT_TEMPLATE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""


def build() -> Tokenizer:
    """The finished tokenizer; the same on every run."""
    learnt = _learn_merges()
    vocabulary = _vocabulary(learnt)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[pair for pair in learnt if "".join(pair) in vocabulary],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos>:1 $B:1",
        special_tokens=[("<bos>", vocabulary["<bos>"])],
    )
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False, special=text in CONTROL_TOKENS) for text in (*CONTROL_TOKENS, *NEWLINES)]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_settings(), indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _settings() -> dict:
    """tokenizer_config.json, with the keys and values of Gemma's own."""
    image_tokens = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        **image_tokens,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<end_of_turn>",
        "extra_special_tokens": image_tokens,
        "mask_token": "<mask>",
        "model_max_length": 8192,
        "pad_token": "<pad>",
        "padding_side": "left",
        "processor_class": "Gemma3Processor",
        "sp_model_kwargs": None,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }


def _vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Control tokens and newlines, bytes, characters, then pieces in the order of the merges."""
    base = (*CONTROL_TOKENS[:7], *NEWLINES, *CONTROL_TOKENS[7:], *BYTES, *ALPHABET)
    pieces = dict.fromkeys(base)
    for left, right in merges:
        if len(pieces) == VOCABULARY_SIZE:
            break
        pieces.setdefault(left + right)
    assert len(pieces) == VOCABULARY_SIZE, len(pieces)
    return {piece: number for number, piece in enumerate(pieces)}


def _learn_merges() -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_PIECES, "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,  # more than are left after the bytes; the rest is dropped
        min_frequency=1,
        initial_alphabet=list(ALPHABET),
        limit_alphabet=len(ALPHABET),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) for pair in merges]


def _training_text() -> list[str]:
    """Key words so often that each becomes one piece, then questions, phrasings, plain English."""
    keys = [*COLORS, "grey", *NUMBERS, "zero", *SHAPES, *map(plural, SHAPES)]
    keys += sorted({word for place in PLACES for word in place.split()})
    words = [f" {word}" for word in (*keys, *_KEY_WORDS)] + list(_ROLES)
    text = [word for word in words for _ in range(3000)]
    for phrasings in (PHRASINGS, HELDOUT_PHRASINGS):
        for forms in phrasings.values():
            for templates in forms.values():
                text += [_bare(template) for template in templates] * 50
                text += [_bare(template[0].lower() + template[1:]) for template in templates] * 10
    return text + list(ORDINARY_TEXT) * 5


def _bare(template: str) -> str:
    """A phrasing without its slots, whose words are among the key words."""
    return re.sub(r" ?\{\w+\}", "", template)


_KEY_WORDS = (
    "color", "colour", "colors", "shape", "shapes", "object", "objects", "thing", "things",
    "picture", "image", "Yes", "No", "yes", "There", "there", "The", "the", "is", "are", "in", "of",
    "What", "what", "How", "how", "many", "Where", "where", "Which", "which", "not", "and", "or",
    "you", "it", "this", "that", "to", "a", "an", "figure", "figures", "photo", "drawing", "please",
    "seven", "eight", "nine", "ten",
    "One", "Two", "Three",
)  # fmt: skip
_ROLES = ("model", "user")  # each follows <start_of_turn>, without a space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    folder = parser.parse_args().out
    tokenizer = build()
    save(tokenizer, folder)
    print(f"{tokenizer.get_vocab_size()} tokens in {folder}")


if __name__ == "__main__":
    main()

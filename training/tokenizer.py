"""Trains the demo model's tokenizer: `python -m training.tokenizer --out runs/tokenizer`.

Text in quotation marks becomes one token per character, so that the model reads a sign character by character.

The format is that of Gemma's published tokenizer (byte-fallback BPE, spaces written as "▁"), so that transformers'
GemmaTokenizer loads it unchanged; only the vocabulary is smaller.
"""

import argparse
import re
import shutil
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from training.drawing.colors import COLORS
from training.drawing.geometry import SHAPES
from training.language import system_prompts
from training.language.words import ORDINARY_TEXT
from training.language.written_phrasings import HELDOUT, TRAINED
from training.learning.batches import NO_PICTURE
from training.learning.model import DEMO_MODEL, TOKENIZER_FILES
from training.worlds import elsewhere
from training.worlds.boards import questions as board_questions
from training.worlds.pairs import follow_ups
from training.worlds.pairs import questions as pair_questions
from training.worlds.scenes.questions import LARGER_NUMBERS, NUMBERS, PLACES, plural

VOCABULARY_SIZE = 1024
CONTROL_TOKENS = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>",
    "<start_of_image>", "<end_of_image>", "<image_soft_token>",
)  # fmt: skip
NEWLINES = tuple("\n" * count for count in range(1, 5))  # added, so that no merge holds a newline
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
ALPHABET = (*(chr(code) for code in range(33, 127)), "▁")
_BASE = (*CONTROL_TOKENS[:7], *NEWLINES, *CONTROL_TOKENS[7:], *BYTES, *ALPHABET)

_WORDS = re.compile("( |(?<![A-Za-z]))([A-Za-z]+)")


def build() -> Tokenizer:
    """The finished tokenizer; the same on every run.

    Merges build a word from the space before it, or from its capital at the start of a sentence. So characters after a
    quotation mark never merge with each other. A capital after the mark merges with the mark ('"S', 'T', 'O', 'P',
    '"'); otherwise it would begin a word ("The").
    """
    learnt = _spelling_merges()
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
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False, special=text in CONTROL_TOKENS) for text in (*CONTROL_TOKENS, *NEWLINES)]
    )
    # As added tokens: merges that build these would also join letters of other words.
    tokenizer.add_tokens([AddedToken(role, normalized=False, single_word=True) for role in _ROLES])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json; tokenizer_config.json and chat_template.jinja are the demo model's, and Gemma's own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(DEMO_MODEL / name, folder / name)
    tokenizer.save(str(folder / "tokenizer.json"))


def _vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Control tokens and newlines, bytes, characters, role names, then pieces in the order of the merges."""
    pieces = dict.fromkeys((*_BASE, *_ROLES))
    for left, right in merges:
        if len(pieces) == VOCABULARY_SIZE:
            break
        pieces.setdefault(left + right)
    assert len(pieces) == VOCABULARY_SIZE, len(pieces)
    return {piece: number for number, piece in enumerate(pieces)}


def _spelling_merges() -> list[tuple[str, str]]:
    """Merges that each add one letter to the beginning of a word; those that save most tokens come first.

    A beginning is worth as much as it occurs. Its own beginnings are worth at least as much, so they are chosen too.
    Words after a space come first: a capital there belongs to the space.
    """
    worth: Counter[str] = Counter()
    for text, times in _training_text().items():
        for space, word in _WORDS.findall(text):
            if space or word[0].isupper():
                begun = ("▁" if space else "") + word
                worth.update({begun[:end]: times for end in range(2, len(begun) + 1)})
    blocks = [('"', letter) for letter in string.ascii_uppercase]
    room = VOCABULARY_SIZE - len(_BASE) - len(_ROLES) - len(blocks)
    chosen = sorted(worth, key=lambda piece: (-worth[piece], len(piece), piece))[:room]
    grown = [(piece[:-1], piece[-1]) for piece in sorted(chosen, key=lambda piece: not piece.startswith("▁"))]
    return blocks + grown


def _training_text() -> Counter[str]:
    """How often each text counts. Key words count so often that each becomes one token."""
    keys = [*COLORS, "grey", *NUMBERS, "zero", *SHAPES, *map(plural, SHAPES)]
    keys += sorted({word for place in PLACES for word in place.split()})
    words = [f" {word}" for word in (*keys, *_KEY_WORDS)] + list(_ROLES)
    text: Counter[str] = Counter(dict.fromkeys(words, 3000))
    begin = [*COLORS, *NUMBERS, *LARGER_NUMBERS, *SHAPES, *(place.split()[0] for place in PLACES)]
    short = sorted({f"{word.capitalize()}." for word in (*begin, "none", "word", "number")})
    text.update(dict.fromkeys((*_ANSWERS, *short), 1500))
    for template in _templates():
        text[_bare(template)] += 50
        text[_bare(template[0].lower() + template[1:])] += 10
    for line in ORDINARY_TEXT:
        text[line] += 5
    return text


def _templates() -> Iterator[str]:
    """All phrasings and system prompts."""
    for written in (TRAINED, HELDOUT):
        for forms in written.values():
            for texts in forms.values():
                yield from texts
    for prompts in (system_prompts.PROMPTS, system_prompts.HELDOUT_PROMPTS):
        for texts in prompts.values():
            yield from texts
    yield from (*system_prompts.OPENINGS, *system_prompts.HELDOUT_OPENINGS)


def _bare(template: str) -> str:
    """A phrasing without its slots; the words for them are key words."""
    return re.sub(r" ?\{\w+\}", "", template)


_KEY_WORDS = (
    "color", "colour", "colors", "shape", "shapes", "object", "objects", "thing", "things",
    "picture", "image", "Yes", "No", "yes", "There", "there", "The", "the", "is", "are", "in", "of",
    "What", "what", "How", "how", "many", "Where", "where", "Which", "which", "not", "and", "or",
    "you", "it", "this", "that", "to", "a", "an", "figure", "figures", "photo", "drawing", "please",
    *LARGER_NUMBERS,
)  # fmt: skip
_ANSWERS = (
    NO_PICTURE, follow_ups.ONLY_ONE, elsewhere.NOTHING_KNOWN, elsewhere.NOT_ASKED_FOR, board_questions.TOO_SMALL,
    *pair_questions.MORE.values(), "Yes, both show the same shapes.", "No, they show different shapes.",
    "The first picture shows", "The second picture shows", "The picture shows",
    "The sign says", "The first line says", "The second line says", "The text is",
    "The word has letters.", "The word has one letter.", "The number has digits.", "It is a word.", "It is a number.",
    "The largest is the", "The smallest is the", "is left of the", "is right of the", "is above the", "is below the",
    "Yes, the", "No, the", "is not", "There is no", "There are no", "Yes, there is", "No, there is no",
    "The tallest bar is", "The shortest bar is", "is taller.", "There are bars.", "The bar is",
    " costs", "The first is", "The last is", "is on the board.", " there is no", "on the board.",
)  # fmt: skip
_ROLES = ("model", "user")  # each follows <start_of_turn>, without a space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    out, tokenizer = parser.parse_args().out, build()
    save(tokenizer, out)
    print(f"{tokenizer.get_vocab_size()} tokens in {out}")


if __name__ == "__main__":
    main()

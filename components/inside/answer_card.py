"""The answer card: one HTML file with an answer, its pictures, its figures and where the model looked for each word.

It needs no server and loads nothing. The file's form is assets/answer_card.html.
"""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from components.chat.conversation import Exchange
from components.shown.image_strip import picture_html
from components.shown.stats import count, figures_line
from components.shown.token_view import percent, word_of_content, words_of
from gemma3_core.engine import AttentionMap, Engine, PicturePreview, Turn

MOST_WORDS, _MOST_PICTURES = 64, 8
_TEMPLATE = Path(__file__).resolve().parents[2] / "assets" / "answer_card.html"
_LONGEST = 1024  # pixels of a picture's longer side
_HINT = "Choose a word to see where the model looked when it wrote it. Attention does not prove that a place mattered."
_NO_PICTURES = "Choose a word to see how sure the model was of it."


def make_card(
    engine: Engine,
    exchange: Exchange,
    previews: Iterable[PicturePreview],
    attention: Callable[[Sequence[int]], AttentionMap],
    tell: Callable[[str], None],
) -> str:
    """The card's HTML; `attention` gives where the model looked for some of the answer's tokens, and `previews` the
    prompt's pictures. `tell` is told how far it is. Raises what both raise."""
    choices, done = list(exchange.choices), exchange.answered.done
    words = words_of(choices)
    shown = words[:MOST_WORDS] if engine.info.multimodal and exchange.answered.request.num_images else []
    maps: dict[int, AttentionMap] = {}
    for number, word in enumerate(shown):
        tell(f"Looking at word {number + 1} of {len(shown)}")
        maps[number] = attention(word)
    shapes, pictures = [], ""
    for number, preview in enumerate(previews):  # one at a time, because each holds its picture in memory
        shapes.append((preview.width, preview.height))
        if number < _MOST_PICTURES:
            pictures += f"<figure>{picture_html(preview.original, f'Picture {number + 1}', _LONGEST)}</figure>"
    parts = [_word(choices, word, maps.get(number)) for number, word in enumerate(words)]
    hint = _HINT if maps else _NO_PICTURES
    if len(words) > MOST_WORDS and maps:
        hint += f" The first {count(MOST_WORDS, 'word')} can be chosen for that."
    # The rest of the text: an answer without its tokens, or one that a browser brought back without them.
    text = "" if choices else done.text
    *earlier, question = exchange.answered.request.turns
    token = word_of_content(choices, question.text)
    first = next((number for number, word in enumerate(words) if token in word), 0)
    data = {"words": parts or [{"text": text}], "tiles": _tiles(maps, shapes), "first": first}
    fields = {
        "title": escape(question.text[:80]),
        "earlier": "".join(map(_turn, earlier)),
        "pictures": pictures,
        "question": escape(question.text),
        "answer": escape(done.text),
        "hint": escape(hint),
        "figures": escape(figures_line(exchange.stats)),
        # A closing tag or a comment in a text must not end the script element.
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    }
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(fields)


def _turn(turn: Turn) -> str:
    return f'<div class="{"turn" if turn.role == "user" else "quiet"}">{escape(turn.text)}</div>'


def _word(choices: Sequence[Any], word: range, attention: AttentionMap | None) -> dict[str, Any]:
    """A word's text, the likeliest tokens at its first one with their shares as text, and its maps as bytes, each
    scaled to its own peak."""
    first = choices[word.start]
    made: dict[str, Any] = {
        "text": "".join(choices[number].text for number in word),
        "choices": [(other.text, percent(other.probability)) for other in first.alternatives],
    }
    if attention is not None:
        made["maps"] = [_map(number, tile.grid) for number, tile in enumerate(attention.tiles)]
    return made


def _map(number: int, grid: Sequence[Sequence[float]]) -> dict[str, Any]:
    peak = max(map(max, grid)) or 1.0
    levels = bytes(round(255 * weight / peak) for row in grid for weight in row)
    return {"tile": number, "peak": peak, "grid": base64.b64encode(levels).decode("ascii")}


def _tiles(maps: dict[int, AttentionMap], shapes: Sequence[tuple[int, int]]) -> list[tuple[float, ...]]:
    """Each tile's picture and its box in shares of the picture's sides; the same for all words."""
    tiles = [] if not maps else [tile.tile for tile in maps[0].tiles]
    return [
        (
            tile.picture,
            tile.box.left / shapes[tile.picture][0],
            tile.box.top / shapes[tile.picture][1],
            tile.box.right / shapes[tile.picture][0],
            tile.box.bottom / shapes[tile.picture][1],
        )
        for tile in tiles
    ]

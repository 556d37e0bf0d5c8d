"""Why an answer has this word: what it rests on, whether it would be there without the picture, and what each layer
made of it. A Look like those of `explain`: everything about one word from one encoding of the pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gemma3_core.engine.api import Answered
from gemma3_core.engine.explain import Decode, forward_inputs, tiles_in
from gemma3_core.engine.prompts import Prompt
from gemma3_core.errors import AttentionError
from gemma3_core.generation.grammar import Grammar
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.images.processor import as_picture
from gemma3_core.inspection.attention import Check, replay, with_answer
from gemma3_core.inspection.confidence import token_text
from gemma3_core.inspection.heat_maps import (
    AttentionMap,
    chosen_layers,
    columns_within,
    hottest_of,
    map_of,
    mean_weights,
    soft_tokens_around,
)
from gemma3_core.inspection.knockout import UNSEEN_MAX_TOKENS, probabilities_unseen
from gemma3_core.inspection.layers import HeadLook, LayerSaid, heads_on, logit_lens
from gemma3_core.inspection.place import Place, estimated_place, look_of_best_head
from gemma3_core.inspection.prompt import prompt_tokens
from gemma3_core.inspection.rests_on import RestsOn, rests_on, sharpened
from gemma3_core.models.multimodal import Model
from gemma3_core.processor import Gemma3Processor

HARDLY = 0.02
"""A change of a word's probability that does not count as one."""


@dataclass(frozen=True)
class WordReport:
    """Why an answer has the word `text`.

    `rests_on` is None without pictures. `attention` is where the word's tokens looked, as the mean over the global
    layers. `said` is what each layer would have said in place of the word's first token. `place` estimates where
    the word's object is; None where the pictures hardly mattered. `heads` are all heads by the share of that token's
    attention inside the `region` (a picture's number and a box in its pixels): the one that was asked for, or the soft
    tokens around `place`, or without a place those whose hiding did most. Without pictures there are none. `unseen` are
    the probabilities of all tokens of the answer if no word sees a picture; there are none without pictures, in a
    conversation of more than UNSEEN_MAX_TOKENS words, or for an answer that had to fit a JSON schema. The word's own
    probabilities in such an answer are among the tokens that the schema allowed.
    """

    text: str
    attention: AttentionMap
    rests_on: RestsOn | None
    said: tuple[LayerSaid, ...]
    heads: tuple[HeadLook, ...]
    region: tuple[int, Box] | None
    place: Place | None
    unseen: tuple[float, ...]

    @property
    def picture_hardly_mattered(self) -> bool:
        """Whether the word is about as likely with all pictures hidden."""
        return self.rests_on is not None and hardly_mattered(self.rests_on)


def hardly_mattered(rests: RestsOn) -> bool:
    """Whether the word is about as likely with all pictures hidden."""
    return abs(rests.seen - rests.unseen) < HARDLY


def look_at_word(
    answered: Answered,
    tokens: Sequence[int],
    picture: int | None,
    box: Box | None,
    prompt: Prompt,
    processor: Gemma3Processor,
    model: Model,
    check: Check,
    _decode: Decode,
    grammar: Grammar | None,
) -> WordReport:
    """A Look: the answer's word of these `tokens` (from 0, one after the other).

    Raises AttentionError for tokens that the answer doesn't have or that are no word, and for a region outside the
    pictures.
    """
    ids, word = answered.done.token_ids, word_range(tokens, len(answered.done.token_ids))
    region = _checked_region(prompt, picture, box)
    inputs = forward_inputs(prompt, processor, model, check)
    turn = with_answer(inputs, ids[: word.stop - 1])
    types = turn.get("token_type_ids")
    tiles = tiles_in(prompt, types)
    rows = [prompt.num_tokens - 1 + number for number in word]
    replayed = replay(model, turn, rows[:1], check=check, with_states=True)
    weights = replayed.weights if len(rows) == 1 else replay(model, turn, rows, check=check).weights
    layers = chosen_layers(model.text_config, "global", None)
    described = prompt_tokens(processor.tokenizer, turn["input_ids"], None, types)
    attention = map_of(mean_weights(weights, layers, None).mean(dim=0), described, tiles, "global", layers, None)
    rests, place = rests_on(model, inputs, ids, word, tiles, check, grammar) if tiles else None, None
    if rests is not None and hardly_mattered(rests):
        region = region or _hottest(rests)
    elif rests is not None:
        look, pictures = look_of_best_head(weights, rests.tiles), [as_picture(tile) for tile in prompt.all_tiles()]
        place = estimated_place(look, pictures)
        rests = sharpened(rests, look.tiles, pictures, check)
        region = region or (place.picture, soft_tokens_around(attention.tiles, place.picture, place.box))
    few_words = prompt.num_tokens - int(prompt.token_type_ids.sum()) + len(ids) <= UNSEEN_MAX_TOKENS
    unseen = probabilities_unseen(model, inputs, ids, check) if tiles and few_words and grammar is None else ()
    columns = () if region is None else columns_within(attention.tiles, *region)
    return WordReport(
        "".join(token_text(processor.tokenizer, ids[number]) for number in word),
        attention,
        rests,
        logit_lens(model, replayed, ids[word.start], processor.tokenizer),
        heads_on(replayed, columns) if columns else (),
        region,
        place,
        unseen,
    )


def _hottest(rests: RestsOn) -> tuple[int, Box]:
    tile, box = hottest_of(rests.tiles)
    return tile.picture, box


def word_range(tokens: Sequence[int], count: int) -> range:
    """The tokens of a word as a range. Raises AttentionError if an answer of `count` tokens has no such word."""
    word = range(tokens[0], tokens[0] + len(tokens)) if tokens else range(0)
    if not word or list(word) != list(tokens) or word.start < 0 or word.stop > count:
        raise AttentionError(
            f"The answer has {count} tokens, numbered from 0; {list(tokens)[:8]} is no word of it. "
            "Choose one token, or several that follow each other."
        )
    return word


def _checked_region(prompt: Prompt, picture: int | None, box: Box | None) -> tuple[int, Box] | None:
    """The region that was asked for. Raises AttentionError if it does not lie in one of the pictures."""
    if box is None:
        return None
    number, pictures = picture or 0, prompt.pictures
    if not 0 <= number < len(pictures):
        raise AttentionError(f"There is no picture number {number} in this question. It has {len(pictures)} of them.")
    width, height = pictures[number].size
    if not (0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height):
        raise AttentionError(
            f"The region must not be empty and must lie within the picture of {width} x {height} pixels, got columns "
            f"{box.left} to {box.right} and rows {box.top} to {box.bottom}."
        )
    return number, box

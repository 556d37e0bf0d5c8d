"""The tokens of the prompt, and the tokens of the answer with the model's confidence in each."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from components.shown.stats import count
from gemma3_core.engine import PromptToken, PromptView, TokenChoice

_MOST_SHOWN = 4000  # tokens of text; more of them make a browser pause
_IDEOGRAPHS = 0x2E80  # from here on, scripts do not put spaces between words
_GRAMMAR = """a an and are as at be by can do does for from has have here i in is it its my no not of on one or picture
see so that the their there they this to was we were what which with yes you your"""
_GRAMMAR_WORDS = frozenset(_GRAMMAR.split())
_NAMES = {"text": "text", "special": "special token", "image": "soft token", "padding": "padding"}


def prompt_html(prompt: PromptView, weights: Mapping[int, float] | None = None) -> str:
    """HTML of all tokens in order: image blocks folded, special tokens marked, positions on hover.

    `weights` maps columns to attention weights, which shade the words; the largest is the darkest. The middle of a
    very long prompt is left out, and a note says so.
    """
    most = max((weights or {}).values(), default=0.0)
    parts: list[str] = []
    for tile, run in groupby(prompt.tokens, key=lambda token: token.tile):
        members = list(run)
        if tile is None:
            parts += [
                _token(token, (weights or {}).get(token.column, 0.0) / most if most else 0.0) for token in members
            ]
        else:
            parts.append(_block(prompt.tiles[tile].label, members))
    if len(parts) > _MOST_SHOWN:
        left_out = count(len(parts) - _MOST_SHOWN, "token")
        parts[_MOST_SHOWN // 2 : -_MOST_SHOWN // 2] = [f'<span class="image">{left_out} not shown here</span>']
    return f'<div class="tokens">{"".join(parts)}</div>'


def token_count_html(prompt: PromptView, room: int, opened: bool) -> str:
    """HTML of the token count of a question that is not sent yet; with `opened` also of the tokens.

    `room` is how many prompt tokens the context holds beside the answer.
    """
    length = len(prompt.tokens)
    soft, pictures = (
        sum(token.tile is not None for token in prompt.tokens),
        len({tile.picture for tile in prompt.tiles}),
    )
    of_these = f" ({soft:,} for {count(pictures, 'picture')})" if pictures else ""
    fits = "" if length <= room else f', <b class="failure">more than the {room:,} that fit beside the answer</b>'
    tokens = prompt_html(prompt) if opened else ""
    return (
        f"<details{' open' if opened else ''}><summary>Tokens in the whole prompt: {length:,}{of_these}{fits}</summary>"
        f"{tokens}</details>"
    )


def words_of(choices: Sequence[TokenChoice], values: Sequence[range] = ()) -> list[range]:
    """An answer's tokens in groups: single letters and other pieces of one word belong together, and so do the tokens
    of each of the `values` of an answer in fields."""
    words: list[range] = []
    for number, choice in enumerate(choices):
        if (value := next((value for value in values if number in value), None)) is not None:
            words += [value] if number == value.start else []
            continue
        before = choices[number - 1].text if number else ""
        if before[-1:].isalnum() and choice.text[:1].isalnum() and ord(choice.text[0]) < _IDEOGRAPHS:
            words[-1] = range(words[-1].start, number + 1)
        else:
            words.append(range(number, number + 1))
    return words


def word_at(choices: Sequence[TokenChoice], number: int, values: Sequence[range] = ()) -> range:
    """The tokens of the word, or of the value, to which this token belongs."""
    return next(word for word in words_of(choices, values) if number in word)


def word_of_content(choices: Sequence[TokenChoice], question: str) -> int | None:
    """The first token of the word that says most: not a word of grammar and, if possible, not of the question."""
    content = words_of_content(choices)
    new = [word for word in content if _said(choices, word) not in question.lower()]
    return next((word.start for word in (*new, *content)), None)


def words_of_content(choices: Sequence[TokenChoice]) -> list[range]:
    """The words of an answer that are neither marks nor, where it has others, words of grammar."""
    telling = [word for word in words_of(choices) if any(map(str.isalnum, _said(choices, word)))]
    return [word for word in telling if _said(choices, word) not in _GRAMMAR_WORDS] or telling


def _said(choices: Sequence[TokenChoice], word: range) -> str:
    return "".join(choices[number].text for number in word).strip().lower()


def answer_html(choices: Sequence[TokenChoice], chosen: int | None = None, values: Sequence[range] = ()) -> str:
    """HTML of an answer's words as buttons: darker where the model was less sure, alternatives on hover."""
    choices = list(choices)
    words = words_of(choices, values)
    buttons = "".join(_answer_word(word, choices, chosen is not None and chosen in word) for word in words)
    return (
        f'<div class="tokens answer-tokens" role="group" aria-label="Words of the answer">{buttons}</div>'
        '<p class="note">Choose an underlined word to see what it rests on. '
        "The darker its ground, the less sure the model was.</p>"
    )


def alternatives_html(choice: TokenChoice) -> str:
    """HTML of the likeliest tokens at this position, as bars."""
    rows = "".join(
        f'<tr><th scope="row">{visible(other.text)}</th>'
        f'<td><span class="bar" style="width:{100 * other.probability:.1f}%"></span></td>'
        f"<td>{percent(other.probability)}</td></tr>"
        for other in choice.alternatives
    )
    return (
        '<table class="alternatives"><caption>The likeliest tokens here, with the model\'s probabilities'
        f"</caption>{rows}</table>"
    )


def _answer_word(word: range, choices: Sequence[TokenChoice], pressed: bool) -> str:
    first = choices[word.start]
    best = ", ".join(
        f"{other.text.strip() or repr(other.text)} {percent(other.probability)}" for other in first.alternatives
    )
    doubt = f"--doubt:{1 - min(choices[number].probability for number in word):.3f}"
    text = visible("".join(choices[number].text for number in word))
    return (
        f'<button type="button" data-act="look" data-number="{word.start}" aria-pressed="{str(pressed).lower()}" '
        f'style="{doubt}" title="{escape(best)}">{text}</button>'
    )


def _token(token: PromptToken, weight: float) -> str:
    name = f"token {token.column}: {_NAMES[token.kind]}, id {token.token_id}"
    shade = f' style="--weight:{weight:.3f}"' if weight else ""
    ending = "<br>" if token.kind == "text" and "\n" in token.text else ""
    return f'<span class="{token.kind}" title="{name}"{shade}>{visible(token.text)}</span>{ending}'


def _block(label: str, members: Sequence[PromptToken]) -> str:
    first, last = members[0].column, members[-1].column
    return (
        f'<span class="image" title="tokens {first} to {last}">{escape(label)}: '
        f"{count(len(members), 'soft token')}</span>"
    )


def visible(text: str) -> str:
    """HTML of a token's text; a line break is shown as a sign."""
    return escape(text.replace("\n", "⏎")) or "∅"


def bare(text: str) -> str:
    """A word without the spaces around it, and without a string's quotes in JSON."""
    return text.strip().strip('"') or text.strip()


def percent(share: float) -> str:
    """ "3.1 %", "98 %", "< 0.1 %"."""
    if share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"

"""The tokens of the prompt, and the tokens of the answer with the model's confidence in each."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from components.shown.stats import count
from gemma3_core.engine import PromptToken, PromptView, TokenChoice

_MOST_SHOWN = 4000  # tokens of text; more of them make a browser pause
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
    fits = "" if length <= room else f', <b class="failure">more than the {room:,} that fit beside the answer</b>'
    tokens = prompt_html(prompt) if opened else ""
    return (
        f"<details{' open' if opened else ''}><summary>Tokens in the whole prompt: {length:,}{fits}</summary>"
        f"{tokens}</details>"
    )


def answer_html(choices: Sequence[TokenChoice], chosen: int | None = None) -> str:
    """HTML of an answer's tokens as buttons: darker where the model was less sure, alternatives on hover."""
    buttons = "".join(_answer_token(number, token, number == chosen) for number, token in enumerate(choices))
    return f'<div class="tokens answer-tokens" role="group" aria-label="Words of the answer">{buttons}</div>'


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


def _answer_token(number: int, token: TokenChoice, pressed: bool) -> str:
    best = ", ".join(
        f"{other.text.strip() or repr(other.text)} {percent(other.probability)}" for other in token.alternatives
    )
    doubt = f"--doubt:{1 - token.probability:.3f}"
    return (
        f'<button type="button" data-act="look" data-number="{number}" aria-pressed="{str(pressed).lower()}" '
        f'style="{doubt}" title="{escape(best)}">{visible(token.text)}</button>'
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


def percent(share: float) -> str:
    """ "3.1 %", "98 %", "< 0.1 %"."""
    if share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"

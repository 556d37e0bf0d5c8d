"""Why an answer has a word, in figures: with and without the picture, what each layer made of it, and which heads
looked at the place."""

from collections.abc import Sequence
from html import escape

from components.shown.stats import PICTURE_CHANGED_NOTHING
from components.shown.token_view import bare, percent, visible
from gemma3_core.engine import HARDLY, HeadLook, LayerSaid, TokenChoice, WordReport

_MOST_HEADS = 10
_LENS = (
    "Each layer's state, read with the model's last norm and head. Early layers do not write for that head, so what "
    "they say is a hint."
)
_HEADS = "The share of each head's attention that fell into the region that the word rests on most."


def changed_nothing(report: WordReport, choices: Sequence[TokenChoice]) -> bool:
    """Whether all tokens of the answer are about as likely without its pictures."""
    if not choices or len(report.unseen) != len(choices):
        return False
    return all(abs(one.probability - other) < HARDLY for one, other in zip(choices, report.unseen, strict=True))


def anyway_html(report: WordReport, choices: Sequence[TokenChoice]) -> str:
    """HTML of the word's probability with and without the pictures; empty if there are none.

    `choices` are the answer's tokens, each with the probability among all tokens that it had when it was written, or
    none.
    """
    rests = report.rests_on
    if rests is None:
        return ""
    word = escape(bare(report.text))
    seen, unseen = percent(rests.seen), percent(rests.unseen)
    said = f"The probability of “{word}” is {seen} with the picture, and {unseen} without it."
    if changed_nothing(report, choices):
        said += f"</p><p><b>{PICTURE_CHANGED_NOTHING}</b>"
    elif report.picture_hardly_mattered:
        said += f"</p><p><b>The picture hardly mattered for “{word}”: it is as likely without it.</b>"
    return f'<h3>Would it have said so anyway?</h3><div class="anyway"><p>{said}</p></div>'


def folds_html(report: WordReport) -> str:
    """HTML of what each layer would have said, and of the heads that looked at the word's region, folded."""
    return _layers(report.said) + _heads(report.heads)


def _layers(said: Sequence[LayerSaid]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{one.layer + 1}</th><td translate="no">'
        + " ".join(f"<span>{visible(other.text)} <i>{percent(other.probability)}</i></span>" for other in one.likeliest)
        + "</td></tr>"
        for one in said
    )
    table = (
        f'<thead><tr><th scope="col">Layer</th><th scope="col">Likeliest first</th></tr></thead><tbody>{rows}</tbody>'
    )
    return _fold("What each layer would have said", _LENS, table, "layers")


def _heads(heads: Sequence[HeadLook]) -> str:
    if not heads:
        return ""
    rows = "".join(
        f'<tr><th scope="row">Layer {one.layer + 1}, head {one.head + 1}</th>'
        f'<td><span class="bar" style="width:{100 * one.share:.1f}%"></span></td><td>{percent(one.share)}</td></tr>'
        for one in heads[:_MOST_HEADS]
    )
    return _fold("The heads that looked there most", _HEADS, f"<tbody>{rows}</tbody>", "heads")


def _fold(title: str, note: str, rows: str, kind: str) -> str:
    table = f'<p class="note">{note}</p><table class="{kind}">{rows}</table>'
    return f'<details class="fold"><summary>{title}</summary>{table}</details>'

"""HTML of the machine's models: what each is and needs, and the buttons that run it."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gemma3_core.engine import PUBLISHED, UNGATED, FoundModel, Loading, ModelEntry, size_of

TERMS = "https://ai.google.dev/gemma/terms"
_OFFERED = {
    UNGATED: (
        "Gemma 3 4B for text and pictures, as a file of 4 bits. Google made the model, and ggml-org, who make "
        "llama.cpp, this file. No account is needed.",
        "2.5 GB, and 0.8 GB for pictures",
        4_450_000_000,
    ),
    PUBLISHED: (
        "Gemma 3 4B as Google publishes it. Accept its license on the Hub, and set HF_TOKEN.",
        "8.6 GB",
        8_810_000_000,
    ),
}
"""By source: what it is, what is downloaded, and the memory that it needs (as `find_models` counts it)."""


@dataclass(frozen=True)
class Way:
    """A button: the number by which the page names what it runs, its words, and why it can't be chosen now."""

    number: int
    text: str
    obstacle: str = ""


def models_html(
    first: str, offers: Sequence[tuple[ModelEntry, Way]], found: Sequence[tuple[FoundModel, str, Sequence[Way]]],
    free: int | None, everywhere: bool,
) -> str:  # fmt: skip
    """The list. `first` is the model that the program started with; each found model comes with its state in words."""
    told = "" if free is None else f"<p class='note'>{size_of(free)} of memory are free.</p>"
    parts = [_offer(entry, way) for entry, way in offers]
    parts.append(f"<li><b translate=no>{escape(first)}</b><p class='note'>started with this program</p></li>")
    parts += [_found(model, state, ways) for model, state, ways in found]
    more = (
        ""
        if everywhere
        else '<p class="note">Started with --find, this lists those of llama.cpp and LM Studio too.</p>'
    )
    return f"{told}<ul>{''.join(parts)}</ul>{more}"


def progress_html(loading: dict[str, Loading], failure: str = "", remark: str = "") -> str:
    """What is being downloaded or loaded, and how the last attempt ended if no model came of it."""
    parts = []
    for name, one in loading.items():
        bar = "" if one.share is None else f'<progress value="{one.share:.3f}" aria-label="Download"></progress>'
        parts.append(f"<p><b translate=no>{escape(name)}</b></p><p class='note'>{escape(one.text)}</p>{bar}")
    if failure:
        parts.append(f'<p class="failure" role="alert">{escape(failure)}</p>')
    if remark:
        parts.append(f'<p class="note" role="status">{escape(remark)}</p>')
    return "".join(parts)


def _offer(entry: ModelEntry, way: Way) -> str:
    what, size, needs = _OFFERED.get(entry.source, ("", "", 0))
    terms = f'<p class="note"><a href="{TERMS}" target="_blank" rel="noreferrer">Gemma\'s terms of use apply</a></p>'
    facts = f"<p class='note'>Download: {size} · memory: {size_of(needs)}</p>" if size else ""
    return f"<li><b translate=no>{escape(entry.name)}</b><p class='note'>{what}</p>{facts}{terms}{_button(way)}</li>"


def _found(model: FoundModel, state: str, ways: Sequence[Way]) -> str:
    reads = "text and pictures" if model.reads_pictures else "text only"
    facts = [model.kind, size_of(model.num_bytes), reads, f"in {model.place}"]
    lines = [" · ".join(fact for fact in facts if fact)] if not model.problem else [f"in {model.place}"]
    lines += ["Memory: " + " · ".join(f"{size_of(model.needs[way])} in {way}" for way in model.needs)] if ways else []
    lines += [line for line in (model.note, state) if line]
    notes = "".join(f"<p class='note'>{escape(line)}</p>" for line in lines)
    problem = f'<p class="failure">{escape(model.problem)}</p>' if model.problem else ""
    return f"<li><b translate=no>{escape(model.name)}</b>{notes}{problem}{''.join(map(_button, ways))}</li>"


def _button(way: Way) -> str:
    if way.obstacle:
        return f'<p class="note">{escape(way.obstacle)}</p>'
    return f'<button type="button" data-act="model-run" data-number="{way.number}">{escape(way.text)}</button> '


def offer_too_large(source: str, free: int | None) -> str:
    """Why an offered model would not run once it is downloaded; empty if it would, or if that is not known."""
    needs = _OFFERED[source][2] if source in _OFFERED else 0
    if free is None or needs <= free:
        return ""
    how = f"Needs {size_of(needs)} of memory, and {size_of(free)} are free"
    return f"{how}. Close other programs, or choose a smaller model."


def too_large(model: FoundModel, way: str, free: int) -> str:
    """Why a model doesn't run in a precision, and which one would fit."""
    fitting = next((other for other in model.ways if model.needs[other] <= free), None)
    needs = f"Needs {size_of(model.needs[way])} in {way}, and {size_of(free)} are free"
    return f"{needs}: {fitting} fits." if fitting else f"{needs}. Close other programs, or choose a smaller model."

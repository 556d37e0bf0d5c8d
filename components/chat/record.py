"""A conversation as a document, in which form a browser keeps it and brings it back.

The document is JSON: `{"version": 1, "id": "...", "exchanges": [...]}`, where `id` is that of the browser's entry, and
may be missing. It names pictures, and does not hold them. What comes back may have been written by anybody, so it is
read like any other input: sizes and kinds first, and no path that is not one of the reader's pictures.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.chat.conversation import Conversation, Exchange
from gemma3_core.engine import (
    MAX_CROPS,
    Alternative,
    Answered,
    Box,
    Crops,
    DoneEvent,
    Gemma3Error,
    PartialSampling,
    Request,
    Stats,
    TokenChoice,
    TokenChoices,
    Turn,
    ask_in_fields,
    read_fields,
)

VERSION = 1
UNREADABLE = "This conversation can't be read: it is damaged, or another program wrote it."
NEWER = "This conversation was kept by a newer version of this page. Update this one, or open it there."

_Name = Annotated[str, Field(max_length=200)]
_Text = Annotated[str, Field(max_length=1_000_000)]
_Id = Annotated[int, Field(ge=0, lt=2**31)]
_Number = Annotated[int, Field(ge=0, lt=10**9)]
_Seconds = Annotated[float, Field(ge=0, lt=1e9)]
_Probability = Annotated[float, Field(ge=0, le=1)]
_Token = tuple[_Id, _Name, _Probability]
_DIGITS = 4  # of a probability; the page shows two


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class KeptPicture(_Strict):
    """A picture of a question: `path` is where the server has it; `example` names one of the example cards' instead.

    `caption` is the text before it in the prompt.
    """

    name: _Name
    path: Annotated[str, Field(max_length=1000)] = ""
    example: _Name = ""
    caption: _Name = ""


class _KeptStats(_Strict):
    """`Stats`, within bounds."""

    model: _Name
    device: _Name
    dtype: _Name
    quantization: _Name
    num_images: _Number
    num_crops: _Number
    prompt_tokens: _Number
    reused_tokens: _Number
    new_tokens: _Number
    queue_s: _Seconds
    time_to_first_token_s: _Seconds | None
    tokens_per_s: Annotated[float, Field(gt=0, lt=1e9)] | None
    stop_reason: Literal["stop", "length", "cancelled"]
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    revision: _Name = ""


class _KeptSettings(_Strict):
    """The settings of a question, as its `Request` has them."""

    system_prompt: _Text
    int4: bool | None
    max_new_tokens: Annotated[int, Field(gt=0, lt=10**6)] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    continue_text: bool | None = None
    fields: Annotated[str, Field(max_length=20_000)] = ""
    fields_named: bool = True


_Pixel = Annotated[int, Field(ge=0, lt=10**6)]
_Boxes = Annotated[list[tuple[_Pixel, _Pixel, _Pixel, _Pixel]], Field(max_length=MAX_CROPS)]


class _KeptAnswer(_Strict):
    question: _Text
    pictures: Annotated[list[KeptPicture], Field(max_length=64)]
    crops: Annotated[list[_Boxes | Literal["auto"] | None], Field(max_length=64)] = []
    pan_and_scan: bool
    settings: _KeptSettings
    answer: _Text
    token_ids: list[_Id]
    choices: list[tuple[_Token, Annotated[list[_Token], Field(max_length=20)]]]
    stats: _KeptStats
    picture_effect: _Probability | None = None


class _KeptExchange(_KeptAnswer):
    first: _KeptAnswer | None = None
    """Before a closer look."""


class _Versioned(_Strict):
    version: int


class _Kept(_Strict):
    id: _Name = ""
    exchanges: Annotated[list[_KeptExchange], Field(max_length=1000)]


@dataclass(frozen=True)
class Opened:
    """A conversation that was read; `missing` counts the pictures that are no longer there."""

    conversation: Conversation
    missing: int


def document(exchange: Exchange, example_of: Callable[[Path], str]) -> dict[str, Any]:
    """One exchange of the document. `example_of` names the example that a picture belongs to, or is empty."""
    request, done = exchange.answered.request, exchange.answered.done
    sampling = request.sampling if isinstance(request.sampling, PartialSampling) else PartialSampling()
    return {
        "question": exchange.question.text,
        "pictures": [
            {**_picture(Path(str(picture)), example_of), "caption": caption}
            for picture, caption in zip_longest(exchange.question.pictures, exchange.question.captions, fillvalue="")
        ],
        **({"crops": list(exchange.question.crops)} if exchange.question.crops else {}),
        **({} if exchange.first is None else {"first": document(exchange.first, example_of)}),
        "pan_and_scan": exchange.pan_and_scan,
        "settings": {
            "system_prompt": request.system_prompt,
            "int4": request.int4,
            "max_new_tokens": request.max_new_tokens,
            **asdict(sampling),
            **({} if request.continue_text is None else {"continue_text": request.continue_text}),
            **({"fields": exchange.fields, "fields_named": _named(exchange)} if exchange.fields else {}),
        },
        "answer": done.text,
        "token_ids": list(done.token_ids),
        "choices": [(_token(choice), [_token(other) for other in choice.alternatives]) for choice in exchange.choices],
        "stats": done.stats.to_dict(),
        **({} if done.picture_effect is None else {"picture_effect": round(done.picture_effect, _DIGITS)}),
    }


def _named(exchange: Exchange) -> bool:
    """Whether the fields stood behind the question."""
    return exchange.answered.request.turns[-1].text != exchange.question.text


def key_of(exchange: dict[str, Any]) -> str:
    """Equal for two exchanges only if their documents are; where their pictures lie does not count."""
    return hashlib.sha256(json.dumps(_without_pictures(exchange)).encode()).hexdigest()[:32]


def _without_pictures(answer: dict[str, Any]) -> dict[str, Any]:
    content = {name: value for name, value in answer.items() if name != "pictures"}
    return {**content, "first": _without_pictures(content["first"])} if "first" in content else content


def read(text: str, picture_of: Callable[[KeptPicture], Path | None], visitor: str) -> Opened:
    """Reads a document; `picture_of` gives the file of a picture, or None if it is not there.

    Raises Gemma3Error for an invalid document.
    """
    try:
        version = _Versioned.model_validate_json(text).version
        if version != VERSION:
            raise Gemma3Error(NEWER if version > VERSION else UNREADABLE)
        kept = _Kept.model_validate_json(text)
    except ValidationError:
        raise Gemma3Error(UNREADABLE) from None
    conversation, missing = Conversation(id=kept.id), 0
    for one in kept.exchanges:
        first = None if one.first is None else _exchange(one.first, conversation, picture_of, visitor)
        exchange = _exchange(one, conversation, picture_of, visitor, first)
        missing += len(one.pictures) - len(exchange.question.pictures)
        conversation = conversation.add(exchange)
    return Opened(conversation, missing)


def _exchange(
    kept: _KeptAnswer,
    before: Conversation,
    picture_of: Callable[[KeptPicture], Path | None],
    visitor: str,
    first: Exchange | None = None,
) -> Exchange:
    settings, question = kept.settings, _question(kept, picture_of)
    request = Request(
        turns=before.turns(question),
        system_prompt=settings.system_prompt,
        pan_and_scan=kept.pan_and_scan,
        int4=settings.int4,
        int4_or_default=True,
        max_new_tokens=settings.max_new_tokens,
        sampling=PartialSampling(settings.temperature, settings.top_k, settings.top_p, settings.seed),
        visitor=visitor,
        confidence=True,
        continue_text=settings.continue_text,
    )
    request = ask_in_fields(request, read_fields(settings.fields), settings.fields_named)
    choices = TokenChoices(
        TokenChoice(*token, tuple(Alternative(*other) for other in others)) for token, others in kept.choices
    )
    done = DoneEvent(kept.answer, Stats(**kept.stats.model_dump()), tuple(kept.token_ids), kept.picture_effect)
    return Exchange(question, kept.pan_and_scan, Answered(request, done), choices, first, settings.fields)


def _question(kept: _KeptAnswer, picture_of: Callable[[KeptPicture], Path | None]) -> Turn:
    """The question with those of its pictures that are there, each with its crops."""
    each = zip_longest(kept.pictures, kept.crops[: len(kept.pictures)])
    there = [(path, one.caption, _crops(crops)) for one, crops in each if (path := picture_of(one)) is not None]
    pictures, captions, crops = zip(*there, strict=True) if there else ((), (), ())
    return Turn(
        "user", kept.question, pictures, captions=captions if any(captions) else (), crops=crops if any(crops) else ()
    )


def _crops(kept: list[tuple[int, int, int, int]] | Literal["auto"] | None) -> Crops:
    return tuple(Box(*box) for box in kept) if isinstance(kept, list) else kept


def _picture(path: Path, example_of: Callable[[Path], str]) -> dict[str, str]:
    example = example_of(path)
    return {"name": path.name, "example": example} if example else {"name": path.name, "path": str(path)}


def _token(choice: TokenChoice | Alternative) -> tuple[int, str, float]:
    return choice.token_id, choice.text, round(choice.probability, _DIGITS)

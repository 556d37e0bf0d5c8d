"""What one browser window has asked so far. Stays in the server's memory and is never sent to the browser."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from components.examples import FOLDER
from gemma3_core.engine import HARDLY, Answered, Crops, FieldValue, Stats, TokenChoices, Turn, values_of

NOTHING = Turn("user", "")


@dataclass(frozen=True)
class Exchange:
    """A question, whether pan & scan was on, and its answer.

    `answered` is what the engine needs to inspect the answer later; `choices` are the answer's tokens. After a closer
    look, `first` is the exchange before it, whose answer stands beside this one and no longer counts. `fields`
    are what it was asked to tell as JSON, as `read_fields` reads them.
    """

    question: Turn
    pan_and_scan: bool
    answered: Answered
    choices: TokenChoices = field(default_factory=TokenChoices)
    first: "Exchange | None" = None
    fields: str = ""

    @property
    def answer(self) -> str:
        return self.answered.done.text

    @cached_property
    def turns(self) -> tuple[Turn, Turn]:
        """The question with its pan & scan setting, and the answer.

        Each question after it holds them, so they are made once: a conversation would otherwise grow as its square.
        """
        return replace(self.question, pan_and_scan=self.pan_and_scan), Turn("assistant", self.answer)

    @property
    def values(self) -> tuple[FieldValue, ...]:
        """The values of an answer in fields."""
        return () if self.answered.request.json_schema is None else values_of(self.answer, self.choices)

    @property
    def pictures_changed_nothing(self) -> bool:
        """Whether the answer was read again without its pictures, and each word is about as likely without them."""
        effect = self.answered.done.picture_effect
        return effect is not None and effect < HARDLY

    @property
    def stats(self) -> Stats:
        return self.answered.done.stats


@dataclass(frozen=True)
class Conversation:
    """Answered questions, oldest first, and what waits to return to the composer.

    While an earlier question is edited, `changing` is its index and `aside` is what the composer held before.
    `returned` goes into the composer after the handler that set it. The composer shows no regions of its pictures: they
    wait in `regions` until something is answered. `failure` is why the chat shows no answer.
    `before` is what the last action replaced, for as long as the visitor can bring it back, and `replaced` says so.
    `id` is that of the conversation's entry in the browser. It says nothing of what was said, and does not count in
    comparisons.
    """

    exchanges: tuple[Exchange, ...] = ()
    changing: int | None = None
    aside: Turn = NOTHING
    returned: Turn = NOTHING
    regions: tuple[tuple[Path, Crops], ...] = ()
    failure: str = ""
    before: "Conversation | None" = None
    replaced: str = ""
    id: str = field(default="", compare=False)

    def turns(self, question: Turn) -> tuple[Turn, ...]:
        """All turns so far, each with its own pan & scan setting, followed by `question`."""
        return (*chain.from_iterable(exchange.turns for exchange in self.exchanges), question)

    def pictures(self) -> list[str]:
        """Paths of all pictures that the page shows or may show again."""
        turns = [*(exchange.question for exchange in self.exchanges), self.aside, self.returned]
        earlier = [] if self.before is None else self.before.pictures()
        return [str(picture) for turn in turns for picture in turn.pictures] + earlier

    def add(self, exchange: Exchange) -> "Conversation":
        return Conversation((*self.exchanges, exchange), id=self.id or secrets.token_hex(8))

    def replacing(self, other: "Conversation", replaced: str, draft: Turn = NOTHING) -> "Conversation":
        """This conversation in place of the other's exchanges, which can be brought back once, with a draft; `replaced`
        says so."""
        before = Conversation(other.exchanges, returned=draft, id=other.id)
        return self if before == Conversation() else replace(self, before=before, replaced=replaced)

    def composing(self, question: Turn, beside: bool = False) -> "Conversation":
        """This conversation once the question is in the composer, alone or `beside` what is there."""
        regions = tuple(_crops_of(question).items())
        waiting = tuple(one for one in self.regions if beside and one not in regions)
        return replace(self, returned=NOTHING, regions=regions + waiting)

    def draft(self, message: dict[str, Any] | None) -> Turn:
        """The composer's content as a question, with the regions that wait for its pictures."""
        question, waiting = held(message), list(self.regions)
        crops: list[Crops] = []
        for picture in question.pictures:
            found = next((one for one in waiting if _is_same(picture, one[0])), None)
            crops.append(None if found is None else found[1])
            if found is not None:
                waiting.remove(found)
        return replace(question, crops=tuple(crops)) if any(crops) else question

    def up_to(self, number: int) -> "Conversation":
        """The conversation before the exchange with this index; -1 drops the last exchange."""
        return Conversation(self.exchanges[:number], id=self.id)


def question_of(text: str, files: Sequence[str]) -> Turn:
    """A visitor's question. `files` are paths that Gradio has checked to be uploads.

    A Path is never mistaken for an address or base64.
    """
    return Turn("user", text.strip(), tuple(Path(file) for file in files))


def held(message: dict[str, Any] | None) -> Turn:
    """The composer's content as a question."""
    message = message or {}
    return question_of(message.get("text") or "", message.get("files") or ())


def captioned(question: Turn, caption: Callable[[str], str]) -> Turn:
    """The question with what stands before its pictures, by their paths."""
    captions = tuple(caption(str(picture)) for picture in question.pictures)
    return replace(question, captions=captions) if any(captions) else question


def joined(first: Turn, second: Turn) -> Turn:
    """Both questions in one, so that neither a returned question nor text typed meanwhile is lost; the same is not said
    twice, as where a page that was loaded again found in its draft what is now brought back."""
    text = "\n\n".join(dict.fromkeys(text for text in (first.text, second.text) if text))
    pictures = tuple(dict.fromkeys((*first.pictures, *second.pictures)))
    crops = _crops_of(second) | _crops_of(first)
    return Turn("user", text, pictures, crops=tuple(crops.get(picture) for picture in pictures) if crops else ())


def _crops_of(question: Turn) -> dict[Any, Crops]:
    """The crops of the question's pictures, by their paths, where there are some."""
    pairs = zip(question.pictures, question.crops, strict=False)
    return {picture: crops for picture, crops in pairs if crops}


def _is_same(picture: Any, earlier: Path) -> bool:
    """Whether a picture of the composer is one that was put there; an example's is a copy by now."""
    return bool(picture == earlier or (FOLDER in earlier.parents and picture.name == earlier.name))

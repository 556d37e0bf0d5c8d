"""What one browser window has asked so far. Lives in the server's memory, never in the browser."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gemma3_core.engine import Stats, Turn


@dataclass(frozen=True)
class Exchange:
    """A question, whether its pictures were cut, and its answer; `stats` is None where that was stopped."""

    question: Turn
    pan_and_scan: bool
    answer: str
    stats: Stats | None = None


@dataclass(frozen=True)
class Conversation:
    """Answered questions, oldest first."""

    exchanges: tuple[Exchange, ...] = ()

    def turns(self, question: Turn) -> tuple[Turn, ...]:
        """All turns so far, earlier pictures included, and then `question`."""
        turns: list[Turn] = []
        for exchange in self.exchanges:
            turns += [exchange.question, Turn("assistant", exchange.answer)]
        return (*turns, question)

    def add(self, exchange: Exchange) -> "Conversation":
        return replace(self, exchanges=(*self.exchanges, exchange))

    def without_last(self) -> "Conversation":
        return replace(self, exchanges=self.exchanges[:-1])


def question_of(text: str, files: Sequence[str]) -> Turn:
    """A visitor's question. `files` are paths that Gradio has checked to be uploads; as Path they are
    never taken for addresses or base64."""
    return Turn("user", text.strip(), tuple(Path(file) for file in files))

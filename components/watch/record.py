"""What is kept of a question: when it did what, and how it ended. Nothing of what was asked."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from gemma3_core.engine import (
    CheckpointError,
    ContextLengthError,
    DoneEvent,
    Event,
    Gemma3Error,
    NonFiniteError,
    OperatorError,
    OutOfMemoryError,
    QueueFullError,
    ReplicaLostError,
    Request,
    StageEvent,
    Stats,
    StoppedError,
    TokenEvent,
)

Outcome = Literal["stop", "length", "cancelled", "left", "refused", "failed"]
StageName = Literal["queue", "load", "prepare", "picture", "prefill", "decode"]

_LETTERS = 4
"""Characters of a token, on average, in English."""
_STAGES: dict[str, StageName] = {
    "queued": "queue",
    "loading": "load",
    "preparing": "prepare",
    "encoding": "picture",
    "reading": "prefill",
    "writing": "decode",
}
_REASONS: dict[type[Exception], str] = {
    QueueFullError: "queue_full",
    ContextLengthError: "too_long",
    OutOfMemoryError: "out_of_memory",
    StoppedError: "stopped",
    ReplicaLostError: "lost",
    NonFiniteError: "not_finite",
    CheckpointError: "checkpoint",
    OperatorError: "operator",
    Gemma3Error: "invalid",
}
"""The first match wins."""
_REFUSALS = ("queue_full", "too_long", "invalid")
"""The engine's refusals, before an answer has begun; other reasons are failures."""
_GIVEN_BACK = ("queue_full", "lost", "not_finite", "checkpoint", "operator")
"""What no visitor can help."""


@dataclass(frozen=True)
class Stage:
    """A part of a question's time, in Unix seconds."""

    name: StageName
    began: float
    ended: float


@dataclass(frozen=True)
class Record:
    """A question at its end, or a look inside an answer (by the door "inside"); times in Unix seconds.

    "left" means that the visitor closed the page before the answer's end. `reason` says why a question was refused or
    failed, in a word, and is empty otherwise. `stats` are None where no answer came to its end.
    """

    door: str
    model: str
    pictures: int
    began: float
    ended: float
    outcome: Outcome
    reason: str = ""
    stages: tuple[Stage, ...] = ()
    stats: Stats | None = None


Watcher = Callable[[Record], None]


@dataclass
class Account:
    """A question while it is answered; becomes a Record."""

    door: str
    model: str
    pictures: int
    stop_strings: tuple[str, ...] = ()
    now: Callable[[], float] = time.time
    began: float = 0.0
    outcome: Outcome = "left"
    reason: str = ""
    stats: Stats | None = None
    new_tokens: int = 0
    _stages: list[Stage] = field(default_factory=list)
    _stage: StageName = "queue"
    _since: float = 0.0

    def __post_init__(self) -> None:
        self.began = self._since = self.now()

    def take(self, event: Event) -> None:
        """Notes an event of the answer."""
        if isinstance(event, StageEvent):
            self._enter(_STAGES[event.stage])
        elif isinstance(event, TokenEvent):
            self.new_tokens += 1
            self._enter("decode")
        elif isinstance(event, DoneEvent):
            self.stats, self.outcome = event.stats, event.stats.stop_reason
            if self.outcome == "cancelled" and any(one in event.text for one in self.stop_strings):
                self.outcome = "stop"

    def refuse(self, reason: str) -> None:
        """Notes that the question was not taken."""
        self.outcome, self.reason = "refused", reason

    def fail(self, error: Exception) -> None:
        """Notes what ended the answer. Of the error only its kind is kept."""
        reason = next((word for kind, word in _REASONS.items() if isinstance(error, kind)), "unexpected")
        refused = reason in _REFUSALS and not self.new_tokens
        self.outcome, self.reason = ("refused" if refused else "failed"), reason

    @property
    def counts(self) -> bool:
        """Whether the visitor has used the question up: something was written, or it is not given back."""
        return bool(self.new_tokens) or self.reason not in _GIVEN_BACK

    def tokens(self, request: Request, tokens_per_picture: int) -> int:
        """Tokens that were read and written: none before the prompt is read. Those of the prompt are an estimate where
        the visitor left before the end, and where another server does not tell them."""
        if self.stats is not None and self.stats.prompt_tokens:
            return self.stats.prompt_tokens - self.stats.reused_tokens + self.stats.new_tokens
        if self.outcome == "refused" or self._stage in ("queue", "load", "prepare", "picture"):
            return 0
        return about_tokens(request, tokens_per_picture) + self.new_tokens

    def record(self) -> Record:
        now = self.now()
        stages = () if self.outcome == "refused" else (*self._stages, Stage(self._stage, self._since, now))
        return Record(
            self.door, self.model, self.pictures, self.began, now, self.outcome, self.reason, stages, self.stats
        )

    def _enter(self, stage: StageName) -> None:
        if stage != self._stage:
            now = self.now()
            self._stages.append(Stage(self._stage, self._since, now))
            self._stage, self._since = stage, now


def about_tokens(request: Request, tokens_per_picture: int) -> int:
    """A prompt's tokens, roughly."""
    letters = len(request.system_prompt) + sum(len(turn.text) for turn in request.turns)
    return letters // _LETTERS + request.num_images * tokens_per_picture

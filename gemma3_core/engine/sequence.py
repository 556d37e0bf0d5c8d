"""One running answer: the text so far, and its figures at any time."""

import time
from typing import Literal

from gemma3_core.engine.api import DoneEvent, ModelInfo, Request, Stats, TokenEvent
from gemma3_core.engine.precisions import quantization_name
from gemma3_core.engine.prompts import Prompt
from gemma3_core.generation.grammar import Constraint, Grammar
from gemma3_core.inspection.confidence import TokenChoice
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer, StreamingDecoder


class RunningRequest:
    """The tokens and times of one answer; becomes a DoneEvent when it ends or is stopped."""

    def __init__(self, request: Request, info: ModelInfo, tokenizer: Gemma3Tokenizer):
        self.request, self._info = request, info
        self.prompt: Prompt | None = None
        self.grammar: Grammar | None = None
        """What the answer must fit, if anything."""
        self.in_loop = False
        """Whether its passes are run by the engine's loop, which looks at the stop itself."""
        self.reused_tokens = 0
        self.probabilities: list[float] = []
        """One for each new token, if the request asks for confidence."""
        self.picture_effect: float | None = None
        self._decoder = StreamingDecoder(tokenizer)
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        for token_id in request.answer_so_far:
            self.push(token_id, None)
        self._new_tokens = 0  # includes the stop token
        self._entered = time.monotonic()
        self._started: float | None = None
        self._first = self._last = 0.0

    def constraint(self) -> Constraint | None:
        """What the next token must fit, after the tokens so far."""
        return None if self.grammar is None else self.grammar.begin(self._token_ids)

    def start(self) -> None:
        """Marks that the request has left the queue."""
        self._started = time.monotonic()

    @property
    def running_s(self) -> float:
        """Seconds since the request left the queue."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The answer's tokens so far."""
        return tuple(self._token_ids)

    @property
    def has_tokens(self) -> bool:
        return self._new_tokens > 0

    def count(self) -> None:
        """Counts a sampled token."""
        self._new_tokens += 1
        self._last = time.monotonic()
        if self._new_tokens == 1:
            self._first = self._last

    def push(self, token_id: int, choice: TokenChoice | None) -> TokenEvent:
        """Adds a token to the answer."""
        self._token_ids.append(token_id)
        if choice is not None:
            self.probabilities.append(choice.probability)
        self._pieces.append(self._decoder.push(token_id))
        return TokenEvent(self._pieces[-1], choice)

    def rest(self) -> TokenEvent | None:
        """The last piece of text if the answer ends within a character."""
        rest = self._decoder.finish()
        self._pieces.append(rest)
        return TokenEvent(rest) if rest else None

    def done(self, stop_reason: Literal["stop", "length", "cancelled"]) -> DoneEvent:
        prompt_tokens = 0 if self.prompt is None else self.prompt.num_tokens - len(self.request.answer_so_far)
        prompt, started = self.prompt, time.monotonic() if self._started is None else self._started
        decoding_s, sampling = self._last - self._first, self.request.settings(self._info.sampling)
        stats = Stats(
            model=self._info.name,
            device=self._info.device,
            dtype=self._info.dtype,
            quantization=quantization_name(bool(self.request.int4)),
            num_images=self.request.num_images,
            num_crops=0 if prompt is None else prompt.num_crops,
            prompt_tokens=prompt_tokens,
            reused_tokens=min(self.reused_tokens, prompt_tokens),
            new_tokens=self._new_tokens,
            queue_s=round(started - self._entered, 4),
            time_to_first_token_s=round(self._first - started, 4) if self._new_tokens else None,
            tokens_per_s=round((self._new_tokens - 1) / decoding_s, 2) if decoding_s > 0 else None,
            stop_reason=stop_reason,
            seed=None if sampling.greedy else sampling.seed,
            revision=self._info.revision,
        )
        return DoneEvent("".join(self._pieces), stats, tuple(self._token_ids), self.picture_effect)


def never_begun(request: Request, model: str) -> DoneEvent:
    """The end of an answer that was stopped before its model was loaded."""
    stats = Stats(model, "", "", quantization_name(False), request.num_images, 0, 0, 0, 0, 0.0, None, None, "cancelled")
    return DoneEvent("", stats)

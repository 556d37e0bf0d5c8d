"""An engine whose GPU is lent for one call at a time, as on a ZeroGPU Space.

This process has no GPU: it queues requests, opens pictures and keeps the answers' figures. The passes run in a forked
child, which sees the model on the GPU. Arguments and results are pickled, and nothing that a call leaves in the
child's memory may be needed by the next one: no KV cache is kept between answers.
"""

import pickle
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from gemma3_core.adapters.files import StoredAdapter
from gemma3_core.engine.api import DoneEvent, Event, ModelInfo, StageEvent, TokenEvent
from gemma3_core.engine.device_loop import run_alone
from gemma3_core.engine.engine import NO_MEMORY, Engine, check_stop
from gemma3_core.engine.explain import Look
from gemma3_core.engine.memory import is_out_of_memory
from gemma3_core.engine.prompts import Prompt
from gemma3_core.engine.sequence import RunningRequest
from gemma3_core.errors import Gemma3Error, OutOfMemoryError
from gemma3_core.inspection.attention import Check
from gemma3_core.inspection.confidence import TokenChoice

T = TypeVar("T")

Call = Callable[[bytes, int], Generator[Any]]
"""Pickled work and the most seconds that it may take -> its items."""
Lend = Callable[[Call], Call]
"""Makes a call that runs in a child with the GPU, as `spaces.GPU` does; it raises Gemma3Error where none is lent."""

LONGEST_S = 120
"""The longest call in seconds. Longer ones are refused there, and each is checked against the visitor's quota."""
# Cautious speeds of an eager 4B on such a GPU; a call may take longer than it needs, but is broken off after its time.
_START_S, _BYTES_PER_S = 4.0, 2e9  # the child starts, and moves the weights to the GPU
_PROMPT_TOKENS_PER_S, _TILES_PER_S, _NEW_TOKENS_PER_S = 2000, 10, 20
_OTHER_PRECISION_S = 8.0  # the child makes it anew, unless it has answered in it before
_TICK_S = 0.2

GPU = "Waiting for a GPU"
TAKEN_BACK = "The GPU was taken back before this was complete. Ask for a shorter answer, or try again."


@dataclass(frozen=True)
class _Answer:
    """Asks the child to answer `prompt`, which has its tiles."""

    prompt: Prompt


@dataclass(frozen=True)
class _Looking:
    """Asks the child for what `look` finds."""

    look: Look[Any]
    prompt: Prompt
    int4: bool


@dataclass(frozen=True)
class _Token:
    """A token that the child has written."""

    token_id: int
    choice: TokenChoice | None


@dataclass(frozen=True)
class _Found:
    """What a look has found."""

    value: Any


class BorrowingEngine(Engine):
    """`borrow` must be called once, before the first request and before the process starts to serve."""

    _lend: Lend
    _call: Call

    def borrow(self, lend: Lend) -> "BorrowingEngine":
        """Runs all passes through `lend`."""
        self._lend, self._call = lend, lend(self._in_child)
        return self

    def _describe(self, name: str, is_demo: bool, folder: Path | None) -> ModelInfo:
        return replace(super()._describe(name, is_demo, folder), borrowed=True)

    @property
    def _background(self) -> None:
        """Passes run in a child, which has no loop."""

    @staticmethod
    def _loaded(load: Callable[[], T]) -> T:
        return load()  # `spaces` stands in for CUDA in the main thread only

    def adapted(self, adapter: str | Path | StoredAdapter) -> "BorrowingEngine":
        return super().adapted(adapter).borrow(self._lend)

    @staticmethod
    def _resizes_on(_device: torch.device) -> torch.device:
        return torch.device("cpu")  # pictures are opened before the GPU is lent

    def seconds(self, prompt: Prompt, new_tokens: int, int4: bool, passes: int = 1) -> int:
        """The most seconds that a call may take that reads `prompt` so many times and writes `new_tokens`."""
        choice = self.info.int4
        moved = _START_S + (0 if choice is None else choice.full_bytes) / _BYTES_PER_S
        if choice is not None and int4 != choice.default:
            moved += _OTHER_PRECISION_S
        read = prompt.num_tokens / _PROMPT_TOKENS_PER_S + len(prompt.all_tiles()) / _TILES_PER_S
        return min(LONGEST_S, round(moved + passes * read + new_tokens / _NEW_TOKENS_PER_S))

    def _run(self, running: RunningRequest, prompt: Prompt, _stop: threading.Event | None = None) -> Generator[Event]:
        request = prompt.request
        assert request.max_new_tokens is not None
        asked = _Answer(replace(prompt, request=replace(request, reuse=False)))
        yield StageEvent("queued", GPU)
        done: DoneEvent | None = None
        with closing(self._borrowed(asked, self.seconds(prompt, request.max_new_tokens, bool(request.int4)))) as items:
            for item in items:
                if isinstance(item, _Token):
                    running.count()
                    yield running.push(item.token_id, item.choice)
                elif isinstance(item, DoneEvent):
                    done = item  # the call ends only after it, and gives the GPU back
                else:
                    yield item
        if done is None:
            raise Gemma3Error(TAKEN_BACK)
        if done.stats.stop_reason == "stop":
            running.count()  # the stop token
        running.picture_effect = done.picture_effect
        if rest := running.rest():
            yield rest
        yield running.done(done.stats.stop_reason)

    def _look(self, look: Look[T], prompt: Prompt, int4: bool, _check: Check) -> Generator[StageEvent, None, T]:
        yield StageEvent("queued", GPU)
        longest = prompt.request.max_new_tokens
        assert longest is not None
        seconds = self.seconds(prompt, longest, int4, passes=4)
        stage, found = StageEvent("reading", "Looking at the answer again"), None
        with closing(self._borrowed(_Looking(look, prompt, int4), seconds)) as items:
            for item in items:
                if isinstance(item, _Found):
                    found = item
                else:
                    stage = item or stage
                    yield stage
        if found is None:
            raise Gemma3Error(TAKEN_BACK)
        return found.value  # type: ignore[no-any-return]

    def _borrowed(self, work: _Answer | _Looking, seconds: int) -> Generator[Any]:
        """The child's items. Raises the Gemma3Error that ended its work there."""
        with closing(self._call(pickle.dumps(work), seconds)) as items:
            for item in items:
                if isinstance(item, Gemma3Error):
                    raise item
                yield item

    def _in_child(self, pickled: bytes, _seconds: int) -> Generator[Any]:
        """In the child: yields what the work makes, and as the last item the Gemma3Error that ends it."""
        work = pickle.loads(pickled)
        try:
            yield from self._answered(work) if isinstance(work, _Answer) else self._found(work)
        except Gemma3Error as error:
            yield error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            yield OutOfMemoryError(NO_MEMORY)

    def _answered(self, work: _Answer) -> Iterator[_Token | StageEvent | DoneEvent]:
        running = RunningRequest(work.prompt.request, self.info, self._processor.tokenizer)
        running.prompt = work.prompt
        running.start()
        running.grammar = yield from self._compiled(running.request)
        yield from self._prepared(bool(work.prompt.request.int4))
        known = len(running.token_ids)
        for event in run_alone(self._written(running, work.prompt)):
            if not isinstance(event, TokenEvent):
                yield event
            elif len(running.token_ids) > known:  # otherwise the rest of a broken character
                known += 1
                yield _Token(running.token_ids[-1], event.choice)

    def _found(self, work: _Looking) -> Iterator[_Found | StageEvent | None]:
        """Yields the steps, then None while a look works, so that it can be closed at any time, then what it found."""
        yield from self._prepared(work.int4)
        grammar = yield from self._compiled(work.prompt.request)
        stop = threading.Event()
        model, check = self._precisions.model(work.int4), partial(check_stop, stop)
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(work.look, work.prompt, self._processor, model, check, _decode_here, grammar)
            try:
                while not wait([found], _TICK_S).done:
                    yield None
                yield _Found(found.result())
            finally:
                stop.set()


def _decode_here(work: Callable[[], None], _num_bytes: int) -> None:
    work()

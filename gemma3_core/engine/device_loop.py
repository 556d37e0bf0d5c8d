"""The one thread that runs a device's passes: prompts pass by pass, a decode step of all answers together, and jobs.

An answer is an iterator that stops before each of its passes: at a StageEvent before a pass of its own (encoding a
picture, a chunk of the prompt), at a DecodePass before a decode step, which the loop runs for all answers of a model
at once. A round is one pass of one prompt and then a decode step of every model that has answers. So nobody's answer
stalls for longer than one pass of somebody's prompt. (Locating the layer that produced NaN counts as one pass.) A
look inside is a job: it lets the answers have a round between its own passes. Work in the background, such as capturing
CUDA graphs, is done a step at a time between rounds.
"""

import logging
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from gemma3_core.engine.api import Event, StageEvent
from gemma3_core.engine.own_thread import run_job
from gemma3_core.errors import StoppedError
from gemma3_core.generation.loop import DecodePass, decode_together

Result = TypeVar("Result")
Passes = Iterator[Event | DecodePass]
log = logging.getLogger(__name__)
_TICK_S = 0.1
_SILENT_S = 1.0
_PASSES_IN_A_ROW = 4
"""Passes of one prompt before others have their turn."""


class _Task:
    """An answer in the loop, and its way out."""

    def __init__(self, passes: Passes, stop: Callable[[], bool], failed: Callable[[BaseException], None]):
        self.passes, self._stop, self._failed = passes, stop, failed
        self.events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        self.reader_has_left = False
        self.ended = threading.Event()
        self.waiting: DecodePass | None = None
        self.prompt_passes = 0

    @property
    def cancelled(self) -> bool:
        # The program's end waits for this thread, since killed inside torch it would abort the program.
        return self.reader_has_left or self._stop() or _program_ends()

    def advance(self) -> None:
        """Runs up to the next pass."""
        self.waiting = None
        try:
            for item in self.passes:
                if isinstance(item, DecodePass):
                    self.waiting = item
                    return
                self.events.put(item)
                if isinstance(item, StageEvent):
                    return
        except BaseException as error:  # noqa: BLE001  raised again where the answer is read
            self._failed(error)
            self.end(error)
        else:
            self.end(None)

    def end(self, error: BaseException | None) -> None:
        self.waiting = None
        close: Callable[[], None] = self.passes.close  # type: ignore[attr-defined]
        try:
            close()
        except Exception as raised:  # noqa: BLE001  raised again where the answer is read
            error = error or raised
        finally:
            self.events.put(error)
            self.ended.set()


class DeviceLoop:
    """Runs answers and jobs on one device; safe to use from many threads. Its thread lives while there are some.

    `is_lost` is True once an answer has found the device dead, as a GPU is for its process after an illegal access on
    CUDA.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """`device` is the one of torch's current accelerator by default."""
        self.is_lost, self._device = False, device
        self._changed = threading.Lock()
        self._arrived: list[_Task] = []
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._background: deque[Iterator[None]] = deque()
        self._thread: threading.Thread | None = None
        self._answers: list[_Task] = []  # of the loop's thread alone
        self._round_began = 0.0

    @property
    def silent_s(self) -> float:
        """Seconds since the loop's thread last began a round; 0 where it has nothing to do."""
        with self._changed:
            return 0.0 if self._thread is None else time.monotonic() - self._round_began

    def _begin(self) -> None:
        """Starts the thread if there is none; the caller holds the lock, for which the thread waits."""
        if self._thread is None:
            self._round_began = time.monotonic()
            thread = threading.Thread(target=self._work, name="device", daemon=False)
            thread.start()
            self._thread = thread

    def run(self, passes: Passes, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Yields the events of `passes`, which is a generator; once `stop()`, those up to the end of the current round.

        The loop does not wait for the reader. Repeats a stage that takes long, since a server notices a closed page
        only when it sends something. Closing the iterator ends the answer too. Raises what `passes` raises.
        """
        answer = _Task(passes, stop, self._look_at_the_device)
        with self._changed:
            self._begin()
            self._arrived.append(answer)
        stage: StageEvent | None = None
        told = time.monotonic()
        try:
            while True:
                try:
                    item = answer.events.get(timeout=_TICK_S)
                except queue.Empty:
                    if stage is None or time.monotonic() < told + _SILENT_S:
                        continue
                    item = stage
                stage, told = item if isinstance(item, StageEvent) else None, time.monotonic()
                if item is None:
                    return
                if isinstance(item, BaseException):
                    try:
                        raise item
                    finally:
                        del item  # or the error would keep itself, and what its pass held
                yield item
        finally:
            answer.reader_has_left = True
            # Collected as garbage it may be closed in the loop's own thread, or when the program ends.
            while threading.current_thread() is not self._thread and not answer.ended.wait(_TICK_S):
                if sys.is_finalizing():
                    break

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Runs a job in the loop's thread, after earlier ones. Answers wait for it unless it calls `give_way`."""
        future: Future[Result] = Future()
        with self._changed:
            self._begin()
            self._jobs.append((future, job))
        return future

    def in_background(self, steps: Iterator[None]) -> None:
        """Runs the steps of an iterator in the loop's thread, one between any two rounds, after earlier iterators'. One
        that raises ends, and the log says why."""
        with self._changed:
            self._begin()
            self._background.append(steps)

    def give_way(self) -> None:
        """A round of the answers, for a job to call now and then. Raises StoppedError when the program ends."""
        if _program_ends():
            raise StoppedError("The program ends.")
        # What the round makes outlives the job: inference tensors could not be written to after it.
        with torch.inference_mode(False):
            self._serve()

    def _look_at_the_device(self, error: BaseException) -> None:
        """Finds out whether the device can go on after an answer's error. It can after most, such as a lack of memory;
        a dead one raises at each call."""
        if not isinstance(error, torch.AcceleratorError):
            return
        try:
            torch.accelerator.synchronize(self._device)
        except torch.AcceleratorError:
            if not self.is_lost:
                log.critical("The device can't go on, and answers nothing until this program starts again: %s", error)
            self.is_lost = True

    def _serve(self) -> None:
        """A round of the answers, with those that have arrived."""
        with self._changed:
            self._round_began = time.monotonic()
            self._answers += self._arrived
            self._arrived.clear()
        try:
            _round(self._answers)
        except BaseException as error:  # noqa: BLE001  raised again where the answers are read
            for answer in self._answers:
                answer.end(error)
        self._answers = [answer for answer in self._answers if not answer.ended.is_set()]

    def _work(self) -> None:
        while True:
            with self._changed:
                job = self._jobs.popleft() if self._jobs else None
                if _program_ends():
                    self._background.clear()
                if job is None and not self._arrived and not self._answers and not self._background:
                    self._thread = None
                    return
            if job is not None:
                run_job(*job)
            self._serve()
            self._advance_background()

    def _advance_background(self) -> None:
        if not self._background:
            return
        try:
            next(self._background[0])
            return
        except StopIteration:
            pass
        except Exception:  # nobody waits for it
            log.exception("Work in the background failed; what it prepares is done when it is needed.")
        self._background.popleft()


def _program_ends() -> bool:
    return not threading.main_thread().is_alive()


def run_alone(passes: Passes) -> Iterator[Event]:
    """Runs an answer's passes in this thread; yields its events."""
    for item in passes:
        if isinstance(item, DecodePass):
            (item.run or decode_together)([item])
        else:
            yield item


def _round(answers: list[_Task]) -> None:
    """A pass of one prompt, and a decode step of each model for all its answers.

    Prompts go in the order of their arrival, but a long one lets others pass.
    """
    prompts = [answer for answer in _without_cancelled(answers) if answer.waiting is None]
    if prompts:
        chosen = min(prompts, key=lambda answer: answer.prompt_passes // _PASSES_IN_A_ROW)
        chosen.prompt_passes += 1
        chosen.advance()
    by_model: dict[int, list[_Task]] = {}
    for answer in _without_cancelled(answers):
        if answer.waiting is not None:
            by_model.setdefault(id(answer.waiting.model), []).append(answer)
    for together in by_model.values():
        _decode(together)


def _without_cancelled(answers: list[_Task]) -> list[_Task]:
    """Ends the answers that are cancelled; returns those that go on."""
    for answer in answers:
        if answer.cancelled and not answer.ended.is_set():
            answer.end(None)
    return [answer for answer in answers if not answer.ended.is_set()]


def _decode(answers: list[_Task]) -> None:
    """One decode step. If it fails, each answer that has no token yet is tried alone, so that one can't end the
    others."""
    steps = [answer.waiting for answer in answers if answer.waiting is not None]
    failed = False
    try:
        (steps[0].run or decode_together)(steps)
    except Exception as error:  # noqa: BLE001  raised where the answer goes on
        failed = True
        if len(steps) == 1 and not steps[0].is_done:
            steps[0].error = error
    # Outside `except`: the error keeps the failed pass and its memory alive.
    for answer, step in zip(answers, steps, strict=True):
        if failed and len(steps) > 1 and not step.is_done:
            _decode([answer])
        else:
            answer.advance()

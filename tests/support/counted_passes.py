"""Counts and holds up the passes of an engine's model."""

import threading
from dataclasses import replace

import pytest

from gemma3_core.engine import Answered, Engine, Request, TokenEvent
from gemma3_core.inspection.confidence import TokenChoice

PATIENCE_S = 60


class CountedPasses:
    """Counts the tokens of each forward pass; after `allowed` passes, the next one waits until it is allowed too."""

    def __init__(self, engine: Engine, monkeypatch, allowed: int):
        self.lengths: list[int] = []
        self._changed, self._allowed = threading.Condition(), allowed
        forward = type(engine._model).forward

        def counted(model, **inputs):
            with self._changed:
                self.lengths.append(inputs["input_ids"].shape[1])
                self._changed.notify_all()
                assert self._changed.wait_for(lambda: len(self.lengths) <= self._allowed, PATIENCE_S)
            return forward(model, **inputs)

        monkeypatch.setattr(type(engine._model), "forward", counted)

    def wait_for(self, begun: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.lengths) >= begun, PATIENCE_S)

    def allow(self, more: int) -> None:
        with self._changed:
            self._allowed += more
            self._changed.notify_all()


def stopped_after(engine: Engine, request: Request, tokens: int) -> tuple[Answered, list[TokenChoice]]:
    """An answer that is stopped after so many tokens, while the last of them is computed, and its tokens' choices."""
    stop, choices = threading.Event(), []
    with pytest.MonkeyPatch.context() as patched:
        passes = CountedPasses(engine, patched, allowed=tokens - 1)
        for event in engine.stream(replace(request, confidence=True), stop):
            if isinstance(event, TokenEvent):
                choices.append(event.choice)
            if len(choices) == tokens - 1 and not stop.is_set():
                passes.wait_for(tokens)
                stop.set()
                passes.allow(100)
    assert event.token_ids == tuple(choice.token_id for choice in choices)
    return Answered(request, event), choices

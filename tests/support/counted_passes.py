"""Counts and holds up the passes of an engine's model."""

import threading

from gemma3_core.engine import Engine

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

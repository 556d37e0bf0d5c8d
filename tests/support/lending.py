"""Lends a GPU as `spaces.GPU` does, without one: a forked child for each call, pickled arguments and items."""

import inspect
import multiprocessing
import threading
from collections.abc import Iterator
from typing import Any

FORK = multiprocessing.get_context("fork")
PATIENCE_S = 60


class Lender:
    """A `gemma3_core.engine.Lend`; `seconds` are those that each call asked for, `stopped` counts the calls closed."""

    def __init__(self, refusal: Exception | None = None):
        self.refusal = refusal
        self.seconds: list[int] = []
        self.stopped = 0

    def __call__(self, call: Any) -> Any:
        assert inspect.isgeneratorfunction(call)  # a coroutine would raise there

        def lent(work: bytes, seconds: int) -> Iterator[Any]:
            self.seconds.append(seconds)
            if self.refusal is not None:
                raise self.refusal
            ours, theirs = FORK.Pipe()
            stop = FORK.Event()
            child = FORK.Process(target=_in_child, args=(call, theirs, stop), daemon=True)
            child.start()
            theirs.close()
            ours.send((work, seconds))
            try:
                while (item := _received(ours)) is not None:
                    try:
                        yield item[0]
                    except GeneratorExit:
                        self.stopped += 1
                        stop.set()
                        while _received(ours) is not None:
                            pass
                        raise
            finally:
                child.join(PATIENCE_S)
                assert child.exitcode == 0

        return lent


def _received(pipe: Any) -> Any:
    assert pipe.poll(PATIENCE_S), "the child says nothing"
    return pipe.recv()


def _in_child(call: Any, pipe: Any, stop: Any) -> None:
    def work() -> None:
        items = call(*pipe.recv())
        for item in items:
            if stop.is_set():
                items.close()
                break
            pipe.send((item,))
        pipe.send(None)

    # Like the package, in a thread of its own: the forking thread's OpenMP threads don't exist here.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

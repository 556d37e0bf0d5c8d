"""Work in threads that end with it.

torch multiplies with OpenMP, which keeps a pool of threads for each thread that has multiplied. With more than one pool
it counts more threads than cores and no longer lets them wait awake, so every small product waits for them. A pool ends
with its thread; so only the engine's loop lives on.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def run_job(future: Future[Result], work: Callable[[], Result]) -> None:
    """Runs `work` unless its future is cancelled; the future gets its result or its error."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001  raised again where the result is awaited
        future.set_exception(error)
    else:
        future.set_result(result)


def start_in_own_thread(work: Callable[[], Result], name: str) -> Future[Result]:
    """Runs `work` in a thread of its own.

    The program's end waits for it: a thread that is killed inside torch aborts the program.
    """
    future: Future[Result] = Future()
    threading.Thread(target=run_job, args=(future, work), name=name, daemon=False).start()
    return future

"""Work in threads that end with it.

torch multiplies with OpenMP, which keeps a pool of threads for each thread that has multiplied. With more than one pool
it counts more threads than there are cores and no longer lets them wait awake: on two cores a decode step of the
demo model then takes twice as long. A pool ends with its thread, so only the engine's loop should live on.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def start_in_own_thread(work: Callable[[], Result], name: str) -> Future[Result]:
    """Runs `work` in a thread of its own; the future has its result or its error.

    The program's end waits for it: a thread that is killed inside torch aborts the program.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  raised again where the result is awaited
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=False).start()
    return future

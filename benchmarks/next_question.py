"""How much faster a further question about pictures is answered when the KV cache is reused.

Runs the demo model through the engine, as the page does: a question about two pictures, one of them with crops, then a
second question. It is asked alternately with and without `reuse`; both must give the same answer.
"""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma3_core.engine import DoneEvent, Engine, Request, Turn

EXAMPLES = Path(__file__).resolve().parent.parent / "assets" / "examples"


def measure(rounds: int) -> dict[str, Any]:
    """Median times to the second answer's first token, in seconds, and their ratio."""
    engine = Engine.load(device="cpu")
    pictures = (str(EXAMPLES / "wide.png"), str(EXAMPLES / "night.png"))
    first = Request((Turn("user", "How many shapes are there?", pictures),), pan_and_scan=True, visitor="benchmark")
    answer = _asked(engine, first)
    further = replace(
        first, turns=(*first.turns, Turn("assistant", answer.text), Turn("user", "And in the second picture?"))
    )
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds + 1):
        _asked(engine, first)
        done = {reuse: _asked(engine, replace(further, reuse=reuse)) for reuse in times}
        if done[True].token_ids != done[False].token_ids or not done[True].stats.reused_tokens:
            raise RuntimeError("The answers with and without reuse differ, or nothing was reused.")
        for reuse, end in done.items():
            if number and end.stats.time_to_first_token_s is not None:
                times[reuse].append(end.stats.time_to_first_token_s)
    reused, anew = statistics.median(times[True]), statistics.median(times[False])
    stats = done[True].stats
    return {
        "prompt_tokens": stats.prompt_tokens,
        "reused_tokens": stats.reused_tokens,
        "first_token_s": reused,
        "first_token_anew_s": anew,
        "ratio": round(anew / reused, 2),
    }


def _asked(engine: Engine, request: Request) -> DoneEvent:
    *_, end = engine.stream(request)
    if not isinstance(end, DoneEvent):
        raise RuntimeError(f"An answer ended with {end} instead of a DoneEvent.")
    return end

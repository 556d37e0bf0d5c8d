"""How long a newcomer waits for a first token beside seven running answers, and alone.

    python -m benchmarks.newcomer

The demo model's shape on the CPU, with random weights, so that no answer ends; the newcomer asks about a picture. The
two take turns.
"""

import argparse
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.next_question import EXAMPLES
from benchmarks.timing import times_in_turns
from benchmarks.vision_language import random_model
from gemma3_core.config.gemma3 import Gemma3Config, read_config
from gemma3_core.engine import Engine, Request, TokenEvent, Turn
from gemma3_core.engine.engine import DEMO_MODEL
from gemma3_core.engine.precisions import ModelVariants
from gemma3_core.generation.loop import prefill
from gemma3_core.int4.quantize import TorchAoConfig
from gemma3_core.nn.cache import KVCache
from gemma3_core.processor import Gemma3Processor

RUNNING, CHUNK = 7, 512
_LONGEST = 1500
_PATIENCE_S = 120


def measure(rounds: int, running: int = RUNNING) -> dict[str, Any]:
    """Median seconds to the first token alone and beside so many running answers, and of one chunk of a prompt."""
    config = read_config(DEMO_MODEL)
    assert isinstance(config, Gemma3Config)
    model = random_model(config, torch.device("cpu"), dtype=torch.float32)
    engine = Engine(ModelVariants(model, TorchAoConfig()), Gemma3Processor.from_pretrained(DEMO_MODEL), "random")
    ids = torch.full((1, CHUNK), 300 % config.text_config.vocab_size)

    def chunk() -> None:
        prefill(model, KVCache(model.text_config, CHUNK), input_ids=ids)

    def beside() -> float:
        with _answered(engine, running):
            return _first_token(engine)

    times = times_in_turns({"alone": partial(_first_token, engine), "beside": beside, "chunk": chunk}, rounds)
    alone, with_others, one_chunk = (median(times[name]) for name in ("alone", "beside", "chunk"))
    return {
        "running": running,
        "alone_s": round(alone, 4),
        "beside_s": round(with_others, 4),
        "chunk_s": round(one_chunk, 4),
        "times_alone": round(with_others / alone, 3),
    }


def _request(visitor: str, new_tokens: int) -> Request:
    turn = Turn("user", "How many shapes are there?", (str(EXAMPLES / "night.png"),))
    return Request((turn,), max_new_tokens=new_tokens, visitor=visitor, reuse=False)


def _first_token(engine: Engine) -> float:
    """Seconds."""
    start = time.perf_counter()
    events = engine.stream(_request("newcomer", 2))
    for event in events:
        if isinstance(event, TokenEvent):
            seconds = time.perf_counter() - start
            events.close()  # type: ignore[attr-defined]
            return seconds
    raise RuntimeError("The newcomer's answer ended without a token.")


@contextmanager
def _answered(engine: Engine, number: int) -> Iterator[None]:
    """While so many visitors get long answers, of which each has begun."""
    stop, begun = threading.Event(), threading.Semaphore(0)

    def read(visitor: int) -> None:
        told = False
        for event in engine.stream(_request(f"visitor {visitor}", _LONGEST), stop):
            if isinstance(event, TokenEvent) and not told:
                told = True
                begun.release()

    readers = [threading.Thread(target=read, args=(visitor,)) for visitor in range(number)]
    for reader in readers:
        reader.start()
    try:
        for _ in readers:
            if not begun.acquire(timeout=_PATIENCE_S):
                raise RuntimeError(f"{number} answers had not begun after {_PATIENCE_S} s.")
        yield
        if not all(reader.is_alive() for reader in readers):
            raise RuntimeError("An answer beside the newcomer's ended too soon.")
    finally:
        stop.set()
        for reader in readers:
            reader.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    print(json.dumps(measure(parser.parse_args().rounds), indent=2))


if __name__ == "__main__":
    main()

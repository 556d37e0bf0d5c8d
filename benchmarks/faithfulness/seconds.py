"""How long `Engine.why` takes with the demo model on the CPU: a picture alone, with pan & scan, and in seven tiles.

    OMP_NUM_THREADS=1 python -m benchmarks.faithfulness.seconds

Each is asked about one word several times, in turns, after once that does not count. Prints the seconds of processor
time (median, least and most), which other work on the machine moves less than the clock's, and those of the clock.
"""

import argparse
import time
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.next_question import EXAMPLES
from benchmarks.timing import machine
from gemma3_core.engine import Answered, DoneEvent, Engine, Request, TokenEvent, Turn, WordReport

NIGHT, BOARD = EXAMPLES / "night.png", EXAMPLES / "board.png"
ASKED = {
    "a picture alone": (Turn("user", "What color is the star?", (NIGHT,)), " yellow"),
    "a board with pan & scan": (Turn("user", "What does the milk cost?", (BOARD,), pan_and_scan=True), "1"),
    'a picture with crops="auto"': (Turn("user", "What color is the star?", (NIGHT,), crops=("auto",)), " yellow"),
}
"""Questions, and the token of the answer that is explained; "1" begins a price."""


def answered(engine: Engine, turn: Turn) -> tuple[Answered, list[str]]:
    """The answer and the texts of its tokens."""
    request = Request((turn,), confidence=True, max_new_tokens=32)
    *events, done = engine.stream(request)
    assert isinstance(done, DoneEvent)
    return Answered(request, done), [one.choice.text for one in events if isinstance(one, TokenEvent) and one.choice]


def timed(engine: Engine, one: Answered, token: int) -> tuple[WordReport, float, float]:
    """The report, its seconds of processor time, and those of the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    report = engine.why(one, [token])
    return report, time.process_time() - cpu, time.perf_counter() - clock


def measure(engine: Engine, rounds: int) -> Iterator[str]:
    """The lines of the table; a word that rests on no picture would be explained sooner, and fails here."""
    asked = {}
    for name, (turn, text) in ASKED.items():
        one, texts = answered(engine, turn)
        token = texts.index(text)
        report, _, _ = timed(engine, one, token)
        assert not report.picture_hardly_mattered, name
        assert report.rests_on is not None
        asked[name] = (one, token, len(report.rests_on.tiles))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in asked}
    for _ in range(rounds):
        for name, (one, token, _) in asked.items():
            times[name].append(timed(engine, one, token)[1:])
    for name, (one, _, tiles) in asked.items():
        cpu, clock = zip(*times[name], strict=True)
        spread = f"{median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f})"
        yield f"| {name} | {tiles} | {one.done.stats.prompt_tokens} | {spread} | {median(clock):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine() | {"threads": torch.get_num_threads()})
    print("| | tiles | tokens of the prompt | processor seconds | by the clock |\n|---|---|---|---|---|")
    for line in measure(Engine.load(device="cpu"), arguments.rounds):
        print(line)


if __name__ == "__main__":
    main()

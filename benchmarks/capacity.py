"""What so many visitors would need, on paper: the figures of benchmarks/results/replicas.json, multiplied.

    python -m benchmarks.capacity
    python -m benchmarks.capacity --visitors 5000 --every 30 --answers-per-second 4 --price 2.5

Assumes that each visitor asks once in so many seconds, at random; that answers are as long as the measured ones; and
that a replica serves as many answers a second as one alone did on this machine, filled to three quarters. The queue's
own cost is measured here. It simulates nothing else, and a network least of all: see docs/serving.md.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass

from benchmarks.demo_app import ROOT
from gemma3_core.engine.fair_queue import FairQueue

RESULT = ROOT / "benchmarks" / "results" / "replicas.json"
FILLED = 0.75
FRONT_FILLED = 0.5
"""The share of one core that a page in front may spend on tokens; the rest is the page itself."""
CONNECTIONS_OF_A_VISITOR = 2
"""An open page holds a heartbeat, and a stream while it is answered."""
PORTS = 28_000
"""Linux's ephemeral ports from one proxy to one page: its open connections at most."""
_LOOKS_PER_S = 10  # at a waiting question's place


@dataclass(frozen=True)
class Need:
    """What is needed for so many visitors; `cores` counts a core for each replica and each page in front."""

    visitors: int
    answers_per_s: float
    replicas: int
    pages_by_tokens: int
    pages_by_connections: int
    cores: int

    @property
    def pages(self) -> int:
        return max(self.pages_by_tokens, self.pages_by_connections)


def need(visitors: int, every_s: float, served_per_s: float, tokens: float, front_ms: float) -> Need:
    """`served_per_s` is one replica's answers a second, `front_ms` a page's milliseconds of processor a token."""
    asked = visitors / every_s
    replicas = math.ceil(asked / (served_per_s * FILLED))
    by_tokens = math.ceil(asked * tokens * front_ms / 1000 / FRONT_FILLED)
    by_connections = math.ceil(visitors * CONNECTIONS_OF_A_VISITOR / PORTS)
    pages = max(by_tokens, by_connections)
    return Need(visitors, round(asked, 1), replicas, by_tokens, by_connections, replicas + pages)


def queue_share(waiting: int) -> float:
    """The share of a core that so many waiting questions take to look at their places, measured here."""
    queue = FairQueue(max_waiting=waiting + 1, max_running=1)
    tickets = [queue.enter(f"visitor {number}") for number in range(waiting + 1)]
    rounds = 20
    began = time.perf_counter()
    for ticket in tickets[-rounds:]:
        queue.wait(ticket, None, 0)
    return (time.perf_counter() - began) / min(rounds, len(tickets)) * waiting * _LOOKS_PER_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--every", type=float, default=60.0, help="seconds between a visitor's questions")
    parser.add_argument("--answers-per-second", type=float, help="of one replica, if not the measured one")
    parser.add_argument("--price", type=float, help="of a core for an hour")
    arguments = parser.parse_args()
    report = json.loads(RESULT.read_text(encoding="utf-8"))
    one = report["throughput"][0]
    served = arguments.answers_per_second or one["answers_per_s"]
    print(f"One replica: {served} answers/s of {one['tokens_per_answer']} tokens; a page in front spends")
    print(f"{one['front_cpu_ms_per_token']} ms of processor a token.\n")
    print("| visitors | answers/s | replicas | pages by tokens | pages by connections | cores |")
    print("|---|---|---|---|---|---|")
    for visitors in arguments.visitors:
        found = need(visitors, arguments.every, served, one["tokens_per_answer"], one["front_cpu_ms_per_token"])
        print(
            f"| {visitors:,} | {found.answers_per_s:,} | {found.replicas:,} | {found.pages_by_tokens:,} "
            f"| {found.pages_by_connections:,} | {found.cores:,} |"
        )
        if arguments.price is not None:
            print(f"\n{visitors:,} visitors: {found.cores * arguments.price:,.2f} an hour\n")
    print("\n| questions that wait at one page | of a core, to look at their places |")
    print("|---|---|")
    for waiting in (64, 256, 1024):
        print(f"| {waiting:,} | {queue_share(waiting):.0%} |")


if __name__ == "__main__":
    main()

"""Which replica a question goes to, without a Ray that runs."""

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="Ray is not installed (pip install -r requirements/ray.txt)")

from gemma3_core.replicas.router import MOST_REMEMBERED, VisitorRouter


class Router(VisitorRouter):
    """Knows how full its replicas are, and nothing else of Serve."""

    def __init__(self, **loads: int | None):
        self.loads, self.running = loads, dict[str, int]()
        self.initialize_state(at_once=4)

    @property
    def replica_queue_len_cache(self):
        return self.loads

    def chosen(self, visitor: str, model: str = "", **models: tuple[str, ...]) -> list[str]:
        told = {name: {"running": running} for name, running in self.running.items()}
        replicas = [
            SimpleNamespace(
                replica_id=_Id(name),
                routing_stats=told.get(name, {}) | ({"models": models[name]} if name in models else {}),
            )
            for name in self.loads
        ]
        ranks = asyncio.run(self.choose_replicas(replicas, _pending(visitor, model)))
        return [one.replica_id for (one,) in ranks]


class _Id(str):
    @property
    def unique_id(self) -> str:
        return str(self)


def _pending(visitor: str, model: str = "") -> SimpleNamespace:
    metadata = SimpleNamespace(session_id=visitor, multiplexed_model_id=model)
    return SimpleNamespace(metadata=metadata, routing_context=SimpleNamespace(should_backoff=False))


def test_a_visitor_returns_while_the_replica_has_a_place_free():
    router = Router(a=0, b=0)
    router.on_request_routed(_pending("ann"), _Id("b"), None)
    router.loads["b"] = 3
    assert router.chosen("ann") == ["b", "a"]
    router.loads["b"] = 4
    assert router.chosen("ann") == ["a", "b"]
    router.loads["a"] = 5
    assert router.chosen("ann") == ["b", "a"], "both are full: the emptier one"


def test_a_visitor_whose_replica_was_lost_goes_elsewhere_and_returns_there():
    router = Router(a=3, b=0)
    router.on_request_routed(_pending("ann"), _Id("b"), None)
    assert router.chosen("ann/1") == ["a", "b"]
    router.on_request_routed(_pending("ann/1"), _Id("a"), None)
    assert router.chosen("ann")[0] == "a"


def test_a_new_visitor_goes_to_the_emptiest_and_equal_ones_are_taken_alike_by_every_page():
    assert Router(a=2, b=1, c=3).chosen("ben") == ["b", "a", "c"]
    orders = {tuple(Router(a=0, b=0, c=0).chosen(f"visitor {n}")) for n in range(60)}
    assert len(orders) == 6
    assert Router(a=0, b=0).chosen("ben") == Router(b=0, a=0).chosen("ben")


def test_a_load_that_serve_no_longer_knows_is_what_the_replica_told_last():
    router = Router(a=None, b=None, c=2)
    router.running = {"a": 3, "b": 1}
    assert router.chosen("ben") == ["b", "c", "a"]


def test_a_replica_with_the_model_in_memory_comes_before_one_that_would_load_it():
    router = Router(a=0, b=2)
    assert router.chosen("ben", "big", a=("small",), b=("small", "big")) == ["b", "a"]
    assert router.chosen("ben", "big") == ["a", "b"], "nothing is known yet"


def test_what_is_remembered_is_bounded():
    router = Router(a=0)
    for number in range(MOST_REMEMBERED + 10):
        router.on_request_routed(_pending(f"visitor {number}"), _Id("a"), None)
    router.on_request_routed(_pending(""), _Id("a"), None)
    assert len(router._last) == MOST_REMEMBERED

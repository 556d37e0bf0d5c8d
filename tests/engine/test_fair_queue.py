"""The engine's queue: so many at a time, fair among visitors, bounded, left at any moment, from any thread."""

import random
import threading
import time

import pytest

from gemma3_core.engine.fair_queue import FairQueue, Ticket
from gemma3_core.errors import QueueFullError


def place(queue: FairQueue, ticket: Ticket) -> int:
    return queue.wait(ticket, None, 0)


def served_order(queue: FairQueue, tickets: dict[str, Ticket]) -> list[str]:
    """Works the queue off; the names of the tickets in the order in which their turns came."""
    order = []
    while waiting := {name: ticket for name, ticket in tickets.items() if name not in order}:
        (name,) = [name for name, ticket in waiting.items() if place(queue, ticket) == 0]
        order.append(name)
        queue.leave(tickets[name])
    return order


def test_the_first_to_come_is_served_at_once():
    queue = FairQueue()
    assert place(queue, queue.enter("a")) == 0


def test_of_different_visitors_who_came_first_goes_first():
    queue = FairQueue()
    tickets = {name: queue.enter(name) for name in "abcd"}
    assert [place(queue, ticket) for ticket in tickets.values()] == [0, 1, 2, 3]
    assert served_order(queue, tickets) == ["a", "b", "c", "d"]


def test_who_asks_much_waits_for_those_who_ask_little():
    queue = FairQueue()
    names = ["a1", "a2", "a3", "b1", "b2", "c1"]
    tickets = {name: queue.enter(name[0]) for name in names}
    assert place(queue, tickets["b1"]) == 1, "a is being served: b comes before a's second question"
    assert place(queue, tickets["c1"]) == 2
    assert served_order(queue, tickets) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_newcomer_waits_for_one_question_of_each_other_visitor_at_most():
    queue = FairQueue()
    tickets = {f"{visitor}{i}": queue.enter(visitor) for visitor in "ab" for i in range(1, 5)}
    tickets["c1"] = queue.enter("c")
    order = served_order(queue, tickets)
    assert order[:4] == ["a1", "b1", "c1", "a2"]
    assert sorted(order) == sorted(tickets)


def test_asking_again_while_being_served_joins_at_the_end_of_the_round():
    queue = FairQueue()
    tickets = {name: queue.enter(name[0]) for name in ("a1", "b1", "a2", "c1")}
    assert served_order(queue, tickets) == ["a1", "b1", "c1", "a2"]


def test_places_told_are_the_places_served():
    chance = random.Random(0)
    for _ in range(50):
        queue = FairQueue(max_waiting=99, max_per_visitor=99)
        tickets = {str(i): queue.enter(chance.choice("abc")) for i in range(9)}
        told = sorted(tickets, key=lambda name: place(queue, tickets[name]))
        assert told == served_order(queue, tickets)


def test_nobody_starves_while_new_visitors_keep_coming():
    queue = FairQueue(max_waiting=99)
    running = queue.enter("a")
    patient = queue.enter("a")
    others = [queue.enter("first")]
    for step in range(30):
        queue.leave(running)
        if place(queue, patient) == 0:
            break
        running = next(ticket for ticket in others if place(queue, ticket) == 0)
        others.remove(running)
        others.append(queue.enter(f"new {step}"))
    assert place(queue, patient) == 0
    assert step <= 3


def test_the_queue_is_bounded_and_opens_again():
    queue = FairQueue(max_waiting=2)
    running, first, _ = (queue.enter(name) for name in "abc")
    with pytest.raises(QueueFullError, match="2 questions are waiting"):
        queue.enter("d")
    queue.leave(first)
    late = queue.enter("d")
    with pytest.raises(QueueFullError):
        queue.enter("e")
    queue.leave(running)
    queue.enter("e")
    assert place(queue, late) == 1


def test_one_visitor_can_not_fill_the_queue():
    queue = FairQueue(max_waiting=64, max_per_visitor=2)
    running = queue.enter("a")
    for _ in range(2):
        queue.enter("a")
    with pytest.raises(QueueFullError, match="2 of your questions"):
        queue.enter("a")
    other = queue.enter("b")
    assert place(queue, other) == 1
    queue.leave(running)
    queue.leave(other)
    queue.enter("a")  # one of theirs is being answered now: that makes room


def test_a_refused_visitor_leaves_nothing_behind():
    queue = FairQueue(max_waiting=1)
    running, waiting = queue.enter("a"), queue.enter("b")
    for _ in range(5):
        with pytest.raises(QueueFullError):
            queue.enter("c")
    queue.leave(running)
    queue.leave(waiting)
    assert place(queue, queue.enter("d")) == 0


def test_leaving_while_waiting_moves_the_others_up():
    queue = FairQueue()
    tickets = {name: queue.enter(name) for name in "abcd"}
    queue.leave(tickets.pop("b"))
    assert [place(queue, ticket) for ticket in tickets.values()] == [0, 1, 2]
    assert served_order(queue, tickets) == ["a", "c", "d"]


def test_leaving_while_running_starts_the_next():
    queue = FairQueue()
    running, waiting = queue.enter("a"), queue.enter("b")
    queue.leave(running)
    assert place(queue, waiting) == 0


def test_leaving_twice_never_ends_somebody_elses_turn():
    queue = FairQueue()
    first, second, third = (queue.enter(name) for name in "abc")
    queue.leave(first)
    queue.leave(first)
    assert place(queue, second) == 0
    assert place(queue, third) == 1


def test_waiting_ends_in_time_when_nothing_changes():
    queue = FairQueue()
    queue.enter("a")
    ticket = queue.enter("b")
    start = time.monotonic()
    assert queue.wait(ticket, 1, 0.1) == 1
    assert 0.09 <= time.monotonic() - start < 20


def test_waiting_ends_as_soon_as_the_place_changes():
    queue = FairQueue()
    running = queue.enter("a")
    ticket = queue.enter("b")
    threading.Timer(0.1, queue.leave, [running]).start()
    start = time.monotonic()
    assert queue.wait(ticket, 1, 30) == 0
    assert time.monotonic() - start < 10


def test_an_unknown_place_is_told_without_waiting():
    queue = FairQueue()
    queue.enter("a")
    ticket = queue.enter("b")
    start = time.monotonic()
    assert queue.wait(ticket, None, 30) == 1
    assert time.monotonic() - start < 10


def test_many_threads_are_served_one_at_a_time_and_all():
    queue = FairQueue(max_waiting=1000, max_per_visitor=1000)
    inside, most_inside, served, gave_up = 0, 0, [], []
    lock = threading.Lock()

    def visit(number: int) -> None:
        nonlocal inside, most_inside
        chance = random.Random(number)
        for _ in range(5):
            ticket = queue.enter(str(number % 7))
            try:
                told = place(queue, ticket)
                while told:
                    if chance.random() < 0.1:
                        gave_up.append(ticket)
                        break
                    told = queue.wait(ticket, told, 30)
                else:
                    with lock:
                        inside += 1
                        most_inside = max(most_inside, inside)
                    time.sleep(0.0002)
                    with lock:
                        inside -= 1
                    served.append(ticket)
            finally:
                queue.leave(ticket)

    threads = [threading.Thread(target=visit, args=(number,), daemon=True) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert most_inside == 1
    assert len({ticket.number for ticket in served + gave_up}) == 24 * 5
    assert place(queue, queue.enter("late")) == 0, "nothing may be left in the queue"


def test_who_is_not_ready_is_passed_over_and_keeps_the_place():
    queue = FairQueue()
    slow, quick, late = queue.enter("a", ready=False), queue.enter("b"), queue.enter("c")
    assert [queue.wait(ticket, None, 0) for ticket in (slow, quick, late)] == [1, 0, 2]
    queue.make_ready(slow)
    assert queue.wait(slow, None, 0) == 1
    queue.leave(quick)
    assert [queue.wait(ticket, None, 0) for ticket in (slow, late)] == [0, 1]
    queue.leave(slow)
    assert queue.wait(late, None, 0) == 0


def test_who_leaves_before_being_ready_is_forgotten():
    queue = FairQueue()
    gone = queue.enter("a", ready=False)
    queue.leave(gone)
    queue.make_ready(gone)
    assert queue.wait(queue.enter("b"), None, 0) == 0


def running(queue: FairQueue, tickets: dict[str, Ticket]) -> set[str]:
    return {name for name, ticket in tickets.items() if place(queue, ticket) == 0}


def test_several_run_at_once_one_of_each_visitor_and_the_next_in_turn_follows():
    queue = FairQueue(max_running=2)
    tickets = {name: queue.enter(name[0]) for name in ("a1", "a2", "b1", "c1")}
    assert running(queue, tickets) == {"a1", "b1"}
    assert [place(queue, tickets[name]) for name in ("c1", "a2")] == [1, 2]
    queue.leave(tickets.pop("a1"))
    assert running(queue, tickets) == {"b1", "c1"}
    queue.leave(tickets.pop("b1"))
    assert running(queue, tickets) == {"a2", "c1"}


def test_a_visitor_alone_is_still_answered_one_by_one():
    queue = FairQueue(max_running=8)
    tickets = {name: queue.enter("a") for name in ("a1", "a2", "a3")}
    assert running(queue, tickets) == {"a1"}
    queue.leave(tickets.pop("a1"))
    assert running(queue, tickets) == {"a2"}


def test_those_who_run_fit_into_the_budget_and_nobody_overtakes_one_who_needs_much():
    queue = FairQueue(max_running=8, budget=100)
    needs = {"a": 60, "b": 60, "c": 30, "d": 500}
    tickets = {name: queue.enter(name, ready=False) for name in needs}
    for name, num_bytes in needs.items():
        queue.make_ready(tickets[name], num_bytes)
    assert running(queue, tickets) == {"a"}, "c would fit beside a, but b came first"
    queue.leave(tickets.pop("a"))
    assert running(queue, tickets) == {"b", "c"}
    queue.leave(tickets.pop("b"))
    assert running(queue, tickets) == {"c"}
    queue.leave(tickets.pop("c"))
    assert running(queue, tickets) == {"d"}, "what exceeds the budget runs alone"
    queue.leave(tickets.pop("d"))
    assert place(queue, queue.enter("e")) == 0

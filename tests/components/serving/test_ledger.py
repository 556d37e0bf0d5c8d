"""How much visitors may ask: counts, periods, and how much is remembered."""

import random
import threading
from datetime import UTC, datetime

import pytest
from plain_words import is_plain

from components.serving.desk import told
from components.serving.ledger import DAY_S, HOUR_S, LONGEST_STREAM_S, Allowance, MemoryLedger, Refusal

NOON = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC).timestamp()


class Clock:
    def __init__(self):
        self.now = NOON

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def asked(ledger, visitor="a", pictures=0, tokens=0, counts=True):
    """A question from its beginning to its end; the refusal if there was one."""
    begun = ledger.begin(visitor, 1, pictures)
    if isinstance(begun, Refusal):
        return begun
    ledger.end(begun, tokens, counts)
    return None


def test_without_allowances_everything_may_be_asked(clock):
    ledger = MemoryLedger((), clock)
    assert [asked(ledger, pictures=9, tokens=10**9) for _ in range(1000)] == [None] * 1000


def test_questions_are_counted_for_each_visitor_from_the_first_one_on(clock):
    ledger = MemoryLedger([Allowance("questions", 2, HOUR_S)], clock)
    assert asked(ledger) is None
    clock.now += 1800
    assert asked(ledger) is None
    refusal = asked(ledger)
    assert (refusal.used, refusal.back_at) == (2, NOON + HOUR_S)
    assert asked(ledger, "b") is None
    clock.now = refusal.back_at - 1
    assert asked(ledger) is not None
    clock.now = refusal.back_at
    assert [asked(ledger) is None for _ in range(3)] == [True, True, False]


def test_other_limits_leave_what_was_used(clock):
    ledger = MemoryLedger([Allowance("questions", 1, HOUR_S), Allowance("tokens", 100, DAY_S)], clock)
    assert asked(ledger, tokens=70) is None
    ledger.adopt([Allowance("tokens", 60, DAY_S), Allowance("questions", 2, HOUR_S)])
    assert (refusal := asked(ledger)).allowance == Allowance("tokens", 60, DAY_S)
    assert refusal.used == 70
    ledger.adopt([Allowance("questions", 2, HOUR_S)])
    assert [asked(ledger) is None for _ in range(2)] == [True, False]


def test_tokens_are_known_afterwards_and_stop_the_next_question(clock):
    ledger = MemoryLedger([Allowance("tokens", 100, DAY_S)], clock)
    assert asked(ledger, tokens=99) is None
    assert asked(ledger, tokens=50) is None  # an answer that has begun is written to its end
    refusal = asked(ledger)
    assert (refusal.used, refusal.back_at) == (149, NOON + DAY_S)


def test_pictures_that_are_too_many_leave_room_for_fewer_and_for_none(clock):
    ledger = MemoryLedger([Allowance("pictures", 5, DAY_S)], clock)
    assert asked(ledger, pictures=3) is None
    assert asked(ledger, pictures=3).used == 3
    assert asked(ledger, pictures=2) is None
    assert asked(ledger, pictures=1) is not None
    assert asked(ledger, pictures=0) is None


def test_streams_are_those_that_have_not_ended(clock):
    ledger = MemoryLedger([Allowance("streams", 2)], clock)
    first, second = ledger.begin("a", 1, 0), ledger.begin("a", 1, 0)
    assert isinstance(ledger.begin("a", 1, 0), Refusal)
    assert not isinstance(ledger.begin("b", 1, 0), Refusal)
    ledger.end(first, 0, True)
    ledger.end(first, 0, True)  # twice is harmless
    assert not isinstance(ledger.begin("a", 1, 0), Refusal)
    clock.now += LONGEST_STREAM_S + 1  # whoever would have ended these is gone
    assert not isinstance(ledger.begin("a", 1, 0), Refusal)
    ledger.end(second, 0, True)


def test_an_answer_that_takes_longer_than_a_stream_is_counted_all_the_same(clock):
    ledger = MemoryLedger([Allowance("tokens", 100, DAY_S), Allowance("streams", 1)], clock)
    long = ledger.begin("a", 1, 0)
    clock.now += LONGEST_STREAM_S + 1
    other = ledger.begin("a", 1, 0)
    ledger.end(long, 70, True)
    ledger.end(other, 30, True)
    assert ledger.begin("a", 1, 0).used == 100


def test_what_nobody_ends_is_forgotten_after_a_day(clock):
    ledger = MemoryLedger([Allowance("tokens", 100, DAY_S)], clock)
    for _ in range(9):
        ledger.begin("a", 1, 0)
        ledger.begin("a", 0, 0)  # a look
    clock.now += DAY_S + 1
    ledger.begin("a", 1, 0)
    assert len(ledger._running) == 1


def test_a_clock_that_is_set_back_prolongs_nothing_by_its_step(clock):
    ledger = MemoryLedger([Allowance("questions", 1, HOUR_S), Allowance("streams", 1)], clock)
    lost = ledger.begin("a", 1, 0)
    clock.now -= 100 * DAY_S
    refusal = ledger.begin("a", 1, 0)
    assert (refusal.allowance.what, refusal.back_at) == ("questions", clock.now + HOUR_S)
    clock.now += HOUR_S
    assert not isinstance(ledger.begin("a", 1, 0), Refusal)
    ledger.end(lost, 0, True)


def test_a_look_takes_tokens_alone(clock):
    ledger = MemoryLedger(
        [Allowance("questions", 1, HOUR_S), Allowance("tokens", 9, DAY_S), Allowance("streams", 1)], clock
    )
    assert asked(ledger) is None
    looks = [ledger.begin("a", 0, 0) for _ in range(2)]
    clock.now += HOUR_S + 1
    ledger.begin("a", 1, 0)  # no look holds it up
    assert isinstance(ledger.begin("a", 1, 0), Refusal)
    for look in looks:
        ledger.end(look, 5, True)
    assert ledger.begin("a", 0, 0).used == 10


def test_a_budget_is_for_all_together_and_has_no_end(clock):
    ledger = MemoryLedger([Allowance("questions", 3, together=True), Allowance("tokens", 50, together=True)], clock)
    assert [asked(ledger, name) for name in "ab"] == [None, None]
    assert asked(ledger, "c", tokens=60) is None
    clock.now += 10 * DAY_S
    assert asked(ledger, "d").back_at is None


def test_the_refusal_is_the_one_that_lasts_longest(clock):
    day, hour = Allowance("tokens", 1, DAY_S), Allowance("questions", 1, HOUR_S)
    ledger = MemoryLedger([hour, day, Allowance("streams", 1)], clock)
    number = ledger.begin("a", 1, 0)
    assert ledger.begin("a", 1, 0).allowance is hour
    ledger.end(number, 5, True)
    assert ledger.begin("a", 1, 0).allowance is day


def test_a_question_that_does_not_count_is_given_back(clock):
    ledger = MemoryLedger([Allowance("questions", 1, HOUR_S), Allowance("pictures", 4, DAY_S)], clock)
    assert asked(ledger, pictures=4, counts=False) is None
    assert asked(ledger, pictures=4) is None
    assert asked(ledger) is not None


def test_memory_is_bounded_over_all_visitors_and_running_ones_stay(clock):
    ledger = MemoryLedger([Allowance("questions", 1, HOUR_S), Allowance("streams", 1)], clock, most_visitors=50)
    running = ledger.begin("runs", 1, 0)
    for number in range(1000):
        assert asked(ledger, f"visitor {number}") is None
    assert len(ledger) == 50
    assert isinstance(ledger.begin("runs", 1, 0), Refusal)
    ledger.end(running, 0, True)
    assert asked(ledger, "visitor 999") is not None  # the latest are remembered
    assert asked(ledger, "visitor 0") is None


def test_many_threads_together_get_no_more_than_is_allowed():
    ledger, taken = MemoryLedger([Allowance("questions", 50, HOUR_S)]), []

    def ask():
        for _ in range(20):
            begun = ledger.begin("a", 1, 0)
            if not isinstance(begun, Refusal):
                taken.append(begun)
                ledger.end(begun, random.randrange(9), True)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 50


@pytest.mark.parametrize(
    ("refusal", "says", "reason", "retry_s"),
    [
        (
            Refusal(Allowance("questions", 30, HOUR_S), 30, NOON + 65),
            "You have asked as many questions as a visitor may in an hour: 30. Come back at 12:02 UTC.",
            "questions_per_hour", 65,
        ),
        (
            Refusal(Allowance("tokens", 20_000, DAY_S), 21_000, NOON + 12 * 3600),
            "You have used as many tokens as a visitor may in a day: 20,000. Come back at 00:00 UTC.",
            "tokens_per_day", 43_200,
        ),
        (
            Refusal(Allowance("pictures", 9, DAY_S), 9, NOON + 60),
            "You have sent as many pictures as a visitor may in a day: 9. Come back at 12:01 UTC.",
            "pictures_per_day", 60,
        ),
        (
            Refusal(Allowance("pictures", 9, DAY_S), 7, NOON + 60),
            "These are too many pictures: 2 of 9 in a day are left. Ask with fewer, or come back at 12:01 UTC.",
            "pictures_per_day", 60,
        ),
        (
            Refusal(Allowance("streams", 2), 2),
            "Answers in progress for your address: 2, the maximum. Wait until one is complete.",
            "streams", 5,
        ),
        (
            Refusal(Allowance("questions", 500, together=True), 500),
            "This public link has answered as many questions as it may: 500. Ask whoever gave it to you for a new one.",
            "budget", None,
        ),
    ],
)  # fmt: skip
def test_a_refusal_says_what_is_used_up_and_when_to_come_back(refusal, says, reason, retry_s):
    error = told(refusal, datetime.fromtimestamp(NOON, UTC))
    assert (str(error), error.reason, error.retry_s) == (says, reason, retry_s)
    assert is_plain(says)

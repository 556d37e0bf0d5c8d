"""The arithmetic of what many visitors need."""

from benchmarks.capacity import need, queue_share


def test_needs_follow_from_what_one_replica_and_one_page_do():
    found = need(visitors=6000, every_s=60, served_per_s=4, tokens=20, front_ms=1)
    assert found.answers_per_s == 100
    assert found.replicas == 34  # 100 / (4 * 0.75) = 33.3
    assert found.pages_by_tokens == 4  # 2,000 tokens/s * 1 ms = 2 cores, filled to half
    assert found.pages_by_connections == 1
    assert (found.pages, found.cores) == (4, 38)
    assert need(visitors=100_000, every_s=6000, served_per_s=10, tokens=1, front_ms=0.1).pages_by_connections == 8


def test_the_queue_costs_more_than_in_proportion():
    assert queue_share(400) > 4 * queue_share(50)

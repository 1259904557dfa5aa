"""Which requests make the next batch, and when: scenarios on a clock that the test moves."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batching.policy import BatchPolicy, QueuePolicy
from engine.batching.queue import CANCELLED, DEADLINE_SECONDS, FOREVER, QUEUED, Request, RequestQueue, ServiceTimes


def waiting(
    *requests: tuple[float, int], key: str = "a", queue: RequestQueue | None = None, **more: Any
) -> RequestQueue:
    """A queue with requests of (arrival, rows)."""
    queue = queue or RequestQueue()
    for arrival, rows in requests:
        queue.add(Request({}, rows, (key,), **more), arrival)
    return queue


def rows_of(batch: Any) -> list[int]:
    return [request.rows for request in batch.requests]


ALWAYS = BatchPolicy(max_batch_size=8, max_wait_ms=10, wait="always")


def test_a_full_batch_goes_at_once_and_leaves_the_rest() -> None:
    queue = waiting(*[(0.0, 1)] * 11)
    batch, _ = queue.take(0.0, ALWAYS)
    assert batch is not None
    assert batch.rows == 8
    assert queue.count == batch.depth == 3


def test_a_batch_that_is_not_full_waits_for_its_oldest_request_only() -> None:
    queue = waiting((0.0, 1), (0.009, 1))
    batch, look_again = queue.take(0.009, ALWAYS)
    assert batch is None
    assert look_again == pytest.approx(0.010)
    batch, _ = queue.take(0.010, ALWAYS)
    assert batch is not None
    assert batch.rows == 2


def test_requests_of_several_rows_count_by_rows() -> None:
    queue = waiting((0.0, 5), (0.0, 4), (0.0, 1))
    first, _ = queue.take(0.0, ALWAYS)
    assert first is not None
    assert rows_of(first) == [5]  # 5 + 4 would be 9; the order of arrival is kept
    second, _ = queue.take(0.011, ALWAYS)
    assert second is not None
    assert rows_of(second) == [4, 1]


def test_a_request_that_is_taken_out_does_not_count_any_more() -> None:
    queue = waiting((0.0, 5), (0.0, 2))
    gone = Request({}, 6, ("a",))
    queue.add(gone, 0.0)
    assert queue.remove(gone)
    assert queue.count == 2
    assert queue.take(0.0, ALWAYS)[0] is None  # seven rows are no full batch
    batch, _ = queue.take(0.010, ALWAYS)
    assert batch is not None
    assert rows_of(batch) == [5, 2]
    assert not queue.remove(batch.requests[0])


def test_different_shapes_never_share_a_batch_and_the_oldest_goes_first() -> None:
    queue = waiting((0.000, 1), key="rare")
    waiting(*[(0.001, 1)] * 30, key="common", queue=queue)
    order = []
    for step in range(4):
        batch, _ = queue.take(0.002, ALWAYS)
        if batch is not None:
            order.append((batch.requests[0].key[0], batch.rows))
        if step == 1:  # more of the common shape keeps coming
            waiting(*[(0.002, 1)] * 30, key="common", queue=queue)
    assert order == [("common", 8)] * 4  # the rare one still has time to wait for company …
    batch, _ = queue.take(0.010, ALWAYS)
    assert batch is not None
    assert batch.requests[0].key == ("rare",)  # … and goes before all when it has not


def test_a_preferred_size_goes_at_once_and_is_never_exceeded_by_one() -> None:
    policy = BatchPolicy(max_batch_size=16, max_wait_ms=10, wait="always", preferred_batch_sizes=(4, 8))
    queue = waiting(*[(0.0, 1)] * 3)
    assert queue.take(0.0, policy)[0] is None
    waiting(*[(0.001, 1)] * 6, queue=queue)  # nine wait: one more than the largest preferred size
    batch, _ = queue.take(0.001, policy)
    assert batch is not None
    assert batch.rows == 8
    assert queue.take(0.001, policy)[0] is None
    late, _ = queue.take(0.011, policy)
    assert late is not None
    assert late.rows == 1


def test_a_preferred_size_is_chosen_also_when_more_than_the_maximum_waits() -> None:
    policy = BatchPolicy(max_batch_size=10, max_wait_ms=10, preferred_batch_sizes=(4, 8))
    batch, _ = waiting(*[(0.0, 1)] * 25).take(0.0, policy)
    assert batch is not None
    assert batch.rows == 8


def test_an_urgent_request_goes_first_whatever_its_age() -> None:
    queue = waiting(*[(0.0, 1)] * 8, priority=2)
    waiting((0.5, 3), queue=queue, priority=1)
    batch, _ = queue.take(0.5, ALWAYS)
    assert batch is not None
    assert [request.priority for request in batch.requests] == [1, 2, 2, 2, 2, 2]
    assert batch.rows == 8


def test_what_waited_too_long_comes_out_and_the_rest_stays() -> None:
    queue = waiting((0.0, 1), deadline=0.1)
    waiting((0.0, 2), queue=queue, deadline=0.3)
    waiting((0.0, 3), queue=queue)
    assert queue.next_deadline() == 0.1
    assert [request.rows for request in queue.expire(0.2)] == [1]
    assert queue.count == 2
    batch, _ = queue.take(0.2, ALWAYS)
    assert batch is not None
    assert rows_of(batch) == [2, 3]
    assert queue.expire(1.0) == []


@pytest.mark.parametrize("wait", ["always", "when-it-pays"])
def test_the_wait_for_company_ends_before_the_first_deadline(wait: Any) -> None:
    """The limit is for the time in the queue: an idle instance has no reason to let it pass."""
    policy = BatchPolicy(max_batch_size=8, max_wait_ms=50, wait=wait)
    queue = busy_queue(gap=0.100, fixed=1.0, per_row=0.0)  # patience would be 300 ms
    now = 201 * 0.100
    waiting((now, 1), queue=queue, deadline=now + 0.020)
    waiting((now + 0.002, 1), queue=queue, deadline=now + 0.018)
    batch, look_again = queue.take(now + 0.002, policy)
    assert batch is None
    assert look_again == pytest.approx(now + 0.018 - DEADLINE_SECONDS)
    batch, _ = queue.take(look_again, policy)
    assert batch is not None
    assert batch.rows == 3
    assert queue.expire(look_again) == []


def test_of_a_short_limit_half_is_left_for_company_and_one_that_left_counts_no_more() -> None:
    queue = waiting((0.0, 1), deadline=0.004)
    assert queue.take(0.0, ALWAYS)[1] == pytest.approx(0.002)
    hasty = Request({}, 1, ("a",), deadline=0.001)
    queue.add(hasty, 0.0)
    assert queue.take(0.0, ALWAYS)[1] == pytest.approx(0.0005)
    assert queue.remove(hasty)
    hasty.status = CANCELLED
    assert queue.take(0.0, ALWAYS)[1] == pytest.approx(0.002)
    assert queue.expire(0.004, delays=lambda priority: True) == []
    assert queue.take(0.004, ALWAYS)[1] == pytest.approx(0.010)  # delayed: no deadline is left to keep


def test_what_waited_too_long_goes_behind_the_others_if_the_policy_delays() -> None:
    queue = waiting((0.0, 1), deadline=0.1)
    waiting((0.0, 2), queue=queue, deadline=0.5)
    assert queue.expire(0.2, delays=lambda priority: True) == []
    batch, _ = queue.take(0.2, ALWAYS)
    assert batch is not None
    assert rows_of(batch) == [2, 1]


def test_each_priority_may_delay_or_reject_what_waited_too_long() -> None:
    queue = waiting((0.0, 1), deadline=0.1, priority=1)
    waiting((0.0, 2), queue=queue, deadline=0.1, priority=2)
    waiting((0.0, 3), queue=queue, priority=1)
    assert queue.count_of(1) == 2
    assert [request.rows for request in queue.expire(0.2, delays=lambda priority: priority == 1)] == [2]
    assert (queue.count_of(1), queue.count_of(2)) == (2, 0)
    batch, _ = queue.take(0.2, ALWAYS)
    assert batch is not None
    assert rows_of(batch) == [3, 1]


@pytest.mark.parametrize("wrong", [{"default_timeout_ms": 0}, {"max_queue_size": 0}])
def test_a_queue_policy_that_makes_no_sense_says_so(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QueuePolicy(**wrong)


def test_served_requests_with_far_deadlines_are_forgotten() -> None:
    queue = RequestQueue()
    for step in range(20_000):
        waiting((step * 1e-3, 8), queue=queue, deadline=1e9)
        assert queue.take(step * 1e-3, ALWAYS)[0] is not None
    assert len(queue._deadlines) < 2000


def test_an_empty_queue_has_nothing_to_look_at() -> None:
    assert RequestQueue().take(0.0, ALWAYS) == (None, FOREVER)


def busy_queue(gap: float, fixed: float, per_row: float) -> RequestQueue:
    """One that has seen arrivals at this distance and batches with this run time; one request waits since `t`."""
    queue = RequestQueue()
    now = 0.0
    for size in (1, 2, 4, 8) * 4:
        queue.times.record(size, fixed + per_row * size)
    for _ in range(200):
        now += gap
        waiting((now, 1), queue=queue)
        queue.take(now, BatchPolicy(max_batch_size=1))
    waiting((now + gap, 1), queue=queue)
    return queue


def test_waiting_pays_when_the_next_request_is_near_and_runs_along_for_nothing() -> None:
    policy = BatchPolicy(max_batch_size=8, max_wait_ms=50)
    now = 201 * 0.001
    batch, look_again = busy_queue(gap=0.001, fixed=0.020, per_row=0.0).take(now, policy)
    assert batch is None
    assert look_again == pytest.approx(now + 0.003, rel=0.01)  # patience: three gaps, not the whole 50 ms


@pytest.mark.parametrize(
    ("gap", "fixed", "per_row"),
    [
        pytest.param(0.001, 0.0, 0.005, id="a batch takes as long as its rows one by one"),
        pytest.param(0.100, 0.020, 0.0, id="the next request comes long after this one would be done"),
        pytest.param(0.00001, 0.00002, 0.0, id="the run is shorter than a thread takes to wake up"),
    ],
)
def test_an_idle_instance_does_not_wait_where_it_cannot_pay(gap: float, fixed: float, per_row: float) -> None:
    queue = busy_queue(gap, fixed, per_row)
    batch, _ = queue.take(201 * gap, BatchPolicy(max_batch_size=8, max_wait_ms=50))
    assert batch is not None
    assert batch.rows == 1


def test_the_first_request_ever_does_not_wait() -> None:
    assert waiting((0.0, 1)).take(0.0, BatchPolicy(max_wait_ms=1000))[0] is not None


def test_the_run_time_is_learned_and_never_negative() -> None:
    times = ServiceTimes()
    for size in (1, 8, 16, 32) * 20:
        times.record(size, 0.002 + 0.0005 * size)
    assert times.expect(20) == pytest.approx(0.012, rel=1e-3)
    for size in (1, 8, 16, 32) * 100:  # larger batches measured as faster: a fit would go below zero
        times.record(size, 0.1 / size)
    assert times.per_row == 0.0
    assert times.expect(1000) > 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 8), st.integers(0, 2), st.integers(1, 2), st.floats(0, 0.02), st.booleans()),
        max_size=60,
    ),
    st.sampled_from(["always", "when-it-pays"]),
    st.sampled_from([(), (4,), (2, 8)]),
)
def test_every_request_is_served_once_in_order_and_no_batch_is_too_large(
    arrivals: list[tuple[int, int, int, float, bool]], wait: Any, preferred: tuple[int, ...]
) -> None:
    policy = BatchPolicy(max_batch_size=8, max_wait_ms=10, wait=wait, preferred_batch_sizes=preferred)
    queue = RequestQueue()
    sent, served = [], []
    now = 0.0

    def take() -> bool:
        batch, look_again = queue.take(now, policy)
        if batch is None:
            assert look_again > now
            return False
        assert 0 < batch.rows <= 8
        assert batch.rows == sum(request.rows for request in batch.requests)
        assert len({request.key for request in batch.requests}) == 1
        assert [request.level for request in batch.requests] == sorted(request.level for request in batch.requests)
        served.extend(batch.requests)
        return True

    for rows, key, priority, pause, is_taken in arrivals:
        now += pause
        request = Request({}, rows, (key,), priority)
        queue.add(request, now)
        sent.append(request)
        if is_taken:
            take()
    now += 1.0
    while take():
        pass
    assert queue.count == 0
    assert sorted(map(id, served)) == sorted(map(id, sent))
    assert all(request.status != QUEUED for request in served)
    for key in range(3):
        for priority in (1, 2):
            line = [r for r in served if r.key == (key,) and r.priority == priority]
            assert [r.arrival for r in line] == sorted(r.arrival for r in line)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"max_wait_ms": -1}, "max_wait_ms"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms"),
        ({"instances": 0}, "instances"),
        ({"max_queue_size": 0}, "max_queue_size"),
        ({"default_priority": 3, "priority_levels": 2}, "default_priority"),
        ({"default_timeout_ms": 0}, "default_timeout_ms"),
        ({"preferred_batch_sizes": (64,)}, "preferred batch size 64"),
        ({"priority_queue_policies": {2: QueuePolicy()}}, "priorities 1 to 1, not 2"),
    ],
)
def test_a_policy_that_makes_no_sense_says_so(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        BatchPolicy(**wrong)

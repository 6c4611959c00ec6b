from __future__ import annotations

import asyncio
import math
import random
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipelines import batching
from pipelines.batching import Batcher, BatchStats, QueueFullError, Speed, TooLongError

FOREVER_S = 3600.0


class Clock:
    """Time that passes only while a batch runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def during(self, seconds: float, gate: Callable[[list[int]], list[int]]) -> Callable[[list[int]], list[int]]:
        """A run that takes so long."""

        def timed(items: list[int]) -> list[int]:
            self.now += seconds
            return gate(items)

        return timed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(batching, "time", clock)
    return clock


class Gate:
    """A run that notes its batches, and waits where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.open = threading.Event()
        self.open.set()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.threads.add(threading.get_ident())
        assert self.open.wait(60)
        return [item * item for item in items]


async def settle(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until something has happened."""
    while not condition():
        await asyncio.sleep(0.001)


def fails_on_two(items: list[int]) -> list[int]:
    if 2 in items:
        raise ValueError("two")
    return items


def run(test: Callable[[Gate], Awaitable[None]]) -> None:
    asyncio.run(test(Gate()))  # type: ignore[arg-type]


def batcher(gate: Callable[[list[int]], list[int]], **changes: Any) -> Batcher[int, int]:
    values = {"max_batch_tokens": 10, "max_wait_s": 0.0, "max_queued_tokens": 1000}
    return Batcher(gate, **{**values, **changes})


async def ask(batches: Batcher[int, int], item: int, *, n_tokens: int) -> int:
    (answer,) = await batches.submit([(item, n_tokens)])
    return answer


async def held_back(gate: Gate, batches: Batcher[int, int], requests: list[tuple[int, int]]) -> list[asyncio.Task[int]]:
    """Tasks of requests (item, tokens) that have all queued up behind a first one, whose batch waits at the gate."""
    gate.open.clear()
    tasks = [asyncio.create_task(ask(batches, 0, n_tokens=1))]
    await settle(lambda: len(gate.batches) == 1)
    tasks += [asyncio.create_task(ask(batches, item, n_tokens=n)) for item, n in requests]
    await settle(lambda: batches.queued_tokens == sum(n for _, n in requests))
    return tasks


def test_a_batch_is_the_front_of_the_queue_within_the_budget() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate)
        tasks = await held_back(gate, batches, [(1, 4), (2, 4), (3, 4), (4, 10), (5, 25), (6, 1), (7, 1)])
        gate.open.set()
        assert await asyncio.gather(*tasks) == [0, 1, 4, 9, 16, 25, 36, 49]
        assert gate.batches == [[0], [1, 2], [3], [4], [5], [6, 7]]  # 5 is beyond any batch: it goes alone
        assert len(gate.threads) == 1
        await batches.close()

    run(test)


def test_where_others_are_about_a_request_waits_until_the_batch_is_full() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, max_wait_s=FOREVER_S)
        answers = await asyncio.gather(*(ask(batches, item, n_tokens=5) for item in (1, 2)))
        third = asyncio.create_task(ask(batches, 3, n_tokens=5))
        await settle(lambda: batches.queued_tokens == 5)
        await asyncio.sleep(0.05)
        assert not third.done()
        assert [*answers, await ask(batches, 4, n_tokens=5), await third] == [1, 4, 16, 9]
        assert gate.batches == [[1, 2], [3, 4]]
        await batches.close()

    run(test)


def test_where_others_were_about_a_request_goes_after_its_wait() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, max_wait_s=0.001)
        await asyncio.gather(*(ask(batches, item, n_tokens=5) for item in (1, 2)))
        assert await ask(batches, 3, n_tokens=1) == 9
        await batches.close()

    run(test)


def test_a_client_that_asks_alone_never_waits() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, max_wait_s=FOREVER_S)
        assert [await ask(batches, item, n_tokens=1) for item in (1, 2, 3)] == [1, 4, 9]
        assert gate.batches == [[1], [2], [3]]
        await batches.close()

    run(test)


def test_the_speed_is_that_of_the_latest_batches_that_were_half_full_at_least() -> None:
    speed = Speed()
    assert speed.tokens_per_s == math.inf
    speed.note(10, 1.0, budget=100)
    speed.note(10, 0.0, budget=100)  # a clock that did not move
    assert speed.tokens_per_s == math.inf
    speed.note(100, 1.0, budget=100)
    speed.note(1, 1.0, budget=100)
    assert speed.tokens_per_s == 100
    speed.note(40, 0.1, budget=100)  # no lower than this
    assert speed.tokens_per_s == (50 + 40) / (0.5 + 0.1)
    slow = Speed()
    slow.note(100, 30.0, budget=100)  # a machine that stood still
    for _ in range(8):
        slow.note(10, 0.1, budget=100)
    assert slow.tokens_per_s > 50


def test_a_batch_beyond_the_budget_tells_no_more_of_the_speed_than_a_full_one() -> None:
    speed = Speed(n_tokens=100, seconds=1.0)
    speed.note(10_000, 400.0, budget=100)  # more tokens than were estimated
    assert speed.tokens_per_s == (50 + 100) / (0.5 + 4)
    speed = Speed(n_tokens=100, seconds=1.0)
    speed.note(40_000, 0.4, budget=100)  # a word of 100,000 letters is one token
    assert speed.tokens_per_s == pytest.approx(150 / 0.501)


def test_what_would_be_answered_too_late_is_not_taken(clock: Clock) -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(clock.during(0.02, gate), max_queued_s=0.1)
        assert await ask(batches, 1, n_tokens=5) == 1  # 250 tokens/s: the queue may hold 25
        gate.batches.clear()
        first, second = await held_back(gate, batches, [(2, 20)])
        with pytest.raises(QueueFullError, match=r"20 tokens wait already: with these, 0\.1 s of work .* and 0\.1 s"):
            await ask(batches, 3, n_tokens=10)
        gate.open.set()
        assert await asyncio.gather(first, second) == [0, 4]
        await batches.close()

    run(test)


def test_what_takes_too_long_by_itself_is_never_taken() -> None:
    async def test(_: Gate) -> None:
        batches = batcher(lambda items: items, max_queued_s=5, speed=Speed(n_tokens=10, seconds=1))
        with pytest.raises(TooLongError, match="about 60 tokens take 6 s here, above the limit of 5 s"):
            await batches.submit([(2, 30), (3, 30)])
        assert batches.queued_tokens == 0
        assert await ask(batches, 1, n_tokens=50) == 1
        await batches.close()

    run(test)


def test_a_slow_moment_refuses_nothing_for_good() -> None:
    async def test(gate: Gate) -> None:
        speed = Speed(n_tokens=10, seconds=1)
        batches = batcher(gate, max_queued_s=5, speed=speed)
        speed.note(10, 100.0, budget=10)
        assert await ask(batches, 1, n_tokens=40) == 1
        with pytest.raises(TooLongError):
            await ask(batches, 2, n_tokens=60)
        await batches.close()

    run(test)


def test_two_who_ask_in_turn_for_what_takes_long_are_answered_in_time() -> None:
    """One who comes while another's batch runs waits for that alone: what both take is within twice the limit."""

    async def test(gate: Gate) -> None:
        batches = batcher(gate, max_queued_s=5, speed=Speed(n_tokens=10, seconds=1))
        first, second = await held_back(gate, batches, [(1, 50)])
        with pytest.raises(QueueFullError):
            await ask(batches, 2, n_tokens=50)
        gate.open.set()
        assert await asyncio.gather(first, second) == [0, 1]
        await batches.close()

    run(test)


def test_others_have_their_turns_between_the_items_of_one_caller() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, max_queued_s=30, speed=Speed(n_tokens=1, seconds=1))
        gate.open.clear()
        many = asyncio.create_task(batches.submit([(item, 10) for item in (1, 2, 3)]))  # turns in 0, 10 and 20 seconds
        await settle(lambda: gate.batches == [[1]])
        other = asyncio.create_task(ask(batches, 4, n_tokens=10))
        await settle(lambda: batches.queued_tokens == 30)
        with pytest.raises(QueueFullError, match="30 tokens wait already: with these, 35.0 s of work"):
            await ask(batches, 5, n_tokens=25)  # 10 seconds are before it, and 20 that are not
        with pytest.raises(QueueFullError, match="with these, 52.0 s of work"):
            await batches.submit([(5, 10), (6, 11), (7, 1)])  # before the last of which all are
        gate.open.set()
        assert await asyncio.gather(other, many) == [16, [1, 4, 9]]
        assert gate.batches == [[1], [4], [2], [3]]
        await batches.close()

    run(test)


def test_what_comes_when_an_item_of_another_has_its_turn_waits_for_it() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, speed=Speed(n_tokens=1000, seconds=1))
        gate.open.clear()
        many = asyncio.create_task(batches.submit([(item, 10) for item in (1, 2, 3)]))  # turns in 0, 10 and 20 ms
        await settle(lambda: gate.batches == [[1]])
        await asyncio.sleep(0.03)
        other = asyncio.create_task(ask(batches, 4, n_tokens=10))
        await settle(lambda: batches.queued_tokens == 30)
        gate.open.set()
        await asyncio.gather(other, many)
        assert gate.batches == [[1], [2], [3], [4]]
        await batches.close()

    run(test)


def test_a_queue_is_as_full_as_the_fuller_of_its_limits() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, max_queued_tokens=40)
        assert batches.load().fullness == 0
        tasks = await held_back(gate, batches, [(1, 10)])
        assert batches.load().fullness == 0.25
        gate.open.set()
        await asyncio.gather(*tasks)
        await batches.close()
        gate.batches.clear()
        in_seconds = batcher(gate, max_queued_s=100, speed=Speed(n_tokens=1, seconds=5))
        tasks = await held_back(gate, in_seconds, [(1, 10)])
        assert in_seconds.load().fullness == 0.5
        gate.open.set()
        await asyncio.gather(*tasks)
        await in_seconds.close()

    run(test)


def test_a_queue_that_has_refused_is_full_once() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, max_queued_tokens=40)
        tasks = await held_back(gate, batches, [(1, 10)])
        with pytest.raises(QueueFullError):
            await ask(batches, 2, n_tokens=31)
        assert [batches.load().fullness for _ in range(2)] == [1, 0.25]
        gate.open.set()
        await asyncio.gather(*tasks)
        await batches.close()

    run(test)


def test_it_tells_how_busy_it_was_also_in_the_middle_of_a_batch() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate)
        await asyncio.sleep(0.01)
        assert batches.load().busy == 0
        tasks = await held_back(gate, batches, [])
        batches.load()
        await asyncio.sleep(0.01)
        assert batches.load().busy == pytest.approx(1)
        gate.open.set()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0.01)
        assert 0 < batches.load().busy < 1
        assert batches.load().busy == 0
        await batches.close()

    run(test)


def test_nearly_empty_batches_count_as_what_their_tokens_take_in_full_ones(clock: Clock) -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(clock.during(0.02, gate), speed=Speed(n_tokens=1000, seconds=1))
        await ask(batches, 1, n_tokens=1)
        assert batches.load().busy == pytest.approx(0.001 / 0.02)
        await batches.close()

    run(test)


def test_what_a_batch_s_tokens_take_counts_once_however_often_it_is_asked_for(clock: Clock) -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, speed=Speed(n_tokens=1000, seconds=1))
        clock.now += 1
        batches.load()
        (task,) = await held_back(gate, batches, [])  # of one token
        found = []
        for _ in range(3):
            clock.now += 1
            found.append(batches.load().busy)
        gate.open.set()
        await task
        assert found == [pytest.approx(0.001), 0, 0]
        await batches.close()

    run(test)


def test_what_was_not_computed_tells_nothing_of_the_speed() -> None:
    async def test(_: Gate) -> None:
        speed = Speed(n_tokens=10, seconds=1)
        batches = batcher(lambda items: [0 for _ in items], speed=speed, is_work=bool)
        await ask(batches, 1, n_tokens=10)
        assert (speed.n_tokens, speed.seconds) == (10, 1)
        await batches.close()

    run(test)


def test_turns_follow_the_speed_that_requests_are_taken_by() -> None:
    """In a slow moment the slices of one would else come after all that others ask for when it is over."""

    async def test(gate: Gate) -> None:
        speed = Speed(n_tokens=1000, seconds=1)
        batches = batcher(gate, speed=speed, max_queued_s=1.0)
        tasks = await held_back(gate, batches, [])
        speed.n_tokens, speed.seconds = 10, 1
        tasks.append(asyncio.create_task(batches.submit([(1, 1), (2, 1)])))
        await asyncio.sleep(0)
        first, second = (waiting.turn_s for waiting in batches._queue)
        assert second - first == pytest.approx(0.001)
        gate.open.set()
        await asyncio.gather(*tasks)
        await batches.close()

    run(test)


def test_items_of_one_caller_are_taken_together_or_not_at_all() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, max_queued_tokens=20)
        first, second = await held_back(gate, batches, [(1, 4)])
        with pytest.raises(QueueFullError):
            await batches.submit([(2, 8), (3, 9)])
        assert batches.queued_tokens == 4
        both = asyncio.create_task(batches.submit([(2, 8), (3, 8)]))
        await settle(lambda: batches.queued_tokens == 20)
        gate.open.set()
        assert await asyncio.gather(first, second, both) == [0, 1, [4, 9]]
        assert gate.batches == [[0], [1], [2], [3]]
        await batches.close()

    run(test)


def test_items_of_a_caller_that_has_gone_are_left_out() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate)
        gate.open.clear()
        task = asyncio.create_task(batches.submit([(1, 10), (2, 10), (3, 10)]))
        await settle(lambda: gate.batches == [[1]])
        task.cancel()
        await settle(task.done)
        assert batches.queued_tokens == 0
        gate.open.set()
        assert await ask(batches, 4, n_tokens=10) == 16
        assert gate.batches == [[1], [4]]
        await batches.close()

    run(test)


def test_items_behind_one_that_fails_are_left_out() -> None:
    def fails_on_two(items: list[int]) -> list[int]:
        seen.extend(items)
        if 2 in items:
            raise ValueError("two")
        return items

    seen: list[int] = []

    async def test(_: Gate) -> None:
        batches = batcher(fails_on_two)
        with pytest.raises(ValueError, match="two"):
            await batches.submit([(1, 10), (2, 10), (3, 10), (4, 10)])
        assert await ask(batches, 5, n_tokens=10) == 5
        assert 4 not in seen
        await batches.close()

    run(test)


def test_a_cancelled_request_is_left_out_and_makes_room() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, max_queued_tokens=8)
        first, second, third = await held_back(gate, batches, [(1, 4), (2, 4)])
        with pytest.raises(QueueFullError, match="8 tokens wait already"):
            await ask(batches, 9, n_tokens=1)
        second.cancel()
        await settle(second.done)
        assert batches.queued_tokens == 4
        fourth = asyncio.create_task(ask(batches, 3, n_tokens=4))
        await settle(lambda: batches.queued_tokens == 8)
        gate.open.set()
        assert await asyncio.gather(first, third, fourth) == [0, 4, 9]
        assert gate.batches == [[0], [2, 3]]
        await batches.close()

    run(test)


def test_a_request_cancelled_while_its_batch_runs_disturbs_nobody() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, max_batch_tokens=2)
        first, second = await held_back(gate, batches, [(5, 2)])
        first.cancel()
        gate.open.set()
        assert await second == 25
        await batches.close()

    run(test)


def test_an_empty_queue_takes_any_request() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, max_queued_tokens=1)
        assert await ask(batches, 2, n_tokens=500) == 4
        await batches.close()

    run(test)


def test_an_error_is_its_batch_s_alone() -> None:
    async def test(_: Gate) -> None:
        batches = batcher(fails_on_two, max_batch_tokens=1)
        answers = await asyncio.gather(*(ask(batches, i, n_tokens=1) for i in range(4)), return_exceptions=True)
        assert [answers[i] for i in (0, 1, 3)] == [0, 1, 3]
        assert isinstance(answers[2], ValueError)
        await batches.close()

    run(test)


def test_an_error_reaches_the_others_of_a_batch_that_one_has_left() -> None:
    async def test(gate: Gate) -> None:
        def fails(items: list[int]) -> list[int]:
            gate(items)
            return fails_on_two(items)

        batches = batcher(fails)
        _, gone, other = await held_back(gate, batches, [(1, 1), (2, 1)])
        gate.open.set()
        gate.open.clear()
        await settle(lambda: len(gate.batches) == 2)
        gone.cancel()
        gate.open.set()
        with pytest.raises(ValueError, match="two"):
            await asyncio.wait_for(other, 10)
        await batches.close()

    run(test)


def test_a_panic_is_an_error_of_its_batch_too() -> None:
    """Those of Rust's libraries are no Exception."""

    class Panic(BaseException):
        pass

    def panics_on_two(items: list[int]) -> list[int]:
        if 2 in items:
            raise Panic("at the disco")
        return items

    async def test(_: Gate) -> None:
        batches = batcher(panics_on_two)
        with pytest.raises(RuntimeError, match="Panic: at the disco"):
            await ask(batches, 2, n_tokens=1)
        assert await ask(batches, 3, n_tokens=1) == 3
        await batches.close()

    run(test)


def test_an_iteration_s_end_is_an_error_of_its_batch_too() -> None:
    """No future takes it: what asked got no answer, and the queue stood still for good."""

    def ends_on_two(items: list[int]) -> list[int]:
        if 2 in items:
            raise StopIteration("at two")
        return items

    async def test(_: Gate) -> None:
        batches = batcher(ends_on_two)
        with pytest.raises(RuntimeError, match="StopIteration: at two"):
            await asyncio.wait_for(ask(batches, 2, n_tokens=1), 5)
        assert await asyncio.wait_for(ask(batches, 3, n_tokens=1), 5) == 3
        await batches.close()

    run(test)


def test_the_queue_goes_on_where_nobody_can_tell_whether_an_answer_was_work() -> None:
    async def test(gate: Gate) -> None:
        def fails_on_one(answer: int) -> bool:
            if answer == 1:
                raise ValueError("one")
            return True

        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
        batches = batcher(gate, is_work=fails_on_one)
        tasks = await held_back(gate, batches, [(1, 4), (2, 4), (3, 4)])
        gate.open.set()
        assert await asyncio.wait_for(asyncio.gather(*tasks), 5) == [0, 1, 4, 9]
        assert [str(error) for error in told] == ["one"]
        await batches.close()

    run(test)


def test_a_run_that_loses_an_answer_is_an_error() -> None:
    async def test(_: Gate) -> None:
        batches = batcher(lambda items: items[1:])
        with pytest.raises(RuntimeError, match="0 answers to 1 requests"):
            await ask(batches, 1, n_tokens=1)
        await batches.close()

    run(test)


def test_closing_cancels_who_waits() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate, max_wait_s=FOREVER_S)
        await asyncio.gather(*(ask(batches, item, n_tokens=5) for item in (1, 2)))
        task = asyncio.create_task(ask(batches, 3, n_tokens=1))
        await settle(lambda: batches.queued_tokens == 1)
        await batches.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gate.batches == [[1, 2]]

    run(test)


def test_who_asks_after_the_end_is_told() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate)
        await batches.close()
        with pytest.raises(RuntimeError, match="the batcher is closed: make another one"):
            await asyncio.wait_for(ask(batches, 1, n_tokens=1), 5)

    run(test)


def test_other_work_is_done_in_the_same_thread() -> None:
    async def test(gate: Gate) -> None:
        batches = batcher(gate)
        await ask(batches, 1, n_tokens=1)
        assert {await batches.call(threading.get_ident)} == gate.threads
        await batches.close()

    run(test)


def test_batches_are_observed() -> None:
    async def test(gate: Gate) -> None:
        seen: list[BatchStats] = []
        batches = batcher(gate, observe=seen.append)
        tasks = await held_back(gate, batches, [(1, 3), (2, 4)])
        gate.open.set()
        await asyncio.gather(*tasks)
        await settle(lambda: len(seen) == 2)
        assert [(batch.n_tokens, len(batch.waits_s)) for batch in seen] == [(1, 1), (7, 2)]
        assert min(*seen[1].waits_s, seen[0].run_s) > 0
        await batches.close()

    run(test)


def test_thousands_of_requests_with_cancellations_never_mix() -> None:
    async def test(gate: Gate) -> None:
        rng = random.Random(3)
        batches = batcher(gate, max_batch_tokens=40, max_queued_tokens=10**6)
        tasks = []
        for item in range(3000):
            tasks.append(asyncio.create_task(ask(batches, item, n_tokens=rng.randint(1, 30))))
            if rng.random() < 0.1:
                await asyncio.sleep(0)
            if rng.random() < 0.1:
                tasks[rng.randrange(len(tasks))].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        kept = [(item, answer) for item, answer in enumerate(answers) if isinstance(answer, int)]
        assert all(answer == item * item for item, answer in kept)
        assert len(kept) + sum(isinstance(answer, asyncio.CancelledError) for answer in answers) == 3000
        assert len(kept) > 2500
        ran = [item for batch in gate.batches for item in batch]
        assert ran == sorted(ran)  # first come, first served
        await batches.close()

    run(test)


def test_batches_run_in_the_thread_that_is_given() -> None:
    async def test(gate: Gate) -> None:
        thread = ThreadPoolExecutor(1)
        batches = batcher(gate, thread=thread)
        await ask(batches, 1, n_tokens=1)
        assert gate.threads == {thread.submit(threading.get_ident).result()}
        await batches.close()
        with pytest.raises(RuntimeError, match="after shutdown"):
            thread.submit(int)

    run(test)

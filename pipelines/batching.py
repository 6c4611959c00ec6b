"""Requests that arrive one by one in, batches under a token budget out, and each request's own answer back.

First come, first served: a batch is always the front of the queue, so that a long request never waits for shorter
ones that came after it. What one caller gives in several pieces stands in the queue as if each piece had come when
those before it were done, so that others have their turns between them and none of them waits for what comes later.
"""

from __future__ import annotations

import asyncio
import math
import time
from bisect import insort
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from operator import attrgetter
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """More waits than is allowed to: the request was not taken."""


class TooLongError(Exception):
    """The request alone takes longer than it may, and will another time: the message says so to its client."""


@dataclass(frozen=True)
class BatchStats:
    """What a batch was.

    Attributes:
        n_tokens: of all its requests.
        waits_s: how long each request waited for its batch to start.
        run_s: how long the batch ran.
    """

    n_tokens: int
    waits_s: list[float]
    run_s: float


@dataclass(frozen=True)
class Load:
    """What there was to do since it was last asked for.

    Attributes:
        fullness: how full the queue is now, from 0 to 1: by its tokens or by the seconds of work in it, whichever is
            fuller; 1 if a request was refused.
        busy: the share of the time that the same tokens would have taken in full batches, from 0 to 1. Batches that
            are nearly empty count little, for fewer replicas would have fuller ones.
    """

    fullness: float
    busy: float


@dataclass(eq=False)
class _Waiting(Generic[Item, Answer]):
    item: Item
    n_tokens: int
    answer: asyncio.Future[Answer]
    since_s: float
    turn_s: float  # its place in the queue


@dataclass
class Speed:
    """Tokens a second of the latest batches, of which each counts half as much as the next.

    What a batch that is not half full tells is only that the speed is no lower than its own. One beyond the budget
    counts as a full one: its tokens were estimated, and the more there are, the further from the truth they may be.
    """

    n_tokens: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Infinite as long as nothing is known."""
        return self.n_tokens / self.seconds if self.seconds else math.inf

    def note(self, n_tokens: int, seconds: float, *, budget: int) -> None:
        """Take a batch into account, of which so many tokens would have been a full one."""
        if seconds and n_tokens and (2 * n_tokens >= budget or n_tokens / seconds > self.tokens_per_s):
            share = min(1.0, budget / n_tokens)
            self.n_tokens = self.n_tokens / 2 + share * n_tokens
            self.seconds = self.seconds / 2 + share * seconds


class Batcher(Generic[Item, Answer]):
    """Runs requests in batches, one batch after the other, in a thread of its own beside the event loop.

    A batch is the front of the queue within ``max_batch_tokens``; a request of more tokens than that is a batch of
    its own. Where the batch before had several requests, the first of the next waits at most ``max_wait_s`` for
    others, and not at all for a batch that is full; a client that asks alone never waits. A request that is cancelled
    before its batch starts is left out.

    Args:
        run: items -> their answers in the same order; called in the thread.
        max_batch_tokens: token budget of a batch.
        max_wait_s: seconds to wait for more requests.
        max_queued_tokens: tokens that may wait.
        max_queued_s: seconds of work, at the speed of the latest batches, that a request and what stands before it in
            the queue may make together. A request beyond that is refused, since its answer would come too late: a queue
            in which all wait too long would answer nobody. One that is more by itself is never taken. As no batch is
            more either, what comes in one piece is answered in twice this time; what comes in several may be overtaken.
            While none waits, any other request is taken, whatever ``max_queued_tokens`` says.
        speed: what is known of it before the first batch; it is kept up to date.
        is_work: whether an answer was computed: what was refused at once tells nothing of the speed.
        observe: told of every batch that ran.
        thread: the one that ``run`` is called in; None makes one.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Answer]],
        *,
        max_batch_tokens: int,
        max_wait_s: float,
        max_queued_tokens: int,
        max_queued_s: float = math.inf,
        speed: Speed | None = None,
        is_work: Callable[[Answer], bool] = lambda answer: True,
        observe: Callable[[BatchStats], None] | None = None,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self._run = run
        self._max_batch_tokens = max_batch_tokens
        self._max_wait_s = max_wait_s
        self._max_queued_tokens = max_queued_tokens
        self._max_queued_s = max_queued_s
        self._speed = speed or Speed()
        self._is_work = is_work
        self._first_tokens_per_s = speed.tokens_per_s if speed else 0.0
        self._observe = observe
        self._queue: list[_Waiting[Item, Answer]] = []  # by their turns
        self._queued_tokens = 0
        self._is_crowded = False  # whether the last batch had several requests
        self._has_refused = False
        self._asked_s = time.perf_counter()  # when somebody asked for the load
        self._busy_s = 0.0  # since then, without the batch that runs
        self._running_since_s: float | None = None
        self._left_s = 0.0  # of what its tokens take
        self._start_to_come: asyncio.Handle | None = None  # of the next batch
        self._is_closed = False
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="batches")

    @property
    def queued_tokens(self) -> int:
        """Tokens of the requests that wait for their batch."""
        return self._queued_tokens

    def load(self) -> Load:
        """How much there was to do since this was last asked."""
        now_s = time.perf_counter()
        self._note_work(now_s, goes_on=self._running_since_s is not None)
        busy = self._busy_s / (now_s - self._asked_s)
        seconds = self._queued_tokens / self._speed.tokens_per_s
        fullness = max(self._queued_tokens / self._max_queued_tokens, seconds / self._max_queued_s)
        load = Load(1.0 if self._has_refused else min(1.0, fullness), busy)
        self._asked_s, self._busy_s, self._has_refused = now_s, 0.0, False
        return load

    def _note_work(self, now_s: float, *, goes_on: bool) -> None:
        if self._running_since_s is not None:
            worked_s = min(now_s - self._running_since_s, self._left_s)
            self._busy_s += worked_s
            self._left_s -= worked_s
        self._running_since_s = now_s if goes_on else None

    async def submit(self, items: Sequence[tuple[Item, int]]) -> list[Answer]:
        """The answers of items with so many tokens each, which are taken or refused together.

        Where one of them fails, or the caller is cancelled, those whose batch has not started are left out.

        Raises:
            TooLongError: it will never be taken.
            QueueFullError: try again later.
            RuntimeError: the batcher is closed.
            Exception: whatever ``run`` raised on a batch of theirs.
        """
        if self._is_closed:
            raise RuntimeError("the batcher is closed: make another one")
        now_s, tokens_per_s = time.perf_counter(), self._speed.tokens_per_s
        before = [0, *accumulate(n for _, n in items)]
        own = before.pop()
        best_tokens_per_s = max(tokens_per_s, self._first_tokens_per_s)  # a slow moment is no reason for good
        if own > self._max_queued_s * best_tokens_per_s:
            raise TooLongError(
                f"about {own:,} tokens take {own / best_tokens_per_s:.0f} s here, "
                f"above the limit of {self._max_queued_s:g} s"
            )
        turns_s = [now_s + n / best_tokens_per_s for n in before]
        ahead = own + sum(waiting.n_tokens for waiting in self._queue if waiting.turn_s <= turns_s[-1])
        n_tokens = self._queued_tokens + own
        if self._queue and (n_tokens > self._max_queued_tokens or ahead > self._max_queued_s * tokens_per_s):
            self._has_refused = True
            raise QueueFullError(
                f"{self._queued_tokens:,} tokens wait already: with these, {ahead / tokens_per_s:.1f} s of work "
                f"(at most {self._max_queued_tokens:,} tokens and {self._max_queued_s:g} s)"
            )
        loop = asyncio.get_running_loop()
        its: list[_Waiting[Item, Answer]] = [
            _Waiting(item, n, loop.create_future(), now_s, turn_s)
            for (item, n), turn_s in zip(items, turns_s, strict=True)
        ]
        for waiting in its:
            insort(self._queue, waiting, key=attrgetter("turn_s"))
        self._queued_tokens = n_tokens
        self._cancel_start()
        self._start_to_come = loop.call_soon(self._start)  # when those who come at this moment are here, too
        try:
            return [await waiting.answer for waiting in its]
        finally:
            for waiting in its:
                waiting.answer.cancel()  # which does nothing where it is done
                if waiting.answer.cancelled() and waiting in self._queue:
                    self._queue.remove(waiting)
                    self._queued_tokens -= waiting.n_tokens

    async def call(self, work: Callable[[], Result]) -> Result:
        """The result of other work, done in the same thread between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Stop; requests that still wait are cancelled."""
        self._is_closed = True
        self._cancel_start()
        for waiting in self._queue:
            waiting.answer.cancel()
        self._thread.shutdown()

    def _cancel_start(self) -> None:
        if self._start_to_come is not None:
            self._start_to_come.cancel()

    def _start(self) -> None:
        """Give the thread its next batch, unless it has one, or others are waited for."""
        self._start_to_come = None
        if self._running_since_s is not None or not self._queue:
            return
        loop, now_s = asyncio.get_running_loop(), time.perf_counter()
        left_s = self._queue[0].since_s + self._max_wait_s * self._is_crowded - now_s
        if left_s > 0 and self._queued_tokens < self._max_batch_tokens:
            self._start_to_come = loop.call_later(left_s, self._start)
            return
        if batch := self._next_batch():
            n_tokens = sum(waiting.n_tokens for waiting in batch)
            self._running_since_s = now_s
            self._left_s = n_tokens / self._speed.tokens_per_s if self._speed.seconds else math.inf
            self._thread.submit(self._work, batch, partial(self._finish, batch, n_tokens, now_s), loop)

    def _next_batch(self) -> list[_Waiting[Item, Answer]]:
        batch: list[_Waiting[Item, Answer]] = []
        room = self._max_batch_tokens
        while self._queue and (not batch or self._queue[0].n_tokens <= room):
            waiting = self._queue.pop(0)
            self._queued_tokens -= waiting.n_tokens
            if not waiting.answer.done():
                room -= waiting.n_tokens
                batch.append(waiting)
        self._is_crowded = len(batch) > 1
        return batch

    def _work(
        self,
        batch: Sequence[_Waiting[Item, Answer]],
        finish: Callable[[Sequence[Answer] | Exception], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """In the thread."""
        found: Sequence[Answer] | Exception
        try:
            found = self._run([waiting.item for waiting in batch])
            if len(found) != len(batch):
                found = RuntimeError(f"{len(found)} answers to {len(batch)} requests")
        except BaseException as error:  # what a library panics with is no Exception, and no future takes StopIteration
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                found = error
            else:
                found = RuntimeError(f"{type(error).__name__}: {error}")
        loop.call_soon_threadsafe(finish, found)

    def _finish(
        self,
        batch: Sequence[_Waiting[Item, Answer]],
        n_tokens: int,
        started_s: float,
        found: Sequence[Answer] | Exception,
    ) -> None:
        now_s = time.perf_counter()
        self._note_work(now_s, goes_on=False)
        try:
            if isinstance(found, Exception):
                _give_all(batch, found)
            else:
                self._give(batch, found, now_s - started_s)
        finally:
            self._start()
        if self._observe is not None:
            stats = BatchStats(n_tokens, [started_s - waiting.since_s for waiting in batch], now_s - started_s)
            asyncio.get_running_loop().call_soon(self._observe, stats)  # behind the answers, which go out first

    def _give(self, batch: Sequence[_Waiting[Item, Answer]], answers: Sequence[Answer], run_s: float) -> None:
        """Each its answer; and note how fast they came."""
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
        n_tokens = sum(one.n_tokens for one, answer in zip(batch, answers, strict=True) if self._is_work(answer))
        self._speed.note(n_tokens, run_s, budget=self._max_batch_tokens)


def _give_all(batch: Sequence[_Waiting[Item, Answer]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)

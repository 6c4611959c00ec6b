"""Requests that arrive one by one in, batches under a token budget out, and each request's own answer back.

First come, first served: a batch is always the front of the queue, so that a long request never waits for shorter
ones that came after it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """More tokens wait than are allowed to: the request was not taken."""


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


@dataclass(eq=False)
class _Waiting(Generic[Item, Answer]):
    item: Item
    n_tokens: int
    answer: asyncio.Future[Answer]
    since_s: float = field(default_factory=time.perf_counter)


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
        max_queued_tokens: tokens that may wait; a request is always taken while none waits.
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
        observe: Callable[[BatchStats], None] | None = None,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self._run = run
        self._max_batch_tokens = max_batch_tokens
        self._max_wait_s = max_wait_s
        self._max_queued_tokens = max_queued_tokens
        self._observe = observe
        self._queue: deque[_Waiting[Item, Answer]] = deque()
        self._queued_tokens = 0
        self._is_crowded = False  # whether the last batch had several requests
        self._changed = asyncio.Event()
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._worker: asyncio.Task[None] | None = None

    @property
    def queued_tokens(self) -> int:
        """Tokens of the requests that wait for their batch."""
        return self._queued_tokens

    async def submit(self, item: Item, *, n_tokens: int) -> Answer:
        """The item's answer.

        Raises:
            QueueFullError: try again later.
            Exception: whatever ``run`` raised on its batch.
        """
        if self._queue and self._queued_tokens + n_tokens > self._max_queued_tokens:
            raise QueueFullError(f"{self._queued_tokens:,} tokens wait already (at most {self._max_queued_tokens:,})")
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        waiting: _Waiting[Item, Answer] = _Waiting(item, n_tokens, loop.create_future())
        self._queue.append(waiting)
        self._queued_tokens += n_tokens
        self._changed.set()
        try:
            return await waiting.answer
        finally:
            if waiting.answer.cancelled() and waiting in self._queue:
                self._queue.remove(waiting)
                self._queued_tokens -= n_tokens

    async def call(self, work: Callable[[], Result]) -> Result:
        """The result of other work, done in the same thread between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Stop; requests that still wait are cancelled."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for waiting in self._queue:
            waiting.answer.cancel()
        self._thread.shutdown()

    async def _work(self) -> None:
        while True:
            batch = await self._next_batch()
            if not batch:
                continue
            started_s = time.perf_counter()
            items = [waiting.item for waiting in batch]
            try:
                answers = await self.call(partial(self._run, items))
                if len(answers) != len(batch):
                    raise RuntimeError(f"{len(answers)} answers to {len(batch)} requests")
            except Exception as error:
                _give_all(batch, error)
            else:
                for waiting, answer in zip(batch, answers, strict=True):
                    if not waiting.answer.done():
                        waiting.answer.set_result(answer)
            if self._observe is not None:
                waits_s = [started_s - waiting.since_s for waiting in batch]
                n_tokens = sum(waiting.n_tokens for waiting in batch)
                stats = BatchStats(n_tokens, waits_s, time.perf_counter() - started_s)
                asyncio.get_running_loop().call_soon(self._observe, stats)  # behind the answers, which go out first

    async def _next_batch(self) -> list[_Waiting[Item, Answer]]:
        while not self._queue:
            await self._wait_for_change(None)
        until_s = self._queue[0].since_s + self._max_wait_s * self._is_crowded
        while self._queue and self._queued_tokens < self._max_batch_tokens:
            left_s = until_s - time.perf_counter()
            if left_s <= 0 or not await self._wait_for_change(left_s):
                break
        batch: list[_Waiting[Item, Answer]] = []
        room = self._max_batch_tokens
        while self._queue and (not batch or self._queue[0].n_tokens <= room):
            waiting = self._queue.popleft()
            self._queued_tokens -= waiting.n_tokens
            if not waiting.answer.done():
                room -= waiting.n_tokens
                batch.append(waiting)
        self._is_crowded = len(batch) > 1
        return batch

    async def _wait_for_change(self, timeout_s: float | None) -> bool:
        """Whether a request came in time."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except asyncio.TimeoutError:  # not the built-in one before Python 3.11
            return False
        return True


def _give_all(batch: Sequence[_Waiting[Item, Answer]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)

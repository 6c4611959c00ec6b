"""Pieces of work in, their results out, from a CPU's threads that each compute pieces of their own.

Threads that share a product wait at its end for the slowest of them, which on a machine with other work to do is late
each time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar, cast

import torch

LEAST_EACH = 4  # micro-batches a thread: with fewer the end, where some threads have none, costs what is gained
Piece = TypeVar("Piece")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """What this thread computes meanwhile takes no other."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def n_side_by_side(n_tokens: int, max_batch_tokens: int, device: torch.device) -> int:
    """How many micro-batches of so many tokens to run at a time: on a CPU one on each thread if there are enough."""
    n_threads = torch.get_num_threads() if device.type == "cpu" else 1
    return n_threads if n_tokens >= LEAST_EACH * n_threads * max_batch_tokens else 1


def side_by_side(run: Callable[[Piece], Result], pieces: Iterable[Piece], *, n_threads: int) -> list[Result]:
    """The results of the pieces, in their order; each of so many threads takes the next when it is done with one.

    A single one is this thread, which computes with all that torch has.

    Raises:
        Exception: the first that ``run`` raised; pieces that had not begun by then are left out.
    """
    if n_threads == 1:
        return [run(piece) for piece in pieces]
    is_over = threading.Event()

    def run_unless_over(piece: Piece) -> Result | None:
        if is_over.is_set():
            return None  # which nobody sees
        try:
            return run(piece)
        except BaseException:
            is_over.set()
            raise

    with one_thread():
        futures = [_threads(n_threads).submit(run_unless_over, piece) for piece in pieces]
        try:
            return cast("list[Result]", [future.result() for future in futures])
        finally:
            is_over.set()
            wait(futures)


@lru_cache
def _threads(n: int) -> ThreadPoolExecutor:
    """So many threads that stay: what libraries keep for each thread is made once."""
    return ThreadPoolExecutor(n, "side-by-side", initializer=torch.set_num_threads, initargs=(1,))


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a fork leaves all threads but one behind

"""A GPU and a model that runs on it in, how many tokens a micro-batch may have out."""

from __future__ import annotations

from collections.abc import Callable

import torch

CPU_BATCH_TOKENS = 1024  # about what the caches hold
MOST_TOKENS = 65_536  # from there on a GPU's products gain nothing
PROBED_TOKENS = 16_384  # more than a recorded batch has, whose memory is its own
SHARE = 0.8  # of the free memory; the rest is for what the allocator cannot use


def budget_of(*, free_bytes: int, bytes_per_token: float, longest: int) -> int:
    """Token budget that fits the memory: a power of two, or the longest record where that is more.

    A power of two, so that a little more or less free memory cuts the same micro-batches.
    """
    fitting = SHARE * free_bytes / max(bytes_per_token, 1.0)
    if fitting < 1:
        return longest
    power = 1 << (int(min(fitting, MOST_TOKENS)).bit_length() - 1)
    return max(longest, power)


def warm_up(run: Callable[[int, int], object], *, longest: int, max_tokens: int | None) -> None:
    """Compile what a device compiles, and allocate what stays there, before there is work for it.

    Args:
        run: computes that many records of that length.
        longest: tokens of the longest record.
        max_tokens: token budget of a micro-batch, where it is known.
    """
    run(max(1, min(PROBED_TOKENS, max_tokens or PROBED_TOKENS) // longest), longest)


def probed_budget(run: Callable[[int, int], object], *, longest: int, device: torch.device) -> int:
    """Token budget for a CUDA device that is warm, from the memory that a few of the longest records take.

    Args:
        run: computes that many records of that length.
        longest: tokens of the longest record.
    """
    n_records = max(1, PROBED_TOKENS // longest)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run(n_records, longest)
    taken = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return budget_of(free_bytes=free_bytes, bytes_per_token=taken / (n_records * longest), longest=longest)

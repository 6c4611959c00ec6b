"""Rows on a GPU in, what lies between a block's large products out: each in one pass over memory.

Every function here has its meaning written in torch elsewhere (``Fused`` names it); sums are in float32.

Shapes: T tokens, H hidden width, N heads, d head width, A = N·d, K kernel taps.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Rows, columns and warps that were fastest on an H200 at base size, of a dozen.
_DEPTHWISE_TILE = (32, 64, 4)
_MIX_TILE = (16, 4)
_N_TOKENS = {"do_not_specialize": ["n_tokens"]}  # or a kernel is compiled anew for numbers that 16 divides


def summed_and_normalised(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``precision.summed_and_normalised``: (T, O) -> (T, O), written over ``x``."""
    n_tokens, width = x.shape
    _sum_and_normalise[(n_tokens,)](
        x, residual, weight, bias, eps, WIDTH=width, COLUMNS=triton.next_power_of_2(width), num_warps=4
    )
    return x


@triton.jit
def _sum_and_normalise(x, residual, weight, bias, eps, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    columns = tl.arange(0, COLUMNS)
    is_there = columns < WIDTH
    places = tl.program_id(0).to(tl.int64) * WIDTH + columns
    total = tl.load(x + places, is_there, 0).to(tl.float32) + tl.load(residual + places, is_there, 0).to(tl.float32)
    centred = tl.where(is_there, total - tl.sum(total, 0) / WIDTH, 0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
    scaled = centred * scale * tl.load(weight + columns, is_there, 0).to(tl.float32)
    tl.store(x + places, scaled + tl.load(bias + columns, is_there, 0).to(tl.float32), is_there)


def depthwise_taps(x: Tensor, taps: Tensor, sides: Tensor) -> Tensor:
    """``convolution.depthwise_taps``: (T, H) -> (T, H)."""
    n_tokens, width = x.shape
    out = x.new_empty(n_tokens, width)
    rows, columns, n_warps = _DEPTHWISE_TILE
    _depthwise[(triton.cdiv(n_tokens, rows), triton.cdiv(width, columns))](
        x, taps, sides, out, n_tokens, WIDTH=width, TAPS=len(taps), ROWS=rows, COLUMNS=columns, num_warps=n_warps
    )
    return out


@triton.jit(**_N_TOKENS)
def _depthwise(
    x,
    taps,
    sides,
    out,
    n_tokens,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_column = rows < n_tokens, columns < WIDTH
    before, behind = tl.load(sides + 2 * rows, is_row, -1), tl.load(sides + 2 * rows + 1, is_row, -1)
    mixed = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in tl.static_range(TAPS):
        is_own = (tap - TAPS // 2 >= -before) & (tap - TAPS // 2 <= behind)
        reached = (rows + (tap - TAPS // 2))[:, None] * WIDTH + columns[None, :]
        values = tl.load(x + reached, is_own[:, None] & is_column[None, :], 0).to(tl.float32)
        mixed += values * tl.load(taps + tap * WIDTH + columns, is_column, 0).to(tl.float32)[None, :]
    tl.store(out + rows[:, None] * WIDTH + columns[None, :], mixed, is_row[:, None] & is_column[None, :])


def kernel_logits(span_key: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``convolution.kernel_logits``: twice (T, A) -> (T, N·K)."""
    n_tokens, width = span_key.shape
    n_logits = len(weight)
    columns = max(16, triton.next_power_of_2(n_logits))  # a product has no fewer
    rows = max(16, min(32, 8192 // columns))
    out = span_key.new_empty(n_tokens, n_logits)
    _kernel_logits[(triton.cdiv(n_tokens, rows),)](
        span_key,
        query,
        weight,
        bias,
        out,
        n_tokens,
        query.stride(0),
        WIDTH=width,
        LOGITS=n_logits,
        ROWS=rows,
        COLUMNS=columns,
        DEPTH=64,
        num_warps=4,
        num_stages=2,
    )
    return out


@triton.jit(**_N_TOKENS)
def _kernel_logits(
    span_key,
    query,
    weight,
    bias,
    out,
    n_tokens,
    query_stride,
    WIDTH: tl.constexpr,
    LOGITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    is_row, is_column = rows < n_tokens, columns < LOGITS
    logits = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, WIDTH, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        is_inner = inner < WIDTH
        is_there = is_row[:, None] & is_inner[None, :]
        keys = tl.load(span_key + rows[:, None] * WIDTH + inner[None, :], is_there, 0)
        queries = tl.load(query + rows[:, None] * query_stride + inner[None, :], is_there, 0)
        products = (keys.to(tl.float32) * queries.to(tl.float32)).to(keys.dtype)
        weights = tl.load(weight + columns[None, :] * WIDTH + inner[:, None], is_column[None, :] & is_inner[:, None], 0)
        logits = tl.dot(products, weights, logits, input_precision="ieee")
    logits += tl.load(bias + columns, is_column, 0).to(tl.float32)[None, :]
    tl.store(out + rows[:, None] * LOGITS + columns[None, :], logits, is_row[:, None] & is_column[None, :])


def mixed_taps(
    context: Tensor, logits: Tensor, values: Tensor, sides: Tensor, attended: Tensor | None, n_heads: int
) -> None:
    """``convolution.mixed_taps``: (T, N·K) and (T, A) into the right half of (T, 2A), ``attended`` into the left."""
    n_tokens, width = values.shape[0], values.shape[1] // n_heads
    n_taps = logits.shape[1] // n_heads
    rows, n_warps = _MIX_TILE
    _mix[(triton.cdiv(n_tokens, rows), n_heads)](
        context,
        logits,
        values,
        sides,
        values if attended is None else attended,
        n_tokens,
        values.stride(0),
        HEADS=n_heads,
        WIDTH=width,
        TAPS=n_taps,
        COPIES=attended is not None,
        ROWS=rows,
        COLUMNS=triton.next_power_of_2(width),
        TAP_COLUMNS=triton.next_power_of_2(n_taps),
        num_warps=n_warps,
    )


@triton.jit(**_N_TOKENS)
def _mix(
    context,
    logits,
    values,
    sides,
    attended,
    n_tokens,
    values_stride,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    COPIES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAP_COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    columns, taps = tl.arange(0, COLUMNS), tl.arange(0, TAP_COLUMNS)
    is_row, is_column = rows < n_tokens, columns < WIDTH
    is_there = is_row[:, None] & is_column[None, :]
    own = logits + rows * (HEADS * TAPS) + head * TAPS
    is_tap = (taps < TAPS)[None, :]
    scores = tl.load(own[:, None] + taps[None, :], is_row[:, None] & is_tap, 0).to(tl.float32)
    scores = tl.where(is_tap, scores, float("-inf"))
    highest = tl.max(scores, 1)
    total = tl.sum(tl.exp(scores - highest[:, None]), 1)
    before, behind = tl.load(sides + 2 * rows, is_row, -1), tl.load(sides + 2 * rows + 1, is_row, -1)
    mixed = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in tl.static_range(TAPS):
        share = tl.exp(tl.load(own + tap, is_row, 0).to(tl.float32) - highest) / total
        is_own = (tap - TAPS // 2 >= -before) & (tap - TAPS // 2 <= behind)
        reached = (rows + (tap - TAPS // 2))[:, None] * values_stride + (head * WIDTH + columns)[None, :]
        mixed += share[:, None] * tl.load(values + reached, is_own[:, None] & is_column[None, :], 0).to(tl.float32)
    left = rows[:, None] * (2 * HEADS * WIDTH) + (head * WIDTH + columns)[None, :]
    tl.store(context + left + HEADS * WIDTH, mixed, is_there)
    if COPIES:
        copied = tl.load(attended + rows[:, None] * (HEADS * WIDTH) + (head * WIDTH + columns)[None, :], is_there, 0)
        tl.store(context + left, copied, is_there)

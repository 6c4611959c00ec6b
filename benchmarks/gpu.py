"""A GPU's own matrix peak in, the share of it that our engine reaches, and how many times as fast it is as Transformers
out. It needs torch, transformers and convbert, and neither Ray nor Arrow:

    python -m benchmarks.gpu

``--device cpu --size tiny`` only shows that it runs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from benchmarks.machine import describe, device_line
from benchmarks.rows import Row
from benchmarks.table import render
from benchmarks.timing import interleaved, ratio
from convbert import ConvBertForTokenClassification
from convbert.engine import EachToken, Engine, Packed

SHORTEST, MEDIAN, LONGEST = 20, 90, 512
SPREAD = 0.9  # of the logarithm of a length: a tenth of the records is above 285 tokens, and holds a third of all
N_PARITY = 16
N_LONE, N_LONE_ROUNDS = 32, 20  # tokens
GOAL_SHARE, GOAL_RATIO = 0.55, 4.0
TRANSFORMERS_BATCHES = (32, 128, 512)  # the fastest is judged


class Size(NamedTuple):
    """What is measured.

    Attributes:
        model: changes to Transformers' config.
        n_records: of mixed lengths.
        matrix: rows and columns of the product that the peak is measured with.
    """

    model: dict[str, Any]
    n_records: int
    matrix: int


_TINY = {"hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES = {
    "base": Size({}, n_records=8192, matrix=8192),
    "tiny": Size({**_TINY, "intermediate_size": 64, "vocab_size": 100}, n_records=16, matrix=128),
}


def measure(*, device: torch.device, size: Size, rounds: int) -> list[Row]:
    """A row for each goal, and for each precision's numbers."""
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.ConvBertConfig(pad_token_id=0, **size.model)
    theirs = transformers.ConvBertForTokenClassification(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model = ConvBertForTokenClassification.from_pretrained(folder)
    lengths = mixed_lengths(size.n_records)
    records = packed(lengths, config.vocab_size)
    parity = [parity_row(model, records, precision, device) for precision in ("fp32", "bf16", "fp16")]
    speed = speed_rows(model, theirs, records, device=device, size=size, rounds=rounds)
    return [*speed, lone_row(model, theirs, records, device), *parity]


def mixed_lengths(n_records: int) -> np.ndarray:
    """Tokens of each record: many short ones, few long ones, the same at every run."""
    drawn = np.random.default_rng(0).lognormal(np.log(MEDIAN), SPREAD, n_records)
    return drawn.round().astype(np.int64).clip(SHORTEST, LONGEST)


def packed(lengths: np.ndarray, vocab_size: int) -> Packed:
    """Records of random ids."""
    ids = np.random.default_rng(1).integers(5, vocab_size, lengths.sum())
    return Packed(ids, np.concatenate([[0], np.cumsum(lengths)]))


def flops_of(lengths: np.ndarray, config: Any) -> float:
    """Floating-point operations of an encoder's products and of its attention, two for each multiplication."""
    hidden, inner, n_heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    n_mixed = max(1, n_heads // config.head_ratio)
    width = hidden // n_mixed // 2 * n_mixed  # A
    weights = 4 * hidden * width  # query, key, value, conv_out
    weights += hidden * width + width * n_mixed * config.conv_kernel_size  # the kernels of the dynamic convolution
    weights += 2 * width * hidden + 2 * hidden * inner
    attention = 2 * width * np.square(lengths, dtype=np.float64).sum()  # q · kᵀ, and the shares of v
    return float(2 * config.num_hidden_layers * (weights * lengths.sum() + attention))


def speed_rows(
    model: ConvBertForTokenClassification,
    theirs: Any,
    records: Packed,
    *,
    device: torch.device,
    size: Size,
    rounds: int,
) -> list[Row]:
    """Against the device's peak, and against Transformers in bf16."""
    ours = engine_of(model, device, "bf16")
    peer = theirs.to(device, torch.bfloat16)
    batches = {n: padded(records, n) for n in TRANSFORMERS_BATCHES}
    contenders: dict[str, Callable[[], object]] = {"ours": lambda: ours(records)}
    contenders |= {f"batches of {n}": _run_all(peer, batches[n], device) for n in TRANSFORMERS_BATCHES}
    seconds = interleaved(contenders, rounds)
    best = min(list(contenders)[1:], key=lambda name: statistics.median(seconds[name]))
    peak = matrix_peak(device, size.matrix)
    flops, n_tokens = flops_of(records.lengths, theirs.config), len(records.input_ids)
    our_s, their_s = (statistics.median(seconds[name]) for name in ("ours", best))
    work = f"engine, {len(records.lengths)} records of {SHORTEST} to {LONGEST} tokens, bf16"
    return [
        Row(
            work,
            "the device's bf16 matrix peak",
            GOAL_SHARE,
            flops / our_s / peak,
            f"peak {peak / 1e12:.3g} TFLOP/s; {n_tokens / our_s:,.0f} tokens/s of {flops / n_tokens / 1e6:.3g} MFLOP; "
            f"{ours.max_batch_tokens:,} tokens a micro-batch",
        ),
        Row(
            work,
            f"Transformers bf16, sorted by length, {best}",
            GOAL_RATIO,
            ratio(seconds[best], seconds["ours"]),
            f"{n_tokens / our_s:,.0f} against {n_tokens / their_s:,.0f} tokens/s",
        ),
    ]


def lone_row(model: ConvBertForTokenClassification, theirs: Any, records: Packed, device: torch.device) -> Row:
    """One record, as a service that is asked seldom computes it: what starting the kernels takes."""
    one = records.take(np.array([np.abs(records.lengths - N_LONE).argmin()]))
    ours, peer = engine_of(model, device, "bf16"), theirs.to(device, torch.bfloat16)
    run = _run_all(peer, padded(one, 1), device)
    seconds = interleaved({"ours": lambda: ours(one), "theirs": run}, N_LONE_ROUNDS)
    our_ms, their_ms = (1e3 * statistics.median(seconds[name]) for name in ("ours", "theirs"))
    return Row(
        f"engine, one record of {one.lengths[0]} tokens, bf16",
        "Transformers bf16",
        None,
        ratio(seconds["theirs"], seconds["ours"]),
        f"{our_ms:.1f} against {their_ms:.1f} ms",
    )


def engine_of(model: ConvBertForTokenClassification, device: torch.device, precision: str) -> Engine:
    """The encoder with a classifier on each token, which nothing of the encoder can be left out for."""
    return Engine(model.base_model, {"labels": EachToken(model.classifier)}, device=device, precision=precision)


def padded(records: Packed, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Ids and mask of batches of neighbours in length, the longest first, each padded to its longest."""
    rows = [torch.from_numpy(ids) for ids in np.split(records.input_ids, records.offsets[1:-1])]
    rows.sort(key=len, reverse=True)
    batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    return [(_stacked(batch), _stacked([torch.ones_like(ids) for ids in batch])) for batch in batches]


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _run_all(peer: Any, batches: list[tuple[Tensor, Tensor]], device: torch.device) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> list[Tensor]:
        logits = [peer(ids.to(device), attention_mask=mask.to(device)).logits.float() for ids, mask in batches]
        return [found.cpu() for found in logits]

    return run


def matrix_peak(device: torch.device, n: int, *, repeats: int = 20, rounds: int = 5) -> float:
    """FLOP/s of the product of two square bf16 matrices, the best of several rounds."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))

    def seconds() -> float:
        _wait_for(device)
        started = time.perf_counter()
        for _ in range(repeats):
            a @ b
        _wait_for(device)
        return time.perf_counter() - started

    seconds()
    return 2 * n**3 * repeats / min(seconds() for _ in range(rounds))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parity_row(model: ConvBertForTokenClassification, records: Packed, precision: str, device: torch.device) -> Row:
    """How far logits on the device are from those of float32 on the processor."""
    few = records.take(np.arange(min(N_PARITY, len(records.lengths))))
    exact = engine_of(model, torch.device("cpu"), "fp32")(few)["labels"].values
    found = engine_of(model, device, precision)(few)["labels"].values
    return Row(
        f"numbers on the device, {precision}",
        "our fp32 on the processor",
        None,
        float(np.abs(found - exact).max()),
        f"largest difference of a logit; the logits' deviation is {exact.std():.3g}",
    )


def main() -> None:
    """Print goals and measured values side by side."""
    parser = argparse.ArgumentParser(description="The engine on one GPU, against its peak and Transformers.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", default="base", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=5, help="times that each runs (default: 5)")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here: --device cpu --size tiny shows that the benchmark runs")
    rows = measure(device=device, size=SIZES[options.size], rounds=options.rounds)
    note = "" if device.type == "cuda" else "\non a CPU this only shows that the benchmark runs: the goals are a GPU's"
    print(f"{describe()}{device_line(options.device)}{note}\n\n{render(rows)}")


if __name__ == "__main__":
    main()

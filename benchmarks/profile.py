"""Where the engine's time goes: each operator's share, and the rate of the matrix products alone on this machine."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.engine import LENGTH, N_RECORDS, make_engine
from benchmarks.inputs import SIZES
from benchmarks.machine import describe
from benchmarks.peers import N_THREADS
from convbert import ConvBertConfig, ConvBertForSequenceClassification
from convbert.engine import FirstToken, Packed
from convbert.engine.budget import CPU_BATCH_TOKENS
from convbert.engine.int8 import Int8Linear, quantise
from convbert.engine.linear import Linear

PRECISIONS = ("fp32", "bf16", "int8")
SHOWN = 12


def main() -> None:
    """Print the profile of one precision and the rates of products of a block's shapes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: fp32")
    precision = parser.parse_args().precision
    torch.set_num_threads(N_THREADS)
    torch.manual_seed(0)
    print(f"{describe()}\n")
    model = ConvBertForSequenceClassification(ConvBertConfig(embedding_size=SIZES["base"]["hidden_size"]))
    engine = make_engine(model, FirstToken(model.classifier), precision)
    ids = torch.randint(5, model.config.vocab_size, (N_RECORDS * LENGTH,)).numpy()
    records = Packed(ids, np.arange(0, len(ids) + 1, LENGTH))
    engine(records)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        engine(records)
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"{N_RECORDS} × {LENGTH} tokens, base size, {precision}: {total / 1e6:.3f} s under the profiler")
    for event in events[:SHOWN]:
        print(f"{event.self_cpu_time_total / total:7.1%}  {event.key[:60]}")
    print(f"\nproducts of {CPU_BATCH_TOKENS} rows alone, 1e9 operations a second:")
    for width, out_width in ((768, 1536), (768, 768), (768, 3072), (3072, 768)):
        rate = 2 * CPU_BATCH_TOKENS * width * out_width / _seconds(product(precision, width, out_width)) / 1e9
        print(f"{width:6} -> {out_width:<6}{rate:7.0f}")


def product(precision: str, width: int, out_width: int) -> Callable[[], object]:
    """A product as the engine computes it, on a micro-batch of random rows."""
    weight, bias, x = torch.randn(out_width, width), torch.zeros(out_width), torch.randn(CPU_BATCH_TOKENS, width)
    if precision == "int8":
        integers, rows = Int8Linear(weight, bias), quantise(x)
        return lambda: integers.product(rows)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    floats, rows_there = Linear(weight.to(dtype), bias.to(dtype)), x.to(dtype)
    return lambda: floats(rows_there)


def _seconds(run: Callable[[], object], n: int = 10) -> float:
    run()
    seconds = []
    for _ in range(n):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    main()

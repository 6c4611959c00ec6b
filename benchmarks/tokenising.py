"""How many cores must tokenise to feed an encoder.

Measured on real texts: tokens a second of the job's encode stage on one core, and of the engine in fp32, base size,
on all cores of this machine. An encoder of 16 cores is taken to be as many times as fast as it has more cores, which
favours it. The rate of a GPU is what benchmarks/gpu.py measured on another machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core

import pyarrow as pa
import torch

from benchmarks.inputs import CHECKPOINT, texts
from benchmarks.machine import describe
from benchmarks.rows import Row
from convbert import ConvBertConfig, ConvBertForSequenceClassification
from convbert.engine import Engine, FirstToken, Packed
from pipelines.encode import Encoding, encode
from pipelines.models import plan_passes
from pipelines.read import text_name
from pipelines.sequences import sequences_of
from pipelines.spec import JobSpec

ENCODER_CORES = 16
H200_TOKENS_PER_S = 2_568_721  # base size, bf16: benchmarks/results/2026-11-27-gpu-graphs.md


class Rates(NamedTuple):
    """What was measured.

    Attributes:
        tokeniser: tokens a second of one core that tokenises.
        texts: texts a second of the same.
        encoder: tokens a second of one core's share of the encoder.
    """

    tokeniser: float
    texts: float
    encoder: float


def main() -> None:
    """Print the rates, and how many cores tokenise for an encoder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=1200, help="real texts to tokenise (default: 1200)")
    parser.add_argument("--encoded", type=int, default=32, help="of which so many are run (default: 32)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; the median counts (default: 3)")
    options = parser.parse_args()
    rates = measure_rates(options.texts, options.encoded, options.runs)
    cores = ENCODER_CORES * rates.encoder
    print(f"# benchmarks/tokenising.py, {describe()}")
    print(f"tokenising, one core: {rates.tokeniser:,.0f} tokens/s, {rates.texts:,.0f} texts/s")
    print(f"encoder, base, fp32: {rates.encoder:,.0f} tokens/s a core, {cores:,.0f} on {ENCODER_CORES} cores if linear")
    print(f"cores that tokenise for it: {cores / rates.tokeniser:.3f}")
    print(f"encoder, base, bf16, one H200, measured there: {H200_TOKENS_PER_S:,} tokens/s")
    print(f"cores that tokenise for it: {H200_TOKENS_PER_S / rates.tokeniser:.1f}")
    for row in rows_of(rates):
        print(row)


def measure() -> list[Row]:
    """Lines for the table of all benchmarks."""
    return rows_of(measure_rates(n_texts=1200, n_encoded=32, n_runs=3))


def rows_of(rates: Rates) -> list[Row]:
    """How many times 16 cores could tokenise what an encoder takes."""
    cores = ENCODER_CORES * rates.encoder
    each = f"one core tokenises {rates.tokeniser:,.0f} tokens/s"
    gpu = f"the GPU, of {H200_TOKENS_PER_S:,} tokens/s, takes {H200_TOKENS_PER_S / rates.tokeniser:.1f} cores"
    return [
        Row("tokenising, 1 core", f"encoder on {ENCODER_CORES} CPU cores, fp32", 1.0, rates.tokeniser / cores, each),
        Row(
            f"tokenising, {ENCODER_CORES} cores",
            f"encoder on {ENCODER_CORES} CPU cores + one H200",
            1.0,
            ENCODER_CORES * rates.tokeniser / (cores + H200_TOKENS_PER_S),
            gpu,
        ),
    ]


def measure_rates(n_texts: int, n_encoded: int, n_runs: int) -> Rates:
    """Tokenise, and run the first of what came out."""
    spec = JobSpec.of({"input": ["-"], "output": "-", "model": str(CHECKPOINT)})
    (encoding,) = [encoder_pass.encoding for encoder_pass in plan_passes(spec)]
    values = texts(n_texts)
    block = pa.table({text_name("text"): values, "error": pa.nulls(len(values), pa.string())})
    packed = _packed(encode(block, [encoding]), encoding, len(values))
    some = packed.take(torch.arange(min(n_encoded, len(values))).numpy())
    engine = _base_engine()
    engine(some)  # warm up
    seconds = _median_s(lambda: encode(block, [encoding]), n_runs)
    n_tokens = len(packed.input_ids)
    encoder = len(some.input_ids) / _median_s(lambda: engine(some), n_runs) / (os.cpu_count() or 1)
    return Rates(n_tokens / seconds, len(values) / seconds, encoder)


def _packed(block: pa.Table, encoding: Encoding, n_rows: int) -> Packed:
    return sequences_of(block, encoding.name, pa.array(range(n_rows))).packed


def _base_engine() -> Engine:
    """Random weights: they cost what others do."""
    torch.manual_seed(0)
    model = ConvBertForSequenceClassification(ConvBertConfig(pad_token_id=0))
    return Engine(model.base_model, {"label": FirstToken(model.classifier)})


def _median_s(work: Callable[[], object], n_runs: int) -> float:
    def timed() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return statistics.median(timed() for _ in range(n_runs))


if __name__ == "__main__":
    main()

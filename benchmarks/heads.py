"""Three heads on one encoder against one head, on the same texts and the same model, interleaved.

Timed are the stages of the job in one process, without Ray: tokenising, the model, and making columns of what it
gave. The three heads are two classifiers and a tagger that share a byte-identical encoder.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import torch
import transformers

from benchmarks.inputs import SIZES, make_model, save, texts
from pipelines.decode import decode
from pipelines.encode import encode
from pipelines.models import plan_passes
from pipelines.predict import Predictor
from pipelines.read import text_name
from pipelines.spec import JobSpec

HEADS = {
    "sentiment": ("ConvBertForSequenceClassification", {"num_labels": 2}),
    "topic": ("ConvBertForSequenceClassification", {"num_labels": 20}),
    "entities": ("ConvBertForTokenClassification", {"num_labels": 9}),
}
STAGES = ("encode", "predict", "decode")


class Job:
    """The stages of a job with some of the heads, its models loaded."""

    def __init__(self, checkpoints: dict[str, Path]) -> None:
        heads = {name: str(folder) for name, folder in checkpoints.items()}
        self.passes = plan_passes(JobSpec.of({"input": ["-"], "output": "-", "head": heads}))
        assert len(self.passes) == 1, "the heads must share an encoder"
        self.predictor = Predictor(self.passes)

    def __call__(self, block: pa.Table) -> dict[str, float]:
        """Seconds of each stage."""
        times = [time.perf_counter()]
        block = encode(block, [encoder_pass.encoding for encoder_pass in self.passes])
        times.append(time.perf_counter())
        block = self.predictor(block)
        times.append(time.perf_counter())
        decode(block, self.passes)
        times.append(time.perf_counter())
        return {name: stop - start for name, start, stop in zip(STAGES, times, times[1:], strict=False)}


def main() -> None:
    """Print the seconds of each stage and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=48, help="how many texts of the spam corpus (default: 48)")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs (default: 5)")
    parser.add_argument("--size", choices=SIZES, default="base", help="model size, random weights (default: base)")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = make_checkpoints(Path(scratch), options.size)
        jobs = {n_heads: Job(dict(list(checkpoints.items())[:n_heads])) for n_heads in (1, 3)}
        block = pa.table({text_name("text"): texts(options.texts), "error": pa.nulls(options.texts, pa.string())})
        for job in jobs.values():
            job(block.slice(0, 4))  # warm up
        runs = [{n_heads: job(block) for n_heads, job in jobs.items()} for _ in range(options.runs)]
    print(f"{options.texts} e-mails, {options.size} model, fp32, {os.cpu_count()} CPU cores, {options.runs} pairs")
    print(f"torch {torch.__version__}")
    for n_heads in jobs:
        stages = {name: statistics.median(run[n_heads][name] for run in runs) for name in STAGES}
        print(f"{n_heads} head{'s' if n_heads > 1 else ''}: " + ", ".join(f"{k} {v:.3f} s" for k, v in stages.items()))
    ratios = [sum(run[3].values()) / sum(run[1].values()) for run in runs]
    print(f"three heads cost {statistics.median(ratios):.3f} x one (from {min(ratios):.3f} to {max(ratios):.3f})")


def make_checkpoints(folder: Path, size: str) -> dict[str, Path]:
    """A checkpoint for each head, all with the same encoder."""
    models = {name: make_model(architecture, size, **labels) for name, (architecture, labels) in HEADS.items()}
    encoder = models["sentiment"].convbert
    for model in models.values():
        model.convbert = encoder
    return {name: save(model, folder / name) for name, model in models.items()}


if __name__ == "__main__":
    main()

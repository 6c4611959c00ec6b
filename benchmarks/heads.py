"""Three heads on one encoder against one head, on the same texts and the same model, interleaved.

Timed are the stages of the job in one process, without Ray: tokenising, the model, and making columns of what it
gave. The three heads are two classifiers and a tagger that share a byte-identical encoder.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import transformers

from benchmarks.inputs import SIZES, make_model, save, texts
from benchmarks.rows import Row
from benchmarks.timing import ratio
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


def measure(rounds: int = 5, n_texts: int = 48, size: str = "base") -> list[Row]:
    """One row: what three heads cost, in times of what one costs."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = make_checkpoints(Path(scratch), size)
        jobs = {n_heads: Job(dict(list(checkpoints.items())[:n_heads])) for n_heads in (1, 3)}
        block = pa.table({text_name("text"): texts(n_texts), "error": pa.nulls(n_texts, pa.string())})
        for job in jobs.values():
            job(block.slice(0, 4))  # warm up
        runs = [{n_heads: job(block) for n_heads, job in jobs.items()} for _ in range(rounds)]
    seconds = {n_heads: [sum(run[n_heads].values()) for run in runs] for n_heads in jobs}
    stages = {name: statistics.median(run[3][name] for run in runs) for name in STAGES}
    note = f"{n_texts} e-mails; of three: " + ", ".join(f"{name} {value:.3f} s" for name, value in stages.items())
    return [
        Row(
            f"three heads on one encoder, {size} size, fp32: cost",
            "one head",
            None,
            ratio(seconds[3], seconds[1]),
            note,
        )
    ]


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=48, help="how many texts of the spam corpus (default: 48)")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs (default: 5)")
    parser.add_argument("--size", choices=SIZES, default="base", help="model size, random weights (default: base)")
    options = parser.parse_args()
    for row in measure(options.runs, options.texts, options.size):
        print(f"{row.work} | {row.against} | {row.measured:.3f} | {row.note}")


def make_checkpoints(folder: Path, size: str) -> dict[str, Path]:
    """A checkpoint for each head, all with the same encoder."""
    models = {name: make_model(architecture, size, **labels) for name, (architecture, labels) in HEADS.items()}
    encoder = models["sentiment"].convbert
    for model in models.values():
        model.convbert = encoder
    return {name: save(model, folder / name) for name, model in models.items()}


if __name__ == "__main__":
    main()

"""Our job against the recipe of Ray's documentation, on the same texts and the same model, interleaved.

The recipe is what most people write: read, map_batches with batches of 32 in their natural order, and in
the actor Transformers' tokenizer with padding to the batch's longest, and Transformers' ConvBERT. Timed is
what each side spends between its first batch and its last, so that neither pays for starting Ray or
loading the model. Rates are rows and real tokens (no padding) a second.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import transformers
from ray.data import ActorPoolStrategy, DataContext
from ray.data.context import DEFAULT_TARGET_MAX_BLOCK_SIZE

from benchmarks.inputs import SIZES, make_model, save, texts
from pipelines.plan import make_plan
from pipelines.predict import Predictor
from pipelines.resources import share_out
from pipelines.run import parts_from, pipeline
from pipelines.spec import JobSpec
from pipelines.survive import open_ledger


class Recipe:
    """The documentation's actor: tokenise, pad to the batch's longest, run, take the best label."""

    def __init__(self, checkpoint: str, n_threads: int, log: str) -> None:
        torch.set_num_threads(n_threads)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self._model = transformers.ConvBertForSequenceClassification.from_pretrained(checkpoint).eval()
        self._log = log

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        started = time.time()
        inputs = self._tokenizer(
            list(batch["text"]), padding=True, truncation=True, max_length=512, return_tensors="pt"
        )
        with torch.inference_mode():
            scores = self._model(**inputs).logits.softmax(-1)
        batch["label"] = scores.argmax(-1).numpy()
        batch["real_tokens"] = inputs["attention_mask"].sum(1).numpy()
        batch["padded_tokens"] = torch.full((len(scores),), inputs["input_ids"].shape[1]).numpy()
        _note(self._log, started)
        return batch


def main() -> None:
    """Print the rates of both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=96, help="how many texts of the spam corpus (default: 96)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--size", choices=SIZES, default="base", help="model size, random weights (default: base)")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    ray.init("local", include_dashboard=False, logging_level=logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus, checkpoint = make_corpus(folder, options.texts), folder / "model"
        save(make_model("ConvBertForSequenceClassification", options.size), checkpoint)
        ours, theirs, ratios = [], [], []
        for number in range(options.runs):
            ours.append(run_ours(corpus, checkpoint, folder / f"out{number}", folder))
            theirs.append(run_recipe(corpus, checkpoint, folder))
            ratios.append(theirs[-1]["seconds"] / ours[-1]["seconds"])
    report(options, ours, theirs, ratios)


def make_corpus(folder: Path, n_texts: int) -> Path:
    """Texts of the spam corpus in one Parquet file."""
    (folder / "corpus").mkdir()
    pq.write_table(pa.table({"text": texts(n_texts)}), folder / "corpus/texts.parquet", row_group_size=32)
    return folder / "corpus"


def run_ours(corpus: Path, checkpoint: Path, output: Path, scratch: Path) -> dict[str, float]:
    """The job's own pipeline, with an actor that writes down when it works."""
    log = tempfile.mkstemp(dir=scratch)[1]
    spec = JobSpec.of({"input": [str(corpus)], "output": str(output), "model": str(checkpoint)})
    plan = make_plan(spec)
    hardware = share_out(spec, "cpu", n_units=plan.n_units)
    dataset = pipeline(plan, hardware, open_ledger(), predictor=_timed(log))
    parts = [
        part for rows in dataset.iter_batches(batch_size=None, batch_format="pyarrow") for part in parts_from(rows)
    ]
    return {"rows": sum(p.rows for p in parts), "tokens": sum(p.tokens for p in parts), "seconds": _window(log)}


def _timed(log: str) -> type[Predictor]:
    """Our actor, writing down when it works."""

    class Timed(Predictor):
        def __call__(self, block: pa.Table) -> pa.Table:
            started = time.time()
            result = super().__call__(block)
            _note(log, started)
            return result

    return Timed


def run_recipe(corpus: Path, checkpoint: Path, scratch: Path) -> dict[str, float]:
    """Ray's documented way to run a model over a corpus."""
    log = tempfile.mkstemp(dir=scratch)[1]
    DataContext.get_current().target_max_block_size = DEFAULT_TARGET_MAX_BLOCK_SIZE  # our pipeline has set its own
    cores = int(ray.cluster_resources()["CPU"])
    dataset = ray.data.read_parquet(str(corpus)).map_batches(
        Recipe,
        fn_constructor_args=[str(checkpoint), cores, log],
        batch_size=32,
        compute=ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    totals = {"rows": 0.0, "tokens": 0.0, "padded": 0.0}
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        totals["rows"] += len(batch["label"])
        totals["tokens"] += float(batch["real_tokens"].sum())
        totals["padded"] += float(batch["padded_tokens"].sum())
    return {**totals, "seconds": _window(log)}


def _note(log: str, started: float) -> None:
    with Path(log).open("a") as file:
        file.write(f"{started} {time.time()}\n")


def _window(log: str) -> float:
    times = [tuple(map(float, line.split())) for line in Path(log).read_text().splitlines()]
    return max(end for _, end in times) - min(start for start, _ in times)


def report(
    options: argparse.Namespace,
    ours: list[dict[str, float]],
    theirs: list[dict[str, float]],
    ratios: list[float],
) -> None:
    """A table of medians, and what a reader must know to repeat it."""
    print(f"{options.texts} e-mails, {options.size} model, fp32, {os.cpu_count()} CPU cores, {options.runs} runs each")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, ray {ray.__version__}")
    print(f"padded tokens for each real one in the recipe: {theirs[0]['padded'] / theirs[0]['tokens']:.2f}")
    for name, runs in (("this job", ours), ("recipe", theirs)):
        seconds = statistics.median(run["seconds"] for run in runs)
        print(f"{name:10} {runs[0]['rows'] / seconds:8.2f} rows/s {runs[0]['tokens'] / seconds:10.0f} tokens/s")
    print(f"ratio      {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()

"""The whole job against the recipe of Ray's documentation, and against the bare engine, on the same texts, interleaved.

The recipe is what most people write: read, map_batches with batches of 32 in their natural order, and in
the actor Transformers' tokenizer with padding to the batch's longest, and Transformers' ConvBERT in fp32. The bare
engine computes the job's own token ids in this process, unit by unit, and nothing else.

On a GPU (``--device cuda --precision bf16 --texts 10000 --unit-rows 8192 --copies 30``) there is no recipe, which would
take hours.

The first units or batches are not counted: meanwhile processes start and import, and weights are packed. Timed is
from the end of the last of them in the model's actor until it ends the last of all.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch
import transformers
from ray.data import ActorPoolStrategy, DataContext
from ray.data.context import DEFAULT_TARGET_MAX_BLOCK_SIZE

from benchmarks.inputs import SIZES, docstrings, make_model, save
from benchmarks.machine import describe, device_line
from benchmarks.rows import Row
from pipelines.duplicates import distinct
from pipelines.encode import encode
from pipelines.plan import JobPlan, make_plan
from pipelines.predict import Predictor, load_engine
from pipelines.read import text_name
from pipelines.resources import share_out
from pipelines.results import N_COPIED, N_TOKENS
from pipelines.run import pipeline
from pipelines.sequences import Sequences, sequences_of
from pipelines.spec import JobSpec
from pipelines.survive import open_ledger

BATCH_ROWS = 32  # of the recipe's batches, and of the job's units where nothing else is said, so that there are several
WARM_UNITS = 3
ENGINE_UNITS = 24  # of them are enough for a rate
GOALS_BY_R = {"fp32": 1.35, "int8": 4.0}  # speed over the recipe's, for each of its padded tokens a real one
GOAL_OF_ENGINE = 0.92


class Rate(NamedTuple):
    """What one side did after it was warm.

    Attributes:
        seconds: that it took.
        tokens: of the texts.
        computed: tokens that the encoder computed: more with padding, fewer where duplicates are computed once.
    """

    seconds: float
    tokens: float
    computed: float

    @property
    def speed(self) -> float:
        """Tokens of the texts a second."""
        return self.tokens / self.seconds

    @property
    def computed_speed(self) -> float:
        """Computed tokens a second."""
        return self.computed / self.seconds


class Recipe:
    """The documentation's actor: tokenise, pad to the batch's longest, run, take the best label."""

    def __init__(self, checkpoint: str, n_threads: int, log: str) -> None:
        torch.set_num_threads(n_threads)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self._model = transformers.ConvBertForSequenceClassification.from_pretrained(checkpoint).eval()
        self._log = log

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        inputs = self._tokenizer(
            list(batch["text"]), padding=True, truncation=True, max_length=512, return_tensors="pt"
        )
        with torch.inference_mode():
            scores = self._model(**inputs).logits.softmax(-1)
        batch["label"] = scores.argmax(-1).numpy()
        _note(self._log, tokens=int(inputs["attention_mask"].sum()), computed=inputs["input_ids"].numel())
        return batch


def measure(
    precisions: Sequence[str] = ("fp32", "int8"),
    n_texts: int = 352,
    runs: int = 1,
    *,
    size: str = "base",
    device: str = "cpu",
    unit_rows: int = BATCH_ROWS,
    copies: int = 1,
) -> list[Row]:
    """The job at each precision against the recipe and against the bare engine: medians over interleaved runs.

    Args:
        precisions: of the job and the engine.
        n_texts: docstrings, in units of ``unit_rows``, of which the first WARM_UNITS are not counted.
        runs: of everything.
        size: of the model, a key of SIZES.
        device: ``cpu``, or ``cuda``, where there is no recipe.
        unit_rows: of the job's units.
        copies: of every docstring, each with its number before it, so that no two are equal.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init("local", include_dashboard=False, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            texts = docstrings(n_texts)
            if copies > 1:
                texts = [f"{number}: {text}" for number in range(copies) for text in texts]
            return _measure(precisions, texts, runs, size, Path(scratch), device=device, unit_rows=unit_rows)
    finally:
        ray.shutdown()


def _measure(
    precisions: Sequence[str],
    texts: list[str],
    runs: int,
    size: str,
    folder: Path,
    *,
    device: str,
    unit_rows: int,
) -> list[Row]:
    corpus = folder / "corpus.parquet"
    pq.write_table(pa.table({"text": texts}), corpus, row_group_size=unit_rows)
    checkpoint = save(make_model("ConvBertForSequenceClassification", size), folder / "model")
    rates: dict[str, list[Rate]] = {}
    for number in range(runs):
        for precision in precisions:
            spec = {"input": [str(corpus)], "output": str(folder / f"{precision}{number}"), "model": str(checkpoint)}
            plan = make_plan(JobSpec.of({**spec, "precision": precision, "unit_rows": unit_rows, "device": device}))
            rates.setdefault(f"job {precision}", []).append(run_job(plan, folder))
            rates.setdefault(f"engine {precision}", []).append(run_engine(plan, texts, folder, unit_rows))
        if device == "cpu":
            rates.setdefault("recipe", []).append(run_recipe(corpus, checkpoint, folder))
    return [row for precision in precisions for row in _rows(precision, rates)]


def run_job(plan: JobPlan, scratch: Path) -> Rate:
    """The job's own pipeline, with an actor that writes down what it does."""
    log = tempfile.mkstemp(dir=scratch)[1]
    hardware = share_out(plan.spec, plan.device, n_units=plan.n_units)
    dataset = pipeline(plan, hardware, open_ledger(), predictor=_noting(log))
    return _exhaust(dataset, log)


def _noting(log: str) -> type[Predictor]:
    """Our actor, writing down what it does."""

    class Noting(Predictor):
        def __call__(self, block: pa.Table) -> pa.Table:
            result = super().__call__(block)
            tokens, copied = (pc.sum(result[name]).as_py() for name in (N_TOKENS, N_COPIED))
            _note(log, tokens=tokens, computed=tokens - copied)
            return result

    return Noting


def run_engine(plan: JobPlan, texts: list[str], scratch: Path, unit_rows: int = BATCH_ROWS) -> Rate:
    """The engine alone, on the ids that the job's actors give it."""
    torch.set_num_threads(share_out(plan.spec, plan.device, n_units=plan.n_units).n_threads or 1)
    (encoder_pass,) = plan.passes
    engine = load_engine(encoder_pass, device=plan.device, precision=plan.precision)

    def encoded(first: int) -> Sequences:
        own = texts[first : first + unit_rows]
        block = pa.table({text_name("text"): own, "error": pa.nulls(len(own), pa.string())})
        return sequences_of(
            encode(block, [encoder_pass.encoding]), encoder_pass.encoding.name, pa.array(range(len(own)))
        )

    with ThreadPoolExecutor() as threads:
        units = list(threads.map(encoded, range(0, len(texts), unit_rows)))[:ENGINE_UNITS]
    ids = [unit.take(distinct(unit).firsts).packed for unit in units]
    log = tempfile.mkstemp(dir=scratch)[1]
    for unit, packed in zip(units, ids, strict=True):
        engine(packed)
        _note(log, tokens=int(unit.packed.lengths.sum()), computed=int(packed.lengths.sum()))
    return _rate(log)


def run_recipe(corpus: Path, checkpoint: Path, scratch: Path) -> Rate:
    """Ray's documented way to run a model over a corpus."""
    log = tempfile.mkstemp(dir=scratch)[1]
    DataContext.get_current().target_max_block_size = DEFAULT_TARGET_MAX_BLOCK_SIZE  # our pipeline has set its own
    dataset = ray.data.read_parquet(str(corpus)).map_batches(
        Recipe,
        fn_constructor_args=[str(checkpoint), int(ray.cluster_resources()["CPU"]), log],
        batch_size=BATCH_ROWS,
        compute=ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    return _exhaust(dataset, log)


def _exhaust(dataset: ray.data.Dataset, log: str) -> Rate:
    for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass
    return _rate(log)


def _note(log: str, *, tokens: int, computed: int) -> None:
    with Path(log).open("a") as file:
        file.write(f"{time.time()} {tokens} {computed}\n")


def _rate(log: str) -> Rate:
    units = sorted(tuple(map(float, line.split())) for line in Path(log).read_text().splitlines())
    counted = units[WARM_UNITS:]
    seconds = counted[-1][0] - units[WARM_UNITS - 1][0]
    return Rate(seconds, sum(unit[1] for unit in counted), sum(unit[2] for unit in counted))


def _rows(precision: str, rates: dict[str, list[Rate]]) -> Iterable[Row]:
    jobs, engines, recipes = rates[f"job {precision}"], rates[f"engine {precision}"], rates.get("recipe")
    work = f"whole job, docstrings, {precision}"
    job = _medians(jobs)
    if recipes:
        recipe = _medians(recipes)
        r = recipes[0].computed / recipes[0].tokens
        ratio = statistics.median(one.speed / other.speed for one, other in zip(jobs, recipes, strict=True))
        yield Row(
            work,
            "the documented recipe, fp32: ratio / r",
            GOALS_BY_R.get(precision),
            ratio / r,
            f"ratio {ratio:.2f} ({job[0]:,.0f} to {recipe[0]:,.0f} tokens/s), r = {r:.2f}",
        )
    yield Row(
        work,
        "the bare engine on the same ids",
        GOAL_OF_ENGINE,
        statistics.median(one.computed_speed / other.computed_speed for one, other in zip(jobs, engines, strict=True)),
        f"{job[1]:,.0f} to {_medians(engines)[1]:,.0f} tokens/s, "
        f"without the {1 - jobs[0].computed / jobs[0].tokens:.1%} in duplicates",
    )


def _medians(rates: Sequence[Rate]) -> tuple[float, float]:
    return statistics.median(rate.speed for rate in rates), statistics.median(rate.computed_speed for rate in rates)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--precision", nargs="+", default=["fp32"], help="of the job and the engine (default: fp32)")
    parser.add_argument("--texts", type=int, default=352, help="how many docstrings (default: 352)")
    parser.add_argument("--runs", type=int, default=1, help="runs of everything (default: 1)")
    parser.add_argument("--size", choices=SIZES, default="base", help="model size, random weights (default: base)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--unit-rows", type=int, default=BATCH_ROWS, help=f"rows of a unit (default: {BATCH_ROWS})")
    parser.add_argument("--copies", type=int, default=1, help="of every docstring, made different (default: 1)")
    options = parser.parse_args()
    rows = measure(
        options.precision,
        options.texts,
        options.runs,
        size=options.size,
        device=options.device,
        unit_rows=options.unit_rows,
        copies=options.copies,
    )
    print(f"{options.texts} docstrings × {options.copies}, units of {options.unit_rows}, {options.size} model")
    print(f"{describe()}{device_line(options.device)}; {options.runs} runs")
    for row in rows:
        goal = "no goal" if row.goal is None else f"goal {row.goal}"
        print(f"{row.work} / {row.against}: {row.measured:.3f} ({goal}); {row.note}")


if __name__ == "__main__":
    main()

"""Each model's logits in fp32 and in faster precisions in, how often the label stays and how far scores move out.

Measured on the shipped checkpoints with their own corpora, and on models of base size with random weights, whose
margins between labels are arbitrary: training makes them wider.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import torch
import transformers
from numpy.typing import NDArray

from benchmarks.engine import NOT_MEASURED, make_engine
from benchmarks.inputs import CHECKPOINT, ROOT, make_model, save, texts
from benchmarks.machine import describe, has_bf16
from benchmarks.peers import N_THREADS
from benchmarks.rows import Row
from convbert import ConvBertForSequenceClassification, ConvBertForTokenClassification, ConvBertTokenizer
from convbert.engine import EachToken, FirstToken, Head, Packed
from convbert.engine.packing import gather

GOALS = {"bf16": 0.999, "int8": 0.995}
N_RANDOM_TEXTS, RANDOM_LENGTH, N_RANDOM_LABELS = 256, 32, 5
BROWN = ROOT / "examples/brown"


class Subject(NamedTuple):
    """A model with its head, records for it, and which of its rows are labels."""

    name: str
    model: ConvBertForSequenceClassification | ConvBertForTokenClassification
    head: Head
    records: Packed
    labels: slice | NDArray[np.bool_] = slice(None)


class Difference(NamedTuple):
    """What a faster precision changes.

    Attributes:
        agreement: share of rows whose label stays.
        largest, mean: absolute difference of a label's probability.
    """

    agreement: float
    largest: float
    mean: float


def measure(precisions: Sequence[str] | None = None, *, max_tokens: int | None = None) -> list[Row]:
    """A row for each model and precision.

    Args:
        precisions: None for those that this processor has: one that it emulates gives the same labels, hours later.
        max_tokens: of each model's records, spread over all of them; None takes them all.
    """
    if precisions is None:
        precisions = [precision for precision in GOALS if precision != "bf16" or has_bf16()]
    torch.set_num_threads(N_THREADS)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = [row for subject in subjects() for row in _rows(sampled(subject, max_tokens), precisions)]
    absent = [precision for precision in GOALS if precision not in precisions]
    return rows + [Row(f"same label in {name}", "ours in fp32", GOALS[name], math.nan, NOT_MEASURED) for name in absent]


def _rows(subject: Subject, precisions: Sequence[str]) -> Iterator[Row]:
    reference = logits(subject, "fp32")
    for precision in precisions:
        found = difference(reference, logits(subject, precision))
        yield Row(
            f"same label in {precision}: {subject.name}",
            "ours in fp32",
            GOALS[precision],
            found.agreement,
            f"{len(reference):,} labels; probabilities differ by {found.mean:.1e} (mean), {found.largest:.1e} (most)",
        )


def sampled(subject: Subject, max_tokens: int | None) -> Subject:
    """The subject with every so manieth of its records."""
    n_tokens = len(subject.records.input_ids)
    step = -(-n_tokens // (max_tokens or n_tokens))
    if step == 1:
        return subject
    records = np.arange(0, len(subject.records.lengths), step)
    if isinstance(subject.labels, slice):  # a row for each record
        return subject._replace(records=subject.records.take(records))
    tokens, _ = gather(np.asarray(subject.records.offsets)[records], subject.records.lengths[records])
    return subject._replace(records=subject.records.take(records), labels=subject.labels[tokens])


def logits(subject: Subject, precision: str) -> NDArray[np.float32]:
    """(N, labels)."""
    return make_engine(subject.model, subject.head, precision)(subject.records)["head"].values[subject.labels]


def difference(reference: NDArray[np.float32], found: NDArray[np.float32]) -> Difference:
    """Compare logits (N, labels)."""
    moved = np.abs(_softmax(reference) - _softmax(found))
    agreement = np.mean(reference.argmax(-1) == found.argmax(-1))
    return Difference(float(agreement), float(moved.max()), float(moved.mean()))


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    exponentials = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def subjects() -> Iterator[Subject]:
    """Each in turn, so that one is in memory at a time."""
    yield _classifier("spam (trained)", CHECKPOINT, corpus(ROOT / "examples/spam/corpus"), max_length=512)
    sentences = corpus(BROWN / "corpus")
    yield _tagger("parts of speech (trained)", BROWN / "pos", sentences, max_length=256)
    yield _classifier("kind of prose (trained)", BROWN / "prose", sentences, max_length=256)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model("ConvBertForSequenceClassification", "base", num_labels=N_RANDOM_LABELS)
        random = save(model, Path(folder) / "model")
        yield _classifier("base size, random weights", random, texts(N_RANDOM_TEXTS), max_length=RANDOM_LENGTH)


def _classifier(name: str, checkpoint: Path, texts: Sequence[str], *, max_length: int) -> Subject:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    return Subject(name, model, FirstToken(model.classifier), packed(texts, checkpoint, max_length=max_length))


def _tagger(name: str, checkpoint: Path, texts: Sequence[str], *, max_length: int) -> Subject:
    model = ConvBertForTokenClassification.from_pretrained(checkpoint)
    records = packed(texts, checkpoint, max_length=max_length)
    is_word = np.ones(len(records.input_ids), np.bool_)
    is_word[records.offsets[:-1]] = is_word[records.offsets[1:] - 1] = False  # [CLS] and [SEP]
    return Subject(name, model, EachToken(model.classifier), records, is_word)


def corpus(folder: Path) -> list[str]:
    """The texts of all its shards."""
    return [text for path in sorted(folder.iterdir()) for text in _table(path)["text"].to_pylist()]


def _table(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    with pa.input_stream(str(path), compression="detect") as stream:
        return pa.json.read_json(stream)


def packed(texts: Sequence[str], tokenizer: Path, *, max_length: int) -> Packed:
    """Their ids, cut to a length."""
    ids = ConvBertTokenizer.from_pretrained(tokenizer).encode_batch(texts, max_length=max_length).input_ids
    return Packed(np.concatenate(ids), np.cumsum([0, *map(len, ids)]))


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--precisions", nargs="+", choices=GOALS, help="default: those that this processor has")
    parser.add_argument("--tokens", type=int, help="of each model's records (default: all)")
    options = parser.parse_args()
    print(f"# benchmarks/quality.py, {describe()}", flush=True)
    for row in measure(options.precisions, max_tokens=options.tokens):
        print(f"{row.work} | {row.measured:.5f} | {row.note}", flush=True)


if __name__ == "__main__":
    main()

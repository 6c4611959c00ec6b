"""The engine against its peers, on equal and on mixed lengths, interleaved, with a model of base size.

The peers' model is a classifier, so what is judged is our engine with a classifier on it; the notes say what it makes
with every token's hidden state. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from benchmarks.inputs import CHECKPOINT, make_model, texts
from benchmarks.machine import has_bf16
from benchmarks.peers import N_THREADS, Peer, Source, eager, make_peers
from benchmarks.rows import Row
from benchmarks.timing import interleaved, ratio
from convbert import ConvBertForSequenceClassification, ConvBertTokenizer
from convbert.engine import EachToken, Engine, FirstToken, Head, Packed
from convbert.models import PreTrainedModel

PRECISIONS = ("fp32", "bf16", "int8")
N_RECORDS, LENGTH = 16, 128
GOALS = [  # of equal lengths: our precision, a peer, how many times as fast
    ("fp32", "Transformers fp32", 1.5),
    ("bf16", "Transformers fp32", 3.0),
    ("int8", "Transformers fp32", 5.0),
    ("fp32", "torch.compile fp32", 1.0),
    ("fp32", "ONNX Runtime fp32", 1.0),
    ("fp32", "OpenVINO fp32", 1.0),
    ("bf16", "Transformers bf16", 1.0),
    ("bf16", "torch.compile bf16", 1.0),
    ("bf16", "OpenVINO bf16", 1.0),
    ("int8", "ONNX Runtime int8", 1.0),
]
N_TEXTS, SHORTEST, LONGEST = 64, 20, 512
BATCH_SIZES = (32, 16)  # of Transformers on mixed lengths; the first is judged
MIXED_GOALS = {"fp32": 1.6, "int8": 5.0}
MOST_MIXED_ROUNDS = 3  # each of minutes
NOT_MEASURED = "this processor would only emulate it: not measured"
PATIENCE_S = 15.0  # with one run on equal lengths


def measure(
    rounds: int = 5, precisions: Sequence[str] = PRECISIONS, lengths: Sequence[str] = ("equal", "mixed")
) -> list[Row]:
    """A row for each peer, and for mixed lengths."""
    torch.set_num_threads(N_THREADS)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        source = Source(make_model("ConvBertForSequenceClassification", "base"), Path(folder))
        model = ours(source.model, Path(folder) / "model")
        present = [precision for precision in precisions if precision != "bf16" or has_bf16()]
        classifiers = {precision: make_engine(model, FirstToken(model.classifier), precision) for precision in present}
        rows: list[Row] = []
        if "equal" in lengths:
            taggers = {precision: make_engine(model, EachToken(nn.Identity()), precision) for precision in present}
            rows += equal_lengths(source, classifiers, taggers, rounds)
            del taggers
            emulated = [goal for goal in GOALS if goal[0] in set(precisions) - set(present)]
            rows += [Row(_work(precision), name, goal, math.nan, NOT_MEASURED) for precision, name, goal in emulated]
        if "mixed" in lengths:
            rows += mixed_lengths(source, classifiers, min(rounds, MOST_MIXED_ROUNDS))
        return rows


def ours(model: transformers.PreTrainedModel, folder: Path) -> ConvBertForSequenceClassification:
    """Our model with the weights of Transformers' one."""
    model.save_pretrained(folder)
    return ConvBertForSequenceClassification.from_pretrained(folder)


def make_engine(model: PreTrainedModel, head: Head, precision: str) -> Engine:
    """The model's encoder with one head."""
    return Engine(model.base_model, {"head": head}, precision=precision)


def equal_lengths(source: Source, classifiers: dict[str, Engine], taggers: dict[str, Engine], rounds: int) -> list[Row]:
    """16 records of 128 tokens: every peer at its own precision, next to ours."""
    ids = torch.randint(5, source.model.config.vocab_size, (N_RECORDS, LENGTH))
    records = Packed(ids.flatten().numpy(), np.arange(0, ids.numel() + 1, LENGTH))
    goals = [goal for goal in GOALS if goal[0] in classifiers]
    peers, missing = make_peers(dict.fromkeys(name for _, name, _ in goals), source)
    contenders = {
        **{f"classifier {precision}": _call(engine, records) for precision, engine in classifiers.items()},
        **{f"every token {precision}": _call(engine, records) for precision, engine in taggers.items()},
        **{name: _call(peer.logits, ids, torch.ones_like(ids)) for name, peer in peers.items()},
    }
    by_precision = sorted(contenders.items(), key=lambda item: item[0].split()[-1])  # those compared run side by side
    seconds = interleaved(dict(by_precision), rounds, patience_s=PATIENCE_S)
    return [_equal_row(*goal, seconds, ids.numel(), peers, missing) for goal in goals]


def _equal_row(
    precision: str,
    name: str,
    goal: float,
    seconds: dict[str, list[float]],
    n_tokens: int,
    peers: dict[str, Peer],
    missing: dict[str, str],
) -> Row:
    if name in missing:
        return Row(_work(precision), name, goal, math.nan, missing[name])
    classifier, every_token = seconds[f"classifier {precision}"], seconds[f"every token {precision}"]
    rates = f"{_rate(n_tokens, classifier)} against {_rate(n_tokens, seconds[name])} tokens/s"
    notes = [
        rates,
        f"with every token's state {ratio(seconds[name], every_token):.2f} ×",
        peers[name].note,
    ]
    return Row(_work(precision), name, goal, ratio(seconds[name], classifier), "; ".join(filter(None, notes)))


def _work(precision: str) -> str:
    return f"engine, {N_RECORDS} × {LENGTH} tokens, {precision}"


def mixed_lengths(source: Source, classifiers: dict[str, Engine], rounds: int) -> list[Row]:
    """Real texts of 20 to 512 tokens, against Transformers in batches sorted by length."""
    ids = mixed_ids(N_TEXTS)
    records = Packed(np.concatenate(ids), np.cumsum([0, *map(len, ids)]))
    peer = eager(source, torch.float32)
    contenders = {
        precision: _call(classifiers[precision], records) for precision in MIXED_GOALS if precision in classifiers
    }
    batches = {size: list(padded(ids, size)) for size in BATCH_SIZES}
    theirs = {f"batches of {size}": _call(_all_of, peer, batches[size]) for size in BATCH_SIZES}
    seconds = interleaved({**contenders, **theirs}, rounds)
    judged, other = theirs
    n_tokens = len(records.input_ids)
    return [
        Row(
            f"engine, {len(ids)} texts of {SHORTEST} to {LONGEST} tokens, {precision}",
            f"Transformers fp32, sorted by length, {judged}",
            MIXED_GOALS[precision],
            ratio(seconds[judged], seconds[precision]),
            f"{_rate(n_tokens, seconds[precision])} against {_rate(n_tokens, seconds[judged])} tokens/s; "
            f"{other}: {ratio(seconds[other], seconds[precision]):.2f} ×",
        )
        for precision in contenders
    ]


def mixed_ids(n_texts: int) -> list[np.ndarray]:
    """Ids of real texts, each of 20 to 512 tokens."""
    tokenizer = ConvBertTokenizer.from_pretrained(CHECKPOINT)
    encoded = tokenizer.encode_batch(texts(2 * n_texts), max_length=LONGEST)
    return [np.array(ids) for ids in encoded.input_ids if len(ids) >= SHORTEST][:n_texts]


def padded(ids: Sequence[np.ndarray], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and mask of batches of neighbours in length, each padded to its longest."""
    ordered = sorted((torch.from_numpy(record) for record in ids), key=len)
    for first in range(0, len(ordered), batch_size):
        batch = ordered[first : first + batch_size]
        yield (
            nn.utils.rnn.pad_sequence(batch, batch_first=True),
            nn.utils.rnn.pad_sequence([torch.ones_like(record) for record in batch], batch_first=True),
        )


def _all_of(peer: Peer, batches: list[tuple[Tensor, Tensor]]) -> None:
    for batch in batches:
        peer.logits(*batch)


def _call(run: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: run(*arguments)


def _rate(n_tokens: int, seconds: list[float]) -> str:
    return f"{n_tokens / float(np.median(seconds)):,.0f}"


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="times that each runs (default: 5)")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="of ours")
    parser.add_argument("--lengths", nargs="+", choices=("equal", "mixed"), default=("equal", "mixed"))
    options = parser.parse_args()
    for row in measure(options.rounds, options.precisions, options.lengths):
        print(f"{row.work} | {row.against} | {row.measured:.2f} | {row.note}")


if __name__ == "__main__":
    main()

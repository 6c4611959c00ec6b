"""Token classification: each token's label in, entities with their characters in the text out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from convbert import ConvBertConfig, ConvBertTokenizer, engine
from convbert.engine.packing import offsets_of
from pipelines.columns import Column, Lists, Named, Names
from pipelines.encode import Inputs
from pipelines.figures import Histogram, shares
from pipelines.heads.base import Head, Results, count_values, labels_of
from pipelines.spec import JobSpec

if TYPE_CHECKING:
    from convbert import ConvBertForTokenClassification

ENTITY = pa.struct(
    [
        pa.field("label", pa.string()),  # without its B- or I- where tokens are grouped
        pa.field("score", pa.float32()),  # probability, the mean over what was grouped
        pa.field("start", pa.int32()),  # first character in the text
        pa.field("end", pa.int32()),  # last character + 1
        pa.field("text", pa.string()),  # these characters
    ]
)
_BEGINNING, _ENDING = frozenset("BSU"), frozenset("ESLU")  # first letters of BIO, BIOES and BILOU labels
_PREFIXES = tuple(f"{letter}-" for letter in "BIESLU")


class _Stretches(NamedTuple):
    """Tokens, words or entities: M stretches of text.

    Attributes:
        records, starts, ends, labels: (M,) number of the record, first and last + 1 character, class index.
        scores: (M,).
    """

    records: NDArray[np.int64]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]


class TokenClassification(Head):
    """Entities, or a label for each word or token.

    With ``--aggregation none`` each token is an entity; ``simple`` joins neighbours with one label; ``first``,
    ``average`` and ``max`` give each word one label before that. These are Transformers' strategies.
    ``words`` gives every word the label of its first token, ``tokens`` every token its own, and both join
    and leave out nothing.
    """

    task = "token-classification"
    architecture = "ConvBertForTokenClassification"
    settings = ("aggregation", "ignore_label")
    needs_spans = True
    schema = pa.struct([pa.field("entities", pa.list_(ENTITY))])  # in the order of the text

    def __init__(self, config: ConvBertConfig, tokenizer: ConvBertTokenizer, spec: JobSpec) -> None:
        self.inputs = Inputs("text", (spec.text_column,))
        self.labels = labels_of(config)
        self.aggregation = spec.aggregation
        self.joins = spec.aggregation not in ("none", "words", "tokens")
        prefixes = [label[0] if label.startswith(_PREFIXES) else "" for label in self.labels]
        names = [
            label[2:] if prefix and self.joins else label for label, prefix in zip(self.labels, prefixes, strict=True)
        ]
        self.names = Names(dict.fromkeys(names))
        self.name_of = np.array([self.names.texts.index(name) for name in names])  # class index -> index of its name
        self.begins = np.array([prefix in _BEGINNING for prefix in prefixes])
        self.ends = np.array([bool(prefix) and prefix in _ENDING for prefix in prefixes])
        ignored = () if spec.aggregation in ("words", "tokens") else spec.ignore_label
        self.is_kept = np.array([name not in ignored for name in names])

    def on_encoder(self, model: ConvBertForTokenClassification) -> engine.Head:
        """Each token's best label and its probability, or for averages all probabilities."""
        return engine.EachToken(
            model.classifier, engine.Probabilities() if self.aggregation == "average" else engine.Likeliest()
        )

    def narrowed(self, values: NDArray[np.float32], loaded: Head) -> NDArray[np.float32]:
        """All probabilities -> those that the strategy reads."""
        has_all = isinstance(loaded, TokenClassification) and loaded.aggregation == "average"
        return _best(values) if has_all and self.aggregation != "average" else values

    def columns(self, results: Results) -> dict[str, Column]:
        """Probabilities of each token -> R lists."""
        found = self._words(results) if self._has_words else self._tokens(results)
        if self.joins:
            found = self._joined(found)
        found = _Stretches(*(column[self.is_kept[found.labels]] for column in found))
        assert results.texts is not None  # asked for with needs_spans
        places = zip(found.records.tolist(), found.starts.tolist(), found.ends.tolist(), strict=True)
        entities: dict[str, Column] = {
            "label": Named(self.names, self.name_of[found.labels]),
            "score": found.scores,
            "start": found.starts,
            "end": found.ends,
            "text": [results.texts[record][start:end] for record, start, end in places],
        }
        counts = np.bincount(found.records, minlength=len(results.texts))
        return {"entities": Lists(entities, offsets_of(counts))}

    @property
    def _has_words(self) -> bool:
        return self.aggregation in ("first", "average", "max", "words")

    def _tokens(self, results: Results) -> _Stretches:
        records, spans, values = _own_tokens(results)
        return _Stretches(records, spans[:, 0], spans[:, 1], values[:, 1].astype(np.int64), values[:, 0])

    def _words(self, results: Results) -> _Stretches:
        """One label a word: its first token's, its surest token's, or that of the mean."""
        records, spans, values = _own_tokens(results)
        firsts = np.flatnonzero(_starts(records, spans[:, 2]))
        lasts = np.append(firsts[1:], len(records)) - 1 if len(firsts) else firsts
        if self.aggregation == "average":
            values = _best(_means(values, firsts))
        else:
            values = values[_surest(values[:, 0], firsts) if self.aggregation == "max" else firsts]
        labels, scores = values[:, 1].astype(np.int64), values[:, 0]
        return _Stretches(records[firsts], spans[firsts, 0], spans[lasts, 1], labels, scores)

    def _joined(self, found: _Stretches) -> _Stretches:
        """Neighbours with one name, where no label says that it begins or has ended."""
        is_first = _starts(found.records, self.name_of[found.labels])
        is_first[1:] |= self.begins[found.labels[1:]] | self.ends[found.labels[:-1]]
        firsts = np.flatnonzero(is_first)
        lasts = np.append(firsts[1:], len(is_first)) - 1 if len(firsts) else firsts
        scores = _means(found.scores[:, None], firsts)[:, 0]
        return _Stretches(found.records[firsts], found.starts[firsts], found.ends[lasts], found.labels[firsts], scores)

    def counts(self, column: pa.StructArray) -> dict[str, int]:
        """Entities by label."""
        return count_values(column.field("entities").flatten().field("label"))

    def scores(self, column: pa.StructArray) -> dict[str, Histogram]:
        """The probability of each entity's label."""
        return {"score": shares(column.field("entities").flatten().field("score"))}


def _own_tokens(results: Results) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Record, span and values of each token of the texts, once whatever windows it stands in."""
    sequences = results.sequences
    assert sequences.spans is not None  # asked for with needs_spans
    tokens = np.flatnonzero((sequences.spans[:, 2] >= 0) & sequences.packed.is_counted)
    records = np.searchsorted(sequences.tokens, tokens, side="right") - 1
    return records, sequences.spans[tokens], results.values[tokens]


def _starts(records: NDArray[np.int64], names: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Where a record begins, or a name in it that differs from the one before."""
    starts = np.ones(len(records), np.bool_)
    starts[1:] = (np.diff(records) != 0) | (np.diff(names) != 0)
    return starts


def _means(values: NDArray[np.float32], firsts: NDArray[np.int64]) -> NDArray[np.float32]:
    """(T, W) -> (M, W) means of the stretches that begin at ``firsts``."""
    if not len(firsts):
        return values
    counts = np.diff(np.append(firsts, len(values)))
    return (np.add.reduceat(values, firsts, axis=0) / counts[:, None]).astype(np.float32)


def _best(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """(M, n_labels) -> (M, 2) highest score and its class."""
    return np.stack([scores.max(axis=1), scores.argmax(axis=1).astype(np.float32)], axis=1)


def _surest(scores: NDArray[np.float32], firsts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first token with the highest score of each word."""
    words = np.repeat(np.arange(len(firsts)), np.diff(np.append(firsts, len(scores))))
    order: NDArray[np.int64] = np.lexsort((np.arange(len(scores)), -scores, words))
    return order[firsts]

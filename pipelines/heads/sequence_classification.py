"""Sequence classification: a text's or a pair's logits in, its label, score and scores out."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from convbert import ConvBertConfig, ConvBertTokenizer, engine
from convbert.engine.packing import offsets_of
from pipelines.columns import Column, Lists, Named, Names
from pipelines.figures import Histogram, numbers, shares
from pipelines.heads.base import Head, Results, count_values, labels_of, text_inputs
from pipelines.spec import JobSpec

if TYPE_CHECKING:
    from convbert import ConvBertForSequenceClassification

_SHOWN_NUMBERS = 20  # of a regression, in the report


class SequenceClassification(Head):
    """One label a text by softmax, several by sigmoid, or numbers: as ``problem_type`` says, or else softmax.

    A checkpoint with one label and no problem type is scored by sigmoid, as in Transformers' pipeline.
    """

    task = "text-classification"
    architecture = "ConvBertForSequenceClassification"
    settings = ("top_k", "threshold", "window_pooling")

    def __init__(self, config: ConvBertConfig, tokenizer: ConvBertTokenizer, spec: JobSpec) -> None:
        self.inputs = text_inputs(spec)
        self.labels = labels_of(config)
        self.names = Names(self.labels)
        self.is_multi_label = config.problem_type == "multi_label_classification"
        self.is_regression = config.problem_type == "regression"
        self.window_pooling = spec.window_pooling
        self.threshold = spec.threshold
        self.top_k = spec.top_k and min(spec.top_k, len(self.labels))
        fields = [
            pa.field("label", pa.string()),  # the label with the highest score
            pa.field("score", pa.float32()),  # its probability; the number itself for regression
        ]
        if self.is_multi_label:
            fields.append(pa.field("labels", pa.list_(pa.string())))  # every label whose score reaches --threshold
        if self.top_k:
            top = pa.struct([pa.field("label", pa.string()), pa.field("score", pa.float32())])
            fields.append(pa.field("top", pa.list_(top)))  # the --top-k highest scores, in place of all
        else:
            fields.append(pa.field("scores", pa.list_(pa.float32())))  # every label's score, by class index
        self.schema = pa.struct(fields)

    @property
    def settings_in_use(self) -> Collection[str]:
        """Without ``threshold`` where there is one label, or numbers."""
        return [name for name in self.settings if name != "threshold" or self.is_multi_label]

    def on_encoder(self, model: ConvBertForSequenceClassification) -> engine.Head:
        """The classifier on the first token: a row of logits a sequence."""
        return engine.FirstToken(model.classifier)

    def columns(self, results: Results) -> dict[str, Column]:
        """Logits of each window -> R values each."""
        scores = self._scores(results.joined(by_max=self.window_pooling == "max").astype(np.float32, copy=False))
        best = scores.argmax(axis=1)
        rows = np.arange(len(scores))[:, None]
        columns: dict[str, Column] = {"label": Named(self.names, best), "score": scores[rows[:, 0], best]}
        if self.is_multi_label:
            is_present = scores >= self.threshold
            columns["labels"] = Lists(Named(self.names, is_present.nonzero()[1]), offsets_of(is_present.sum(1)))
        if self.top_k:
            order = np.argsort(-scores, axis=1, kind="stable")[:, : self.top_k]
            top: dict[str, Column] = {"label": Named(self.names, order.ravel()), "score": scores[rows, order].ravel()}
            columns["top"] = Lists(top, np.arange(len(scores) + 1) * self.top_k)
        else:
            columns["scores"] = Lists(scores.ravel(), np.arange(len(scores) + 1) * len(self.labels))
        return columns

    def _scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.is_regression:
            return logits
        if self.is_multi_label or len(self.labels) == 1:
            return np.exp(-np.logaddexp(0, -logits))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def counts(self, column: pa.StructArray) -> dict[str, int]:
        """Records by label, by each of their labels, or nothing for numbers."""
        if self.is_regression:
            return {}
        return count_values(column.field("labels").flatten() if self.is_multi_label else column.field("label"))

    def scores(self, column: pa.StructArray) -> dict[str, Histogram]:
        """The probability of the best label, or the numbers of a regression by their name."""
        if not self.is_regression:
            return {"score": shares(column.field("score"))}
        if self.top_k:
            return {"greatest": numbers(column.field("score"))}
        values = column.field("scores").flatten().to_numpy().reshape(-1, len(self.labels))
        return {label: numbers(values[:, i]) for i, label in enumerate(self.labels[:_SHOWN_NUMBERS])}

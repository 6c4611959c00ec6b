"""Sequence classification: a text's logits in, {label, score, scores} out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import nn

from convbert import ConvBertConfig, ConvBertForSequenceClassification
from pipelines.errors import ModelError
from pipelines.heads.base import Head


class SequenceClassification(Head):
    """One label a text, by softmax over the classes.

    Args:
        config: labels and problem type of the checkpoint.

    Raises:
        ModelError: a regression or multi-label checkpoint.
    """

    task = "text-classification"
    model_class = ConvBertForSequenceClassification
    schema = pa.struct(
        [
            pa.field("label", pa.string()),  # the likeliest class
            pa.field("score", pa.float32()),  # its probability
            pa.field("scores", pa.list_(pa.float32())),  # every class's probability, by class index
        ]
    )

    def __init__(self, config: ConvBertConfig) -> None:
        if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
            raise ModelError(
                f"a checkpoint with {config.num_labels} labels and problem_type {config.problem_type!r} is not "
                "available yet: give one with single_label_classification"
            )
        self.labels = [config.id2label[index] for index in range(config.num_labels)]

    def module(self, model: ConvBertForSequenceClassification) -> nn.Module:
        """The classifier on the first token."""
        return model.classifier

    def to_arrow(self, logits: NDArray[np.float32]) -> pa.StructArray:
        """(R, n_labels) -> R structs."""
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True)
        best = scores.argmax(axis=1)
        offsets = np.arange(0, scores.size + 1, scores.shape[1], dtype=np.int32)
        return pa.StructArray.from_arrays(
            [
                pa.array(self.labels).take(pa.array(best)),
                pa.array(scores[np.arange(len(best)), best]),
                pa.ListArray.from_arrays(offsets, pa.array(scores.ravel())),
            ],
            fields=list(self.schema),
        )

    def counts(self, column: pa.StructArray) -> dict[str, int]:
        """Records by label."""
        return dict(Counter(label for label in column.field("label").to_pylist() if label is not None))

"""Multiple choice: a score for each continuation of a prompt in, the best one's index out."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from convbert import ConvBertConfig, ConvBertTokenizer, engine
from pipelines.columns import Column, Lists
from pipelines.encode import Inputs
from pipelines.errors import ModelError
from pipelines.figures import Histogram, shares
from pipelines.heads.base import Head, Results, count_values
from pipelines.spec import JobSpec

if TYPE_CHECKING:
    from convbert import ConvBertForMultipleChoice


class MultipleChoice(Head):
    """The likeliest of a record's choices, however many.

    Each choice is padded to the record's longest, because the model reads the last position:
    docs/decisions/0008-multiple-choice.md.
    """

    task = "multiple-choice"
    architecture = "ConvBertForMultipleChoice"
    schema = pa.struct(
        [
            pa.field("index", pa.int32()),  # the likeliest choice, from 0
            pa.field("score", pa.float32()),  # its probability
            pa.field("scores", pa.list_(pa.float32())),  # every choice's probability, in their order
        ]
    )

    def __init__(self, config: ConvBertConfig, tokenizer: ConvBertTokenizer, spec: JobSpec) -> None:
        if spec.long_text == "window":
            raise ModelError("a choice cannot be labelled in windows: use --long-text truncate or error")
        if tokenizer.pad_token_id is None or tokenizer.padding_side != "right":
            raise ModelError(
                "choices are padded on the right: give a tokenizer with a pad_token and padding_side right"
            )
        self.inputs = Inputs("choices", (spec.text_column, spec.choices_column))
        self.labels = []

    def on_encoder(self, model: ConvBertForMultipleChoice) -> engine.Head:
        """A logit for each choice."""
        return engine.WholeRecord(model.sequence_summary, model.classifier)

    def columns(self, results: Results) -> dict[str, Column]:
        """Logits (S, 1) -> R values each."""
        logits, starts = results.values[:, 0], results.offsets[:-1]
        counts = np.diff(results.offsets)
        powers = np.exp(logits - np.repeat(np.maximum.reduceat(logits, starts), counts))
        scores = powers / np.repeat(np.add.reduceat(powers, starts), counts)
        best = np.array([scores[start:stop].argmax() for start, stop in pairwise(results.offsets)], np.int32)
        return {"index": best, "score": scores[starts + best], "scores": Lists(scores, results.offsets)}

    def counts(self, column: pa.StructArray) -> dict[str, int]:
        """Records by index."""
        return count_values(column.field("index"))

    def scores(self, column: pa.StructArray) -> dict[str, Histogram]:
        """The probability of the likeliest choice."""
        return {"score": shares(column.field("score"))}

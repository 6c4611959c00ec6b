"""Embeddings: a text's or a pair's hidden states in, one vector out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from convbert import ConvBertConfig, ConvBertTokenizer, engine
from pipelines.columns import Column
from pipelines.figures import Histogram, numbers
from pipelines.heads.base import Head, Results, text_inputs
from pipelines.spec import JobSpec

if TYPE_CHECKING:
    from convbert import ConvBertModel


class Embedding(Head):
    """The mean, the maximum, or the first ([CLS]) of the last hidden states, special tokens included."""

    task = "feature-extraction"
    architecture = "ConvBertModel"
    settings = ("pooling", "normalize", "embedding_type")

    def __init__(self, config: ConvBertConfig, tokenizer: ConvBertTokenizer, spec: JobSpec) -> None:
        self.inputs = text_inputs(spec)
        self.labels = []
        self.truncation_side = tokenizer.truncation_side
        self.pooling = spec.pooling
        self.normalize = spec.normalize
        self.dtype = np.dtype(spec.embedding_type)
        self._width = config.hidden_size
        # no fixed-size lists: before pyarrow 26 those with nulls cannot be written to Parquet, or not read from it
        self.schema = pa.struct([pa.field("embedding", pa.list_(pa.from_numpy_dtype(self.dtype)))])

    def on_encoder(self, model: ConvBertModel) -> engine.Head:
        """A vector a sequence."""
        return engine.FirstToken() if self.pooling == "cls" else engine.Pooled(self.pooling)

    def columns(self, results: Results) -> dict[str, Column]:
        """(S, H) of the windows -> R vectors."""
        vectors = results.joined(by_max=self.pooling == "max")
        if self.normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return {"embedding": vectors.astype(self.dtype)}

    def counts(self, column: pa.StructArray) -> dict[str, int]:
        """Nothing to count."""
        return {}

    def scores(self, column: pa.StructArray) -> dict[str, Histogram]:
        """The length of the vectors, where it is not 1 by wish."""
        if self.normalize:
            return {}
        vectors = column.field("embedding").flatten().to_numpy(zero_copy_only=False).reshape(-1, self._width)
        return {"norm": numbers(np.linalg.norm(vectors.astype(np.float64), axis=1))}

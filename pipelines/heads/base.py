"""What a task brings to the pipeline: what it reads, its part of the model, its output column and the way to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from convbert import ConvBertConfig, ConvBertTokenizer, engine
from pipelines.columns import Column, arrow_of
from pipelines.encode import Inputs, LongText
from pipelines.figures import Histogram
from pipelines.sequences import Sequences
from pipelines.spec import JobSpec


@dataclass(frozen=True)
class Results:
    """What the model gave for R records, and what it was given.

    Attributes:
        values: (N, W) rows of the head's part of the model.
        offsets: (R + 1,): record r has the rows ``offsets[r]`` to ``offsets[r + 1]``.
        sequences: of the same records.
        texts: the text that ``sequences.spans`` speak of; None where no head of the pass asks for it.
    """

    values: NDArray[np.float32]
    offsets: NDArray[np.int64]
    sequences: Sequences
    texts: Sequence[str] | None = None

    def joined(self, *, by_max: bool) -> NDArray[np.floating]:
        """Rows of windows (S, W) -> of records (R, W): the highest, or the mean by what tokens each window adds."""
        starts = self.offsets[:-1]
        if len(starts) == len(self.values):
            return self.values
        if by_max:
            return np.maximum.reduceat(self.values, starts, axis=0)
        weights = self.sequences.packed.n_counted.astype(np.float64)
        shares = weights / np.repeat(np.add.reduceat(weights, starts), np.diff(self.offsets))
        return np.add.reduceat(self.values * shares[:, None], starts, axis=0)


class Head(ABC):
    """One task's way from a checkpoint to an output column.

    Args:
        config: of the checkpoint.
        tokenizer: of the checkpoint.
        spec: of the job, for the settings that the head takes.

    Attributes:
        task: the task's name, as Transformers' pipelines call it.
        architecture: name of the class of ``convbert`` that loads the checkpoint.
        settings: names of the JobSpec fields that change the output column.
        long_text: what happens to long texts where the job does not say.
        default_max_length: longest sequence in tokens, the same way; None for the model's.
        needs_spans, needs_mask: what encoding must provide and check (pipelines.encode.Encoding).
        inputs: what it reads of each record.
        labels: label names by class index; empty where the task has none.
        schema: type of the output column.
    """

    task: ClassVar[str]
    architecture: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()
    long_text: ClassVar[LongText] = "truncate"
    default_max_length: ClassVar[int | None] = None
    needs_spans: ClassVar[bool] = False
    needs_mask: bool = False
    inputs: Inputs
    labels: list[str]
    schema: pa.StructType

    @abstractmethod
    def __init__(self, config: ConvBertConfig, tokenizer: ConvBertTokenizer, spec: JobSpec) -> None:
        """Take what the task needs.

        Raises:
            ModelError: the checkpoint cannot do it.
        """

    @property
    def settings_in_use(self) -> Collection[str]:
        """Those of its settings that decide anything with this checkpoint."""
        return self.settings

    @abstractmethod
    def on_encoder(self, model: Any) -> engine.Head | engine.PseudoLikelihood:
        """The part of the model behind the encoder."""

    def narrowed(self, values: NDArray[np.float32], loaded: Head) -> NDArray[np.float32]:
        """What this head's part of the model would give, from what that of a more general head of its task gave."""
        return values

    @abstractmethod
    def columns(self, results: Results) -> Mapping[str, Column]:
        """What the model gave for at least one record, as R values of each field of the output column."""

    def to_arrow(self, results: Results) -> pa.StructArray:
        """The same as the output column."""
        return arrow_of(self.columns(results), self.schema)

    @abstractmethod
    def counts(self, column: pa.StructArray) -> dict[str, int]:
        """What the summary counts of the records that did not fail, such as records by label."""

    @abstractmethod
    def scores(self, column: pa.StructArray) -> dict[str, Histogram]:
        """How what the head gives for the same records is spread, by name: probabilities, numbers, norms."""


def labels_of(config: ConvBertConfig) -> list[str]:
    """Label names by class index."""
    return [config.id2label[index] for index in range(config.num_labels)]


def text_inputs(spec: JobSpec) -> Inputs:
    """A text, or where the job names a second column a pair."""
    if spec.text_pair_column:
        return Inputs("pair", (spec.text_column, spec.text_pair_column))
    return Inputs("text", (spec.text_column,))


def count_values(values: pa.Array) -> dict[str, int]:
    """How often each value occurs; null does not count."""
    return {str(entry["values"]): entry["counts"] for entry in pc.value_counts(values.drop_null()).to_pylist()}

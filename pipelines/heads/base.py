"""What a task brings to the pipeline: its model class, its output column, and the way from logits to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import nn

from convbert import ConvBertConfig
from convbert.models import PreTrainedModel


class Head(ABC):
    """One task's way from a checkpoint to an output column.

    Attributes:
        task: the task's name, as Transformers' pipelines call it.
        model_class: loads the checkpoint.
        schema: type of the output column.
        labels: label names by class index.
    """

    task: ClassVar[str]
    model_class: ClassVar[type[PreTrainedModel]]
    schema: ClassVar[pa.StructType]
    labels: list[str]

    @abstractmethod
    def __init__(self, config: ConvBertConfig) -> None:
        """Take what the task needs from a checkpoint's config."""

    @abstractmethod
    def module(self, model: Any) -> nn.Module:
        """The part of the model behind the encoder, applied to each record's first token."""

    @abstractmethod
    def to_arrow(self, logits: NDArray[np.float32]) -> pa.StructArray:
        """Logits, one row a record, as values of the output column."""

    @abstractmethod
    def counts(self, column: pa.StructArray) -> dict[str, int]:
        """What the summary counts: records by label."""

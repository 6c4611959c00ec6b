"""A head is one file: which class of model it runs, and how its logits become an Arrow column."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import nn

from convbert import ConvBertConfig
from convbert.models import PreTrainedModel
from pipelines.errors import ModelError
from pipelines.heads.sequence_classification import SequenceClassification


class Head(Protocol):
    """What a task brings to the pipeline."""

    task: str
    """The task's name, as Transformers' pipelines call it."""

    model_class: type[PreTrainedModel]
    """Loads the checkpoint."""

    schema: pa.StructType
    """Type of the output column."""

    labels: list[str]
    """Label names by class index."""

    def __init__(self, config: ConvBertConfig) -> None: ...

    def module(self, model: Any) -> nn.Module:
        """The part of the model behind the encoder."""

    def to_arrow(self, logits: NDArray[np.float32]) -> pa.StructArray:
        """Logits, one row a record, as values of the output column."""

    def counts(self, column: pa.StructArray) -> dict[str, int]:
        """What the summary counts: records by label."""


HEADS: dict[str, type[Head]] = {"ConvBertForSequenceClassification": SequenceClassification}


def head_for(config: ConvBertConfig, *, source: str) -> Head:
    """The head that a checkpoint's ``architectures`` asks for.

    Raises:
        ModelError: it names none, or one that cannot be run.
    """
    architectures = config.extra.get("architectures") or []
    for name in architectures:
        if name in HEADS:
            return HEADS[name](config)
    raise ModelError(
        f"{source} is a checkpoint for {', '.join(architectures) or 'no task'} (architectures in config.json), "
        f"not for one of {', '.join(HEADS)}: give a fine-tuned checkpoint"
    )

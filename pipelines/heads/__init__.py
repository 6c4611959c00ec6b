"""A head is one file: which class of model it runs, and how its logits become an Arrow column."""

from __future__ import annotations

from convbert import ConvBertConfig
from pipelines.errors import ModelError
from pipelines.heads.base import Head
from pipelines.heads.sequence_classification import SequenceClassification

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


__all__ = ["HEADS", "Head", "head_for"]

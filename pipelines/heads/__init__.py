"""A head is one file: what it reads, which class of model it runs, and how logits become an Arrow column."""

from __future__ import annotations

from convbert import ConvBertConfig, ConvBertTokenizer
from pipelines.errors import ModelError
from pipelines.heads.base import Head, Results
from pipelines.heads.embedding import Embedding
from pipelines.heads.masked_lm import FillMask, PseudoLogLikelihood
from pipelines.heads.multiple_choice import MultipleChoice
from pipelines.heads.question_answering import QuestionAnswering
from pipelines.heads.sequence_classification import SequenceClassification
from pipelines.heads.token_classification import TokenClassification
from pipelines.spec import JobSpec

_KINDS = (SequenceClassification, TokenClassification, QuestionAnswering, MultipleChoice, FillMask, Embedding)
HEADS: dict[str, type[Head]] = {head.architecture: head for head in _KINDS}
"""What a checkpoint's ``architectures`` ask for, where the job does not say otherwise."""


def head_for(config: ConvBertConfig, tokenizer: ConvBertTokenizer, spec: JobSpec, *, source: str) -> Head:
    """The head that a checkpoint's ``architectures`` ask for.

    A job for embeddings takes the encoder of any checkpoint, one for pseudo-log-likelihoods any masked
    language model.

    Raises:
        ModelError: it names none, or one that cannot be run.
    """
    if spec.task == Embedding.task:
        return Embedding(config, tokenizer, spec)
    named = config.extra.get("architectures")
    architectures = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    for name in architectures:
        if name in HEADS:
            head = HEADS[name]
            if head is FillMask and spec.pseudo_log_likelihood:
                head = PseudoLogLikelihood
            return head(config, tokenizer, spec)
    raise ModelError(
        f"{source} is a checkpoint for {', '.join(architectures) or 'no task'} (architectures in config.json), "
        f"not for one of {', '.join(HEADS)}: give a fine-tuned checkpoint"
    )


__all__ = ["HEADS", "Head", "PseudoLogLikelihood", "Results", "head_for"]

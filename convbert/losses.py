"""Logits and labels in, one scalar loss out: Transformers' choices of loss, its ignored labels included.

Shapes: B batch, L sequence length, n labels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from convbert.errors import InputError

IGNORED = -100
"""A label that does not count, as in torch and Transformers."""


def class_loss(logits: Tensor, labels: Tensor, *, ignored: int = IGNORED) -> Tensor:
    """Cross entropy of one class each: logits (…, n), labels (…) integers.

    The mean over the labels that count; nan where none does, as in Transformers.

    Raises:
        InputError: another number of labels than of logits, or (found on the CPU only) a label that is neither a
            class nor ``ignored``.
    """
    flat_logits, flat_labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    if len(flat_logits) != len(flat_labels):
        raise InputError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}: give one label each")
    if labels.is_floating_point():
        raise InputError(f"labels ({labels.dtype}) must be whole numbers: give class indices")
    try:
        return F.cross_entropy(flat_logits, flat_labels.long(), ignore_index=ignored)
    except IndexError as error:
        raise InputError(
            f"labels ({error}) must lie between 0 and {logits.shape[-1] - 1}, or be {ignored} to be ignored"
        ) from error


def text_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """Loss of one or several labels, or of a score, for each text.

    Args:
        logits: (B, n).
        labels: (B,) class indices; (B,) or (B, n) floats for regression; (B, n) zeros and ones for
            several labels a text.
        problem_type: ``regression``, ``single_label_classification`` or ``multi_label_classification``;
            None infers it from n and the type of ``labels``, as Transformers does.

    Raises:
        InputError: labels that do not fit the logits.
    """
    match problem_type or inferred_problem(logits, labels):
        case "single_label_classification":
            return class_loss(logits, labels)
        case "regression" if logits.shape[-1] == 1:
            return F.mse_loss(*_fitting(logits.flatten(), labels.flatten()))
        case "regression":
            return F.mse_loss(*_fitting(logits, labels))
        case _:
            return F.binary_cross_entropy_with_logits(*_fitting(logits, labels))


def span_loss(start_logits: Tensor, end_logits: Tensor, start_positions: Tensor, end_positions: Tensor) -> Tensor:
    """Mean cross entropy of the answer's first and last token.

    A position beyond the sequence, as in a window without the answer's end, does not count; one below 0
    counts as 0. Both as in Transformers, and nan where no position counts.

    Args:
        start_logits, end_logits: (B, L).
        start_positions, end_positions: (B,) or (B, 1) token indices.
    """
    outside = start_logits.shape[1]
    start, end = (positions.reshape(-1).clamp(0, outside) for positions in (start_positions, end_positions))
    return (class_loss(start_logits, start, ignored=outside) + class_loss(end_logits, end, ignored=outside)) / 2


def inferred_problem(logits: Tensor, labels: Tensor) -> str:
    """The problem type that logits (B, n) and labels tell, as Transformers infers it."""
    if logits.shape[-1] == 1:
        return "regression"
    return "single_label_classification" if labels.dtype in (torch.long, torch.int) else "multi_label_classification"


def _fitting(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their types: targets are not rounded to a model's 16 bits."""
    if labels.shape != logits.shape:
        raise InputError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}: give one value each")
    dtype = torch.promote_types(logits.dtype, labels.dtype)
    return logits.to(dtype), labels.to(dtype)

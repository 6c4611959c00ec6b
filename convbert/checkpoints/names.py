"""Weights by the names of another time or framework in, the same weights by this package's names out.

Each row of a table is one rule: a name's pattern, what the name becomes (None: the tensor is no weight and
goes), and how its axes change. The first row that fits a whole name holds; a name that no row fits stays
as it is, so that loading reports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from convbert.errors import CheckpointError

Layout = Callable[[Tensor], Tensor]


def as_it_is(tensor: Tensor) -> Tensor:
    """The same axes."""
    return tensor


def reversed_axes(tensor: Tensor) -> Tensor:
    """(in, out) -> (out, in); (1, in, out) -> (out, in, 1); (out/G, in/G, G) -> (G, in/G, out/G)."""
    return tensor.permute(tuple(reversed(range(tensor.dim()))))


def taps_last(tensor: Tensor) -> Tensor:
    """(K, H, 1) -> (H, 1, K)."""
    return tensor.permute(1, 2, 0)


def column(tensor: Tensor) -> Tensor:
    """(A,) -> (A, 1)."""
    return tensor[:, None]


class Rule(NamedTuple):
    """One row of a table."""

    pattern: str
    name: str | None
    layout: Layout = as_it_is


# PyTorch, of Transformers before 4.31 and of conversions from TF1.
OLD_TORCH_RULES = (
    Rule(r"(.*LayerNorm)\.gamma", r"\1.weight"),
    Rule(r"(.*LayerNorm)\.beta", r"\1.bias"),
    Rule(r"(?:.*\.)?embeddings\.(?:position_ids|token_type_ids)", None),  # counters, not weights
)

# Transformers' TensorFlow classes (Keras), after slashes and list marks have become dots.
KERAS_RULES = (
    Rule(r"(.*_embeddings)\.embeddings", r"\1.weight"),
    Rule(r"(.*LayerNorm)\.gamma", r"\1.weight"),
    Rule(r"(.*LayerNorm)\.beta", r"\1.bias"),
    Rule(r"(.*\.key_conv_attn_layer)\.depthwise_kernel", r"\1.depthwise.weight", taps_last),
    Rule(r"(.*\.key_conv_attn_layer)\.pointwise_kernel", r"\1.pointwise.weight", reversed_axes),
    Rule(r"(.*\.key_conv_attn_layer)\.bias", r"\1.bias", column),
    Rule(r"(.*)\.kernel", r"\1.weight", reversed_axes),
)

# The original repository's checkpoints (TF1, https://github.com/yitu-opensource/ConvBert). Scopes are ELECTRA's.
_LAYER = r"electra/encoder/layer_(\d+)"
_SELF = r"convbert.encoder.layer.\1.attention.self"
TF1_RULES = (
    Rule(r"electra/embeddings/(word|position|token_type)_embeddings", r"convbert.embeddings.\1_embeddings.weight"),
    Rule(r"electra/embeddings/LayerNorm/gamma", "convbert.embeddings.LayerNorm.weight"),
    Rule(r"electra/embeddings/LayerNorm/beta", "convbert.embeddings.LayerNorm.bias"),
    Rule(r"electra/embeddings_project/kernel", "convbert.embeddings_project.weight", reversed_axes),
    Rule(r"electra/embeddings_project/bias", "convbert.embeddings_project.bias"),
    Rule(_LAYER + r"/attention/self/(query|key|value)/kernel", _SELF + r".\2.weight", reversed_axes),
    Rule(_LAYER + r"/attention/self/(query|key|value)/bias", _SELF + r".\2.bias"),
    Rule(
        _LAYER + r"/attention/self/conv_attn_key/depthwise_kernel",
        _SELF + ".key_conv_attn_layer.depthwise.weight",
        taps_last,
    ),
    Rule(
        _LAYER + r"/attention/self/conv_attn_key/pointwise_kernel",
        _SELF + ".key_conv_attn_layer.pointwise.weight",
        reversed_axes,
    ),
    Rule(_LAYER + r"/attention/self/conv_attn_key/bias", _SELF + ".key_conv_attn_layer.bias", column),
    Rule(_LAYER + r"/attention/self/conv_attn_kernel/kernel", _SELF + ".conv_kernel_layer.weight", reversed_axes),
    Rule(_LAYER + r"/attention/self/conv_attn_kernel/bias", _SELF + ".conv_kernel_layer.bias"),
    Rule(_LAYER + r"/attention/self/conv_attn_point/kernel", _SELF + ".conv_out_layer.weight", reversed_axes),
    Rule(_LAYER + r"/attention/self/conv_attn_point/bias", _SELF + ".conv_out_layer.bias"),
    Rule(
        _LAYER + r"/(attention/output|intermediate|output)/dense/kernel",
        r"convbert.encoder.layer.\1.\2.dense.weight",
        reversed_axes,
    ),
    Rule(_LAYER + r"/(intermediate|output)/g_dense/kernel", r"convbert.encoder.layer.\1.\2.dense.weight"),
    Rule(
        _LAYER + r"/(attention/output|intermediate|output)/(?:g_)?dense/bias",
        r"convbert.encoder.layer.\1.\2.dense.bias",
    ),
    Rule(_LAYER + r"/(attention/output|output)/LayerNorm/gamma", r"convbert.encoder.layer.\1.\2.LayerNorm.weight"),
    Rule(_LAYER + r"/(attention/output|output)/LayerNorm/beta", r"convbert.encoder.layer.\1.\2.LayerNorm.bias"),
)

# The masked language model on the encoder of TF1_RULES: there only where no smaller generator was trained beside it.
TF1_GENERATOR_RULES = (
    Rule(r"generator_predictions/dense/kernel", "generator_predictions.dense.weight", reversed_axes),
    Rule(r"generator_predictions/dense/bias", "generator_predictions.dense.bias"),
    Rule(r"generator_predictions/LayerNorm/gamma", "generator_predictions.LayerNorm.weight"),
    Rule(r"generator_predictions/LayerNorm/beta", "generator_predictions.LayerNorm.bias"),
    Rule(r"generator_predictions/output_bias", "generator_lm_head.bias"),
)

# What training leaves in a TF1 checkpoint: steps, optimizer slots, the object graph.
TF1_NO_WEIGHTS = r"global_step|beta[12]_power|_CHECKPOINTABLE_OBJECT_GRAPH|save_counter.*|.*/(?:adam_[mv]|Adam(?:_1)?)"


def renamed(weights: Iterable[tuple[str, Tensor]], rules: Iterable[Rule], *, source: object) -> dict[str, Tensor]:
    """Pairs of name and tensor by the names and in the layouts that the rules give.

    Raises:
        CheckpointError: two different tensors under one name.
    """
    rules = tuple(rules)
    result: dict[str, Tensor] = {}
    for old, tensor in weights:
        name, layout = _renamed(old, rules)
        if name is None:
            continue
        try:
            changed = layout(tensor)
        except (RuntimeError, IndexError) as error:
            raise CheckpointError(f"{old} of {source} has the shape {tuple(tensor.shape)}: no ConvBERT's") from error
        if name in result and not _equal(result[name], changed):
            raise CheckpointError(f"{source} holds two different tensors for {name}: give a checkpoint with one")
        result[name] = changed
    return result


def _renamed(name: str, rules: tuple[Rule, ...]) -> tuple[str | None, Layout]:
    for pattern, replacement, layout in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return (None if replacement is None else match.expand(replacement).replace("/", ".")), layout
    return name, as_it_is


def _equal(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype) and (one.is_meta or torch.equal(one, other))

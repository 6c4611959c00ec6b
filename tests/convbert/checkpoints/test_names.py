"""The tables of names, against the whole list of an encoder's weights and against axes written out by hand."""

from __future__ import annotations

import pytest
import torch

from convbert import CheckpointError
from convbert.checkpoints.names import (
    KERAS_RULES,
    OLD_TORCH_RULES,
    TF1_GENERATOR_RULES,
    TF1_RULES,
    column,
    renamed,
    reversed_axes,
    taps_last,
)


def test_layouts_move_each_axis_where_the_docstring_says() -> None:
    in_width, out_width, groups, taps = 2, 3, 4, 5
    dense = torch.rand(in_width, out_width)
    assert torch.equal(reversed_axes(dense)[2, 1], dense[1, 2])
    grouped = torch.rand(out_width, in_width, groups)
    assert torch.equal(reversed_axes(grouped)[3, 1, 2], grouped[2, 1, 3])
    assert reversed_axes(torch.tensor(1.0)) == 1  # a hostile file may say so
    depthwise = torch.rand(taps, in_width, 1)
    assert torch.equal(taps_last(depthwise)[1, 0, 4], depthwise[4, 1, 0])
    assert column(torch.rand(out_width)).shape == (out_width, 1)


@pytest.mark.parametrize(
    ("rules", "old", "new"),
    [
        (OLD_TORCH_RULES, "convbert.embeddings.LayerNorm.gamma", "convbert.embeddings.LayerNorm.weight"),
        (OLD_TORCH_RULES, "convbert.embeddings.LayerNorm.beta", "convbert.embeddings.LayerNorm.bias"),
        (OLD_TORCH_RULES, "classifier.out_proj.weight", "classifier.out_proj.weight"),
        (KERAS_RULES, "convbert.embeddings.word_embeddings.weight", "convbert.embeddings.word_embeddings.weight"),
        (
            KERAS_RULES,
            "convbert.embeddings.position_embeddings.embeddings",
            "convbert.embeddings.position_embeddings.weight",
        ),
        (KERAS_RULES, "generator_predictions.LayerNorm.gamma", "generator_predictions.LayerNorm.weight"),
        (TF1_RULES, "electra/embeddings/token_type_embeddings", "convbert.embeddings.token_type_embeddings.weight"),
        (
            TF1_RULES,
            "electra/encoder/layer_11/attention/self/conv_attn_point/bias",
            "convbert.encoder.layer.11.attention.self.conv_out_layer.bias",
        ),
        (
            TF1_RULES,
            "electra/encoder/layer_3/attention/output/LayerNorm/gamma",
            "convbert.encoder.layer.3.attention.output.LayerNorm.weight",
        ),
        (TF1_RULES, "electra/encoder/layer_0/output/g_dense/bias", "convbert.encoder.layer.0.output.dense.bias"),
        (TF1_GENERATOR_RULES, "generator_predictions/output_bias", "generator_lm_head.bias"),
        (TF1_RULES, "discriminator_predictions/dense/kernel", "discriminator_predictions/dense/kernel"),
    ],
)
def test_names(rules: tuple, old: str, new: str) -> None:  # type: ignore[type-arg]
    assert list(renamed([(old, torch.zeros(2, 3))], rules, source="x")) == [new]


def test_counters_are_dropped() -> None:
    assert not renamed([("embeddings.position_ids", torch.zeros(3))], OLD_TORCH_RULES, source="x")


def test_a_shape_that_no_layout_takes_is_named() -> None:
    name = "convbert.encoder.layer.0.attention.self.key_conv_attn_layer.depthwise_kernel"
    with pytest.raises(CheckpointError, match=r"depthwise_kernel of file.h5 has the shape \(3,\)"):
        renamed([(name, torch.zeros(3))], KERAS_RULES, source="file.h5")


def test_two_different_tensors_of_one_name_are_refused() -> None:
    same = [("a.LayerNorm.gamma", torch.ones(2)), ("a.LayerNorm.weight", torch.ones(2))]
    assert list(renamed(same, OLD_TORCH_RULES, source="x")) == ["a.LayerNorm.weight"]
    with pytest.raises(CheckpointError, match=r"two different tensors for a.LayerNorm.weight"):
        renamed([same[0], ("a.LayerNorm.weight", torch.zeros(2))], OLD_TORCH_RULES, source="x")
    with pytest.raises(CheckpointError, match=r"two different tensors for a.LayerNorm.weight"):
        renamed([same[0], ("a.LayerNorm.weight", torch.ones(2, dtype=torch.float64))], OLD_TORCH_RULES, source="x")

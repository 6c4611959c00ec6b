from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from convbert import CheckpointError, ConfigError, ConvBertConfig

# What Transformers 4.46.3 writes for ConvBertConfig(num_labels=3, architectures=[...], torch_dtype="float32").
WRITTEN_BY_4_46 = """{
  "architectures": ["ConvBertForSequenceClassification"],
  "attention_probs_dropout_prob": 0.1,
  "bos_token_id": 0,
  "classifier_dropout": null,
  "conv_kernel_size": 9,
  "embedding_size": 768,
  "eos_token_id": 2,
  "head_ratio": 2,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.1,
  "hidden_size": 768,
  "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
  "initializer_range": 0.02,
  "intermediate_size": 3072,
  "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
  "layer_norm_eps": 1e-12,
  "max_position_embeddings": 512,
  "model_type": "convbert",
  "num_attention_heads": 12,
  "num_groups": 1,
  "num_hidden_layers": 12,
  "pad_token_id": 1,
  "torch_dtype": "float32",
  "transformers_version": "4.46.3",
  "type_vocab_size": 2,
  "vocab_size": 30522
}"""

shapes = st.fixed_dictionaries(
    {},
    optional={
        "vocab_size": st.integers(10, 50_000),
        "hidden_size": st.sampled_from([48, 96, 768]),
        "num_hidden_layers": st.integers(1, 24),
        "num_attention_heads": st.sampled_from([1, 2, 4, 12]),
        "intermediate_size": st.sampled_from([48, 3072]),
        "hidden_act": st.sampled_from(["gelu", "relu", "gelu_new"]),
        "hidden_dropout_prob": st.floats(0, 1),
        "attention_probs_dropout_prob": st.floats(0, 1),
        "max_position_embeddings": st.integers(1, 4096),
        "type_vocab_size": st.integers(1, 4),
        "initializer_range": st.floats(0, 1),
        "layer_norm_eps": st.floats(1e-15, 1e-3),
        "pad_token_id": st.none() | st.integers(0, 9),
        "bos_token_id": st.none() | st.integers(0, 9),
        "eos_token_id": st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1, max_size=2),
        "embedding_size": st.integers(1, 1024),
        "head_ratio": st.integers(1, 16),
        "conv_kernel_size": st.sampled_from([1, 3, 9]),
        "num_groups": st.sampled_from([1, 2, 3]),
        "classifier_dropout": st.none() | st.floats(0, 1),
        "tie_word_embeddings": st.booleans(),
        "problem_type": st.sampled_from([None, "regression", "multi_label_classification"]),
        "num_labels": st.integers(1, 12),
    },
)


def assert_same(ours: ConvBertConfig, theirs: transformers.ConvBertConfig) -> None:
    """Every field that both have is equal."""
    for f in dataclasses.fields(ours):
        if f.name != "extra":
            assert getattr(ours, f.name) == getattr(theirs, f.name), f.name
    assert (ours.num_labels, ours.label2id) == (theirs.num_labels, theirs.label2id)
    assert ours.model_type == theirs.model_type


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    labels = {np.int64(0): "a", np.int64(1): "b"}
    for config in (
        ConvBertConfig(num_labels=np.int64(3)),
        ConvBertConfig(
            hidden_dropout_prob=np.float32(0.1), classifier_dropout=np.float16(0.5), layer_norm_eps=np.float32(1e-9)
        ),
        ConvBertConfig(id2label=labels, vocab_size=np.int32(90), pad_token_id=np.int64(0), eos_token_id=[np.int64(3)]),
    ):
        config.save_pretrained(tmp_path)
        assert ConvBertConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert (config.vocab_size, config.id2label) == (90, {0: "a", 1: "b"})


@settings(max_examples=100, derandomize=True, deadline=None)
@given(shapes)
def test_both_ways_between_transformers_and_us(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("config")
    theirs = transformers.ConvBertConfig(**values)
    theirs.save_pretrained(folder)
    assert_same(ConvBertConfig.from_pretrained(folder), theirs)

    ours = ConvBertConfig(**values)
    ours.save_pretrained(folder)
    assert_same(ours, transformers.AutoConfig.from_pretrained(folder))
    assert ConvBertConfig.from_pretrained(folder) == ours


def test_the_defaults_are_transformers() -> None:
    assert_same(ConvBertConfig(), transformers.ConvBertConfig())


def test_a_config_of_transformers_4_loads_and_keeps_its_other_keys() -> None:
    written = json.loads(WRITTEN_BY_4_46)
    config = ConvBertConfig.from_dict(written)
    assert config == ConvBertConfig(
        num_labels=3,
        extra={
            "architectures": ["ConvBertForSequenceClassification"],
            "torch_dtype": "float32",
            "transformers_version": "4.46.3",
        },
    )
    assert written.items() <= config.to_dict().items()


def test_keys_that_are_no_field_are_attributes_too() -> None:
    config = ConvBertConfig.from_dict({"architectures": ["ConvBertModel"], "use_cache": True})
    assert (config.architectures, config.use_cache) == (["ConvBertModel"], True)  # type: ignore[attr-defined]
    assert not hasattr(config, "no_such_key")
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config


def test_what_is_set_on_a_config_is_saved(tmp_path: Path) -> None:
    config = ConvBertConfig()
    twin = copy.copy(config)
    config.summary_type = "first"  # type: ignore[attr-defined]
    config.num_labels = 3
    config.hidden_dropout_prob = 0.3
    dataclasses.replace(config, vocab_size=7).save_pretrained(tmp_path)
    theirs = transformers.ConvBertConfig.from_pretrained(tmp_path)
    assert (theirs.summary_type, theirs.num_labels, theirs.hidden_dropout_prob) == ("first", 3, 0.3)
    assert ConvBertConfig.from_pretrained(tmp_path) == dataclasses.replace(config, vocab_size=7)
    assert twin == ConvBertConfig()


def test_labels_may_be_set() -> None:
    config = ConvBertConfig(id2label={0: "spam", 1: "ham"})
    config.num_labels = 2
    assert config.id2label == {0: "spam", 1: "ham"}
    config.num_labels = 3
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    config.label2id = {"no": 0, "yes": 1}
    assert (config.id2label, config.num_labels) == ({0: "no", 1: "yes"}, 2)


def test_the_old_name_of_the_model_type_is_read_and_the_new_one_written() -> None:
    assert ConvBertConfig.from_dict({"model_type": "conv_bert"}).to_dict()["model_type"] == "convbert"
    with pytest.raises(ConfigError, match=r"model_type \('bert'\)"):
        ConvBertConfig.from_dict({"model_type": "bert"})


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ["LABEL_0", "LABEL_1"]),
        ({"num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ({"id2label": {1: "b", 0: "a"}}, ["a", "b"]),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 2}, ["a", "b"]),
        ({"label2id": {"b": 1, "a": 0}}, ["a", "b"]),
        ({"label2id": {"b": "1", "a": "0"}, "id2label": {0: "a", 1: "b"}}, ["a", "b"]),
        ({"id2label": {0: 5, 1: 4}, "label2id": {"5": 0, "4": 1}}, ["5", "4"]),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"b": 1, "c": 0}}, ["a", "b"]),
        ({"id2label": {0: "same", 1: "same"}}, ["same", "same"]),
        ({"id2label": None, "label2id": None, "num_labels": None}, ["LABEL_0", "LABEL_1"]),
    ],
)
def test_labels_may_be_given_in_three_ways(given: dict[str, Any], names: list[str]) -> None:
    config = ConvBertConfig(**given)
    assert list(config.id2label.items()) == list(enumerate(names))
    assert config.num_labels == len(names)
    assert config.label2id == {name: index for index, name in enumerate(names)}


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1"], ["neg", "x", "y"]])
def test_the_label2id_that_transformers_leaves_beside_a_new_id2label_is_no_contradiction(
    names: list[str], tmp_path: Path
) -> None:
    """``from_pretrained(base, num_labels=3, id2label=...)`` keeps it, and predictions are named by id2label alone."""
    base = transformers.ConvBertConfig(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    id2label = {0: "neg", 1: "neu", 2: "pos"}
    theirs = transformers.ConvBertConfig.from_dict(base.to_dict(), num_labels=3, id2label=id2label)
    assert theirs.label2id.keys() != set(id2label.values())
    theirs.save_pretrained(tmp_path)
    ours = ConvBertConfig.from_pretrained(tmp_path)
    assert ours.id2label == theirs.id2label == id2label
    ours.save_pretrained(tmp_path)
    assert transformers.ConvBertConfig.from_pretrained(tmp_path).label2id == ours.label2id


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, r"num_labels \(3\) contradicts the 2 labels"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, "label2id .* contradicts id2label .* 'a'"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"b": 0, "c": 1}}, "label2id .* contradicts id2label .* 'b'"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"c": "one"}}, "label2id holds the class index 'one'"),
        ({"id2label": {0: "a", 2: "b"}}, r"without holes; it has \[0, 2\]"),
        ({"id2label": {}}, "without holes"),
        ({"id2label": {"zero": "a"}}, "class index 'zero'"),
        ({"label2id": {"a": 0.5}}, "class index 0.5"),
        ({"num_labels": 0}, r"num_labels \(0\)"),
        ({"num_labels": "3"}, r"num_labels \('3'\)"),
        ({"num_labels": 10**12}, r"num_labels \(1000000000000\) must be .* at most 1000000"),
        ({"id2label": ["a", "b"]}, r"id2label \(\['a', 'b'\]\) must map"),
        ({"id2label": {0: "\ud800"}}, "label '.ud800' holds half of a surrogate pair"),
        ({"label2id": 2}, r"label2id \(2\) must map"),
        ({"id2label": {"9" * 5000: "a"}}, "class index '999"),
    ],
)
def test_labels_that_contradict_each_other_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConvBertConfig(**given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "768"}, r"hidden_size \('768'\) must be a whole number"),
        ({"hidden_size": 768.0}, r"hidden_size \(768\.0\) must be a whole number"),
        ({"num_hidden_layers": True}, r"num_hidden_layers \(True\)"),
        ({"vocab_size": 0}, r"vocab_size \(0\) must be a whole number of at least 1"),
        ({"vocab_size": None}, r"vocab_size \(None\)"),
        ({"vocab_size": 10**12}, r"vocab_size \(1000000000000\) must be .* at most 2147483647"),
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers \(1000000000\) must be .* at most 256"),
        ({"layer_norm_eps": 10**400}, r"layer_norm_eps \(1000"),
        ({"layer_norm_eps": float("nan")}, r"layer_norm_eps \(nan\) must be a number"),
        ({"layer_norm_eps": "1e-12"}, r"layer_norm_eps \('1e-12'\)"),
        ({"initializer_range": float("inf")}, r"initializer_range \(inf\)"),
        ({"initializer_range": -0.02}, r"initializer_range \(-0\.02\)"),
        ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob \(1\.5\) must lie between 0 and 1"),
        ({"hidden_dropout_prob": None}, r"hidden_dropout_prob \(None\)"),
        ({"hidden_dropout_prob": "0.1"}, r"hidden_dropout_prob \('0\.1'\)"),
        ({"classifier_dropout": float("nan")}, r"classifier_dropout \(nan\)"),
        ({"pad_token_id": -1}, r"pad_token_id \(-1\) must be a token id"),
        ({"pad_token_id": "0"}, r"pad_token_id \('0'\)"),
        ({"pad_token_id": [0]}, r"pad_token_id \(\[0\]\)"),
        ({"eos_token_id": [0, "1"]}, r"eos_token_id \(\[0, '1'\]\)"),
        ({"pad_token_id": 30522}, r"pad_token_id \(30522\) lies outside .* below vocab_size \(30522\)"),
        ({"hidden_act": "gleu"}, r"hidden_act \('gleu'\) is unknown: choose one of .*gelu"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"problem_type": "ranking"}, r"problem_type \('ranking'\) is unknown"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "at least two labels.*'regression'"),
        ({"is_decoder": True}, r"is_decoder \(True\) is not supported .* must be False"),
        ({"add_cross_attention": True}, r"add_cross_attention \(True\) is not supported"),
        ({"is_decoder": 0}, r"is_decoder \(0\)"),
        ({"tie_word_embeddings": "yes"}, r"tie_word_embeddings \('yes'\)"),
        ({"extra": {"position_embedding_type": "relative_key"}}, r"position_embedding_type \('relative_key'\)"),
        ({"extra": {"is_encoder_decoder": True}}, r"is_encoder_decoder \(True\)"),
        ({"extra": {"pruned_heads": {"0": [1]}}}, "pruned_heads"),
        ({"extra": {"num_labels": 3}}, "extra holds 'num_labels'"),
        ({"conv_kernel_size": 8}, r"conv_kernel_size \(8\) must be odd.* 7 or 9"),
        ({"hidden_size": 100}, r"hidden_size \(100\) cannot be shared.* multiple of 12"),
        ({"num_groups": 5}, r"hidden_size \(768\) is no multiple of num_groups \(5\)"),
        ({"num_groups": 2, "intermediate_size": 3}, r"intermediate_size \(3\) is no multiple"),
    ],
)
def test_what_no_model_can_have_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConvBertConfig(**changes)


def test_supported_values_of_other_keys_are_taken() -> None:
    extra = {"position_embedding_type": "absolute", "is_encoder_decoder": False, "pruned_heads": {}}
    assert ConvBertConfig(extra=extra).to_dict().items() >= extra.items()


def test_a_misspelt_field_is_refused() -> None:
    with pytest.raises(TypeError, match="hiden_size"):
        ConvBertConfig(hiden_size=64)


def test_the_mixed_block_of_the_paper() -> None:
    """ConvBERT-base: 12 heads with γ = 2 leave 6 of 64 features each, and 6 convolution heads (section 4.2)."""
    config = ConvBertConfig()
    assert (config.n_mixed_heads, config.head_width, config.attention_width) == (6, 64, 384)
    assert ConvBertConfig(num_attention_heads=2, head_ratio=4).n_mixed_heads == 1


def test_loading_may_change_fields(tmp_path: Path) -> None:
    ConvBertConfig(id2label={0: "a", 1: "b", 2: "c"}, hidden_dropout_prob=0.2).save_pretrained(tmp_path)
    config = ConvBertConfig.from_pretrained(tmp_path, num_labels=4, hidden_dropout_prob=0.0)
    assert (config.num_labels, config.hidden_dropout_prob) == (4, 0.0)
    assert ConvBertConfig.from_pretrained(tmp_path, id2label={0: "x"}).label2id == {"x": 0}
    with pytest.raises(ConfigError, match=r"num_label \(4\) is no field"):
        ConvBertConfig.from_pretrained(tmp_path, num_label=4)


@pytest.mark.parametrize("content", [None, "{", "[1]", b"\xff\xfe{", "[" * 100_000])
def test_a_folder_without_a_readable_config_is_refused(tmp_path: Path, content: str | bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ConvBertConfig.from_pretrained(tmp_path)


def test_a_refused_value_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_act": "one\\ntwo"}')
    with pytest.raises(ConfigError, match=rf"config.json of {tmp_path}: hidden_act .*choose one of"):
        ConvBertConfig.from_pretrained(tmp_path)

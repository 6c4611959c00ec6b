"""Checkpoints that the tests of this folder share: tiny models of ours, and what TensorFlow itself wrote."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from convbert import ConvBertConfig, ConvBertForMaskedLM, ConvBertForSequenceClassification

TENSORFLOW = Path(__file__).parent / "data" / "tensorflow.zip"


@pytest.fixture(scope="session")
def tensorflow_exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that Transformers 4.46.3 and TensorFlow 2.17 wrote (make_tensorflow_exports.py)."""
    folder = tmp_path_factory.mktemp("tensorflow")
    with zipfile.ZipFile(TENSORFLOW) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def config() -> ConvBertConfig:
    return ConvBertConfig(
        vocab_size=17,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=10,
        max_position_embeddings=9,
        embedding_size=7,
        conv_kernel_size=3,
        num_groups=2,
        pad_token_id=0,
        initializer_range=0.3,
    )


@pytest.fixture
def classifier(config: ConvBertConfig) -> ConvBertForSequenceClassification:
    torch.manual_seed(0)
    return ConvBertForSequenceClassification(config).eval()


@pytest.fixture
def language_model(config: ConvBertConfig) -> ConvBertForMaskedLM:
    torch.manual_seed(1)
    return ConvBertForMaskedLM(config).eval()

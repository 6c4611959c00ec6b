"""Checkpoints of strangers: config, tokenizer, index and weights, each hostile in its own way."""

from __future__ import annotations

import pytest
from hypothesis import given

from tests.fuzz.targets import FEW, TARGETS, Files, checkpoint, old_bin, outcome, tensorflow

WITHOUT_WEIGHTS = {name: content for name, content in checkpoint().items() if name != "model.safetensors"}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("config", checkpoint()),
        ("safetensors", checkpoint()),
        ("vocab", {name: content for name, content in checkpoint().items() if name != "tokenizer.json"}),
        ("bin", {**WITHOUT_WEIGHTS, "pytorch_model.bin": old_bin()}),
        ("h5", tensorflow("ForQuestionAnswering")),
        ("tf1", tensorflow("tf1_dense")),
    ],
)
def test_undamaged_checkpoints_are_read(name: str, files: Files) -> None:
    assert outcome(TARGETS[name], files) == "ok"


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"jsonl", "parquet", "parquet_types"}))
def test_hostile_checkpoints(name: str) -> None:
    @FEW
    @given(TARGETS[name].files)
    def attempt(files: Files) -> None:
        outcome(TARGETS[name], files)

    attempt()

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convbert import ConvBertConfig, ConvBertTokenizer
from convbert.engine import Packed
from pipelines.errors import ModelError
from pipelines.heads import Results
from pipelines.heads.multiple_choice import MultipleChoice
from pipelines.models import plan_passes
from pipelines.sequences import Sequences
from tests.conftest import save_checkpoint
from tests.oracle import choose
from tests.pipelines.labelling import job, label


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, architecture="ConvBertForMultipleChoice")


def test_a_record_is_scored_as_transformers_scores_it_alone(model: Path, sentences: list[str]) -> None:
    prompts = sentences
    choices = [sentences[i : i + 1 + i % 5] or ["x"] for i in range(len(sentences))]
    column = label(job(model), text=prompts, choices=choices)["prediction"].to_pylist()
    lengths = {len({len(text) for text in texts}) for texts in choices}
    assert max(lengths) > 2  # records whose choices need padding
    for row, expected in zip(column, choose(model, prompts, choices), strict=True):
        np.testing.assert_allclose(row["scores"], expected, atol=1e-4)
        assert row["index"] == int(expected.argmax())
        assert row["score"] == row["scores"][row["index"]]


def test_what_else_is_in_the_block_changes_nothing(model: Path, sentences: list[str]) -> None:
    prompts, choices = sentences[:6], [sentences[i : i + 3] for i in range(6)]
    together = label(job(model), text=prompts, choices=choices)["prediction"].to_pylist()
    for i in range(6):
        alone = label(job(model), text=prompts[i : i + 1], choices=choices[i : i + 1])["prediction"].to_pylist()
        np.testing.assert_allclose(alone[0]["scores"], together[i]["scores"], atol=1e-5)


def test_logits_of_any_size_have_probabilities(model: Path) -> None:
    head = MultipleChoice(ConvBertConfig(), ConvBertTokenizer.from_pretrained(model), job(model))
    logits = np.array([[1000], [1001], [-1000], [-1001], [3e38]], np.float32)  # exp of them is inf or 0
    offsets = np.array([0, 2, 4, 5])
    packed = Packed(np.zeros(5, np.int32), np.arange(6))
    rows = head.to_arrow(Results(logits, offsets, Sequences(offsets, packed))).to_pylist()
    low, high = 1 / (1 + np.e), 1 / (1 + 1 / np.e)
    assert [row["index"] for row in rows] == [1, 0, 0]
    np.testing.assert_allclose(np.concatenate([row["scores"] for row in rows]), [low, high, high, low, 1], rtol=1e-5)


def test_long_choices_can_be_errors_but_not_windows(model: Path) -> None:
    result = label(
        job(model, long_text="error", max_length=12), text=["free", "free"], choices=[["the mail"], ["x", "x " * 20]]
    )
    assert result["error"].to_pylist() == [None, "the text has 24 tokens, more than the model's 12"]
    with pytest.raises(ModelError, match="cannot be labelled in windows"):
        plan_passes(job(model, long_text="window"))


@pytest.mark.parametrize("lack", ["padding_side", "pad_token"])
def test_choices_need_a_tokenizer_that_pads_on_the_right(lack: str, tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path, architecture="ConvBertForMultipleChoice")
    if lack == "padding_side":
        (model / "tokenizer_config.json").write_text('{"padding_side": "left"}')
    else:
        (model / "vocab.txt").write_text((model / "vocab.txt").read_text().replace("[PAD]", "[unused]"))
    with pytest.raises(ModelError, match="choices are padded on the right: give a tokenizer with a pad_token"):
        plan_passes(job(model))

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ModelError
from pipelines.models import plan_passes
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

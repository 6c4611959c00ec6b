from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ModelError
from pipelines.inference_form import shaped
from pipelines.models import plan_passes
from pipelines.online import OnlinePredictor, Request, plan_service
from pipelines.serve_spec import ServeSpec
from pipelines.serving import Model, describe
from tests.conftest import save_checkpoint
from tests.oracle import fill, pseudo_log_likelihood
from tests.pipelines.labelling import job, label


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, architecture="ConvBertForMaskedLM")


def test_masks_are_filled_as_in_transformers(model: Path, sentences: list[str]) -> None:
    texts = [text.replace("offer", "[MASK]") for text in sentences if "offer" in text]
    column = label(job(model, top_k=4), text=texts)["prediction"].to_pylist()
    expected = fill(model, texts, top_k=4)
    assert {len(masks) for masks in expected} > {1}
    for row, masks in zip(column, expected, strict=True):
        assert len(row["masks"]) == len(masks)
        for ours, theirs in zip(row["masks"], masks, strict=True):
            assert [(w["token"], w["id"]) for w in ours] == [(w["token"], w["id"]) for w in theirs]
            np.testing.assert_allclose([w["score"] for w in ours], [w["score"] for w in theirs], atol=1e-5)


def test_texts_without_a_mask_say_so(model: Path) -> None:
    result = label(job(model), text=["free mail", "free [MASK]", None])
    assert result["error"].to_pylist() == ["the text has no [MASK]", None, "missing"]
    assert [len(words) for words in result["prediction"][1].as_py()["masks"]] == [5]


def test_a_mask_that_was_cut_off_is_told_from_one_that_is_not_there(model: Path) -> None:
    result = label(job(model, max_length=8), text=["free mail " * 9 + "[MASK]", "free mail"])
    assert result["error"].to_pylist() == [
        "the text has no [MASK] in its first 8 tokens: long_text window reads the rest",
        "the text has no [MASK]",
    ]


def test_a_text_that_is_cut_on_the_left_has_its_last_masks_filled(model: Path) -> None:
    settings = {"model_max_length": 8, "truncation_side": "left"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    texts = ["the [MASK] free mail offer now [MASK] [MASK]", "[MASK] mail" + " offer" * 9]
    passes = plan_service({"words": str(model)}, {})
    (told,) = describe(ServeSpec.of({"head": {"words": str(model)}}), passes, device="cpu", precision="fp32")["heads"]
    (answer,) = OnlinePredictor(passes)([Request(tuple({"text": text} for text in texts), (("words", ()),))])
    assert answer.rows[1]["error"] == "the text has no [MASK] in its last 8 tokens: long_text window reads the rest"
    rows, records = [answer.rows[0]["words"]], [{"text": texts[0]}]
    (found,) = shaped("fill-mask", rows, records, head=told, parameters={}, is_list=True)
    (expected,) = fill(model, texts[:1], top_k=5)
    filled = ("the [MASK] free mail offer now {} [MASK]", "the [MASK] free mail offer now [MASK] {}")
    for masks, theirs, sentence in zip(found, expected, filled, strict=True):
        assert [word["sequence"] for word in masks] == [sentence.format(word["token"]) for word in theirs]


def test_windows_fill_every_mask_once(model: Path) -> None:
    text = "the [MASK] mail offer " * 12
    row = label(job(model, long_text="window", max_length=16, stride=5, top_k=2), text=[text])["prediction"][0].as_py()
    assert len(row["masks"]) == 12


@pytest.mark.parametrize("n", [8, pytest.param(10, marks=pytest.mark.slow)])
def test_a_text_is_as_likely_as_its_tokens_behind_masks(model: Path, sentences: list[str], n: int) -> None:
    texts = sentences[:n]
    column = label(job(model, pseudo_log_likelihood=True), text=texts)["prediction"].to_pylist()
    for row, (total, count) in zip(column, pseudo_log_likelihood(model, texts), strict=True):
        np.testing.assert_allclose(row["pseudo_log_likelihood"], total, rtol=1e-4, atol=1e-4)
        assert row["tokens"] == count
        if count:
            np.testing.assert_allclose(row["pseudo_perplexity"], np.exp(-total / count), rtol=1e-3)
        else:
            assert row["pseudo_perplexity"] is None


def test_windows_score_every_token_once(model: Path) -> None:
    spec = job(model, pseudo_log_likelihood=True, long_text="window", max_length=16, stride=5)
    assert label(spec, text=["the free mail " * 20])["prediction"][0].as_py()["tokens"] == 60


def test_a_mask_has_the_tokenizer_s_name(model: Path) -> None:
    vocab = (model / "vocab.txt").read_text(encoding="utf-8").replace("[MASK]", "<mask>")
    (model / "vocab.txt").write_text(vocab, encoding="utf-8")
    (model / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<mask>"}), encoding="utf-8")
    spec = ServeSpec.of({"head": {"words": str(model)}})
    passes = plan_service(spec.urls, {})
    (told,) = describe(spec, passes, device="cpu", precision="fp32")["heads"]
    assert told["mask_token"] == "<mask>"
    predictor, _ = Model._load(spec, passes, "cpu", "fp32")
    assert predictor._worked == {passes[0].encoding.name}  # the first request had a mask to fill


def test_a_tokenizer_without_a_mask_is_refused(model: Path) -> None:
    vocab = (model / "vocab.txt").read_text(encoding="utf-8").replace("[MASK]", "[unused]")
    (model / "vocab.txt").write_text(vocab, encoding="utf-8")
    (model / "tokenizer_config.json").write_text(json.dumps({"mask_token": None}), encoding="utf-8")
    with pytest.raises(ModelError, match="no mask_token"):
        plan_passes(job(model))

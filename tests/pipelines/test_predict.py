from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import transformers

from convbert.engine import PackedEncoder
from pipelines.errors import ModelError
from pipelines.models import plan_passes
from pipelines.predict import N_TOKENS, Predictor
from pipelines.spec import JobSpec
from tests.conftest import save_checkpoint
from tests.oracle import classify
from tests.pipelines.labelling import job, label


def spec(**heads: Path) -> JobSpec:
    return job(head={name: str(url) for name, url in heads.items()})


def predicted(texts: list[str | None], spec: JobSpec) -> pa.Table:
    return label(spec, text=texts)


def test_every_row_gets_what_transformers_gives_its_text_alone(checkpoint: Path, sentences: list[str]) -> None:
    texts: list[str | None] = [*sentences[:5], None, *sentences[5:], None]
    result = predicted(texts, spec(prediction=checkpoint))
    answers = iter(classify(checkpoint, [text for text in texts if text is not None]))
    for text, row in zip(texts, result["prediction"].to_pylist(), strict=True):
        if text is None:
            assert row is None
            continue
        expected = next(answers)
        assert row["label"] == expected["label"]
        np.testing.assert_allclose(row["scores"], expected["scores"], atol=1e-4)
        np.testing.assert_allclose(row["score"], expected["score"], atol=1e-4)


def test_heads_on_one_encoder_and_on_another_agree_with_each_alone(
    checkpoint: Path, sentences: list[str], tmp_path: Path
) -> None:
    other = save_checkpoint(tmp_path / "other", seed=5)
    together = predicted(list(sentences), spec(a=checkpoint, b=other, c=checkpoint))
    assert together["a"].to_pylist() == together["c"].to_pylist()
    for name, url in {"a": checkpoint, "b": other}.items():
        alone = predicted(list(sentences), spec(prediction=url))["prediction"]
        assert together[name].to_pylist() == alone.to_pylist()


def test_a_shared_encoder_runs_once(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of two tasks in folders of their own, whose encoders hold the same weights, and a third with another."""
    tagger = save_checkpoint(tmp_path / "tagger", architecture="ConvBertForTokenClassification")
    tagging = transformers.ConvBertForTokenClassification.from_pretrained(tagger)
    classifier = transformers.ConvBertForSequenceClassification.from_pretrained(checkpoint)
    tagging.convbert.load_state_dict(classifier.convbert.state_dict())
    tagging.save_pretrained(tagger)
    other = save_checkpoint(tmp_path / "other", seed=5)
    calls = []
    original = PackedEncoder.__call__
    monkeypatch.setattr(PackedEncoder, "__call__", lambda self, batch: calls.append(1) or original(self, batch))
    shared = spec(a=checkpoint, b=tagger)
    assert [[head.name for head in one.heads] for one in plan_passes(shared)] == [["a", "b"]]
    result = predicted(["free mail"], shared)
    assert len(calls) == 1
    assert None not in (*result["a"].to_pylist(), *result["b"].to_pylist())
    predicted(["free mail"], spec(a=checkpoint, b=tagger, c=other))
    assert len(calls) == 3


def test_tokens_are_counted_by_row(checkpoint: Path) -> None:
    assert predicted(["free mail", None, ""], spec(prediction=checkpoint))[N_TOKENS].to_pylist() == [4, 0, 2]


def test_a_block_of_failures_passes(checkpoint: Path) -> None:
    result = predicted([None, None], spec(prediction=checkpoint))
    assert result["prediction"].to_pylist() == [None, None]


def test_weights_that_changed_since_planning_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    passes = plan_passes(spec(prediction=folder))
    stale = [replace(p, heads=tuple(replace(head, fingerprint="0" * 64) for head in p.heads)) for p in passes]
    with pytest.raises(ModelError, match="have changed since the job was planned"):
        Predictor(stale)

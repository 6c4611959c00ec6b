from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from convbert import ConvBertError, InputError
from convbert.engine import Packed, PackedEncoder
from pipelines import predict
from pipelines.decode import decode
from pipelines.encode import encode
from pipelines.errors import DeviceError, ModelError, RunError
from pipelines.models import plan_passes
from pipelines.predict import Predictor
from pipelines.results import N_TOKENS
from pipelines.spec import JobSpec
from tests.conftest import save_checkpoint
from tests.oracle import classify
from tests.pipelines.breaking import break_the_encoder, zebra
from tests.pipelines.labelling import block, job, label


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


def test_models_compute_in_the_precision_and_under_the_budget_that_is_asked_for(checkpoint: Path) -> None:
    passes = plan_passes(spec(prediction=checkpoint))
    encoded = encode(block(text=["free mail", "the offer"]), [passes[0].encoding])
    scores = {}
    for precision in ("fp32", "bf16", "int8"):
        predictor = Predictor(passes, precision=precision, max_batch_tokens=40)
        assert predictor.max_batch_tokens == 40
        scores[precision] = [row["score"] for row in decode(predictor(encoded), passes)["prediction"].to_pylist()]
    assert len({tuple(its) for its in scores.values()}) == 3
    for its in scores.values():
        np.testing.assert_allclose(its, scores["fp32"], atol=0.1)


def test_a_check_runs_every_model(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = save_checkpoint(tmp_path / "other", seed=5)
    predictor = Predictor(plan_passes(spec(a=checkpoint, b=other)))
    sizes = break_the_encoder(
        monkeypatch, lambda batch: RuntimeError("the context is lost") if len(sizes) > 1 else None
    )
    with pytest.raises(RuntimeError, match="the context is lost"):
        predictor.check()
    assert sizes == [1, 1]


def test_a_shared_encoder_runs_once(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of two tasks in folders of their own, whose encoders hold the same weights, and a third with another."""
    tagger = save_checkpoint(tmp_path / "tagger", architecture="ConvBertForTokenClassification")
    tagging = transformers.ConvBertForTokenClassification.from_pretrained(tagger)
    classifier = transformers.ConvBertForSequenceClassification.from_pretrained(checkpoint)
    tagging.convbert.load_state_dict(classifier.convbert.state_dict())
    tagging.save_pretrained(tagger)
    other = save_checkpoint(tmp_path / "other", seed=5)
    n_tokens = []
    original = PackedEncoder.__call__

    def counting(self: PackedEncoder, batch: Packed, *wanted: Any, **settings: Any) -> torch.Tensor:
        n_tokens.append(len(batch.input_ids))
        return original(self, batch, *wanted, **settings)

    monkeypatch.setattr(PackedEncoder, "__call__", counting)
    shared = spec(a=checkpoint, b=tagger)
    assert [[head.name for head in one.heads] for one in plan_passes(shared)] == [["a", "b"]]
    result = predicted(["free mail"], shared)
    assert n_tokens == [1, 4]  # the check at the start, and the text
    assert None not in (*result["a"].to_pylist(), *result["b"].to_pylist())
    predicted(["free mail"], spec(a=checkpoint, b=tagger, c=other))
    assert sorted(n_tokens[2:]) == [1, 1, 4, 4]


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


def test_a_record_on_which_the_model_fails_is_marked_and_the_others_are_as_without_it(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["free mail", "zebra", "the offer now", "x", "a z", "mail " * 40, "12"]
    both = spec(a=checkpoint, b=checkpoint)
    expected = predicted([None if "z" in text else text for text in texts], both)
    break_the_encoder(monkeypatch, zebra)
    result = predicted(texts, both)
    reason = "a, b: the model failed on this record: RuntimeError: no kernel for z"
    assert result["error"].to_pylist() == [reason if "z" in text else None for text in texts]
    for name in ("a", "b", N_TOKENS):
        assert result[name].equals(expected[name])


def test_a_block_of_nothing_but_bad_records_passes_where_the_model_works(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_the_encoder(monkeypatch, zebra)
    result = predicted(["z", "zz", None], spec(prediction=checkpoint))
    assert result["prediction"].to_pylist() == [None] * 3
    assert result["error"].null_count == 0


def test_a_record_too_large_for_the_device_is_marked(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["mail " * n for n in (3, 40, 5, 90, 7)]
    expected = predicted([*texts[:3], None, texts[4]], spec(prediction=checkpoint))
    no_memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    break_the_encoder(monkeypatch, lambda batch: no_memory if len(batch.input_ids) > 75 else None)
    result = predicted(texts, spec(prediction=checkpoint))
    reason = "prediction: the model failed on this record: OutOfMemoryError: the device has too little memory"
    assert result["error"].to_pylist() == [None, None, None, reason, None]
    assert result["prediction"].equals(expected["prediction"])  # 42 + 9 + 7 + 5 tokens in one batch of at most 100


def test_a_model_that_fails_on_everything_is_one_line(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = break_the_encoder(monkeypatch, lambda batch: ValueError("no") if len(batch.input_ids) > 1 else None)
    with pytest.raises(RunError, match="prediction: the model fails on any record, such as 16 .*: ValueError: no"):
        predicted(["mail"] * 500, spec(prediction=checkpoint))
    assert len(sizes) < 50


def test_records_that_fail_only_together_are_no_culprits(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_the_encoder(monkeypatch, lambda batch: ValueError("no") if len(batch.lengths) > 1 else None)
    with pytest.raises(RunError, match="prediction: the model fails on records together, but on none alone: V"):
        predicted(["mail", "offer"], spec(prediction=checkpoint))


@pytest.mark.parametrize("error", [AssertionError("not compiled with CUDA"), InputError("no such precision")], ids=repr)
def test_a_model_that_cannot_be_loaded_there_is_refused_at_the_start(
    error: Exception, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node whose GPU is declared and does not work; what we say ourselves is said as it is."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(predict, "load_engine", fail)
    message = "prediction: the model does not run on cpu: AssertionError: not compiled with CUDA|^no such precision$"
    with pytest.raises(ConvBertError if isinstance(error, ConvBertError) else ModelError, match=message):
        predicted(["mail"], spec(prediction=checkpoint))


def test_a_model_that_does_not_run_is_refused_at_the_start(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_the_encoder(monkeypatch, lambda batch: torch.AcceleratorError("CUDA error: no kernel image is available"))
    with pytest.raises(ModelError, match="prediction: the model does not run on cpu: AcceleratorError: CUDA error: no"):
        Predictor(plan_passes(spec(prediction=checkpoint)))


def test_a_lost_device_is_not_blamed_on_records(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported")
    sizes = break_the_encoder(monkeypatch, lambda batch: lost if len(batch.input_ids) > 1 else None)
    with pytest.raises(DeviceError, match="device-side assert triggered: only a new process can go on"):
        predicted(["mail"], spec(prediction=checkpoint))
    assert len(sizes) == 2

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from convbert import ConvBertConfig, ConvBertTokenizer
from convbert.engine import Packed
from pipelines.heads import Results
from pipelines.heads.sequence_classification import SequenceClassification
from pipelines.sequences import Sequences
from tests.conftest import save_checkpoint, with_labels
from tests.oracle import classify
from tests.pipelines.labelling import job, label

PROBLEMS: dict[str, dict[str, Any]] = {
    "single": with_labels("a", "b", "c"),
    "multi": {**with_labels("a", "b", "c"), "problem_type": "multi_label_classification"},
    "numbers": {**with_labels("x", "y"), "problem_type": "regression"},
    "number": {**with_labels("x"), "problem_type": "regression"},
    "lone": with_labels("x"),
}


@pytest.fixture(params=PROBLEMS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, **PROBLEMS[request.param])


def assert_equal(column: pa.ChunkedArray, expected: list[dict[str, Any]]) -> None:
    for ours, theirs in zip(column.to_pylist(), expected, strict=True):
        assert ours["label"] == theirs["label"]
        np.testing.assert_allclose(ours["score"], theirs["score"], atol=1e-4)
        np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-4)


def test_every_problem_type_is_scored_as_in_transformers(model: Path, sentences: list[str]) -> None:
    assert_equal(label(job(model), text=sentences)["prediction"], classify(model, sentences))


def test_pairs_are_scored_as_in_transformers(checkpoint: Path, sentences: list[str]) -> None:
    pairs = [text or "x" for text in sentences[::-1]]  # Transformers takes a lone text with an empty pair for no pair
    column = label(job(checkpoint, text_pair_column="other"), text=sentences, other=pairs)["prediction"]
    assert_equal(column, classify(checkpoint, sentences, pairs))


def test_multi_label_names_what_reaches_the_threshold(sentences: list[str], tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path, **PROBLEMS["multi"])
    for threshold in (0.5, 0.9):
        for row in label(job(model, threshold=threshold), text=sentences)["prediction"].to_pylist():
            expected = [name for name, score in zip("abc", row["scores"], strict=True) if score >= threshold]
            assert row["labels"] == expected
    assert len({len(row["labels"]) for row in label(job(model), text=sentences)["prediction"].to_pylist()}) > 1


@pytest.mark.parametrize("top_k", [1, 2, 99])
def test_the_highest_scores_can_stand_for_all(top_k: int, sentences: list[str], tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path, **PROBLEMS["single"])
    columns = label(job(model, top_k=top_k), text=sentences)["prediction"].to_pylist()
    for row, full in zip(columns, label(job(model), text=sentences)["prediction"].to_pylist(), strict=True):
        ranked = sorted(zip("abc", full["scores"], strict=True), key=lambda pair: -pair[1])[:top_k]
        assert [(entry["label"], entry["score"]) for entry in row["top"]] == ranked
        assert "scores" not in row


def windows_of(text: str, checkpoint: Path, *, max_length: int, stride: int) -> list[tuple[list[int], int]]:
    """Ids of each window, and how many of its tokens no other window counts, by plain counting."""
    ids = ConvBertTokenizer.from_pretrained(checkpoint)(text).input_ids[1:-1]
    room, windows, start = max_length - 2, [], 0
    while True:
        windows.append(([2, *ids[start : start + room], 3], start, min(start + room, len(ids))))
        if start + room >= len(ids):
            break
        start += room - stride
    owner = [0] * len(ids)
    for number, (_, first, _) in enumerate(windows[1:], start=1):  # a later window takes over in mid overlap
        owner[first + stride - stride // 2 :] = [number] * len(owner[first + stride - stride // 2 :])
    counts = [owner.count(number) for number in range(len(windows))]
    counts[0] += 1  # [CLS]
    counts[-1] += 1  # [SEP]
    return [(window, count) for (window, _, _), count in zip(windows, counts, strict=True)]


@pytest.mark.parametrize(
    "stride", [pytest.param(0, marks=pytest.mark.slow), 7, pytest.param(10, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_windows_are_joined_by_their_logits(pooling: str, stride: int, checkpoint: Path, sentences: list[str]) -> None:
    import torch
    import transformers

    spec = job(checkpoint, long_text="window", max_length=24, stride=stride, window_pooling=pooling)
    column = label(spec, text=sentences)["prediction"]
    oracle = transformers.ConvBertForSequenceClassification.from_pretrained(checkpoint).eval()
    for text, row in zip(sentences, column.to_pylist(), strict=True):
        windows = windows_of(text, checkpoint, max_length=24, stride=stride)
        with torch.inference_mode():
            logits = torch.stack([oracle(torch.tensor([ids])).logits[0] for ids, _ in windows])
        weights = torch.tensor([float(count) for _, count in windows])[:, None]
        joined = logits.max(0).values if pooling == "max" else (logits * weights).sum(0) / weights.sum()
        np.testing.assert_allclose(row["scores"], joined.softmax(-1), atol=1e-4)


def test_the_column_is_the_contract() -> None:
    head = SequenceClassification(ConvBertConfig(), object(), job(model="m"))  # type: ignore[arg-type]
    fields = [("label", pa.string()), ("score", pa.float32()), ("scores", pa.list_(pa.float32()))]
    assert head.schema == pa.struct(fields)


def test_counts_are_by_label(checkpoint: Path, sentences: list[str], tmp_path: Path) -> None:
    for name, values in (("single", "label"), ("multi", "labels"), ("number", None)):
        model = save_checkpoint(tmp_path / name, **PROBLEMS[name])
        from pipelines.models import plan_passes

        column = label(job(model), text=sentences)["prediction"].combine_chunks()
        counts = plan_passes(job(model))[0].heads[0].head.counts(column)
        listed = [row[values] if values == "labels" else [row[values]] for row in column.to_pylist()] if values else []
        flat = [entry for entries in listed for entry in entries]
        assert counts == {entry: flat.count(entry) for entry in set(flat)}


def test_logits_beyond_what_exp_takes_are_scored() -> None:
    head = SequenceClassification(ConvBertConfig(), object(), job(model="m"))  # type: ignore[arg-type]
    packed = Packed(np.zeros(2, np.int32), np.arange(3))
    logits = np.array([[1000, 998], [-1000, 0]], np.float32)
    rows = head.to_arrow(Results(logits, np.arange(3), Sequences(np.arange(3), packed))).to_pylist()
    assert [row["scores"] for row in rows] == [pytest.approx([0.8808, 0.1192], abs=1e-4), [0, 1]]

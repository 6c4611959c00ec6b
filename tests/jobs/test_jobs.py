"""Every job as its script runs it: shards with errors among them, each column against Transformers text by text."""

from __future__ import annotations

import gzip
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import save_checkpoint, with_labels
from tests.oracle import answer, choose, classify, embed, fill, pseudo_log_likelihood, tag

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROOT = Path(__file__).parents[2]
Row = dict[str, Any]


def start(script: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a script of jobs/ in this process, on the cluster of the test session; its exit status."""
    monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "jobs" / script), run_name="__main__")
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture
def records(sentences: list[str]) -> list[Row]:
    """Texts of mixed lengths with everything that a head may read."""
    return [
        {
            "id": f"r{number}",
            "text": f"{text} [MASK]" if len(text) < 200 else f"[MASK] {text}",
            "question": "the free mail",
            "context": f"offer {text}",
            "choices": sentences[number : number + 1 + number % 4],
        }
        for number, text in enumerate(sentences)
    ]


@pytest.fixture
def corpus(records: list[Row], tmp_path: Path) -> Path:
    """The same records in three kinds of shard, with broken ones before, between and after them."""
    folder = tmp_path / "in"
    folder.mkdir()
    broken = [{"id": "null", **dict.fromkeys(("text", "question", "context", "choices"))}]
    pq.write_table(pa.Table.from_pylist([*broken, *records, *broken]), folder / "a.parquet", row_group_size=5)
    lines = [json.dumps(record) for record in records]
    lines[2:2] = ["{broken", '{"id": "none"}', '{"text": 1, "question": 1, "context": 1, "choices": "x"}']
    (folder / "b.jsonl").write_text("\n".join(lines))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(["[]", *lines[:9]]).encode()))
    return folder


def texts(rows: list[Row]) -> list[str]:
    return [row["text"] for row in rows]


def compare_classification(model: Path, rows: list[Row], column: list[Row]) -> None:
    for ours, theirs in zip(column, classify(model, texts(rows)), strict=True):
        assert ours["label"] == theirs["label"]
        np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-4)


def compare_entities(model: Path, rows: list[Row], column: list[Row]) -> None:
    for ours, theirs in zip(column, tag(model, texts(rows), aggregation="simple"), strict=True):
        assert [{**entity, "score": 0} for entity in ours["entities"]] == [{**entity, "score": 0} for entity in theirs]
        np.testing.assert_allclose(
            [e["score"] for e in ours["entities"]], [e["score"] for e in theirs], atol=1e-4
        )  # fmt: skip


def compare_answers(model: Path, rows: list[Row], column: list[Row]) -> None:
    asked, read = [row["question"] for row in rows], [row["context"] for row in rows]
    for ours, theirs in zip(column, answer(model, asked, read, max_length=128, stride=64), strict=True):
        assert {name: ours[name] for name in ("answer", "start", "end")} == {
            name: theirs[name] for name in ("answer", "start", "end")
        }
        np.testing.assert_allclose(ours["score"], theirs["score"], rtol=1e-3)


def compare_choices(model: Path, rows: list[Row], column: list[Row]) -> None:
    for ours, theirs in zip(column, choose(model, texts(rows), [row["choices"] for row in rows]), strict=True):
        np.testing.assert_allclose(ours["scores"], theirs, atol=1e-4)
        assert ours["index"] == int(theirs.argmax())


def compare_masks(model: Path, rows: list[Row], column: list[Row]) -> None:
    for ours, theirs in zip(column, fill(model, texts(rows), top_k=5), strict=True):
        assert [[w["id"] for w in words] for words in ours["masks"]] == [[w["id"] for w in words] for words in theirs]


def compare_likelihoods(model: Path, rows: list[Row], column: list[Row]) -> None:
    for ours, (total, count) in zip(column, pseudo_log_likelihood(model, texts(rows)), strict=True):
        np.testing.assert_allclose(ours["pseudo_log_likelihood"], total, rtol=1e-4, atol=1e-4)
        assert ours["tokens"] == count


def compare_vectors(model: Path, rows: list[Row], column: list[Row]) -> None:
    for ours, hidden in zip(column, embed(model, texts(rows)), strict=True):
        np.testing.assert_allclose(ours["embedding"], hidden.mean(0).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("script", "architecture", "flags", "compare"),
    [
        pytest.param(
            "classify_corpus.py",
            "ConvBertForSequenceClassification",
            [],
            compare_classification,
            marks=pytest.mark.slow,
        ),
        pytest.param("tag_corpus.py", "ConvBertForTokenClassification", [], compare_entities, marks=pytest.mark.slow),
        ("answer_corpus.py", "ConvBertForQuestionAnswering", [], compare_answers),
        ("choose_corpus.py", "ConvBertForMultipleChoice", [], compare_choices),
        ("fill_masks.py", "ConvBertForMaskedLM", [], compare_masks),
        pytest.param(
            "fill_masks.py",
            "ConvBertForMaskedLM",
            ["--pseudo-log-likelihood"],
            compare_likelihoods,
            marks=pytest.mark.slow,
        ),
        ("embed_corpus.py", "ConvBertModel", [], compare_vectors),
    ],
)
def test_a_job_fills_its_column_with_transformers_answers(
    script: str,
    architecture: str,
    flags: list[str],
    compare: Callable[[Path, list[Row], list[Row]], None],
    records: list[Row],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = with_labels("O", "B-X", "I-X") if architecture == "ConvBertForTokenClassification" else {}
    model = save_checkpoint(tmp_path / "model", architecture=architecture, **labels)
    arguments = ["--input", corpus, "--output", tmp_path / "out", "--model", model, "--unit-rows", 8, *flags]
    assert start(script, *arguments, "--max-failed-fraction", 0.3, monkeypatch=monkeypatch) == 0
    rows = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out").glob("part-*"))]).to_pylist()
    n = len(records)
    wanted = ["null", *(f"r{i}" for i in range(n)), "null", "r0", "r1", None, "none", None]
    wanted += [*(f"r{i}" for i in range(2, n)), None, "r0", "r1", None, "none", None, *(f"r{i}" for i in range(2, 6))]
    assert len(rows) == len(wanted)
    assert all(row["id"] == name for row, name in zip(rows, wanted, strict=True) if name)
    is_good = [name is not None and name.startswith("r") for name in wanted]
    assert [row["error"] is None for row in rows] == is_good
    assert [row["prediction"] is not None for row in rows] == is_good
    good = [row for row in rows if row["error"] is None]
    by_id = {record["id"]: record for record in records}
    compare(model, [by_id[row["id"]] for row in good], [row["prediction"] for row in good])


def test_every_job_refuses_a_checkpoint_for_another_task(
    checkpoint: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--input", corpus, "--output", tmp_path / "out"]
    for script in ("tag_corpus.py", "answer_corpus.py", "choose_corpus.py", "fill_masks.py"):
        assert start(script, *arguments, "--model", checkpoint, monkeypatch=monkeypatch) == 1
        assert "--head prediction is for text-classification: start classify_corpus.py" in capsys.readouterr().err
    tagger = save_checkpoint(tmp_path / "tagger", architecture="ConvBertForTokenClassification")
    assert start("classify_corpus.py", *arguments, "--model", tagger, monkeypatch=monkeypatch) == 1
    assert "start tag_corpus.py" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_result.json"]

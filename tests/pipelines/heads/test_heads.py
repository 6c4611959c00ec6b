"""What all heads have in common: the schema that each declares is what it gives, and what docs/jobs.md says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.heads import HEADS, Head
from pipelines.models import plan_passes
from tests.conftest import save_checkpoint, with_labels
from tests.pipelines.labelling import job, label

PAGE = (Path(__file__).parents[3] / "docs/jobs.md").read_text(encoding="utf-8")
MULTI_LABEL = {**with_labels("a", "b"), "problem_type": "multi_label_classification"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "classifier": ("ConvBertForSequenceClassification", {}, {}, "Text classification"),
    "top": ("ConvBertForSequenceClassification", {}, {"top_k": 1}, "Text classification"),
    "multi-label": ("ConvBertForSequenceClassification", MULTI_LABEL, {}, "Text classification"),
    "number": ("ConvBertForSequenceClassification", {"problem_type": "regression"}, {}, "Text classification"),
    "tagger": ("ConvBertForTokenClassification", with_labels("O", "B-X"), {}, "Token classification"),
    "reader": ("ConvBertForQuestionAnswering", {}, {}, "Question answering"),
    "readers": ("ConvBertForQuestionAnswering", {}, {"top_k": 3}, "Question answering"),
    "chooser": ("ConvBertForMultipleChoice", {}, {}, "Multiple choice"),
    "filler": ("ConvBertForMaskedLM", {}, {}, "Fill-mask"),
    "scorer": ("ConvBertForMaskedLM", {}, {"pseudo_log_likelihood": True}, "Fill-mask"),
    "encoder": ("ConvBertModel", {}, {}, "Embeddings"),
    "half": ("ConvBertModel", {}, {"embedding_type": "float16", "pooling": "max"}, "Embeddings"),
}
RECORD = {"text": "free [MASK]", "question": "who", "context": "the free mail", "choices": ["a", "b c"]}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Head, pa.Table, str]:
    """A head, what it gives for two records of which one has failed, and its section of the page."""
    architecture, config, flags, section = CASES[request.param]
    spec = job(save_checkpoint(tmp_path, architecture=architecture, **config), **flags)
    (encoder_pass,) = plan_passes(spec)
    head = encoder_pass.heads[0].head
    return head, label(spec, **{name: [RECORD[name], None] for name in head.inputs.columns}), section


def test_a_head_gives_the_type_that_it_declares(case: tuple[Head, pa.Table, str]) -> None:
    head, table, _ = case
    assert table["error"].to_pylist() == [None, "missing"]
    assert table["prediction"].type == head.schema
    assert [row is None for row in table["prediction"].to_pylist()] == [False, True]


SCORES: dict[str, Callable[[dict[str, Any]], dict[str, list[float]]]] = {
    "Text classification": lambda row: {"score": [row["score"]]},
    "Token classification": lambda row: {"score": [entity["score"] for entity in row["entities"]]},
    "Question answering": lambda row: {name: [row[name]] for name in ("score", "no_answer")},
    "Multiple choice": lambda row: {"score": [row["score"]]},
    "Fill-mask": lambda row: {"score": [words[0]["score"] for words in row["masks"]]},
    "Embeddings": lambda row: {"norm": [math.hypot(*row["embedding"])]},
}


def test_the_spread_of_what_it_gives_is_told(case: tuple[Head, pa.Table, str]) -> None:
    head, table, title = case
    [row, _] = table["prediction"].to_pylist()
    expected = SCORES[title](row) if "pseudo_perplexity" not in row else {}
    if "pseudo_perplexity" in row:
        expected = {"log10 of pseudo_perplexity": [math.log10(row["pseudo_perplexity"])]}
    if getattr(head, "is_regression", False):
        expected = {label: [number] for label, number in zip(head.labels, row["scores"], strict=True)}
    found = head.scores(table["prediction"].combine_chunks().drop_null())
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert (found[name].n, found[name].low) == (len(values), pytest.approx(min(values, default=0), rel=1e-3))
        scale = "share" if name in ("score", "no_answer") else "number"
        assert found[name].scale == scale
    nothing = head.scores(table["prediction"].combine_chunks().drop_null().slice(0, 0))
    assert all(histogram.n == 0 for histogram in nothing.values())


def test_the_page_has_a_row_for_every_field(case: tuple[Head, pa.Table, str]) -> None:
    head, _, title = case
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))
    documented = {field.name: rows.get(field.name, "").replace("float16", "float32") for field in head.schema}
    assert documented == {field.name: in_words(field.type).replace("float16", "float32") for field in head.schema}


def test_every_architecture_has_a_case() -> None:
    assert {architecture for architecture, *_ in CASES.values()} == set(HEADS)


def in_words(type_: pa.DataType) -> str:
    """A type as the page writes it."""
    if pa.types.is_list(type_):
        return f"list of {in_words(type_.value_type)}"
    if pa.types.is_struct(type_):
        return "{" + ", ".join(f"{field.name} {in_words(field.type)}" for field in _fields(type_)) + "}"
    return {"float": "float32", "halffloat": "float16"}.get(str(type_), str(type_))


def _fields(type_: pa.StructType) -> Iterator[pa.Field]:
    return (type_.field(number) for number in range(type_.num_fields))

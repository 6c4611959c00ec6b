from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convbert import ConvBertConfig, ConvBertTokenizer
from convbert.engine import Packed
from pipelines.heads import Results
from pipelines.heads.token_classification import TokenClassification
from pipelines.sequences import Sequences
from tests.conftest import save_checkpoint, with_labels
from tests.oracle import tag
from tests.pipelines.labelling import job, label

BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "bio", architecture="ConvBertForTokenClassification", **with_labels(*BIO))


def entities(model: Path, texts: list[str], **changes: Any) -> list[list[dict[str, Any]]]:
    return [row["entities"] for row in label(job(model, **changes), text=texts)["prediction"].to_pylist()]


def assert_equal(ours: list[list[dict[str, Any]]], theirs: list[list[dict[str, Any]]]) -> None:
    for found, expected in zip(ours, theirs, strict=True):
        assert [{**entity, "score": 0} for entity in found] == [{**entity, "score": 0} for entity in expected]
        np.testing.assert_allclose([e["score"] for e in found], [e["score"] for e in expected], atol=1e-4)


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
def test_entities_are_those_of_transformers(aggregation: str, model: Path, sentences: list[str]) -> None:
    expected = tag(model, sentences, aggregation=aggregation)
    assert len({entity["label"] for found in expected for entity in found}) > 1
    assert_equal(entities(model, sentences, aggregation=aggregation), expected)


def test_plain_labels_join_too(sentences: list[str], tmp_path: Path) -> None:
    names = with_labels("NOUN", "VERB", "O")
    model = save_checkpoint(tmp_path, architecture="ConvBertForTokenClassification", **names)
    assert_equal(entities(model, sentences), tag(model, sentences, aggregation="simple"))


def test_every_token_or_word_can_have_its_label(model: Path, sentences: list[str]) -> None:
    tokenizer = ConvBertTokenizer.from_pretrained(model)
    tokens = entities(model, sentences, aggregation="tokens")
    words = entities(model, sentences, aggregation="words")
    assert "O" in {entity["label"] for found in tokens for entity in found}
    for text, by_token, by_word in zip(sentences, tokens, words, strict=True):
        encoded = tokenizer(text, truncation=True, return_offsets_mapping=True)
        offsets, numbers = encoded["offset_mapping"][1:-1], encoded.word_ids()[1:-1]
        assert [(e["start"], e["end"]) for e in by_token] == offsets
        firsts = [i for i, number in enumerate(numbers) if i == 0 or number != numbers[i - 1]]
        lasts = [*(first - 1 for first in firsts[1:]), len(numbers) - 1]
        expected = [
            {**by_token[first], "end": offsets[last][1], "text": text[offsets[first][0] : offsets[last][1]]}
            for first, last in zip(firsts, lasts, strict=False)
        ]
        assert by_word == expected


def entities_of(*labels: str) -> list[str]:
    """The entities, as label and text, of a text whose characters have these labels."""
    names = sorted(set(labels))
    config = ConvBertConfig(id2label=dict(enumerate(names)))
    head = TokenClassification(config, object(), job(model="m"))  # type: ignore[arg-type]
    values = np.array([[0.5, names.index(name)] for name in labels], np.float32)
    spans = np.array([[i, i + 1, i] for i in range(len(labels))], np.int32)
    sequences = Sequences(np.array([0, 1]), Packed(np.zeros(len(labels), np.int32), np.array([0, len(labels)])), spans)
    (row,) = head.to_arrow(Results(values, np.array([0, len(labels)]), sequences, ["abcdefghij"])).to_pylist()
    return [f"{entity['label']} {entity['text']}" for entity in row["entities"]]


@pytest.mark.parametrize(("end", "single"), [("E", "S"), ("L", "U")], ids=["BIOES", "BILOU"])
def test_ends_and_single_labels_close_an_entity(end: str, single: str) -> None:
    labels = ["B-X", "I-X", f"{end}-X", "I-X", f"{single}-X", f"{single}-X", "O", "B-X", "B-X", f"{end}-X"]
    assert entities_of(*labels) == ["X abc", "X d", "X e", "X f", "X h", "X ij"]
    assert entities_of("I-X", f"{single}-X", "I-X") == ["X a", "X b", "X c"]


def test_a_dash_alone_is_no_prefix() -> None:
    assert entities_of("NOUN-SG", "NOUN-SG", "NOUN-PL", "b-X", "X-O") == ["NOUN-SG ab", "NOUN-PL c", "b-X d", "X-O e"]


def test_labels_can_be_left_out(model: Path, sentences: list[str]) -> None:
    everything = entities(model, sentences, ignore_label=[])
    some = entities(model, sentences, ignore_label=["O", "PER"])
    assert {entity["label"] for found in everything for entity in found} == {"O", "PER", "LOC"}
    assert some == [[entity for entity in found if entity["label"] == "LOC"] for found in everything]


@pytest.mark.parametrize("stride", [0, 5, 8])
def test_windows_label_every_token_once(stride: int, model: Path, sentences: list[str]) -> None:
    spec = {"long_text": "window", "max_length": 20, "stride": stride}
    windows = entities(model, sentences, aggregation="tokens", **spec)
    tokenizer = ConvBertTokenizer.from_pretrained(model)
    for text, found in zip(sentences, windows, strict=True):
        offsets = tokenizer(text, return_offsets_mapping=True, truncation=False)["offset_mapping"][1:-1]
        assert [(entity["start"], entity["end"]) for entity in found] == offsets
    joined = entities(model, sentences, aggregation="first", **spec)
    for found in joined:
        assert all(a["end"] <= b["start"] for a, b in pairwise(found))


def test_a_token_of_two_windows_gets_the_label_from_where_it_stands_deeper(model: Path) -> None:
    text = "the free mail offer now " * 8  # 40 tokens, windows of 18 + 2
    alone = [
        entities(model, [piece], aggregation="tokens")[0]
        for piece in (" ".join(text.split()[a : a + 18]) for a in (0, 10, 20, 30))
    ]
    found = entities(model, [text], aggregation="tokens", long_text="window", max_length=20, stride=8)[0]
    expected = [*alone[0][:14], *alone[1][4:14], *alone[2][4:14], *alone[3][4:]]
    assert [entity["label"] for entity in found] == [entity["label"] for entity in expected]

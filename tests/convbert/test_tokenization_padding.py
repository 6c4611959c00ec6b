"""What is encoded already becomes batches as Transformers makes them, also through its collators."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from convbert import BatchEncoding, ConvBertTokenizer, TokenizerError
from tests.conftest import VOCAB

TEXTS = ["free mail", "the offer is now", "a", ""]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConvBertTokenizer, transformers.ConvBertTokenizer]:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in VOCAB), encoding="utf-8")
    return ConvBertTokenizer(path, model_max_length=16), transformers.ConvBertTokenizer(
        vocab=str(path), model_max_length=16
    )


def assert_equal(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        if isinstance(values, list):
            assert values == theirs[name]
            continue
        assert type(values) is type(theirs[name])
        assert (values.dtype, values.shape) == (theirs[name].dtype, theirs[name].shape)
        assert (values == theirs[name]).all()


rows = st.lists(st.integers(5, 40), max_size=20)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(
    batch=st.lists(rows, min_size=1, max_size=4),
    others=st.lists(st.sampled_from(["token_type_ids", "attention_mask", "special_tokens_mask", "weights"])),
    padding=st.sampled_from([True, False, "longest", "max_length", "do_not_pad"]),
    max_length=st.none() | st.integers(1, 24),
    pad_to_multiple_of=st.sampled_from([None, 8]),
    padding_side=st.sampled_from([None, "left", "right"]),
    return_attention_mask=st.sampled_from([None, True, False]),
    form=st.sampled_from(["list", "batch", "one"]),
)
def test_as_transformers_does(
    both: tuple[ConvBertTokenizer, transformers.ConvBertTokenizer],
    batch: list[list[int]],
    others: list[str],
    form: str,
    **options: Any,
) -> None:
    given_rows: Any = [{"input_ids": row, **{name: [1] * len(row) for name in others}} for row in batch]
    if form == "batch":
        given_rows = {name: [row[name] for row in given_rows] for name in given_rows[0]}
    elif form == "one":
        given_rows = given_rows[0]
    if "attention_mask" in others:
        options["return_attention_mask"] = True  # where it is not asked for, Transformers leaves it as short as it is
    before = copy.deepcopy(given_rows)
    ours, theirs = both
    if form == "one" and not given_rows["input_ids"]:
        return  # Transformers gives an empty one back as it is
    mine = ours.pad(given_rows, **options)
    assert isinstance(mine, BatchEncoding)
    assert given_rows == before
    assert_equal(mine, theirs.pad(given_rows, verbose=False, **options))


@pytest.mark.parametrize("kind", ["pt", "np"])
@pytest.mark.parametrize("labels", [[1, 0, 1, 0], [[1, 0], [0, 1], [1, 1], [0, 0]]])
def test_tensors_of_what_was_encoded(both: Any, kind: str, labels: list[Any]) -> None:
    features = [
        [{**tokenizer(text), "labels": label} for text, label in zip(TEXTS, labels, strict=True)] for tokenizer in both
    ]
    assert_equal(*(one.pad(its, return_tensors=kind) for one, its in zip(both, features, strict=True)))


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_tensors_give_tensors(both: Any, kind: str) -> None:
    features = [
        [{name: values[0] for name, values in one(text, return_tensors=kind).items()} for text in TEXTS] for one in both
    ]
    assert_equal(*(one.pad(its) for one, its in zip(both, features, strict=True)))


def test_fractions_stay_what_they_are(both: Any) -> None:
    features = [{"input_ids": [5, 6], "label": 0.25}, {"input_ids": [7], "label": 1.0}]
    batch = both[0].pad(features, return_tensors="pt")
    assert_equal(batch, both[1].pad(features, return_tensors="pt"))
    assert batch["label"].dtype == torch.float32
    assert both[0].pad(features, return_tensors="np")["label"].tolist() == [0.25, 1.0]


def test_collators(both: Any) -> None:
    texts = [{**both[0](text), "label": place % 2} for place, text in enumerate(TEXTS)]
    words = [{**both[0](text), "labels": [place] * len(both[0](text)["input_ids"])} for place, text in enumerate(TEXTS)]
    for make, features in [
        (transformers.DataCollatorWithPadding, texts),
        (transformers.DataCollatorForTokenClassification, words),
    ]:
        assert_equal(*(make(one, pad_to_multiple_of=8)(copy.deepcopy(features)) for one in both))
    masked = []
    for one in both:
        torch.manual_seed(0)
        collate = transformers.DataCollatorForLanguageModeling(one, mlm_probability=0.5, seed=0)
        masked.append(collate([one(text, return_special_tokens_mask=True) for text in TEXTS]))
    assert_equal(*masked)
    assert (masked[0]["labels"] >= 0).any()


@pytest.mark.parametrize(
    ("encoded", "options", "message"),
    [
        ({"ids": [1]}, {}, "there is nothing to pad: give an encoding with input_ids"),
        ("a text", {}, "there is nothing to pad"),
        ([], {}, "there is nothing to pad"),
        ([{"input_ids": [1]}, {"input_ids": [1], "label": 1}], {}, "encoding 1 has ['input_ids', 'label'], but"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0]]}, {}, "row 0 has 2 input_ids, but 1 of token_type_ids"),
        ({"input_ids": [[1, 2], [1]], "attention_mask": [[1, 1]]}, {}, "must have as many rows as input_ids: 2"),
        ({"input_ids": [[1, 2], [1]], "attention_mask": [1, 1]}, {}, "row 0 of attention_mask is 1: give a list"),
        ({"input_ids": [1, 2], "attention_mask": 1}, {}, "row 0 of attention_mask is 1"),
        ({"input_ids": [[1, 2]], "attention_mask": None}, {}, "attention_mask (None) must have as many rows"),
        ({"input_ids": None}, {}, "row 0 of input_ids is None"),
        ({"input_ids": torch.tensor(3)}, {}, "row 0 of input_ids is 3"),
        ([{"input_ids": [3]}, {"input_ids": 4}], {}, "row 1 of input_ids is 4"),
        (
            [{"input_ids": [1], "labels": [1]}, {"input_ids": [1], "labels": [1, 2]}],
            {"return_tensors": "pt"},
            "the rows of labels have different lengths",
        ),
        ([{"input_ids": [1], "name": "x"}], {"return_tensors": "np"}, "name holds what is no number"),
        ([{"input_ids": [1]}], {"return_tensors": "tf"}, "choose 'pt' or 'np'"),
        ([{"input_ids": [1]}], {"padding": "shortest"}, "padding ('shortest') is unknown"),
    ],
)
def test_what_cannot_be_padded_is_told(both: Any, encoded: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=re.escape(message)):
        both[0].pad(encoded, **options)


def test_no_padding_token(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", encoding="utf-8")
    tokenizer = ConvBertTokenizer(tmp_path / "vocab.txt", pad_token=None)
    with pytest.raises(TokenizerError, match="padding needs a pad_token"):
        tokenizer.pad([{"input_ids": [4]}])
    assert tokenizer.pad({"input_ids": np.array([[4, 4]])}, padding=False)["input_ids"].tolist() == [[4, 4]]

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import transformers

from convbert import ConvBertTokenizer
from pipelines.encode import Encoding, Inputs, encode
from pipelines.errors import ModelError
from pipelines.sequences import Sequences, sequences_of
from tests.pipelines.labelling import block


def encoding(checkpoint: Path, **changes: Any) -> Encoding:
    fingerprint = ConvBertTokenizer.from_pretrained(checkpoint).fingerprint()
    values = {"inputs": Inputs("text", ("text",)), "max_length": 12, "fingerprint": fingerprint, **changes}
    return Encoding(name="0", tokenizer=str(checkpoint), **values)


def sequences(encoded: pa.Table, name: str = "0") -> Sequences:
    return sequences_of(encoded, name, pa.array(np.flatnonzero(encoded["error"].is_null().to_numpy())))


def lists(values: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [values[a:b].tolist() for a, b in pairwise(offsets)]


def ids(found: Sequences) -> list[list[int]]:
    return lists(found.packed.input_ids, found.packed.offsets)


def test_texts_become_the_ids_that_transformers_gives(checkpoint: Path, sentences: list[str]) -> None:
    oracle = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
    encoded = encode(block(text=sentences), [encoding(checkpoint)])
    assert ids(sequences(encoded)) == [oracle(text, truncation=True, max_length=12).input_ids for text in sentences]
    assert encoded.column_names == ["id", "error", "__ids_0"]


def test_a_tokenizer_that_changed_since_planning_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Actors that are up hold the planned weights: ids of another vocabulary would give wrong labels in silence."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    planned = encoding(folder)
    words = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:])]))
    with pytest.raises(ModelError, match="the tokenizer at .*copy has changed since the job was planned: start it ag"):
        encode(block(text=["free"]), [planned])
    assert ids(sequences(encode(block(text=["free"]), [encoding(folder)])))


def test_failed_rows_are_not_encoded(checkpoint: Path) -> None:
    encoded = encode(block(["broken", None, "broken"], text=[None, "free", "free"]), [encoding(checkpoint)])
    assert [row is None for row in encoded["__ids_0"].to_pylist()] == [True, False, True]
    assert encoded["error"].to_pylist() == ["broken", None, "broken"]


def test_a_block_of_failures_passes(checkpoint: Path) -> None:
    encoded = encode(block(["broken"], text=[None]), [encoding(checkpoint, needs_spans=True, needs_mask=True)])
    assert encoded["__ids_0"].to_pylist() == [None]


def test_long_texts_can_be_errors(checkpoint: Path) -> None:
    encoded = encode(block(text=["free " * 10, "free " * 11]), [encoding(checkpoint, long_text="error")])
    assert encoded["error"].to_pylist() == [None, "the text has 13 tokens, more than the model's 12"]


def test_pairs_are_told_apart_by_type(checkpoint: Path) -> None:
    oracle = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
    a, b = ["free mail", "the " * 20], ["offer", "now " * 9]
    found = sequences(encode(block(a=a, b=b), [encoding(checkpoint, inputs=Inputs("pair", ("a", "b")))]))
    expected = oracle(a, b, truncation=True, max_length=12)
    assert ids(found) == expected.input_ids
    assert found.packed.token_type_ids is not None
    assert lists(found.packed.token_type_ids, found.packed.offsets) == expected.token_type_ids


def test_long_texts_become_windows_that_count_each_token_once(checkpoint: Path, sentences: list[str]) -> None:
    oracle = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
    for stride in (0, 3, 4):
        windows = encoding(checkpoint, long_text="window", stride=stride, needs_spans=True)
        found = sequences(encode(block(text=sentences), [windows]))
        expected = oracle(sentences, truncation=True, max_length=12, stride=stride, return_overflowing_tokens=True)
        assert ids(found) == expected.input_ids
        assert np.diff(found.records).tolist() == np.bincount(expected.overflow_to_sample_mapping).tolist()
        assert found.spans is not None
        for row, text in enumerate(sentences):
            tokens = slice(found.tokens[row], found.tokens[row + 1])
            kept = found.spans[tokens][found.packed.is_counted[tokens]]
            offsets = oracle(text, return_offsets_mapping=True).offset_mapping
            assert [tuple(span) for span in kept[:, :2].tolist()] == offsets


def test_a_pair_in_windows_keeps_its_first_text_in_each(checkpoint: Path) -> None:
    oracle = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
    spec = encoding(checkpoint, inputs=Inputs("pair", ("a", "b")), long_text="window", stride=2)
    a, b = ["free", "the " * 6, "the " * 7], ["now " * 20, "now " * 5, "x"]
    encoded = encode(block(a=a, b=b), [spec])
    assert encoded["error"].to_pylist() == [None, None, "a has 7 tokens, which leaves b no room: the model takes 12"]
    found = sequences(encoded)
    expected = oracle(a[:2], b[:2], truncation="only_second", max_length=12, stride=2, return_overflowing_tokens=True)
    assert ids(found) == expected.input_ids
    n_windows = found.records[1]
    assert found.packed.n_counted[:n_windows].sum() == 1 + 1 + 1 + 20 + 1  # [CLS] free [SEP] now … [SEP]


def test_choices_are_padded_to_their_record(checkpoint: Path) -> None:
    choices = [["a b c", "a"], ["now"]]
    spec = encoding(checkpoint, inputs=Inputs("choices", ("text", "choices")))
    found = sequences(encode(block(text=["free", "mail"], choices=choices), [spec]))
    assert [len(row) for row in ids(found)] == [7, 7, 5]
    assert ids(found)[1][-2:] == [0, 0]
    assert found.packed.attended is not None
    assert found.packed.attended.tolist() == [7, 5, 5]
    assert found.records.tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"long_text": "window", "stride": 2},
        {"inputs": Inputs("pair", ("text", "b"))},
        {"inputs": Inputs("question", ("b", "text")), "needs_spans": True, "long_text": "window", "max_length": 40},
        {"inputs": Inputs("choices", ("text", "choices"))},
    ],
    ids=str,
)
def test_records_become_the_same_however_many_are_tokenised_at_a_time(
    changes: dict[str, Any], checkpoint: Path, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"text": sentences, "b": sentences[::-1], "choices": [[one, "mail"] for one in sentences]}
    read = changes.get("inputs", Inputs("text", ("text",))).columns
    table = block(**{name: values for name, values in columns.items() if name in read})
    together = encode(table, [encoding(checkpoint, **changes)])
    for n_characters in (1, 50):
        monkeypatch.setattr("pipelines.encode.PIECE_CHARACTERS", n_characters)
        assert encode(table, [encoding(checkpoint, **changes)]).equals(together)


def test_each_pass_gets_its_own_columns(checkpoint: Path) -> None:
    first = encoding(checkpoint)
    encoded = encode(block(text=["free mail offer"]), [first, replace(first, name="1", max_length=3)])
    assert [len(ids(sequences(encoded, name))[0]) for name in "01"] == [5, 3]


def test_only_texts_that_a_head_asks_for_are_kept(checkpoint: Path) -> None:
    question = encoding(checkpoint, inputs=Inputs("question", ("q", "c")), needs_spans=True)
    encoded = encode(block(q=["who"], c=["mail"], text=["x"]), [question, replace(encoding(checkpoint), name="1")])
    assert [name for name in encoded.column_names if name.startswith("__text")] == ["__text_c"]


@pytest.mark.parametrize("text", ["", "   ", "\x00"])
def test_texts_without_words_are_special_tokens_alone(text: str, checkpoint: Path) -> None:
    assert ids(sequences(encode(block(text=[text]), [encoding(checkpoint)]))) == [[2, 3]]


def test_texts_that_no_memory_should_hold_are_refused_where_all_of_them_is_tokenised(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.encode.MOST_CHARACTERS", 99)
    huge = "text has more than 99 characters: split the record"
    for long_text, error in (("truncate", None), ("window", huge), ("error", huge)):
        encoded = encode(block(text=["free " * 20, "free"]), [encoding(checkpoint, long_text=long_text, stride=1)])
        assert encoded["error"].to_pylist() == [error, None]
    choices = encoding(checkpoint, inputs=Inputs("choices", ("text", "choices")))
    encoded = encode(block(text=["free"], choices=[["mail" * 20, "offer " * 5]]), [choices])
    assert encoded["error"].to_pylist() == ["choices has more than 99 characters: split the record"]


def test_a_million_characters_become_windows(checkpoint: Path) -> None:
    spec = encoding(checkpoint, long_text="window", max_length=128, stride=32, needs_spans=True)
    found = sequences(encode(block(text=["free mail " * 100_000]), [spec]))
    assert found.packed.is_counted.sum() == 200_002
    assert found.packed.lengths.max() == 128

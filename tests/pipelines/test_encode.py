from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
import transformers

from pipelines.encode import Encoding, encode
from pipelines.read import text_name


def encoding(
    checkpoint: Path, *, texts: tuple[str, ...] = ("text",), long_text: Literal["truncate", "error"] = "truncate"
) -> Encoding:
    return Encoding(
        name="0", tokenizer=str(checkpoint), fingerprint="", max_length=12, long_text=long_text, texts=texts
    )


def block(errors: list[str | None], **texts: list[str | None]) -> pa.Table:
    columns: dict[str, Any] = {text_name(name): pa.array(values, pa.large_string()) for name, values in texts.items()}
    return pa.table({"id": [str(i) for i in range(len(errors))], **columns, "error": pa.array(errors, pa.string())})


def test_texts_become_the_ids_that_transformers_gives(checkpoint: Path, sentences: list[str]) -> None:
    oracle = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
    encoded = encode(block([None] * len(sentences), text=sentences), [encoding(checkpoint)])
    expected = [oracle(text, truncation=True, max_length=12).input_ids for text in sentences]
    assert encoded["__ids_0"].to_pylist() == expected
    assert encoded.schema.field("__ids_0").type == pa.list_(pa.int32())
    assert encoded.column_names == ["id", "error", "__ids_0"]


def test_failed_rows_are_not_encoded(checkpoint: Path) -> None:
    encoded = encode(block(["broken", None, "broken"], text=[None, "free", "free"]), [encoding(checkpoint)])
    assert [ids is None for ids in encoded["__ids_0"].to_pylist()] == [True, False, True]
    assert encoded["error"].to_pylist() == ["broken", None, "broken"]


def test_a_block_of_failures_passes(checkpoint: Path) -> None:
    assert encode(block(["broken"], text=[None]), [encoding(checkpoint)])["__ids_0"].to_pylist() == [None]


def test_long_texts_can_be_errors(checkpoint: Path) -> None:
    encoded = encode(block([None, None], text=["free " * 10, "free " * 11]), [encoding(checkpoint, long_text="error")])
    assert encoded["error"].to_pylist() == [None, "the text has 13 tokens, more than the model's 12"]
    assert [ids is None for ids in encoded["__ids_0"].to_pylist()] == [False, True]


def test_pairs_are_told_apart_by_type(checkpoint: Path) -> None:
    oracle = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
    a, b = ["free mail", "the " * 20], ["offer", "now " * 9]
    encoded = encode(block([None, None], a=a, b=b), [encoding(checkpoint, texts=("a", "b"))])
    expected = oracle(a, b, truncation=True, max_length=12)
    assert encoded["__ids_0"].to_pylist() == expected.input_ids
    assert encoded["__types_0"].to_pylist() == expected.token_type_ids


def test_each_tokenizer_gets_its_own_column(checkpoint: Path) -> None:
    first = encoding(checkpoint)
    second = replace(first, name="1", max_length=3)
    encoded = encode(block([None], text=["free mail offer"]), [first, second])
    assert [len(encoded[name][0].as_py()) for name in ("__ids_0", "__ids_1")] == [5, 3]


@pytest.mark.parametrize("text", ["", "   ", "\x00"])
def test_texts_without_words_are_special_tokens_alone(text: str, checkpoint: Path) -> None:
    assert encode(block([None], text=[text]), [encoding(checkpoint)])["__ids_0"].to_pylist() == [[2, 3]]

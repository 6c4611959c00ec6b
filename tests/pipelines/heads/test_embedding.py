from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.models import plan_passes
from tests.oracle import embed
from tests.pipelines.labelling import job, label

POOL = {
    "mean": lambda hidden: hidden.mean(0),
    "cls": lambda hidden: hidden[0],
    "max": lambda hidden: hidden.max(0).values,
}


def vectors(checkpoint: Path, texts: list[str], **changes: Any) -> np.ndarray:
    column = label(job(checkpoint, task="feature-extraction", **changes), text=texts)["prediction"]
    return np.stack([row["embedding"] for row in column.to_pylist()])


@pytest.mark.parametrize("pooling", POOL)
def test_vectors_are_pooled_from_what_transformers_gives(pooling: str, checkpoint: Path, sentences: list[str]) -> None:
    expected = np.stack([POOL[pooling](hidden).numpy() for hidden in embed(checkpoint, sentences)])
    np.testing.assert_allclose(vectors(checkpoint, sentences, pooling=pooling), expected, atol=1e-4)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    unit = vectors(checkpoint, sentences, pooling=pooling, normalize=True)
    np.testing.assert_allclose(unit, expected / lengths, atol=1e-4)


def test_the_length_of_vectors_is_told_unless_it_is_one(checkpoint: Path, sentences: list[str]) -> None:
    for normalize in (False, True):
        spec = job(checkpoint, task="feature-extraction", normalize=normalize)
        column = label(spec, text=sentences)["prediction"].combine_chunks()
        found = plan_passes(spec)[0].heads[0].head.scores(column)
        if normalize:
            assert found == {}
        else:
            norms = [np.linalg.norm(row["embedding"]) for row in column.to_pylist()]
            assert (found["norm"].n, found["norm"].high) == (len(norms), pytest.approx(max(norms)))


def test_a_vector_has_a_number_for_each_hidden_unit_and_a_failed_record_has_none(checkpoint: Path) -> None:
    """No fixed-size lists, for every pyarrow before 26 fails at Parquet files with a null among them."""
    for name, kind in (("float32", pa.float32()), ("float16", pa.float16())):
        result = label(job(checkpoint, task="feature-extraction", embedding_type=name), text=["free", None, "mail"])
        assert result["prediction"].type == pa.struct([("embedding", pa.list_(kind))])
        rows = result["prediction"].to_pylist()
        assert [row and len(row["embedding"]) for row in rows] == [32, None, 32]


def test_windows_average_by_token(checkpoint: Path) -> None:
    words = ["the", "free", "mail", "offer", "now"] * 5  # 25 tokens: windows of 12, 12 and 5 with 2 shared
    text = " ".join(words)
    pieces = [" ".join(words[start : start + 12]) for start in (0, 10, 20)]
    hidden = [states.numpy() for states in embed(checkpoint, pieces)]  # each with [CLS] and [SEP]
    own = np.concatenate([hidden[0][: 1 + 11], hidden[1][1 + 1 : 1 + 11], hidden[2][1 + 1 :]])
    assert len(own) == 25 + 2
    spec = {"long_text": "window", "max_length": 14, "stride": 2}
    np.testing.assert_allclose(vectors(checkpoint, [text], **spec)[0], own.mean(0), atol=1e-4)
    np.testing.assert_allclose(vectors(checkpoint, [text], pooling="max", **spec)[0], own.max(0), atol=1e-4)

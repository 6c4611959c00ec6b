"""Text columns in, token ids out: the CPU stage, one column of ids for each tokenizer in the job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from convbert import ConvBertTokenizer
from pipelines.read import text_name


@dataclass(frozen=True)
class Encoding:
    """How texts become the input of one encoder pass.

    Attributes:
        name: distinguishes the passes of a job.
        tokenizer: checkpoint folder or URL.
        fingerprint: SHA-256 over all that decides the ids of a text.
        max_length: most tokens the encoder takes, special tokens included.
        long_text: cut longer texts, or mark them as failed.
        texts: the text column, and for pairs the second one.
    """

    name: str
    tokenizer: str
    fingerprint: str
    max_length: int
    long_text: Literal["truncate", "error"]
    texts: tuple[str, ...]

    @property
    def ids(self) -> str:
        """Column of the token ids, list<int32>; null where the record has failed."""
        return f"__ids_{self.name}"

    @property
    def types(self) -> str:
        """Column of the token types, list<int8>, for pairs."""
        return f"__types_{self.name}"


def encode(block: pa.Table, encodings: Sequence[Encoding]) -> pa.Table:
    """Token ids in place of texts; rows that have failed are passed on as they are."""
    for encoding in encodings:
        block = _encode(block, encoding)
    return block.drop_columns(sorted({text_name(name) for encoding in encodings for name in encoding.texts}))


def _encode(block: pa.Table, encoding: Encoding) -> pa.Table:
    rows = np.flatnonzero(block["error"].is_null().to_numpy())
    texts = [block[text_name(name)].take(pa.array(rows)).to_pylist() for name in encoding.texts]
    limit = encoding.max_length if encoding.long_text == "truncate" else None
    encoded = _tokenizer(encoding.tokenizer).encode_batch(*texts, max_length=limit)
    block = block.append_column(encoding.ids, _scattered(encoded.input_ids, rows, len(block), pa.int32()))
    if len(encoding.texts) == 2:
        block = block.append_column(encoding.types, _scattered(encoded.token_type_ids, rows, len(block), pa.int8()))
    return block if limit is not None else _long_marked(block, encoding)


def _scattered(lists: list[list[int]], rows: np.ndarray, n_rows: int, type_: pa.DataType) -> pa.Array:
    """Lists at these rows, null elsewhere."""
    column: list[list[int] | None] = [None] * n_rows
    for row, ids in zip(rows, lists, strict=True):
        column[row] = ids
    return pa.array(column, pa.list_(type_))


def _long_marked(block: pa.Table, encoding: Encoding) -> pa.Table:
    lengths = pc.list_value_length(block[encoding.ids]).combine_chunks()
    is_long = pc.fill_null(pc.greater(lengths, encoding.max_length), False)
    reasons = [
        f"the text has {length} tokens, more than the model's {encoding.max_length}" if long else None
        for length, long in zip(lengths.to_pylist(), is_long.to_pylist(), strict=True)
    ]
    error = pc.coalesce(block["error"], pa.array(reasons, pa.string()))
    ids = pc.if_else(is_long, pa.scalar(None, block[encoding.ids].type), block[encoding.ids])
    block = block.set_column(block.schema.get_field_index("error"), "error", error)
    return block.set_column(block.schema.get_field_index(encoding.ids), encoding.ids, ids)


@lru_cache(maxsize=8)
def _tokenizer(folder_or_url: str) -> ConvBertTokenizer:
    """Loaded once a worker process."""
    return ConvBertTokenizer.from_pretrained(folder_or_url)

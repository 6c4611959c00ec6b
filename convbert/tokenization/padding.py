"""Encodings of any lengths in, one batch of equal rows out: what data collators ask of a tokenizer.

Shapes: B rows, T the padded length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convbert.errors import TokenizerError
from convbert.tokenization.batch_encoding import BatchEncoding, as_tensors

FIELDS = ("input_ids", "token_type_ids", "attention_mask", "special_tokens_mask")
"""What has a value a token, and is padded; labels and the like stay as they are."""


def columns_of(encoded: Any) -> tuple[dict[str, Any], str | None]:
    """The values by name, as lists, and the kind of tensors that they were: ``pt``, ``np``, or None.

    Args:
        encoded: an encoding of one text or of a batch, or a list of encodings of one text each.

    Raises:
        TokenizerError: it is none of these, or has no input_ids.
    """
    if isinstance(encoded, Sequence) and encoded and all(isinstance(one, Mapping) for one in encoded):
        names = encoded[0].keys()
        for index, one in enumerate(encoded):
            if one.keys() != names:
                raise TokenizerError(f"encoding {index} has {sorted(one)}, but the first has {sorted(names)}")
        encoded = {name: [one[name] for one in encoded] for name in names}
    if not isinstance(encoded, Mapping) or "input_ids" not in encoded:
        raise TokenizerError("there is nothing to pad: give an encoding with input_ids, or a list of such")
    return {name: _plain(value) for name, value in encoded.items()}, _kind_of(encoded["input_ids"])


def padded(
    columns: Mapping[str, Any], settings: Mapping[str, Any] | None, *, mask: bool, return_tensors: str | None
) -> BatchEncoding:
    """The same with rows of equal lengths.

    Args:
        columns: of one text, (T,) lists, or of a batch, lists of such.
        settings: as ``padding_settings`` gives them; None leaves the lengths as they are.
        mask: give attention_mask, which is made where the columns have none.
        return_tensors: ``pt`` or ``np``; None for lists.

    Raises:
        TokenizerError: rows of one text that have different lengths, no rows, or what makes no tensor.
    """
    ids = columns["input_ids"]
    is_batch = isinstance(ids, list) and (not ids or isinstance(ids[0], list))
    batch = dict(columns) if is_batch else {name: [value] for name, value in columns.items()}
    rows: list[list[int]] = batch["input_ids"]
    for name in FIELDS:
        if name in batch:
            _check_rows(name, batch[name], len(rows))
    if mask and "attention_mask" not in batch:
        batch["attention_mask"] = [[1] * len(row) for row in rows]
    for name in batch.keys() & set(FIELDS):
        for index, (row, ids) in enumerate(zip(batch[name], rows, strict=True)):
            if len(row) != len(ids):
                raise TokenizerError(f"row {index} has {len(ids)} input_ids, but {len(row)} of {name}")
    if settings is not None and rows:
        lengths = [_length(len(row), max(map(len, rows)), settings) for row in rows]
        fill = {"input_ids": settings["pad_id"], "special_tokens_mask": 1}
        for name in batch.keys() & set(FIELDS):
            batch[name] = [
                _filled(row, length, fill.get(name, 0), settings["direction"])
                for row, length in zip(batch[name], lengths, strict=True)
            ]
    if not is_batch:
        batch = {name: value[0] for name, value in batch.items()}
    return BatchEncoding(batch if return_tensors is None else as_tensors(batch, return_tensors))


def _check_rows(name: str, rows: Any, n_rows: int) -> None:
    for index, row in enumerate(rows if isinstance(rows, list) else ()):
        if not isinstance(row, list):
            raise TokenizerError(f"row {index} of {name} is {row!r:.80}: give a list with a value a token")
    if not isinstance(rows, list) or len(rows) != n_rows:
        raise TokenizerError(f"{name} ({rows!r:.80}) must have as many rows as input_ids: {n_rows}")


def _length(own: int, longest: int, settings: Mapping[str, Any]) -> int:
    """Of a row, padded: no row is cut."""
    length, multiple = settings["length"] or longest, settings["pad_to_multiple_of"] or 1
    return max(own, -(-length // multiple) * multiple)


def _filled(row: list[int], length: int, value: int, side: str) -> list[int]:
    padding = [value] * (length - len(row))
    return padding + row if side == "left" else row + padding


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists, in lists too."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _kind_of(ids: Any) -> str | None:
    """Which tensors ids are, or the first of them."""
    while isinstance(ids, (list, tuple)) and ids:
        ids = ids[0]
    if isinstance(ids, np.ndarray):
        return "np"
    return "pt" if hasattr(ids, "tolist") and not isinstance(ids, np.generic) else None

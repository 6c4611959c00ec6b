"""Texts in, token sequences out: the CPU stage, once for each encoder pass of the job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from convbert import ConvBertTokenizer
from convbert.engine import Packed
from convbert.engine.packing import offsets_of, sums_of
from pipelines.culprits import good_rows, with_errors
from pipelines.errors import ModelError
from pipelines.read import text_name
from pipelines.sequences import Sequences, add_sequences, at_rows, concatenated
from pipelines.storage import redacted
from pipelines.values import Reasons, first_of

Kind = Literal["text", "pair", "question", "choices"]
LongText = Literal["truncate", "window", "error"]
MOST_CHARACTERS = 4_000_000  # of a text that is tokenised as a whole, which takes about 200 bytes for each
PIECE_CHARACTERS = 1_000_000  # of records that are tokenised together


@dataclass(frozen=True)
class Inputs:
    """What a head reads of a record.

    Attributes:
        kind: a text; a pair of texts; a question and its context, which alone is cut; or a prompt and a list
            of choices, each pair of which is a sequence, padded to the record's longest.
        columns: one column, or two.
    """

    kind: Kind
    columns: tuple[str, ...]

    @property
    def lists(self) -> tuple[str, ...]:
        """Those of the columns that hold a list of texts; the others hold a text."""
        return self.columns[1:] if self.kind == "choices" else ()


@dataclass(frozen=True)
class Encoding:
    """How records become the input of one encoder pass.

    Attributes:
        name: distinguishes the passes of a job.
        tokenizer: checkpoint folder or URL.
        fingerprint: SHA-256 over all that decides the ids of a text.
        inputs: what is read.
        max_length: longest sequence in tokens, special tokens included.
        long_text: cut longer texts, label them in windows, or mark them as failed.
        stride: tokens that neighbouring windows share.
        needs_spans: keep the last text, and where each of its tokens stands in it.
        needs_mask: mark records without a [MASK] as failed.
    """

    name: str
    tokenizer: str
    fingerprint: str
    inputs: Inputs
    max_length: int
    long_text: LongText = "truncate"
    stride: int = 0
    needs_spans: bool = False
    needs_mask: bool = False


def encode(block: pa.Table, encodings: Sequence[Encoding]) -> pa.Table:
    """Token sequences in place of texts; rows that have failed are passed on as they are."""
    for encoding in encodings:
        block = _encode(block, encoding)
    read = {name for encoding in encodings for name in encoding.inputs.columns}
    kept = {encoding.inputs.columns[-1] for encoding in encodings if encoding.needs_spans}
    return block.drop_columns(sorted(text_name(name) for name in read - kept))


def _encode(block: pa.Table, encoding: Encoding) -> pa.Table:
    rows = good_rows(block)
    values = [at_rows(block[text_name(name)], pa.array(rows)).to_pylist() for name in encoding.inputs.columns]
    encoded = encode_records(values, encoding)
    block = add_sequences(block, encoding.name, encoded.sequences, rows[encoded.records])
    return with_errors(block, {int(row): reason for row, reason in zip(rows, encoded.reasons, strict=True) if reason})


class Encoded(NamedTuple):
    """What records became.

    Attributes:
        sequences: of the records that were tokenised.
        records: their numbers, ascending.
        reasons: why each of all records cannot be labelled, None where it can.
    """

    sequences: Sequences
    records: list[int]
    reasons: Reasons


def encode_records(values: Sequence[list[Any]], encoding: Encoding) -> Encoded:
    """Token sequences of records.

    Args:
        values: one list for each of the encoding's columns, with a value of each record.

    Raises:
        ModelError: the tokenizer is not the one that was planned with.
    """
    tokenizer = loaded_tokenizer(encoding.tokenizer, encoding.fingerprint)
    reasons = _refusals(tokenizer, encoding, values)
    records = [record for record, reason in enumerate(reasons) if reason is None]
    kept = ([column[record] for record in records] for column in values)
    tokenise: Callable[..., Sequences] = _choices if encoding.inputs.kind == "choices" else _texts
    sequences = _piece_by_piece(partial(tokenise, tokenizer, encoding), list(kept))
    for record, reason in zip(records, _misfits(tokenizer, encoding, sequences), strict=True):
        reasons[record] = reason
    return Encoded(sequences, records, reasons)


def _piece_by_piece(tokenise: Callable[..., Sequences], columns: Sequence[list[Any]]) -> Sequences:
    """The sequences of records, some at a time: what the library says of a text takes a hundred times its memory."""
    lengths = [sum(_n_characters(value) for value in record) for record in zip(*columns, strict=True)]
    pieces_before = np.cumsum([0, *lengths[:-1]]) // PIECE_CHARACTERS
    edges = [0, *(np.flatnonzero(np.diff(pieces_before)) + 1).tolist(), len(lengths)]
    pieces = [tokenise(*(column[first:last] for column in columns)) for first, last in pairwise(edges)]
    spans = [piece.spans for piece in pieces if piece.spans is not None]
    return (
        pieces[0] if len(pieces) == 1 else replace(concatenated(pieces), spans=np.concatenate(spans) if spans else None)
    )


def _n_characters(value: str | list[str]) -> int:
    return len(value) if isinstance(value, str) else sum(map(len, value))


# --- each kind of record ------------------------------------------------------------------------------


def _texts(tokenizer: ConvBertTokenizer, encoding: Encoding, *texts: list[str]) -> Sequences:
    """A text, or a pair of texts: one sequence, or several windows."""
    in_windows = encoding.long_text == "window"
    encoded = tokenizer.encode_batch(
        *texts,
        max_length=None if encoding.long_text == "error" else encoding.max_length,
        truncation="only_second" if _cuts_second(encoding) else "longest_first",
        stride=encoding.stride if in_windows else None,
        spans=encoding.needs_spans or in_windows,
    )
    packed = _packed(encoded.input_ids, encoded.token_type_ids if len(texts) == 2 else None)
    records = offsets_of(encoded.n_windows)
    spans = None if encoded.spans is None else np.concatenate([*encoded.spans, np.empty((0, 3), np.int32)])
    if in_windows and spans is not None:
        packed = packed._replace(counted=_counted(packed, records, spans[:, 2] >= 0, encoding.stride))
    return Sequences(records, packed, spans if encoding.needs_spans else None)


def _counted(packed: Packed, records: NDArray[np.int64], is_text: NDArray[np.bool_], stride: int) -> NDArray[np.int64]:
    """(S, 2) first and last + 1 of the tokens that count in a window; of those that two windows share each gets half.

    Args:
        packed: the windows.
        records: (R + 1,) first window of each text.
        is_text: (T,) whether a token is of the text that is cut, and no special token.
        stride: tokens that neighbouring windows share.
    """
    starts = np.asarray(packed.offsets)[:-1]
    places = np.append(np.flatnonzero(is_text), 0)
    n_before = np.searchsorted(places[:-1], packed.offsets)
    first, last = places[n_before[:-1]] - starts, places[n_before[1:] - 1] + 1 - starts  # of the text in each window
    begins, ends = np.zeros(len(starts), np.bool_), np.zeros(len(starts), np.bool_)
    begins[records[:-1]] = ends[records[1:] - 1] = True
    return np.stack(
        [np.where(begins, 0, first + stride - stride // 2), np.where(ends, packed.lengths, last - stride // 2)], axis=1
    )


def _choices(
    tokenizer: ConvBertTokenizer, encoding: Encoding, prompts: list[str], choices: list[list[str]]
) -> Sequences:
    """A sequence for each choice, padded to its record's longest: docs/decisions/0008-multiple-choice.md."""
    n_choices = [len(texts) for texts in choices]
    encoded = tokenizer.encode_batch(
        [prompt for prompt, n in zip(prompts, n_choices, strict=True) for _ in range(n)],
        [text for texts in choices for text in texts],
        max_length=None if encoding.long_text == "error" else encoding.max_length,
    )
    records = offsets_of(n_choices)
    attended = np.array([len(ids) for ids in encoded.input_ids], np.int64)
    longest = np.repeat(_longest(attended, records), n_choices)
    assert tokenizer.pad_token_id is not None  # the head has seen to it
    padding = [[tokenizer.pad_token_id] * n for n in longest - attended]
    packed = _packed(
        [ids + pads for ids, pads in zip(encoded.input_ids, padding, strict=True)],
        [types + [0] * len(pads) for types, pads in zip(encoded.token_type_ids, padding, strict=True)],
    )
    return Sequences(records, packed._replace(attended=attended))


def _cuts_second(encoding: Encoding) -> bool:
    """The second text of a pair is cut, and the first stands in every window."""
    return encoding.inputs.kind == "question" or (encoding.inputs.kind == "pair" and encoding.long_text == "window")


def _packed(ids: list[list[int]], types: list[list[int]] | None) -> Packed:
    def flat(lists: list[list[int]], dtype: type[np.integer]) -> NDArray[np.integer]:
        return np.fromiter(chain.from_iterable(lists), dtype)

    return Packed(flat(ids, np.int32), offsets_of(list(map(len, ids))), None if types is None else flat(types, np.int8))


# --- records that cannot be labelled ------------------------------------------------------------------


def _refusals(tokenizer: ConvBertTokenizer, encoding: Encoding, values: Sequence[list[Any]]) -> Reasons:
    """Before tokenising: why each record cannot be encoded, None where it can."""
    reasons: Reasons = [None] * len(values[0])
    if encoding.long_text != "truncate" or len(values) > 1:  # of a lone text that is cut, little is tokenised
        huge = f"{{}} has more than {MOST_CHARACTERS:,} characters: split the record"
        for name, texts in zip(encoding.inputs.columns, values, strict=True):
            lengths = [_n_characters(text) for text in texts]
            reasons = first_of(reasons, [huge.format(name) if n > MOST_CHARACTERS else None for n in lengths])
    if encoding.inputs.kind == "question":
        for name, texts in zip(encoding.inputs.columns, values, strict=True):
            reasons = first_of(reasons, [None if text.strip() else f"{name} is empty" for text in texts])
    if _cuts_second(encoding) and encoding.long_text != "error":
        first, second = encoding.inputs.columns
        room = encoding.max_length - tokenizer.num_special_tokens_to_add(pair=True) - encoding.stride - 1
        known = [text if reason is None else "" for text, reason in zip(values[0], reasons, strict=True)]
        lengths = [len(ids) - tokenizer.num_special_tokens_to_add() for ids in tokenizer.encode_batch(known).input_ids]
        crowded = f"{first} has {{}} tokens, which leaves {second} no room: the model takes {encoding.max_length}"
        reasons = first_of(reasons, [crowded.format(n) if n > room else None for n in lengths])
    return reasons


def _misfits(tokenizer: ConvBertTokenizer, encoding: Encoding, sequences: Sequences) -> Reasons:
    """After tokenising: why each record cannot be labelled, None where it can."""
    lengths = _longest(sequences.packed.lengths, sequences.records)
    reasons: Reasons = [None if n else "the text has no tokens" for n in lengths]
    if encoding.long_text == "error":
        long = f"the text has {{}} tokens, more than the model's {encoding.max_length}"
        reasons = first_of(reasons, [long.format(n) if n > encoding.max_length else None for n in lengths])
    if encoding.inputs.kind == "question" and sequences.spans is not None:
        n_words = sums_of(sequences.spans[:, 2] >= 0, sequences.tokens)
        reasons = first_of(reasons, [None if n else f"{encoding.inputs.columns[-1]} has no tokens" for n in n_words])
    if encoding.needs_mask:
        n_masks = sums_of(sequences.packed.input_ids == tokenizer.mask_token_id, sequences.tokens)
        n_seen = encoding.max_length if encoding.long_text == "truncate" else None
        seen = "last" if tokenizer.truncation_side == "left" else "first"
        cut = f" in its {seen} {n_seen} tokens: long_text window reads the rest"
        no_mask = [f"the text has no {tokenizer.mask_token}{cut if n == n_seen else ''}" for n in lengths]
        reasons = first_of(reasons, [None if n else why for n, why in zip(n_masks, no_mask, strict=True)])
    return reasons


def _longest(lengths: NDArray[np.int64], records: NDArray[np.int64]) -> NDArray[np.int64]:
    """The longest of each record's sequences, of which it has at least one."""
    return np.maximum.reduceat(lengths, records[:-1]) if len(records) > 1 else lengths


@cache
def loaded_tokenizer(folder_or_url: str, fingerprint: str) -> ConvBertTokenizer:
    """Loaded once a worker process.

    Raises:
        ModelError: it is not the one that was planned with.
    """
    tokenizer = ConvBertTokenizer.from_pretrained(folder_or_url)
    if tokenizer.fingerprint() != fingerprint:
        raise ModelError(
            f"the tokenizer at {redacted(folder_or_url)} has changed since the job was planned: start it again"
        )
    return tokenizer

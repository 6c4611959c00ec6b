"""A valid file in, hostile variants of it out: damaged bytes, JSON with hostile values, protocol numbers that lie."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

_RAW = "\ue000raw "  # stands in a document for text that json.dumps cannot write
_RAW_VALUES = {
    **{f"lists {depth}": "[" * depth + "]" * depth for depth in (*range(800, 1000, 10), 20_000)},
    **{f"objects {depth}": '{"a":' * depth + "1" + "}" * depth for depth in range(800, 1000, 10)},
    "digits": "9" * 5000,
    "beyond float": "1" + "0" * 400,
    "exponent": "1e400",
    "unclosed": '"',
}
WHOLE_NUMBERS = (-(2**63), -1, 0, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**32, 10**12, 2**53, 2**63 - 1, 2**63, 2**64, 10**30)
STRINGS = (
    "",
    "a",
    "x" * 100_000,
    "\0",
    "\n",
    "a\nb\x1b[31m",
    "\ud800",
    "é\u2028",
    "../a",
    "/etc/passwd",
    "²",
    "٣",
    "[CLS]",
)
HOSTILE_VALUES = st.one_of(
    st.sampled_from(WHOLE_NUMBERS),
    st.sampled_from(STRINGS),
    st.sampled_from([None, True, False, 0.5, -0.5, 1e308, float("nan"), float("inf"), float("-inf")]),
    st.sampled_from([_RAW + name for name in _RAW_VALUES if " " not in name]),
    st.sampled_from([_RAW + name for name in _RAW_VALUES if " " in name]),
    st.sampled_from([[], {}, [[]], [None], [1, "a"], {"": None}, {"a": 1}, {"0": "a", "2": "b"}, ["a"] * 1000]),
).map(copy.deepcopy)
_BYTES = st.one_of(
    st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b"\r", b'"', b"{", b"}"]), st.binary(max_size=8)
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes, *, end: int | None = None) -> bytes:
    """Bytes with some of them changed, cut out, doubled or put in; with ``end``, mostly among the last so many."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        size = len(result)
        first = 0 if end is None or draw(st.integers(0, 3)) == 0 else max(0, size - end)
        place = draw(st.integers(first, max(first, size - 1)))
        width = draw(st.one_of(st.integers(1, 8), st.integers(0, max(1, size - place))))
        match draw(st.sampled_from(["flip", "set", "number", "cut", "tail", "double", "insert", "splice"])):
            case "flip" if size:
                result[place] ^= 1 << draw(st.integers(0, 7))
            case "set":
                result[place : place + 1] = draw(_BYTES)
            case "number":
                length = draw(st.sampled_from([1, 2, 4, 8]))
                value = draw(st.sampled_from(WHOLE_NUMBERS)) % 256**length
                result[place : place + length] = value.to_bytes(length, draw(st.sampled_from(["little", "big"])))
            case "cut":
                del result[place : place + width]
            case "tail":
                del result[place:]
            case "double":
                result[place:place] = result[place : place + width]
            case "insert":
                result[place:place] = draw(_BYTES)
            case "splice" if size:
                other = draw(st.integers(0, size - 1))
                result[place : place + width] = result[other : other + width]
    return bytes(result)


@st.composite
def hostile_json(draw: st.DrawFn, document: Any) -> bytes:
    """The document as JSON, with hostile values, keys and omissions at some of its places."""
    changed = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        changed = _changed(draw, changed)
    text = json.dumps(changed)
    for name, raw in _RAW_VALUES.items():
        text = text.replace(json.dumps(_RAW + name), raw)
    return text.encode()


def _changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with one change somewhere inside it."""
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 9)) == 0:
        return draw(HOSTILE_VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    match draw(st.sampled_from(["inside", "inside", "inside", "inside", "without", "another key", "swapped"])):
        case "inside":
            value[key] = _changed(draw, value[key])
        case "without":
            del value[key]
        case "another key" if isinstance(value, dict):
            value[draw(st.sampled_from(STRINGS))] = value[key]
        case "another key":
            value.insert(key, draw(HOSTILE_VALUES))
        case "swapped":
            other = draw(st.sampled_from(keys))
            value[key], value[other] = value[other], value[key]
    return value


def varint(value: int) -> bytes:
    """An unsigned number as Protocol Buffers and Thrift's compact protocol write it."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


@st.composite
def lying(draw: st.DrawFn, data: bytes, numbers: list[int]) -> bytes:
    """The bytes with one of these numbers, as they stand there in varints, replaced by another."""
    true = draw(st.sampled_from([number for number in numbers if varint(number) in data] or [0]))
    lie = draw(
        st.one_of(st.sampled_from([number for number in WHOLE_NUMBERS if number >= 0]), st.integers(0, 2**64 - 1))
    )
    n_places = data.count(varint(true))
    kept = draw(st.integers(0, max(0, n_places - 1)))
    head = varint(true).join(data.split(varint(true))[: kept + 1])
    return head + varint(lie) + data[len(head) + len(varint(true)) :]


def claim_rows(path: Path, n_rows: int, claimed: int) -> None:
    """Make a Parquet file's footer say another number of rows wherever it says the true one."""
    whole = path.read_bytes()
    (size,) = struct.unpack("<I", whole[-8:-4])
    footer = whole[-8 - size : -8].replace(varint(2 * n_rows), varint(2 * claimed))  # zigzag
    path.write_bytes(whole[: -8 - size] + footer + struct.pack("<I", len(footer)) + b"PAR1")

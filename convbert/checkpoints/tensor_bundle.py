"""A TensorFlow checkpoint (``.index`` and ``.data-…``) in, its variables by name out, without TensorFlow.

The format is TensorFlow's TensorBundle, read from its own files: the index is a LevelDB table (blocks of
prefix-compressed entries, a 48-byte footer) from names to BundleEntryProto messages, which say where in
which data file a variable's bytes lie. Every offset and size is checked against the file before it is
used, and every checksum against the bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convbert.checkpoints.crc32c import crc32c, masked
from convbert.errors import CheckpointError

TABLE_MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
TRAILER_BYTES = 5  # compression, then the CRC of block and compression
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}  # DataType of tensorflow/core/framework/types.proto
MOST_DIMENSIONS = 8
MOST_ELEMENTS = 2**48  # no file holds as many
MOST_KEY_BYTES = 4096  # of a name, which each entry may repeat in a byte or two

Message = dict[int, list[int | bytes]]
"""Field number -> values: integers of varint and fixed fields, bytes of the others."""


class Variable(NamedTuple):
    """Where a variable lies: a BundleEntryProto.

    Attributes:
        dtype: DataType number; DTYPES holds those that can be read.
        shape: its sizes.
        shard: number of the data file.
        offset, size: its bytes there.
        crc: masked CRC-32C of them.
        is_partitioned: it is stored in slices under other names.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    is_partitioned: bool


class TensorBundle:
    """The variables of one checkpoint.

    Args:
        index: the file ``<prefix>.index``; ``<prefix>.data-00000-of-0000N`` lie beside it.

    Raises:
        CheckpointError: no readable index.
    """

    def __init__(self, index: Path) -> None:
        self._index = index
        try:
            entries = dict(_table(index.read_bytes()))
            header = _message(entries.pop(b"", b""))
            self._n_shards = _integer(header, 1)
            if _integer(header, 2) != 0:
                raise _DamageError("it is big-endian")
            self.variables = {
                name.decode("utf-8"): _variable(_message(entry))
                for name, entry in entries.items()
                if not name.startswith(b"\0")  # slices of partitioned variables
            }
            _check_apart(self.variables)
        except (_DamageError, UnicodeDecodeError, OSError) as error:
            raise CheckpointError(f"{index} cannot be read as a TensorFlow index ({error}): copy it again") from error
        self._data: dict[int, NDArray[np.uint8]] = {}

    def read(self, name: str) -> NDArray[np.generic]:
        """A variable's values.

        Raises:
            CheckpointError: its bytes are missing or damaged, or of a type that no weight has.
        """
        variable = self.variables[name]
        if variable.is_partitioned or variable.dtype not in DTYPES:
            reason = "is stored in slices" if variable.is_partitioned else f"has DataType {variable.dtype}"
            raise CheckpointError(f"{name} of {self._index} {reason}: save the checkpoint whole, in float32")
        dtype = np.dtype(DTYPES[variable.dtype])
        path = self._path(variable.shard)
        data = self._shard(variable.shard)
        if variable.size != math.prod(variable.shape) * dtype.itemsize or variable.offset + variable.size > len(data):
            raise CheckpointError(
                f"{path} ends before {name}, or holds another shape of it: copy the index and its data files again"
            )
        values = data[variable.offset : variable.offset + variable.size]
        if masked(crc32c(values)) != variable.crc:
            raise CheckpointError(f"{name} is damaged in {path} (its checksum differs): copy the file again")
        return values.view(dtype).reshape(variable.shape)

    def _path(self, shard: int) -> Path:
        return self._index.with_name(f"{self._index.stem}.data-{shard:05d}-of-{self._n_shards:05d}")

    def _shard(self, shard: int) -> NDArray[np.uint8]:
        if shard not in self._data:
            try:  # mapped, not read: two thirds of a training checkpoint are optimizer slots
                self._data[shard] = np.memmap(self._path(shard), np.uint8, mode="r")
            except (OSError, ValueError) as error:  # ValueError: an empty file
                raise CheckpointError(f"{self._path(shard)} cannot be read ({error}): copy every data file") from error
        return self._data[shard]


class _DamageError(Exception):
    """What is wrong with a file, for the message that names it."""


def _check_apart(variables: Mapping[str, Variable]) -> None:
    """See that no two variables share bytes, or else a small file would fill any memory."""
    ends: dict[int, int] = {}
    for variable in sorted(variables.values(), key=lambda variable: (variable.shard, variable.offset, variable.size)):
        if not variable.is_partitioned and variable.size:
            if variable.offset < ends.get(variable.shard, 0):
                raise _DamageError("two variables overlap")
            ends[variable.shard] = variable.offset + variable.size


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a LevelDB table, in their order."""
    if len(data) < FOOTER_BYTES:
        raise _DamageError("it is cut off")
    footer = data[-FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != TABLE_MAGIC:
        raise _DamageError("it has no table footer")
    _, _, position = _handle(footer, 0)  # the metaindex, which TensorFlow leaves empty
    offset, size, _ = _handle(footer, position)
    end = 0
    for _, handle in _block(data, offset, size):
        offset, size, _ = _handle(handle, 0)
        if offset < end:  # or else one block could be read for each of many handles
            raise _DamageError("two blocks overlap")
        end = offset + size
        yield from _block(data, offset, size)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of one block; a key shares its first bytes with the one before it."""
    end = offset + size
    content, trailer = data[offset:end], data[end : end + TRAILER_BYTES]
    if len(content) != size or len(trailer) != TRAILER_BYTES or size < 4:
        raise _DamageError("a block lies outside it")
    compression, crc = struct.unpack("<BI", trailer)
    if masked(crc32c(data[offset : end + 1])) != crc:
        raise _DamageError("a block's checksum differs")
    if compression != 0:
        raise _DamageError(f"a block is compressed (type {compression}), which TensorFlow does not do here")
    n_restarts = struct.unpack("<I", content[-4:])[0]
    last = size - 4 - 4 * n_restarts
    position, key = 0, b""
    while position < last:
        shared, position = _varint(content, position)
        unshared, position = _varint(content, position)
        n_value, position = _varint(content, position)
        if shared > len(key) or position + unshared + n_value > last:
            raise _DamageError("an entry lies outside its block")
        if shared + unshared > MOST_KEY_BYTES:
            raise _DamageError(f"a name has {shared + unshared} bytes")
        key = key[:shared] + content[position : position + unshared]
        position += unshared
        yield key, content[position : position + n_value]
        position += n_value
    if position != last:
        raise _DamageError("a block ends in the middle of an entry")


def _handle(data: bytes, position: int) -> tuple[int, int, int]:
    """A block's offset and size, and the position after both."""
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return offset, size, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """An unsigned integer in groups of 7 bits, lowest first, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _DamageError("a number is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _DamageError("a number is too long")


def _message(data: bytes) -> Message:
    """The fields of a protocol-buffer message."""
    fields: Message = {}
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        value: int | bytes
        match tag & 7:
            case 0:
                value, position = _varint(data, position)
            case 1 | 5 as wire:
                width = 8 if wire == 1 else 4
                value = int.from_bytes(_bytes(data, position, width), "little")
                position += width
            case 2:
                width, position = _varint(data, position)
                value = _bytes(data, position, width)
                position += width
            case wire:
                raise _DamageError(f"a message has wire type {wire}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _variable(entry: Message) -> Variable:
    dims = _message(_content(entry, 2)).get(2, [])
    shape = tuple(_integer(_message(dim), 1) for dim in dims if isinstance(dim, bytes))
    if len(shape) > MOST_DIMENSIONS or math.prod(size + 1 for size in shape) > MOST_ELEMENTS:
        raise _DamageError(f"a variable has the shape {shape}")
    return Variable(
        dtype=_integer(entry, 1),
        shape=shape,
        shard=_integer(entry, 3),
        offset=_integer(entry, 4),
        size=_integer(entry, 5),
        crc=_integer(entry, 6),
        is_partitioned=7 in entry,
    )


def _integer(message: Message, field: int) -> int:
    value = message.get(field, [0])[-1]
    if not isinstance(value, int):
        raise _DamageError(f"field {field} of a message is no number")
    return value


def _content(message: Message, field: int) -> bytes:
    value = message.get(field, [b""])[-1]
    if not isinstance(value, bytes):
        raise _DamageError(f"field {field} of a message is no message")
    return value


def _bytes(data: bytes, position: int, width: int) -> bytes:
    if position + width > len(data):
        raise _DamageError("a message is cut off")
    return data[position : position + width]

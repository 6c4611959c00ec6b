"""A unit's block in, one row of a Ray dataset out, and back: Ray can neither cut it nor join it to another."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa


class Envelope(NamedTuple):
    """A block on its way.

    Attributes:
        part: name of the part that it becomes, without suffix.
        n_rows: rows that were read.
        is_last: no further unit of the same compressed shard follows.
        block: the rows.
        busy_s: seconds that a model actor took for them.
        waited_s: seconds that this actor had waited for them, without work.
        read_s, encode_s, decode_s: seconds of the stages around it, waiting for stores included.
    """

    part: str
    n_rows: int
    is_last: bool
    block: pa.Table
    busy_s: float = 0.0
    waited_s: float = 0.0
    read_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0

    def seal(self) -> pa.Table:
        """The one row."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.block.schema) as writer:
            writer.write_table(self.block.combine_chunks())
        cell = pa.Array.from_buffers(pa.large_binary(), 1, [None, _offsets(sink.tell()), sink.getvalue()])
        return pa.table({name: cell if name == "block" else [value] for name, value in self._asdict().items()})

    @classmethod
    def open(cls, row: pa.Table) -> Envelope:
        """What was sealed; the block shares the row's memory."""
        figures = {name: row[name][0].as_py() for name in cls._fields if name != "block"}
        return cls(**figures, block=pa.ipc.open_stream(row["block"][0].as_buffer()).read_all())


def _offsets(n_bytes: int) -> pa.Buffer:
    return pa.array([0, n_bytes], pa.int64()).buffers()[1]

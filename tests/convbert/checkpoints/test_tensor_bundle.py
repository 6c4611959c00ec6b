"""A checkpoint of TensorFlow's own Saver, whole and damaged in every way that Hypothesis finds."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convbert import CheckpointError
from convbert.checkpoints import tensor_bundle
from convbert.checkpoints.crc32c import crc32c, masked
from convbert.checkpoints.tensor_bundle import TensorBundle
from tests.fuzz.strategies import varint
from tests.fuzz.targets import index_of

DAMAGE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def index(tensorflow_exports: Path, tmp_path: Path) -> Path:
    shutil.copytree(tensorflow_exports / "tf1_dense", tmp_path / "tf1")
    return tmp_path / "tf1" / "model.ckpt.index"


def data_of(index: Path) -> Path:
    return index.with_name("model.ckpt.data-00000-of-00001")


def test_reads_every_variable(index: Path) -> None:
    bundle = TensorBundle(index)
    assert bundle.variables["global_step"].shape == ()
    assert bundle.read("global_step") == 7
    assert bundle.read("electra/embeddings/word_embeddings").shape == (19, 12)
    assert bundle.read("electra/embeddings/word_embeddings").dtype == np.float32
    n_bytes = sum(bundle.read(name).nbytes for name in bundle.variables)
    assert n_bytes == data_of(index).stat().st_size


@DAMAGE
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(index: Path, place: int, bit: int) -> None:
    for path in (index, data_of(index)):
        whole = path.read_bytes()
        place %= len(whole)
        if path == index and not is_checked(whole, place):
            continue
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="copy"):
            read_all(index)
        path.write_bytes(whole)


def is_checked(index: bytes, place: int) -> bool:
    """Whether a byte of an index means anything: not the empty metaindex block, nor the footer's filling."""
    footer = len(index) - 48
    meta_offset, meta_size, position = tensor_bundle._handle(index[footer:], 0)
    _, _, filling = tensor_bundle._handle(index[footer:], position)
    is_meta = meta_offset <= place < meta_offset + meta_size + 5 or footer <= place < footer + position
    return not is_meta and not footer + filling <= place < len(index) - 8


@DAMAGE
@given(length=st.integers(0, 10**6))
def test_a_cut_file_is_found(index: Path, length: int) -> None:
    for path in (index, data_of(index)):
        whole = path.read_bytes()
        path.write_bytes(whole[: length % len(whole)])
        with pytest.raises(CheckpointError, match="copy"):
            read_all(index)
        path.write_bytes(whole)


@DAMAGE
@given(content=st.binary(max_size=200), offset=st.integers(0, 2**70), size=st.integers(0, 2**70))
def test_any_bytes_end_in_an_error_that_names_the_file(index: Path, content: bytes, offset: int, size: int) -> None:
    """Blocks with right checksums and wrong contents: what a checksum does not catch is bounds-checked."""
    block = framed(content)
    for handle in (varint(0) + varint(len(content) + 4), varint(offset) + varint(size)):
        footer = (varint(0) + varint(0) + handle).ljust(40, b"\0")[:40]
        index.write_bytes(block + footer + struct.pack("<Q", tensor_bundle.TABLE_MAGIC))
        assert str(index.parent) in damage_of(index)


def test_a_data_file_that_is_missing_is_named(index: Path) -> None:
    data_of(index).unlink()
    with pytest.raises(CheckpointError, match="data-00000-of-00001"):
        read_all(index)


def test_bfloat16_and_slices_are_refused_by_name(index: Path) -> None:
    bundle = TensorBundle(index)
    name = "electra/embeddings/word_embeddings"
    for change, reason in (({"dtype": 14}, "DataType 14"), ({"is_partitioned": True}, "slices")):
        bundle.variables[name] = TensorBundle(index).variables[name]._replace(**change)
        with pytest.raises(CheckpointError, match=f"{name}.*{reason}"):
            bundle.read(name)


@pytest.mark.parametrize("shape", [(0, 2**63), (2**40, 2**40), (1,) * 100])
def test_a_shape_that_no_file_holds_is_refused(index: Path, shape: tuple[int, ...]) -> None:
    entries = dict(tensor_bundle._table(index.read_bytes()))
    dims = b"".join(b"\x12" + varint(1 + len(varint(size))) + b"\x08" + varint(size) for size in shape)
    entries[b"global_step"] = b"\x08\x01\x12" + varint(len(dims)) + dims
    index.write_bytes(index_of(entries))
    with pytest.raises(CheckpointError, match="a variable has the shape"):
        TensorBundle(index)


def framed(content: bytes) -> bytes:
    """A block of these entries, with its checksum."""
    block = content + struct.pack("<I", 0)
    return block + b"\0" + struct.pack("<I", masked(crc32c(block + b"\0")))


def table(*blocks: bytes, handles: bytes) -> bytes:
    """An index of blocks, the last of which points with these handles to the others."""
    data = b"".join(blocks)
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(handles) + 4)
    return data + framed(handles) + footer.ljust(40, b"\0") + struct.pack("<Q", tensor_bundle.TABLE_MAGIC)


def test_names_that_grow_from_entry_to_entry_are_refused(index: Path) -> None:
    """Each takes a few bytes of the file and as many of memory as all before it together."""
    content = b"".join(varint(1000 * n) + varint(1000) + varint(0) + bytes(1000) for n in range(5))
    block = framed(content)
    handle = varint(0) + varint(len(content) + 4)
    index.write_bytes(table(block, handles=b"\0\1" + varint(len(handle)) + b"a" + handle))
    with pytest.raises(CheckpointError, match=r"model.ckpt.index .*a name has 5000 bytes"):
        TensorBundle(index)


def test_a_block_that_is_read_for_many_handles_is_refused(index: Path) -> None:
    content = b"\0\1\0a"
    handle = varint(0) + varint(len(content) + 4)
    handles = b"".join(b"\0\1" + varint(len(handle)) + name + handle for name in (b"a", b"b"))
    index.write_bytes(table(framed(content), handles=handles))
    with pytest.raises(CheckpointError, match=r"model.ckpt.index .*two blocks overlap"):
        TensorBundle(index)


def read_all(index: Path) -> None:
    bundle = TensorBundle(index)
    for name in bundle.variables:
        bundle.read(name)


def damage_of(index: Path) -> str:
    """What reading says; the file's own name where it finds nothing wrong."""
    try:
        read_all(index)
    except CheckpointError as error:
        return str(error)
    return str(index)

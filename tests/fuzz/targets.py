"""What reads files that others made: for each, hostile files to try, and how to read them.

Reading ends well, in an error of the house, or in error rows; ``outcome`` fails on anything else.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from convbert import ConvBertError, ConvBertModel, ConvBertTokenizer
from convbert.checkpoints import fingerprint, read_weights, tensor_bundle
from convbert.checkpoints.crc32c import crc32c, masked
from convbert.errors import TokenizerError
from pipelines.errors import PipelineError
from pipelines.inspect import check_columns, inspect, kept_schema
from pipelines.models import plan_passes
from pipelines.read import Columns, read, text_name
from pipelines.spec import JobSpec
from pipelines.units import Stream, list_shards
from tests.conftest import save_checkpoint, with_labels
from tests.fuzz.strategies import damaged, hostile_json, lying, varint

TENSORFLOW = Path(__file__).parents[1] / "convbert" / "checkpoints" / "data" / "tensorflow.zip"
LONGEST_MESSAGE = 10_000  # with escapes
Files = dict[str, bytes]
FEW = settings(max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
"""How the suite tries a target: quickly, and the same examples every time. ``campaign.py`` is for finding more."""


class Target(NamedTuple):
    """Something that reads files.

    Attributes:
        name: what is read.
        files: files by name, one of them hostile.
        read: reads the folder that holds them.
    """

    name: str
    files: st.SearchStrategy[Files]
    read: Callable[[Path], object]


def outcome(target: Target, files: Files) -> str:
    """How reading ended: "ok", or "clear error".

    Raises:
        AssertionError: an error that is not clear, or rows that are not accounted for.
        BaseException: whatever else reading ended in.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        try:
            target.read(Path(folder))
        except (ConvBertError, PipelineError) as error:
            message = str(error)
            assert folder in message, f"does not name the file: {message!r:.300}"
            assert message.isprintable(), f"is no printable line: {message!r:.300}"
            assert len(message) <= LONGEST_MESSAGE, f"has {len(message)} characters: {message!r:.300}"
            return "clear error"
    return "ok"


# --- shards -------------------------------------------------------------------------------------------

KEPT = ("n", "score", "flag", "meta")


def read_shards(folder: Path) -> None:
    """Plan and read a corpus as a job does, and see that no row is without its text or a reason."""
    shards = list_shards([str(folder)])
    inspections = inspect(shards, unit_rows=3)
    check_columns(inspections, text_columns=["text"], other_columns=[])
    columns = Columns(texts=("text",), id="id", kept=kept_schema(inspections, KEPT))
    for inspection in inspections:
        n_rows = 0
        for task in inspection.tasks("part-a-0123456789abcdef")[:50]:
            envelopes = list(islice(read(task, columns), 50))
            for envelope in envelopes:
                block = envelope.block
                n_rows += envelope.n_rows
                assert block["id"].null_count == 0
                assert envelope.n_rows == len(block), "the envelope counts the rows"
                for text, error in zip(block[text_name("text")].to_pylist(), block["error"].to_pylist(), strict=True):
                    assert text is not None or error, "a row without a text says why"
            if not isinstance(task, Stream):
                for unit, envelope in zip(task, envelopes, strict=len(task) <= 50):
                    assert unit.n_rows in (None, envelope.n_rows), "every row of the range comes out"
            elif len(envelopes) < 50:
                assert [envelope.is_last for envelope in envelopes] == [False] * (len(envelopes) - 1) + [True]
        if inspection.shard.url.endswith((".jsonl", ".json")):
            body = Path(inspection.shard.url).read_bytes().removeprefix(b"\xef\xbb\xbf")
            assert n_rows == sum(not line.isspace() for line in body.split(b"\n") if line), "every line comes out"


RECORDS: list[dict[str, Any]] = [
    {"id": str(n), "text": "free offer ünï" * n, "n": n, "score": n / 2, "flag": n % 2 == 0, "meta": {"a": [n]}}
    for n in range(8)
]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "a.jsonl": bytes,
    "a.json": bytes,
    "a.jsonl.gz": lambda data: gzip.compress(data, mtime=0),
    "a.jsonl.zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


@st.composite
def jsonl_files(draw: st.DrawFn) -> Files:
    """Hostile records, damaged lines and damaged streams."""
    lines = [json.dumps(record, ensure_ascii=False).encode() for record in RECORDS]
    for _ in range(draw(st.integers(0, 2))):
        lines[draw(st.integers(0, len(lines) - 1))] = draw(hostile_json(RECORDS[3]))
    body = b"\n".join(lines) + b"\n"
    if draw(st.booleans()):
        body = draw(damaged(body))
    name = draw(st.sampled_from(sorted(PACKERS)))
    packed = PACKERS[name](body)
    return {name: draw(damaged(packed)) if draw(st.booleans()) else packed}


def table(values: list[Any], **kept: pa.Array) -> pa.Table:
    ids = pa.array([str(n) for n in range(len(values))])
    return pa.table({"id": ids, "text": values, **kept})


def encoded(source: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(source, sink, **options)
    return sink.getvalue()


@cache
def parquet_samples() -> list[bytes]:
    """Real files in many encodings, layouts and types."""
    rng = np.random.default_rng(0)
    texts = [f"offer {n} " + "free " * int(rng.integers(0, 9)) for n in range(20)]
    plain = {
        "n": pa.array(range(20)),
        "score": pa.array(rng.random(20)),
        "flag": pa.array([True, None] * 10),
        "meta": pa.array([{"a": [n, None], "b": "x"} for n in range(20)]),
    }
    odd = {
        "n": pa.array([[n] * n for n in range(20)]),
        "score": pa.array(range(20), pa.timestamp("us", tz="UTC")),
        "flag": pa.array(texts).dictionary_encode(),
        "meta": pa.array([[("k", n)] for n in range(20)], pa.map_(pa.string(), pa.int64())),
    }
    other = {
        "n": pa.array([b"\xff\x00"] * 20, pa.binary(2)),
        "score": pa.array(range(20), pa.int8()).cast(pa.decimal128(20, 2)),
        "flag": pa.nulls(20),
        "meta": pa.array([float(n) for n in range(20)]).cast(pa.float16()),
    }
    dictionary = pa.array(texts).dictionary_encode()
    deltas = {"text": "DELTA_BYTE_ARRAY", "id": "DELTA_LENGTH_BYTE_ARRAY"}
    not_utf8 = pa.array([b"\xff\xfe", b"ok"] * 10).view(pa.string())
    return [
        encoded(table(texts, **plain)),
        encoded(table(texts, **plain), compression="NONE", row_group_size=7, use_dictionary=False),
        encoded(table(dictionary, **odd), compression="GZIP", data_page_version="2.0", write_page_index=True),
        encoded(table(dictionary, **other), compression="ZSTD", store_schema=False, row_group_size=4),
        encoded(table(not_utf8, **plain), compression="LZ4", data_page_size=64),
        encoded(table(pa.array(texts, pa.large_string()), **odd), compression="BROTLI", version="1.0"),
        encoded(table(pa.array(texts, pa.string_view()), **other), column_encoding=deltas, use_dictionary=False),
        encoded(table([None] * 20, **plain), write_page_checksum=True),
        encoded(table(texts, **plain).slice(0, 0)),
    ]


@st.composite
def parquet_files(draw: st.DrawFn) -> Files:
    """Damaged bytes, or numbers in the footer that lie."""
    whole = draw(st.sampled_from(parquet_samples()))
    (size,) = struct.unpack("<I", whole[-8:-4])
    if draw(st.booleans()):
        return {"a.parquet": draw(damaged(whole, end=draw(st.sampled_from([8, size + 8]))))}
    metadata = pq.read_metadata(io.BytesIO(whole))
    columns = [metadata.row_group(0).column(0)] if metadata.num_row_groups else []
    numbers = [metadata.num_rows, *(column.num_values for column in columns)]
    numbers += [size for column in columns for size in (column.total_compressed_size, column.total_uncompressed_size)]
    numbers += [column.data_page_offset for column in columns]
    footer = draw(lying(whole[-8 - size : -8], [2 * number for number in numbers]))  # zigzag
    return {"a.parquet": whole[: -8 - size] + footer + struct.pack("<I", len(footer)) + b"PAR1"}


# Columns of any type in place of those that the job expects.
_TYPES = st.recursive(
    st.sampled_from(
        [
            *(pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float64()),
            *(pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())),
            *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3), pa.uuid(), pa.json_()),
            *(pa.date32(), pa.date64(), pa.time32("ms"), pa.time64("ns"), pa.duration("ns")),
            *(pa.timestamp("us", tz="Europe/Berlin"), pa.timestamp("s"), pa.decimal128(9, 2), pa.decimal256(60, 30)),
        ]
    ),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        inner.map(lambda type_: pa.list_(type_, 2)),
        inner.map(lambda type_: pa.struct([("a", type_), ("b\n", pa.int8())])),
        inner.map(lambda type_: pa.map_(pa.string(), type_)),
    ),
    max_leaves=3,
)


@st.composite
def parquet_types(draw: st.DrawFn) -> Files:
    """Valid files with odd columns: nulls and zeros of any type, in one or two shards."""
    files: Files = {}
    for name in draw(st.sampled_from([("a.parquet",), ("a.parquet", "b.parquet")])):
        n_rows = draw(st.integers(0, 4))
        columns: dict[str, pa.Array] = {"text": pa.array(["free"] * n_rows, pa.string())}
        for column in draw(st.lists(st.sampled_from(["id", "text", *KEPT]), max_size=4)):
            columns[column] = _values(draw(_TYPES), n_rows)
        if draw(st.integers(0, 3)) == 0:
            columns["weird\n\0" + "x" * 3000] = pa.nulls(n_rows)
        try:
            files[name] = encoded(pa.table(columns))
        except (pa.ArrowException, OverflowError):  # Parquet has no such type
            files[name] = parquet_samples()[0]
    return files


def _values(type_: pa.DataType, n_rows: int) -> pa.Array:
    """Nulls, and a value where Arrow can tell one from nothing but the type."""
    empty = pa.nulls(n_rows, type_)
    try:
        zero = pa.array([0], pa.int64()).cast(pa.string()).cast(type_)
    except pa.ArrowException:
        return empty
    return pa.concat_arrays([zero, empty])[:n_rows]


# --- checkpoints --------------------------------------------------------------------------------------


@cache
def checkpoint() -> Files:
    """A tiny classifier that Transformers saved, in the files of today and of old."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 8,
            "embedding_size": 4,
        }
        save_checkpoint(Path(folder), vocab_size=100, conv_kernel_size=3, **sizes, **with_labels("ham", "spam"))
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        tokenizer = ConvBertTokenizer.from_pretrained(folder)
        tokenizer.save_pretrained(folder)
        files["tokenizer.json"] = (Path(folder) / "tokenizer.json").read_bytes()
        files["tokenizer_config.json"] = (Path(folder) / "tokenizer_config.json").read_bytes()
        return files


def label(folder: Path) -> None:
    """Plan a job with a checkpoint, and tokenise with it."""
    plan_passes(JobSpec.of({"input": ["in"], "output": "out", "model": str(folder)}))
    tokenizer = ConvBertTokenizer.from_pretrained(str(folder))
    try:
        encoded = tokenizer.encode_batch(["free offer", "", "日本"], max_length=16)
        tokenizer.batch_decode(encoded.input_ids)
        tokenizer("now", padding="max_length", max_length=8)
    except TokenizerError:  # what a loaded tokenizer refuses is told by the text
        pass
    pickle.loads(pickle.dumps(tokenizer))


def load(folder: Path) -> None:
    """Read a checkpoint's weights into the model that its config tells."""
    model, _ = ConvBertModel.load(folder)
    fingerprint(model.state_dict())


def one_json(name: str, *, without: tuple[str, ...] = ()) -> st.SearchStrategy[Files]:
    """The checkpoint with hostile values in one of its JSON files."""

    def overlaid() -> st.SearchStrategy[Files]:
        rest = {key: content for key, content in checkpoint().items() if key not in without}
        document = json.loads(_OLD_FILES.get(name) or checkpoint()[name])
        return st.one_of(hostile_json(document), damaged(json.dumps(document).encode())).map(
            lambda content: {**rest, name: content}
        )

    return st.deferred(overlaid)


_OLD_FILES = {
    "special_tokens_map.json": b'{"cls_token": "[CLS]", "unk_token": {"content": "[UNK]", "lstrip": false}}',
    "added_tokens.json": b'{"one more": 86}',
}


def index_files(index: str, shard: str) -> st.SearchStrategy[Files]:
    """The checkpoint's weights in one shard, and a hostile index of it."""

    def indexed() -> st.SearchStrategy[Files]:
        rest = {name: content for name, content in checkpoint().items() if name != "model.safetensors"}
        rest[shard] = checkpoint()["model.safetensors"] if shard.endswith(".safetensors") else old_bin()
        document = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(_weights(), shard)}
        return st.one_of(hostile_json(document), damaged(json.dumps(document).encode())).map(
            lambda content: {**rest, index: content}
        )

    return st.deferred(indexed)


@st.composite
def vocab_files(draw: st.DrawFn) -> Files:
    """The checkpoint with nothing but a damaged vocab.txt for a vocabulary."""
    rest = {name: content for name, content in checkpoint().items() if name != "tokenizer.json"}
    return {**rest, "vocab.txt": draw(damaged(rest["vocab.txt"]))}


@st.composite
def safetensors_files(draw: st.DrawFn) -> Files:
    """Damaged bytes, or a header of hostile values over true data."""
    whole = checkpoint()["model.safetensors"]
    (size,) = struct.unpack("<Q", whole[:8])
    if draw(st.integers(0, 3)) == 0:
        content = draw(damaged(whole))
    else:
        header = draw(st.one_of(hostile_json(json.loads(whole[8 : 8 + size])), typed_header(whole[8 : 8 + size])))
        content = struct.pack("<Q", len(header)) + header + whole[8 + size :]
    return {**checkpoint(), "model.safetensors": content}


@st.composite
def typed_header(draw: st.DrawFn, header: bytes) -> bytes:
    """The header with another type and shape of the same bytes."""
    entries = json.loads(header)
    names = sorted(entries.keys() - {"__metadata__"})
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
        first, last = entries[name]["data_offsets"]
        dtype, bits = draw(st.sampled_from(sorted(_BITS.items())))
        entries[name]["dtype"] = dtype
        if draw(st.booleans()):
            entries[name]["shape"] = [(last - first) * 8 // bits]
    return json.dumps(entries).encode()


_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8}
_BITS |= {"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64}


@cache
def bin_parts() -> Files:
    """The members of a pytorch_model.bin, which is a zip file."""
    weights = _weights()
    sink = io.BytesIO()
    torch.save(weights, sink)
    with zipfile.ZipFile(sink) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@cache
def _weights() -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").write_bytes(checkpoint()["model.safetensors"])
        return read_weights(folder)


@cache
def old_bin() -> bytes:
    """The format before zip files."""
    sink = io.BytesIO()
    torch.save(_weights(), sink, _use_new_zipfile_serialization=False)
    return sink.getvalue()


@st.composite
def bin_files(draw: st.DrawFn) -> Files:
    """A damaged pickle in a whole zip file, a damaged zip file, or a damaged file of the old format."""
    rest = {name: content for name, content in checkpoint().items() if name != "model.safetensors"}
    if draw(st.integers(0, 3)) == 0:
        return {**rest, "pytorch_model.bin": draw(damaged(old_bin(), end=draw(st.sampled_from([None, 20_000]))))}
    parts = dict(bin_parts())
    kind = draw(st.sampled_from(["pickle", "pickle", "zip", "deflated"]))
    if kind == "pickle":
        name = next(name for name in parts if name.endswith("data.pkl"))
        parts[name] = draw(damaged(parts[name]))
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    content = draw(damaged(sink.getvalue(), end=3000)) if kind != "pickle" else sink.getvalue()
    return {**rest, "pytorch_model.bin": content}


@cache
def tensorflow(folder: str) -> Files:
    """What TensorFlow itself wrote."""
    with zipfile.ZipFile(TENSORFLOW) as archive:
        names = [name for name in archive.namelist() if name.startswith(folder + "/") and not name.endswith(".npz")]
        return {name.partition("/")[2]: archive.read(name) for name in names}


@st.composite
def h5_files(draw: st.DrawFn) -> Files:
    """Damaged HDF5."""
    files = tensorflow("ForQuestionAnswering")
    whole = files["tf_model.h5"]
    head = draw(st.booleans())  # superblock and first groups stand there
    content = draw(damaged(whole[:4096])) + whole[4096:] if head else draw(damaged(whole))
    return {**files, "tf_model.h5": content}


@st.composite
def tf1_files(draw: st.DrawFn) -> Files:
    """A damaged index, with or without checksums that are right again, or damaged data."""
    files = tensorflow("tf1_dense")
    if draw(st.booleans()):
        (data,) = (name for name in files if ".data-" in name)
        files = {**files, data: draw(damaged(files[data]))} if draw(st.integers(0, 5)) == 0 else files
        entries = dict(tensor_bundle._table(files["model.ckpt.index"]))
        for name in draw(st.lists(st.sampled_from(sorted(entries)), min_size=1, max_size=2)):
            numbers = [number for number in range(1, 64) if varint(number) in entries[name]]
            entries[name] = draw(st.one_of(damaged(entries[name]), lying(entries[name], numbers)))
        if draw(st.integers(0, 4)) == 0:
            entries[draw(st.sampled_from([b"\xff", b"a\nb", b"electra/encoder/layer_99999999999/x", b"x" * 5000]))] = (
                b""
            )
        return {**files, "model.ckpt.index": index_of(entries)}
    return {**files, "model.ckpt.index": draw(damaged(files["model.ckpt.index"]))}


def index_of(entries: dict[bytes, bytes]) -> bytes:
    """A TensorBundle index of these entries, with right checksums."""

    def block(pairs: dict[bytes, bytes]) -> bytes:
        body = b"".join(
            varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in sorted(pairs.items())
        )
        body += struct.pack("<II", 0, 1) + b"\0"
        return body + struct.pack("<I", masked(crc32c(np.frombuffer(body, np.uint8))))

    first = block(entries)
    second = block({b"\xff": varint(0) + varint(len(first) - 5)})
    footer = varint(0) * 2 + varint(len(first)) + varint(len(second) - 5)
    return first + second + footer.ljust(40, b"\0") + struct.pack("<Q", tensor_bundle.TABLE_MAGIC)


TARGETS = {
    target.name: target
    for target in (
        Target("jsonl", jsonl_files(), read_shards),
        Target("parquet", parquet_files(), read_shards),
        Target("parquet_types", parquet_types(), read_shards),
        Target("config", one_json("config.json"), label),
        Target("tokenizer", one_json("tokenizer.json", without=("vocab.txt",)), label),
        Target("tokenizer_config", one_json("tokenizer_config.json"), label),
        Target("special_tokens_map", one_json("special_tokens_map.json", without=("tokenizer_config.json",)), label),
        Target("added_tokens", one_json("added_tokens.json", without=("tokenizer_config.json",)), label),
        Target("vocab", vocab_files(), label),
        Target("index", index_files("model.safetensors.index.json", "a.safetensors"), label),
        Target("safetensors", safetensors_files(), load),
        Target("bin", bin_files(), load),
        Target("bin_index", index_files("pytorch_model.bin.index.json", "a.bin"), load),
        Target("h5", h5_files(), load),
        Target("tf1", tf1_files(), load),
    )
}

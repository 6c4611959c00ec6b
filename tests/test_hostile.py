"""What a hostile client, file, address or name must not bring about: memory filled, secrets told, lines forged."""

from __future__ import annotations

import _codecs
import copy
import struct
import subprocess
import sys
import traceback
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from convbert import CheckpointError
from convbert.checkpoints import read_weights
from convbert.checkpoints.crc32c import crc32c, masked
from convbert.stores import redacted, retried
from jobs.command_line import parse
from pipelines.serve_spec import ServeSpec
from pipelines.units import Shard, part_stem
from pipelines.web import create_app
from tests.fuzz.strategies import varint
from tests.fuzz.targets import index_of
from tests.pipelines.test_web import HEADS, Models, app_of

# --- checkpoints -----------------------------------------------------------------------------------------


class Doubles:
    """Each doubles the bytes of the one that it holds."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __reduce__(self) -> tuple[Any, ...]:
        return (_codecs.encode, (Doubles(self.n - 1), "hex")) if self.n else (_codecs.encode, ("a", "latin1"))


def test_bytes_that_double_are_refused_unread(tmp_path: Path) -> None:
    torch.save({"a": Doubles(20)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is refused"):
        read_weights(tmp_path)


def test_members_that_share_bytes_are_refused_unread(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.bin", tmp_path / "pytorch_model.bin"
    torch.save({str(i): torch.full((10_000,), float(i)) for i in range(9)}, whole)
    with zipfile.ZipFile(whole) as given, zipfile.ZipFile(path, "w") as archive:
        for member in given.filelist:
            if "/data/" not in member.filename:
                archive.writestr(member.filename, given.read(member.filename))
        name = next(member.filename for member in given.filelist if member.filename.endswith("/data/0"))
        archive.writestr(name, bytes(40_000))
        for i in range(1, 9):
            twin = copy.copy(archive.filelist[-1])
            twin.filename = f"{name[:-1]}{i}"
            archive.filelist.append(twin)
    whole.unlink()
    with pytest.raises(CheckpointError, match=r"its members are larger than it"):
        read_weights(tmp_path)


def test_a_zip_bomb_behind_a_second_directory_is_refused_unread(tmp_path: Path) -> None:
    """zipfile takes the directory before the end record, torch the one that the record points to."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(250_000)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    whole = path.read_bytes()
    end = whole.rindex(b"PK\5\6")
    size, offset = struct.unpack("<II", whole[end + 12 : end + 20])
    directory, at = bytearray(whole[offset : offset + size]), 0
    while at < size:
        struct.pack_into("<H", directory, at + 10, zipfile.ZIP_STORED)
        directory[at + 24 : at + 28] = directory[at + 20 : at + 24]
        at += 46 + sum(struct.unpack_from("<HHH", directory, at + 28))
    path.write_bytes(whole[:end] + bytes(directory) + whole[end:])
    with pytest.raises(CheckpointError, match=r"its members are larger than it"):
        read_weights(tmp_path)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    torch.save({("a", "b"): torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no table of weights"):
        read_weights(tmp_path)


def test_variables_that_share_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(bytes(4))
    dims = b"\x12\x02\x08\x01"
    entry = (
        b"\x08\x01\x12"
        + varint(len(dims))
        + dims
        + b"\x28\x04\x35"
        + struct.pack("<I", masked(crc32c(np.zeros(4, np.uint8))))
    )
    (tmp_path / "model.ckpt.index").write_bytes(index_of({b"": b"\x08\x01", b"a": entry}))
    assert len(read_weights(tmp_path)) == 1
    (tmp_path / "model.ckpt.index").write_bytes(index_of({b"": b"\x08\x01", b"a": entry, b"b": entry}))
    with pytest.raises(CheckpointError, match="two variables overlap"):
        read_weights(tmp_path)


def test_a_compressed_dataset_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "tf_model.h5", "w") as file:
        file.create_dataset("a/b/kernel:0", data=np.zeros(10**6, np.float32), compression="gzip")
    with pytest.raises(CheckpointError, match="kernel:0 .*compressed"):
        read_weights(tmp_path)


# --- secrets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAIOSFODNN7EXAMPLE:wJa/K7M/SECRET@bucket/in",
        "sftp://me:pa/SECRET@host/in",
        "https://me:pa/SECRET@host/in",
        "https://h/a?client_secret=SECRET",
        "https://h/a?api_key=SECRET",
        "https://h/a?x=1&password=SECRET",
        "https://h/a?key=SECRET",
        "https://h/a?x-oss-signature=SECRET",
        "https://h/a?q-signature=SECRET",
    ],
)
def test_secrets_of_every_kind_are_blotted_out(url: str) -> None:
    assert "SECRET" not in redacted(f"{url} cannot be read")


@pytest.mark.parametrize(
    "url",
    [
        "http://host:8080/a@b",
        "s3://bucket/a:b/c@d",
        "zip://a.csv::s3://bucket/x@y",
        "abfss://c@a.dfs/x",
        "/a/key=1/b?x=1",
    ],
)
def test_what_is_no_secret_stays(url: str) -> None:
    assert redacted(url) == url


@pytest.mark.parametrize("kind", [FileNotFoundError, OSError, RuntimeError])
def test_no_traceback_holds_a_secret(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray prints errors with all that they came from."""
    monkeypatch.setenv("CONVBERT_STORE_PATIENCE_S", "0")

    def call() -> None:
        try:
            raise ValueError("https://me:hunter2@host/a")
        except ValueError as error:
            raise kind("https://me:hunter2@host/a?sig=hunter2") from error

    with pytest.raises(OSError, match=r"\*\*\*") as found:
        retried(call)
    text = "".join(traceback.format_exception(found.value))
    assert "hunter2" not in text
    assert isinstance(found.value, kind if issubclass(kind, OSError) else OSError)


def test_a_secret_is_in_no_name_of_a_part() -> None:
    old, new = (Shard(f"https://host/get?sig={secret}&file=a.jsonl", 9, "1") for secret in ("SECRET", "OTHER"))
    assert "SECRET" not in part_stem([old], "")
    assert part_stem([old], "") == part_stem([new], "")


# --- clients ---------------------------------------------------------------------------------------------


def test_an_answer_far_larger_than_its_request_is_refused() -> None:
    models = Models()
    web = TestClient(app_of(models, []), raise_server_exceptions=False)
    text = "<mask> " * 100 + "a" * 90_000
    response = web.post("/words", json={"inputs": text, "parameters": {"top_k": 100}})
    assert (response.status_code, models.asked) == (422, [])
    assert "lower top_k" in response.json()["error"]
    assert web.post("/words", json={"inputs": text[:1000], "parameters": {"top_k": 1}}).status_code == 200


def test_a_page_whose_name_leads_here_is_refused() -> None:
    """A browser sends its requests to the service as to the page's own site (DNS rebinding)."""
    models = Models()
    app = create_app(
        ServeSpec.of({"head": {"spam": "x"}}),
        models,
        {"heads": HEADS, "versions": {"convbert": "1"}},
        hosts=("127.0.0.1", "localhost", "::1"),
    )
    for host, status in (
        ("evil.example:8000", 421),
        ("", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST", 200),
    ):
        web = TestClient(app, raise_server_exceptions=False)
        assert web.post("/spam", json={"inputs": "a"}, headers={"Host": host}).status_code == status, host
    assert len(models.asked) == 4


# --- names -----------------------------------------------------------------------------------------------


def test_what_names_hold_makes_no_line_of_its_own() -> None:
    code = """if True:
        import logging
        from jobs import command_line
        handler = logging.StreamHandler()
        handler.setFormatter(command_line._OneLine("%(levelname)s %(message)s"))
        logging.basicConfig(handlers=[handler], level=20)
        logging.info("%s is gone", "a\\nERROR forged\\x1b[2J")
        logging.info("https://h/?sig=SECRET")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "INFO a\\nERROR forged\\x1b[2J is gone\nINFO https://h/?sig=***\n"


def test_a_flag_that_is_none_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("x", task="text-classification", arguments=["s3://key:sEcReT@bucket/in", "--output", "x"])
    assert "sEcReT" not in capsys.readouterr().err

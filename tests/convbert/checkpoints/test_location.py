"""Folders, URLs and what an index may name."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import pytest
import torch

from convbert import (
    CheckpointError,
    ConvBertConfig,
    ConvBertError,
    ConvBertForSequenceClassification,
    ConvBertForTokenClassification,
    ConvBertTokenizer,
)
from convbert.checkpoints import fingerprint, local_folder, located, read_config, read_weights
from convbert.checkpoints.location import path_beside
from tests.fault_proxy import FaultProxy


@pytest.fixture
def remote(classifier: ConvBertForSequenceClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint in fsspec's memory file system, and an empty cache."""
    monkeypatch.setenv("CONVBERT_CACHE", str(tmp_path / "cache"))
    classifier.save_pretrained(tmp_path / "model")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.put(str(tmp_path / "model") + "/", "/bucket/model/", recursive=True)
    return "memory://bucket/model"


def test_a_remote_folder_is_copied_once_a_version(
    remote: str, classifier: ConvBertForSequenceClassification, tmp_path: Path
) -> None:
    loaded, report = ConvBertForSequenceClassification.load(remote)
    assert report == ([], [])
    assert fingerprint(loaded.state_dict()) == fingerprint(classifier.state_dict())
    first = local_folder(remote)
    assert local_folder(remote) == first
    classifier.config.extra["note"] = "a new version"
    classifier.config.save_pretrained(tmp_path / "model")
    fsspec.filesystem("memory").put(str(tmp_path / "model" / "config.json"), "/bucket/model/config.json")
    assert local_folder(remote) != first
    assert ConvBertForSequenceClassification.from_pretrained(remote).config.extra["note"] == "a new version"


def test_copies_lie_in_the_users_cache_where_nothing_else_is_said(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONVBERT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert local_folder(remote).parent == tmp_path / "home/.cache/convbert"


@pytest.mark.parametrize("key", ["blob_id", "xet_hash", "something else"])
def test_what_a_store_tells_versions_by_is_a_version(remote: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As hf:// lists them: a retrained model of the same size has another blob, and no date."""
    memory = type(fsspec.filesystem("memory"))
    plain, version = memory.ls, {key: "a"}

    def listed(self: object, path: str, **kwargs: object) -> list[dict[str, object]]:
        return [
            {"name": info["name"], "size": info["size"], "type": info["type"], "etag": None, **version}
            for info in plain(self, path, **kwargs)
        ]

    monkeypatch.setattr(memory, "ls", listed)
    first = local_folder(remote)
    assert local_folder(remote) == first
    version[key] = "b"
    assert local_folder(remote) != first


def test_a_file_that_was_put_anew_is_a_new_version(remote: str) -> None:
    """The memory file system says when it was made, by a name of its own."""
    first = local_folder(remote)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/model/config.json", memory.cat("/bucket/model/config.json"))
    assert local_folder(remote) != first


def test_a_web_servers_folder_is_read_file_by_file(
    classifier: ConvBertForSequenceClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its listing is a page of links, which tells neither sizes nor versions."""
    monkeypatch.setenv("CONVBERT_CACHE", str(tmp_path / "cache"))
    classifier.save_pretrained(tmp_path / "model")
    with web_server(tmp_path) as url:
        first = local_folder(f"{url}/model")
        assert read_weights(f"{url}/model").keys() == classifier.state_dict().keys()
        os.utime(tmp_path / "model" / "model.safetensors", (10**9, 10**9))
        assert local_folder(f"{url}/model") != first


def test_a_web_server_without_ranges_is_read_file_by_file(
    classifier: ConvBertForSequenceClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python's own is one, which answers a range with all of the file."""
    monkeypatch.setenv("CONVBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("convbert.stores.COPY_BLOCK_BYTES", 2_000)
    classifier.save_pretrained(tmp_path / "model")
    with web_server(tmp_path) as url:
        weights = read_weights(f"{url}/model")
    assert fingerprint(weights) == fingerprint(classifier.state_dict())


def test_answers_that_are_neither_a_range_nor_the_file_name_the_way_out(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", lambda *_, **__: b"." * 10**6)
    with pytest.raises(CheckpointError, match=r"model cannot be read .*no ranges\): copy the folder to this machine$"):
        local_folder(remote)


def test_a_web_servers_faults_are_waited_out(
    classifier: ConvBertForSequenceClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTPFileSystem calls them missing files, after a HEAD and a GET."""
    monkeypatch.setenv("CONVBERT_CACHE", str(tmp_path / "cache"))
    classifier.save_pretrained(tmp_path / "model")
    with web_server(tmp_path, **{"config.json": [503, 503]}) as url:
        assert read_config(f"{url}/model") == read_config(tmp_path / "model")


def test_a_file_that_a_web_server_refuses_is_no_wrong_address(
    classifier: ConvBertForSequenceClassification, tmp_path: Path
) -> None:
    classifier.save_pretrained(tmp_path / "model")
    message = r"model cannot be listed \(403.*: check address and rights"
    with web_server(tmp_path, **{"config.json": [403, 403]}) as url, pytest.raises(CheckpointError, match=message):
        local_folder(f"{url}/model")


def test_a_web_servers_dead_links_are_left_out(
    classifier: ConvBertForSequenceClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVBERT_CACHE", str(tmp_path / "cache"))
    classifier.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "dead.bin").symlink_to("nowhere")
    with web_server(tmp_path) as url:
        copied = local_folder(f"{url}/model")
    assert sorted(path.name for path in copied.iterdir()) == ["config.json", "model.safetensors"]


def test_links_that_sort_a_web_servers_page_are_no_files(remote: str) -> None:
    """Apache's listings begin with them."""
    fsspec.filesystem("memory").pipe("/bucket/model/?C=N;O=D", b"")
    assert sorted(path.name for path in local_folder(remote).iterdir()) == ["config.json", "model.safetensors"]


def test_a_file_without_a_size_is_named(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type(fsspec.filesystem("memory"))
    for name in ("ls", "info"):
        monkeypatch.setattr(memory, name, sizeless(getattr(memory, name)))
    with pytest.raises(CheckpointError, match=r"config.json has no known size: copy the folder to this machine"):
        local_folder(remote)


def sizeless(call: Callable[..., Any]) -> Callable[..., Any]:
    """A call of a file system that tells no file's size."""

    def run(*args: object, **kwargs: object) -> Any:
        found = call(*args, **kwargs)
        return [{**info, "size": None} for info in found] if isinstance(found, list) else {**found, "size": None}

    return run


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder without a log, and spoils the next requests for some files with these statuses."""

    def __init__(self, *args: Any, faults: dict[str, list[int]], **kwargs: Any) -> None:
        self.faults = faults
        super().__init__(*args, **kwargs)

    def send_head(self) -> Any:
        statuses = self.faults.get(self.path.rsplit("/", 1)[-1])
        if statuses:
            self.send_error(statuses.pop(0))
            return None
        return super().send_head()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def web_server(folder: Path, **faults: list[int]) -> Iterator[str]:
    """The address at which a folder is served."""
    handler = partial(Handler, directory=str(folder), faults=faults)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("read", "config", "message"),
    [
        (read_weights, b"{}", "has no model.safetensors"),
        (read_config, None, "has no config.json"),
        (read_config, b"{", "cannot be read"),
        (read_config, b"[]", "must hold a JSON object"),
        (read_config, b'{"vocab_size": 0}', "vocab_size"),
        (ConvBertTokenizer.from_pretrained, b"{}", "has neither tokenizer.json nor vocab.txt"),
    ],
)
def test_a_password_in_a_url_is_in_no_message(
    read: Callable[[str], object], config: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVBERT_CACHE", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe("/user:hunter2@bucket/model/note.txt", b"")
    if config is not None:
        memory.pipe("/user:hunter2@bucket/model/config.json", config)
    with pytest.raises(ConvBertError, match=message) as found:
        read("memory://user:hunter2@bucket/model")
    assert "hunter2" not in str(found.value)
    assert "memory://user:***@bucket/model" in str(found.value)


def test_a_password_in_a_url_is_in_no_warning(
    classifier: ConvBertForSequenceClassification,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CONVBERT_CACHE", str(tmp_path / "cache"))
    classifier.save_pretrained(tmp_path / "model")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "model") + "/", "/user:hunter2@bucket/model/", recursive=True)
    ConvBertForTokenClassification.from_pretrained("memory://user:hunter2@bucket/model")
    assert "hunter2" not in caplog.text
    assert caplog.text.count("memory://user:***@bucket/model") == 2
    with pytest.raises(ConvBertError, match=r"memory://user:\*\*\*@bucket") as found:
        ConvBertForTokenClassification.load("memory://user:hunter2@bucket/model", config=ConvBertConfig())
    assert "hunter2" not in str(found.value)


def test_a_cache_that_cannot_be_written_says_which_variable_moves_it(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONVBERT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match=r"cannot be copied to .*\[Errno 20\].* or set CONVBERT_CACHE to"):
        local_folder(remote)


def test_a_user_without_a_home_is_told_which_variable_gives_a_cache(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a container's user may be whom nothing but a number names."""

    def unknown(user: int) -> NoReturn:
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("CONVBERT_CACHE")
    with pytest.raises(CheckpointError, match="there is no home for copies .* set CONVBERT_CACHE"):
        local_folder(remote)


def test_weights_that_are_not_read_are_not_copied(remote: str) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("tf_model.h5", "pytorch_model.bin", "flax_model.msgpack", "optimizer.pt", "m.data-00000-of-00001"):
        memory.pipe(f"/bucket/model/{name}", b"large")
    memory.pipe("/bucket/model/vocab.txt", b"[PAD]")
    assert sorted(path.name for path in local_folder(remote).iterdir()) == [
        "config.json",
        "model.safetensors",
        "vocab.txt",
    ]


def test_all_is_copied_where_no_format_is_known(remote: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.rm("/bucket/model/model.safetensors")
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        memory.pipe(f"/bucket/model/{name}", b"tf1")
    assert len(list(local_folder(remote).iterdir())) == 3


def test_a_copy_that_breaks_leaves_no_half_checkpoint(remote: str, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    with pytest.MonkeyPatch.context() as patch:

        def broken(self: object, path: str, start: int, end: int) -> bytes:
            if path.endswith("config.json"):
                return b"." * (end - start)
            raise OSError("connection lost")

        patch.setattr(type(fs), "cat_file", broken)
        with pytest.raises(CheckpointError, match=r"memory://bucket/model .*connection lost.*try again"):
            local_folder(remote)
    assert not list((tmp_path / "cache").iterdir())
    assert read_weights(remote)


def test_a_checkpoint_that_changes_under_the_copy_is_not_kept(remote: str, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    plain = type(fs).cat_file
    with pytest.MonkeyPatch.context() as patch:

        def changing(self: object, path: str, start: int, end: int) -> bytes:
            data: bytes = plain(self, path, start, end)
            fs.pipe("/bucket/model/vocab.txt", b"new")
            return data

        patch.setattr(type(fs), "cat_file", changing)
        with pytest.raises(CheckpointError, match=r"memory://bucket/model .*changed while they were copied.*try again"):
            local_folder(remote)
    assert not list((tmp_path / "cache").iterdir())


def test_a_checkpoint_in_s3_survives_what_happens_on_the_way(
    classifier: ConvBertForSequenceClassification, tmp_path: Path, s3: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("convbert.stores.COPY_BLOCK_BYTES", 2_000)
    classifier.save_pretrained(tmp_path / "model")
    fsspec.filesystem("s3").put(f"{tmp_path / 'model'}/", "bucket/flaky-model/", recursive=True)
    with s3.faults(0.2, "error_500", "reset", "reset_in_answer", "truncated", "short", seed=1):
        copied = local_folder("s3://bucket/flaky-model")
    assert sum(s3.counts.values()) >= 2
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == files


def test_s3s_marker_of_a_folder_is_no_file(
    classifier: ConvBertForSequenceClassification, tmp_path: Path, s3: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The console makes one with each new folder: an empty object whose key ends in a slash."""
    monkeypatch.setenv("CONVBERT_CACHE", str(tmp_path / "cache"))
    classifier.save_pretrained(tmp_path / "model")
    fs = fsspec.filesystem("s3")
    fs.put(f"{tmp_path / 'model'}/", "bucket/marked-model/", recursive=True)
    for marker in ("bucket/marked-model/", "bucket/marked-model/runs/"):
        fs.pipe_file(marker, b"")
    copied = local_folder("s3://bucket/marked-model")
    assert sorted(path.name for path in copied.iterdir()) == ["config.json", "model.safetensors"]
    fs.pipe_file("bucket/marked-only/", b"")
    with pytest.raises(CheckpointError, match="s3://bucket/marked-only is empty"):
        local_folder("s3://bucket/marked-only")


def test_config_and_weights_are_of_one_version(
    remote: str, classifier: ConvBertForSequenceClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, before = ConvBertConfig.from_dict, fingerprint(classifier.state_dict())

    def from_dict(*args: Any, **changes: Any) -> ConvBertConfig:
        """A new version comes while the old config is read."""
        torch.nn.init.ones_(classifier.classifier.out_proj.bias)
        classifier.save_pretrained(tmp_path / "model")
        fsspec.filesystem("memory").put(str(tmp_path / "model") + "/", "/bucket/model/", recursive=True)
        return plain(*args, **changes)

    monkeypatch.setattr(ConvBertConfig, "from_dict", from_dict)
    model, _ = ConvBertForSequenceClassification.load(remote)
    assert fingerprint(model.state_dict()) == before


def test_a_checkpoint_that_was_located_stays_as_it_was_and_keeps_its_name(remote: str) -> None:
    checkpoint = located(remote)
    fsspec.filesystem("memory").rm("/bucket/model/config.json")
    assert located(checkpoint) is checkpoint
    assert read_config(checkpoint) == ConvBertConfig.from_pretrained(checkpoint)
    with pytest.raises(ConvBertError, match="the tokenizer of memory://bucket/model: "):
        ConvBertTokenizer.from_pretrained(checkpoint)


def test_a_file_systems_own_errors_are_named(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise NoCredentialsError("unable to locate credentials")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "ls", refuse)
    with pytest.raises(CheckpointError, match=r"memory://bucket/model cannot be listed \(unable to locate credentials"):
        local_folder(remote)


def test_a_remote_name_that_leads_out_of_the_cache_is_refused(remote: str) -> None:
    fsspec.filesystem("memory").pipe("/bucket/model/..\\evil.json", b"{}")
    with pytest.raises(CheckpointError, match=r"evil.json.*: refused"):
        local_folder(remote)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/nowhere/at/all", "no checkpoint folder at /nowhere/at/all"),
        ("memory://nothing/here", "no checkpoint folder at memory://nothing/here"),
        ("nonsense://bucket/model", "nonsense://bucket/model cannot be opened"),
    ],
)
def test_an_address_without_a_checkpoint_is_named(address: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        local_folder(address)


def test_a_store_that_cannot_be_opened_is_named_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """FTP, SFTP and SMB connect when they are opened."""
    monkeypatch.setenv("CONVBERT_STORE_PATIENCE_S", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(CheckpointError, match=rf"^ftp://me:\*\*\*@127\.0\.0\.1:{port}/in cannot be opened: .*refused"):
        local_folder(f"ftp://me:pw@127.0.0.1:{port}/in")


def test_a_file_url_is_a_local_folder(tmp_path: Path) -> None:
    assert local_folder(f"file://{tmp_path}") == tmp_path


class TestPathBeside:
    @pytest.fixture
    def index(self, tmp_path: Path) -> Path:
        (tmp_path / "home").mkdir()
        (tmp_path / "outside.bin").write_bytes(b"secret")
        (tmp_path / "home" / "shard.bin").write_bytes(b"weights")
        return tmp_path / "home" / "index.json"

    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "..",
            "../outside.bin",
            "/etc/passwd",
            "a/../../outside.bin",
            "sub/shard.bin",
            "C:\\x.bin",
            "..\\x",
            3,
        ],
    )
    def test_only_plain_names_are_taken(self, index: Path, name: object) -> None:
        with pytest.raises(CheckpointError, match=r"index.json names .* outside its folder: refused"):
            path_beside(index, name)

    def test_a_neighbour_is_taken(self, index: Path) -> None:
        assert path_beside(index, "shard.bin").read_bytes() == b"weights"
        (index.parent / "link.bin").symlink_to("shard.bin")
        assert path_beside(index, "link.bin").read_bytes() == b"weights"

    @pytest.mark.parametrize("absolute", [True, False])
    def test_a_link_out_of_the_folder_is_refused(self, index: Path, absolute: bool) -> None:
        target = index.parent.parent / "outside.bin"
        (index.parent / "link.bin").symlink_to(target if absolute else "../outside.bin")
        with pytest.raises(CheckpointError, match=r"link out of its folder: refused"):
            path_beside(index, "link.bin")

    def test_a_missing_file_is_named(self, index: Path) -> None:
        with pytest.raises(CheckpointError, match=r"model-2.bin is missing from .*index.json names it"):
            path_beside(index, "model-2.bin")
        with pytest.raises(CheckpointError, match=r"is missing from .*index.json names it"):
            path_beside(index, "a" * 300 + ".bin")  # a name that no file can have

    @pytest.fixture
    def snapshot(self, tmp_path: Path) -> Path:
        """A model in the hub's cache, whose files are links."""
        snapshot = tmp_path / "models--someone--model" / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True)
        blobs = tmp_path / "models--someone--model" / "blobs"
        blobs.mkdir()
        (blobs / "d41d8").write_bytes(b"weights")
        (snapshot / "shard.bin").symlink_to("../../blobs/d41d8")
        return snapshot

    def test_the_hubs_cache_links_into_its_blobs(self, snapshot: Path, tmp_path: Path) -> None:
        assert path_beside(snapshot / "index.json", "shard.bin").read_bytes() == b"weights"
        (snapshot / "bad.bin").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").write_bytes(b"secret")
        with pytest.raises(CheckpointError, match="refused"):
            path_beside(snapshot / "index.json", "bad.bin")

    @pytest.mark.parametrize("path", ["{tmp_path}/link", ".", "../0123abc"])
    def test_the_hubs_cache_is_known_by_every_path(
        self, snapshot: Path, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "link").symlink_to(snapshot)
        monkeypatch.chdir(snapshot)
        folder = Path(path.format(tmp_path=tmp_path))
        assert path_beside(folder / "index.json", "shard.bin").read_bytes() == b"weights"

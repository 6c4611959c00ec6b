from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import OutputError, SpecError
from pipelines.storage import locate, names_in, put, redacted


def test_local_places_are_plain_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("a/b").url == str(tmp_path / "a/b")
    assert locate(f"file://{tmp_path}/a").url == str(tmp_path / "a")
    assert locate("memory://x/y").child("z").url == "memory:///x/y/z"


@pytest.mark.parametrize("url", ["nowhere://x", "oss://bucket/x"], ids=["unknown", "not installed"])
def test_a_protocol_that_cannot_be_opened_is_named(url: str) -> None:
    with pytest.raises(SpecError, match=f"{url} cannot be opened"):
        locate(url)


@pytest.mark.parametrize("base", ["local", "memory://put-test"])
def test_put_makes_the_file_and_its_folder(base: str, tmp_path: Path) -> None:
    folder = locate(str(tmp_path / "new") if base == "local" else base)
    put(folder.child("a.bin"), b"first")
    put(folder.child("a.bin"), b"second")
    assert folder.fs.cat_file(folder.child("a.bin").path) == b"second"
    assert set(names_in(folder)) == {"a.bin"}


def test_a_failed_put_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = locate(str(tmp_path)).child("a.bin")
    put(target, b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OutputError, match=r"a\.bin cannot be written .*No space left"):
        put(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_files_get_the_rights_that_the_umask_says(tmp_path: Path) -> None:
    put(locate(str(tmp_path)).child("a"), b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_folder_that_is_not_there_has_no_names(tmp_path: Path) -> None:
    assert names_in(locate(str(tmp_path / "none"))) == {}


def test_credentials_do_not_stand_in_urls() -> None:
    assert redacted("read s3://key:secret@bucket/a and b") == "read s3://***@bucket/a and b"
    assert redacted("/home/a@b/c") == "/home/a@b/c"

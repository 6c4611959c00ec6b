"""What is written: read again by us, whole or in shards, and never a mix of old and new."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from convbert import (
    CheckpointError,
    ConvBertConfig,
    ConvBertForMaskedLM,
    ConvBertForSequenceClassification,
    ConvBertTokenizer,
)
from convbert.checkpoints import fingerprint, read_config, read_weights

Saving = Callable[[str | Path], object]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_file_with_the_metadata_that_transformers_asks_for(
    language_model: ConvBertForMaskedLM, tmp_path: Path
) -> None:
    language_model.save_pretrained(tmp_path / "new" / "folder")
    assert files(tmp_path / "new" / "folder") == ["config.json", "model.safetensors"]
    with safe_open(tmp_path / "new" / "folder" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "generator_lm_head.weight" not in file.keys()  # noqa: SIM118
    config = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert config["architectures"] == ["ConvBertForMaskedLM"]
    assert "architectures" not in language_model.config.extra


def test_shards_hold_all_and_keep_to_the_limit(language_model: ConvBertForMaskedLM, tmp_path: Path) -> None:
    limit = 1500
    language_model.save_pretrained(tmp_path, max_shard_bytes=limit)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert len(shards) > 2
    total = 0
    for shard in shards:
        with safe_open(tmp_path / shard, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        n_bytes = sum(tensor.nbytes for tensor in tensors.values())
        assert n_bytes <= limit or len(tensors) == 1
        assert all(index["weight_map"][name] == shard for name in tensors)
        total += n_bytes
    assert index["metadata"]["total_size"] == total
    assert ConvBertForMaskedLM.load(tmp_path)[1] == ([], [])
    language_model.save_pretrained(tmp_path / "whole")
    assert fingerprint(read_weights(tmp_path)) == fingerprint(read_weights(tmp_path / "whole"))


@pytest.mark.parametrize("max_shard_bytes", [None, 2000])
def test_weights_are_as_readable_as_other_files(
    classifier: ConvBertForSequenceClassification, tmp_path: Path, max_shard_bytes: int | None
) -> None:
    before = os.umask(0o027)
    try:
        classifier.save_pretrained(tmp_path, max_shard_bytes=max_shard_bytes)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_a_tensor_above_the_limit_has_its_own_file(
    classifier: ConvBertForSequenceClassification, tmp_path: Path
) -> None:
    classifier.save_pretrained(tmp_path, max_shard_bytes=1)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(classifier.state_dict())
    assert ConvBertForSequenceClassification.load(tmp_path)[1] == ([], [])


def test_old_files_are_replaced_others_stay(classifier: ConvBertForSequenceClassification, tmp_path: Path) -> None:
    (tmp_path / "model-card.safetensors").touch()
    (tmp_path / "vocab.txt").touch()
    others = ["config.json", "model-card.safetensors", "vocab.txt"]
    classifier.save_pretrained(tmp_path, max_shard_bytes=1)
    classifier.save_pretrained(tmp_path, max_shard_bytes=2000)
    with torch.no_grad():
        classifier.classifier.out_proj.bias.fill_(7)
    classifier.save_pretrained(tmp_path)
    assert files(tmp_path) == sorted([*others, "model.safetensors"])
    assert read_weights(tmp_path)["classifier.out_proj.bias"].tolist() == [7, 7]
    classifier.save_pretrained(tmp_path, max_shard_bytes=2000)
    assert "model.safetensors" not in files(tmp_path)
    assert read_weights(tmp_path)["classifier.out_proj.bias"].tolist() == [7, 7]


def test_a_failure_leaves_the_old_checkpoint(
    classifier: ConvBertForSequenceClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier.save_pretrained(tmp_path)
    before = fingerprint(read_weights(tmp_path))

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("convbert.checkpoints.saving.save_file", full_disk)
    with torch.no_grad():
        classifier.classifier.out_proj.bias.fill_(7)
    config = read_config(tmp_path)
    classifier.config = replace(classifier.config, id2label={0: "new", 1: "labels"})
    with pytest.raises(OSError, match="No space left"):
        classifier.save_pretrained(tmp_path, max_shard_bytes=2000)
    assert fingerprint(read_weights(tmp_path)) == before
    assert read_config(tmp_path) == config
    assert files(tmp_path) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("shard_bytes", [(None, None), (None, 2000), (2000, None), (2000, 2000)])
def test_no_stop_leaves_a_config_beside_other_weights(
    classifier: ConvBertForSequenceClassification,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shard_bytes: tuple[int | None, int | None],
) -> None:
    """A save that stops before any of its steps leaves the old checkpoint, none, or the new one."""
    before, after = shard_bytes
    steps = {"left": 0}

    def stopping(step: Callable[..., object]) -> Callable[..., object]:
        def run(path: Path, *args: object, **kwargs: object) -> object:
            if path.parent.name.startswith(".saving-") or path.parent == tmp_path:
                steps["left"] -= 1
                if steps["left"] < 0:
                    raise KeyboardInterrupt
            return step(path, *args, **kwargs)

        return run

    def state() -> tuple[str, float] | None:
        try:
            return read_config(tmp_path).id2label[0], read_weights(tmp_path)["classifier.out_proj.bias"][0].item()
        except CheckpointError:
            return None

    def save(label: str, bias: float, max_shard_bytes: int | None) -> None:
        classifier.config = replace(classifier.config, id2label={0: label, 1: "other"})
        torch.nn.init.constant_(classifier.classifier.out_proj.bias, bias)
        classifier.save_pretrained(tmp_path, max_shard_bytes=max_shard_bytes)

    seen = []
    for n_steps in range(100):
        save("old", 1.0, before)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stopping(Path.replace))
            patch.setattr(Path, "unlink", stopping(Path.unlink))
            patch.setattr(Path, "write_text", stopping(Path.write_text))
            steps["left"] = n_steps
            with suppress(KeyboardInterrupt):
                save("new", 2.0, after)
        seen.append(state())
        if steps["left"] > 0:
            break
    assert set(seen) == {("old", 1.0), None, ("new", 2.0)}
    assert seen[-1] == ("new", 2.0)


def test_a_limit_below_one_is_refused(classifier: ConvBertForSequenceClassification, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"max_shard_bytes \(0\)"):
        classifier.save_pretrained(tmp_path, max_shard_bytes=0)


@pytest.fixture(params=["model", "config", "tokenizer", "vocabulary"])
def save(request: pytest.FixtureRequest, classifier: ConvBertForSequenceClassification, tmp_path: Path) -> Saving:
    """Whatever writes into a folder."""
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n")
    tokenizer = ConvBertTokenizer(tmp_path / "vocab.txt")
    return {
        "model": classifier.save_pretrained,
        "config": ConvBertConfig().save_pretrained,
        "tokenizer": tokenizer.save_pretrained,
        "vocabulary": tokenizer.save_vocabulary,
    }[request.param]


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("chain", ["", "simplecache::"])
def test_a_url_is_refused(
    save: Saving, kind: type[str | Path], chain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = rf"^{chain}s3://key:\*\*\*@bucket/new is a URL: save to a local folder, then copy"
    with pytest.raises(CheckpointError, match=message):
        save(kind(f"{chain}s3://key:secret@bucket/new"))
    assert files(tmp_path) == ["vocab.txt"]


def test_a_tilde_is_the_home(save: Saving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    save("~/new")
    assert files(tmp_path) == ["home", "vocab.txt"]
    assert files(tmp_path / "home" / "new")


def test_a_link_is_replaced_and_its_file_left(save: Saving, tmp_path: Path) -> None:
    save(tmp_path / "names")
    (tmp_path / "blob").write_text("of other revisions, too")
    (tmp_path / "new").mkdir()
    for name in files(tmp_path / "names"):
        (tmp_path / "new" / name).symlink_to("../blob")
    save(tmp_path / "new")
    assert (tmp_path / "blob").read_text() == "of other revisions, too"
    assert files(tmp_path / "new") == files(tmp_path / "names")
    assert not any(path.is_symlink() for path in (tmp_path / "new").iterdir())


def test_a_failure_leaves_the_old_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n")
    tokenizer = ConvBertTokenizer(tmp_path / "vocab.txt")
    tokenizer.save_pretrained(tmp_path / "saved")
    before = tokenizer.fingerprint()
    tokenizer.add_tokens("new")
    write_text = Path.write_text

    def full_disk(path: Path, text: str, **options: str) -> int:
        if path.name == "tokenizer_config.json":
            raise OSError("No space left on device")
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save_pretrained(tmp_path / "saved")
    assert ConvBertTokenizer.from_pretrained(tmp_path / "saved").fingerprint() == before
    assert files(tmp_path / "saved") == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]


def test_the_type_in_an_old_config_follows_the_weights(
    classifier: ConvBertForSequenceClassification, tmp_path: Path
) -> None:
    classifier.config.extra["torch_dtype"] = "float32"
    classifier.to(torch.bfloat16).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in read_weights(tmp_path).values()} == {torch.bfloat16}


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system")
def test_a_folder_need_not_lie_where_temporary_files_do(
    language_model: ConvBertForMaskedLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    language_model.save_pretrained(tmp_path)
    assert files(tmp_path) == ["config.json", "model.safetensors"]

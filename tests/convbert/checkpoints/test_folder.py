"""Whole folders: which format is read, indexes that lie, and folders that go to Transformers and back."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import convbert
from convbert import CheckpointError, ConvBertConfig, ConvBertForMaskedLM, ConvBertForSequenceClassification
from convbert.checkpoints import fingerprint, read_config, read_weights

CLASSES = (
    "ConvBertModel",
    "ConvBertForMaskedLM",
    "ConvBertForSequenceClassification",
    "ConvBertForMultipleChoice",
    "ConvBertForTokenClassification",
    "ConvBertForQuestionAnswering",
)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("max_shard_bytes", [None, 2000])
def test_transformers_reads_what_we_write(
    name: str, max_shard_bytes: int | None, config: ConvBertConfig, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ours = getattr(convbert, name)(config).eval()
    ours.save_pretrained(tmp_path, max_shard_bytes=max_shard_bytes)
    theirs, report = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.architectures == [name]
    ids = torch.randint(17, (2, 3, 8) if name == "ConvBertForMultipleChoice" else (2, 8))
    with torch.no_grad():
        assert torch.allclose(ours(ids)[0], theirs.eval()(ids)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("form", ["safetensors", "sharded safetensors", "bin", "sharded bin"])
def test_we_read_what_transformers_writes(name: str, form: str, config: ConvBertConfig, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    values = {key: value for key, value in config.to_dict().items() if key != "model_type"}
    theirs = getattr(transformers, name)(transformers.ConvBertConfig(**values)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # Transformers 4 leaves grouped weights as the memory was
            parameter.normal_(std=0.3)
    if "bin" in form:  # Transformers 5 no longer writes it: this is what 4 wrote
        theirs.config.save_pretrained(tmp_path)
        write_bin(theirs.state_dict(), tmp_path, sharded="sharded" in form)
    else:
        theirs.save_pretrained(tmp_path, max_shard_size="2KB" if "sharded" in form else "1GB")
    assert len(list(tmp_path.glob("*.index.json"))) == ("sharded" in form)
    ours, report = getattr(convbert, name).load(tmp_path)
    assert report == ([], [])
    ids = torch.randint(17, (2, 3, 8) if name == "ConvBertForMultipleChoice" else (2, 8))
    with torch.no_grad():
        assert torch.allclose(ours(ids)[0], theirs(ids)[0], atol=1e-5, rtol=0)


def write_bin(weights: dict[str, torch.Tensor], folder: Path, *, sharded: bool) -> None:
    if not sharded:
        torch.save(weights, folder / "pytorch_model.bin")
        return
    names = list(weights)
    places = {name: f"pytorch_model-{1 + place % 2:05d}-of-00002.bin" for place, name in enumerate(names)}
    for file in set(places.values()):
        torch.save({name: weights[name] for name in names if places[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_safetensors_go_before_bin_and_bin_before_h5(
    classifier: ConvBertForSequenceClassification, tmp_path: Path
) -> None:
    for name in ("tf_model.h5", "model.ckpt.index"):
        (tmp_path / name).write_bytes(b"never opened")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert list(read_weights(tmp_path)) == ["a"]
    save_file({"b": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert list(read_weights(tmp_path)) == ["b"]


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    ConvBertConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no model.safetensors, .* or TF1 checkpoint \(it holds config.json\)"):
        read_weights(tmp_path)


def test_a_folder_without_config_says_so(tmp_path: Path) -> None:
    save_file({"b": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": [1]}}',
        "[" * 100_000,
        "\ud800",
    ],
)
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json .*copy it again"):
        read_weights(tmp_path)


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "tf_model.h5"])
@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/x", "..", 7, None])
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, form: str, name: object) -> None:
    (tmp_path / f"{form}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"names .* outside its folder: refused"):
        read_weights(tmp_path)


def test_a_shard_that_is_missing_is_named(classifier: ConvBertForSequenceClassification, tmp_path: Path) -> None:
    classifier.save_pretrained(tmp_path, max_shard_bytes=2000)
    (tmp_path / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00005.safetensors is missing from"):
        read_weights(tmp_path)


def test_fingerprint_does_not_depend_on_the_filing(language_model: ConvBertForMaskedLM, tmp_path: Path) -> None:
    language_model.save_pretrained(tmp_path / "a")
    language_model.save_pretrained(tmp_path / "b", max_shard_bytes=500)
    (tmp_path / "c").mkdir()
    torch.save(read_weights(tmp_path / "a"), tmp_path / "c" / "pytorch_model.bin")
    assert len({fingerprint(read_weights(tmp_path / name)) for name in "abc"}) == 1
    with torch.no_grad():
        language_model.generator_lm_head.bias[3] += 1e-6
    language_model.save_pretrained(tmp_path / "d")
    assert fingerprint(read_weights(tmp_path / "d")) != fingerprint(read_weights(tmp_path / "a"))


def test_loading_is_silent_where_all_meets(
    language_model: ConvBertForMaskedLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    language_model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="convbert"):
        ConvBertForMaskedLM.from_pretrained(tmp_path)
    assert not caplog.records

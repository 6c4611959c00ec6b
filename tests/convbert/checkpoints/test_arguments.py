"""Scripts for Transformers pass arguments that mean nothing here, or something that is done in another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

import convbert
from convbert import InputError
from convbert.checkpoints import own_settings

NAMES = ("ConvBertTokenizer", "ConvBertConfig", "ConvBertModel")


@pytest.mark.parametrize("name", NAMES)
def test_what_changes_nothing_is_taken_as_in_transformers(name: str, checkpoint: Path) -> None:
    usual: dict[str, Any] = {
        "local_files_only": True,
        "force_download": False,
        "cache_dir": None,
        "token": None,
        "revision": "main",
        "subfolder": "",
        "trust_remote_code": False,
        "mirror": None,
    }
    if name == "ConvBertTokenizer":
        usual["use_fast"] = True
    if name == "ConvBertModel":
        usual |= {"low_cpu_mem_usage": True, "use_safetensors": True, "weights_only": True, "return_dict": True}
        usual |= {"from_tf": False, "from_flax": False, "key_mapping": {}, "tp_plan": None}
    if name == "ConvBertConfig":
        usual["finetuning_task"] = "sst2"
    for package in (transformers, convbert):
        assert type(getattr(package, name).from_pretrained(checkpoint, **usual)).__name__ == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("argument", "value", "remedy"),
    [
        ("revision", "v2", "hf://owner/name@revision"),
        ("subfolder", "main", "in the address"),
        ("cache_dir", "/tmp", "CONVBERT_CACHE"),
        ("token", "hf_secret", "HF_TOKEN"),
        ("device_map", "auto", r"to\(device\)"),
        ("device_map", 0, r"to\(device\)"),
        ("output_hidden_states", True, "the model's call"),
        ("from_tf", True, "TensorFlow's files are known by their names"),
        ("key_mapping", {"a": "b"}, "rename the weights"),
    ],
)
def test_what_is_done_in_another_way_says_how(
    name: str, argument: str, value: object, remedy: str, checkpoint: Path
) -> None:
    with pytest.raises(InputError, match=f"{argument} is an argument of Transformers: .*{remedy}") as found:
        getattr(convbert, name).from_pretrained(checkpoint, **{argument: value})
    assert "hf_secret" not in str(found.value)


def test_a_config_is_no_path(checkpoint: Path) -> None:
    for load in (convbert.ConvBertModel.from_pretrained, convbert.ConvBertModel.load):
        with pytest.raises(InputError, match="must be a ConvBertConfig: read one with ConvBertConfig.from_pretrained"):
            load(checkpoint, config=str(checkpoint))


def test_a_url_is_no_local_file() -> None:
    with pytest.raises(InputError, match="local_files_only .* the folder's path in place of a URL"):
        convbert.ConvBertConfig.from_pretrained("hf://owner/name", local_files_only=True)
    assert own_settings({"local_files_only": False, "num_labels": 3}, "hf://owner/name") == {"num_labels": 3}


def test_saving_as_in_transformers(checkpoint: Path, tmp_path: Path) -> None:
    model = convbert.ConvBertModel.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    usual = {"safe_serialization": True, "push_to_hub": False, "max_shard_size": None, "state_dict": None}
    model.save_pretrained(tmp_path, is_main_process=True, save_function=print, **usual)
    assert (tmp_path / "model.safetensors").is_file()
    model.config.save_pretrained(tmp_path / "config", push_to_hub=False)
    for argument, value, remedy in [
        ("safe_serialization", False, "safetensors are written"),
        ("max_shard_size", "1GB", "give max_shard_bytes"),
        ("push_to_hub", True, "copy the folder"),
        ("state_dict", {}, "call load_state_dict"),
    ]:
        with pytest.raises(InputError, match=rf"{argument} \({value!r}\) is an argument of Transformers: .*{remedy}"):
            model.save_pretrained(tmp_path, **{argument: value})
    with pytest.raises(TypeError, match="no argument 'shards'"):
        model.save_pretrained(tmp_path, shards=2)
    tokenizer = convbert.ConvBertTokenizer.from_pretrained(checkpoint)
    paths = tokenizer.save_pretrained(tmp_path / "tokenizer", legacy_format=False, filename_prefix=None)
    assert sorted(paths) == sorted(map(str, (tmp_path / "tokenizer").iterdir()))

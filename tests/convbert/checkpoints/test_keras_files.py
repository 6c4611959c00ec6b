"""TensorFlow's weights give TensorFlow's numbers: exports of Transformers 4.46.3, and files that are refused."""

from __future__ import annotations

import builtins
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import convbert
from convbert import CheckpointError
from convbert.checkpoints import read_weights

TOLERANCE = 1e-4
CLASS_OF = {"sharded": "ForMaskedLM", "safetensors": "ForTokenClassification"}
EXPORTS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "sharded",
    "safetensors",
)


@pytest.mark.parametrize("export", EXPORTS)
def test_outputs_equal_tensorflows(tensorflow_exports: Path, export: str) -> None:
    if export != "safetensors":
        pytest.importorskip("h5py")
    folder = tensorflow_exports / export
    model, report = getattr(convbert, "ConvBert" + CLASS_OF.get(export, export)).load(folder)
    assert report == ([], [])
    expected = np.load(folder / "expected.npz")
    n_compared = 0
    for kind in ("none", "right", "left", "scattered"):
        with torch.no_grad():
            output = model(
                input_ids=torch.from_numpy(expected["input_ids"]),
                attention_mask=torch.from_numpy(expected[f"mask.{kind}"]),
                token_type_ids=torch.from_numpy(expected["token_type_ids"]),
            )
        for name in expected.files:
            if name.startswith(f"{kind}."):
                ours = output[name.removeprefix(f"{kind}.")].numpy()
                assert ours.shape == expected[name].shape
                np.testing.assert_allclose(ours, expected[name], atol=TOLERANCE, rtol=0)
                n_compared += 1
    assert n_compared == (8 if model.config.num_labels == 2 and export == "ForQuestionAnswering" else 4)


def test_a_task_export_loads_into_the_encoder_and_back(tensorflow_exports: Path) -> None:
    pytest.importorskip("h5py")
    encoder, report = convbert.ConvBertModel.load(tensorflow_exports / "ForTokenClassification")
    assert report == ([], ["classifier.bias", "classifier.weight"])
    task, report = convbert.ConvBertForTokenClassification.load(tensorflow_exports / "Model")
    assert report == (["classifier.bias", "classifier.weight"], [])
    assert not torch.equal(
        encoder.embeddings.word_embeddings.weight[0], task.convbert.embeddings.word_embeddings.weight[0]
    )


def test_without_h5py_the_error_says_what_to_install(tensorflow_exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_import = builtins.__import__

    def without_h5py(name: str, *arguments: Any) -> Any:
        if name == "h5py":
            raise ImportError("No module named 'h5py'")
        return whole_import(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_h5py)
    with pytest.raises(CheckpointError, match=r"tf_model.h5 .*pip install h5py$"):
        read_weights(tensorflow_exports / "Model")


@pytest.fixture
def folder(tensorflow_exports: Path, tmp_path: Path) -> Path:
    pytest.importorskip("h5py")
    return Path(shutil.copytree(tensorflow_exports / "Model", tmp_path / "Model"))


@pytest.mark.parametrize("length", [0, 7, 100, 4000, 40_000, 81_000])
def test_a_cut_file_is_named(folder: Path, length: int) -> None:
    path = folder / "tf_model.h5"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"tf_model.h5 .*copy it again"):
        read_weights(folder)


def test_a_dataset_in_another_file_is_refused(folder: Path) -> None:
    import h5py

    (folder.parent / "secret.raw").write_bytes(bytes(48))
    with h5py.File(folder / "tf_model.h5", "a") as file:
        group = file["convbert/tf_conv_bert_model/convbert/embeddings"]
        group.create_dataset("stolen:0", (12,), "f4", external=[(str(folder.parent / "secret.raw"), 0, 48)])
    with pytest.raises(CheckpointError, match=r"stolen:0 .*lies in another file: refused"):
        read_weights(folder)


def test_a_virtual_dataset_is_refused(folder: Path) -> None:
    import h5py

    layout = h5py.VirtualLayout((12,), "f4")
    layout[:] = h5py.VirtualSource(str(folder.parent / "other.h5"), "data", shape=(12,))
    with h5py.File(folder / "tf_model.h5", "a") as file:
        file["convbert/tf_conv_bert_model/convbert"].create_virtual_dataset("stolen:0", layout)
    with pytest.raises(CheckpointError, match="lies in another file: refused"):
        read_weights(folder)


def test_a_link_into_another_file_is_not_followed(folder: Path) -> None:
    import h5py

    with h5py.File(folder.parent / "other.h5", "w") as file:
        file.create_dataset("data", data=np.ones(12, np.float32))
    with h5py.File(folder / "tf_model.h5", "a") as file:
        file["convbert/tf_conv_bert_model/convbert/stolen:0"] = h5py.ExternalLink("../other.h5", "data")
    assert not any("stolen" in name for name in read_weights(folder))


@pytest.mark.parametrize("chunks", [None, (5,)])
def test_a_dataset_that_was_never_written_is_named(folder: Path, chunks: tuple[int, ...] | None) -> None:
    import h5py

    with h5py.File(folder / "tf_model.h5", "a") as file:
        path = "convbert/tf_conv_bert_model/convbert/embeddings/LayerNorm"
        del file[path]["beta:0"]
        file[path].create_dataset("beta:0", (5,) if chunks is None else (10**12,), "f4", chunks=chunks)
    with pytest.raises(CheckpointError, match=r"beta:0 .*never written"):
        read_weights(folder)


def test_datasets_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    """Ninety-nine headers of the same megabyte."""
    h5py = pytest.importorskip("h5py")
    path, n = tmp_path / "tf_model.h5", 250_000
    with h5py.File(path, "w", libver="earliest") as file:
        first = file.create_dataset("layer_0/kernel:0", data=np.ones(n, np.float32)).id.get_offset()
        for k in range(1, 100):
            file.create_dataset(f"layer_{k}/kernel:0", (n,), "f4")
    nowhere, there = (struct.pack("<QQ", place, 4 * n) for place in (2**64 - 1, first))
    path.write_bytes(path.read_bytes().replace(nowhere, there))
    with pytest.raises(CheckpointError, match=r"tf_model.h5 is refused: its datasets lie over each other"):
        read_weights(tmp_path)


def test_weights_that_two_layers_hold_must_agree(folder: Path) -> None:
    """Keras files a shared weight under every layer that uses it: older exports hold the word table twice."""
    import h5py

    name = "tf_conv_bert_model/convbert/embeddings/word_embeddings/weight:0"
    with h5py.File(folder / "tf_model.h5", "a") as file:
        table = file["convbert"][name][()]
        file.create_dataset(f"generator_lm_head/{name}", data=table)
    assert torch.equal(read_weights(folder)["convbert.embeddings.word_embeddings.weight"], torch.from_numpy(table))
    with h5py.File(folder / "tf_model.h5", "a") as file:
        file[f"generator_lm_head/{name}"][0, 0] += 1
    with pytest.raises(CheckpointError, match=r"two different tensors for convbert.embeddings.word_embeddings.weight"):
        read_weights(folder)

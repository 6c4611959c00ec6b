"""The original repository's checkpoints: TensorFlow's Saver wrote them, Transformers' conversion gives the outputs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from convbert import CheckpointError, ConvBertConfig, ConvBertForMaskedLM, ConvBertModel
from convbert.checkpoints import read_config, read_weights
from convbert.checkpoints.names import TF1_NO_WEIGHTS
from convbert.checkpoints.tensor_bundle import TensorBundle
from convbert.checkpoints.tf1_files import _renamed

CONSTANTS = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0}


@pytest.mark.parametrize("export", ["tf1", "tf1_dense"])
def test_outputs_equal_transformers_conversion(tensorflow_exports: Path, export: str) -> None:
    folder = tensorflow_exports / export
    expected = np.load(folder / "expected.npz")
    model, report = ConvBertModel.load(folder)
    assert report == ([], [])
    with torch.no_grad():
        hidden = model(torch.from_numpy(expected["input_ids"])).last_hidden_state.numpy()
    np.testing.assert_allclose(hidden, expected["last_hidden_state"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("export", ["tf1", "tf1_dense"])
def test_config_follows_from_the_shapes(
    tensorflow_exports: Path, export: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = np.load(tensorflow_exports / export / "expected.npz")
    config = read_config(tensorflow_exports / export)
    for field in expected.files:
        if field not in ("input_ids", "last_hidden_state"):
            assert getattr(config, field) == expected[field], field
    assert {field: getattr(config, field) for field in CONSTANTS} == CONSTANTS
    assert (config.bos_token_id, config.eos_token_id) == (None, None)
    assert "hidden_act gelu" in caplog.text


def test_config_json_goes_first(tensorflow_exports: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tensorflow_exports / "tf1", tmp_path / "tf1")
    config = read_config(folder)
    config.hidden_act = "relu"
    config.save_pretrained(folder)
    assert ConvBertModel.from_pretrained(folder).config.hidden_act == "relu"


def test_steps_and_optimizer_slots_are_no_weights(tensorflow_exports: Path) -> None:
    variables = TensorBundle(tensorflow_exports / "tf1" / "model.ckpt.index").variables
    weights = read_weights(tensorflow_exports / "tf1")
    assert "global_step" in variables
    assert "electra/embeddings/LayerNorm/beta/adam_m" in variables
    assert len(variables) == 3 * len(weights) + 1


@pytest.mark.parametrize("name", ["global_step", "beta1_power", "a/b/kernel/adam_v", "a/b/Adam_1", "save_counter/x"])
def test_leftovers_of_training_are_known(name: str) -> None:
    assert re.fullmatch(TF1_NO_WEIGHTS, name)


def test_a_generator_of_its_own_is_reported_not_mixed_in() -> None:
    """In ELECTRA's pre-training the small generator's head does not belong to the encoder of scope electra."""
    kernel, bias = torch.arange(6.0).reshape(2, 3), torch.zeros(5)
    head = {"generator_predictions/dense/kernel": kernel, "generator_predictions/output_bias": bias}
    alone = _renamed(dict(head), Path("model.ckpt.index"))
    assert alone["generator_predictions.dense.weight"].tolist() == kernel.T.tolist()
    assert alone["generator_lm_head.bias"] is bias
    beside = _renamed({**head, "generator/encoder/layer_0/output/dense/bias": bias}, Path("model.ckpt.index"))
    assert sorted(beside) == [
        "generator/encoder/layer_0/output/dense/bias",
        "generator_predictions/dense/kernel",
        "generator_predictions/output_bias",
    ]


def test_a_discriminator_as_language_model_reports_its_random_head(
    tensorflow_exports: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, report = ConvBertForMaskedLM.load(tensorflow_exports / "tf1")
    assert report.missing == [
        "generator_lm_head.bias",
        "generator_predictions.LayerNorm.bias",
        "generator_predictions.LayerNorm.weight",
        "generator_predictions.dense.bias",
        "generator_predictions.dense.weight",
    ]
    assert model.generator_lm_head.weight is model.convbert.embeddings.word_embeddings.weight
    ConvBertForMaskedLM.from_pretrained(tensorflow_exports / "tf1")
    assert "generator_predictions.dense.weight: they are random until trained" in caplog.text


def test_of_several_checkpoints_the_state_file_names_one(tensorflow_exports: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tensorflow_exports / "tf1", tmp_path / "tf1")
    for path in (tensorflow_exports / "tf1_dense").glob("model.ckpt.*"):
        shutil.copy(path, folder / path.name.replace("model.ckpt", "model.ckpt-9"))
    for state, n_layers in (
        ('model_checkpoint_path: "/home/someone/models/model.ckpt"\nall_model_checkpoint_paths: "x"\n', 2),
        ('model_checkpoint_path: "model.ckpt-9"\n', 1),
    ):
        (folder / "checkpoint").write_text(state)
        assert read_config(folder).num_hidden_layers == n_layers
    for state in ("", 'model_checkpoint_path: "../../etc/passwd"\n'):
        (folder / "checkpoint").write_text(state)
        with pytest.raises(CheckpointError, match=r"several TF1 checkpoints \(model.ckpt-9.index, model.ckpt.index\)"):
            read_weights(folder)


def test_variables_that_are_no_convbert_tell_no_config(
    tensorflow_exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tensorflow_exports / "tf1", tmp_path / "tf1")
    monkeypatch.setattr("convbert.checkpoints.tf1_files.TF1_RULES", ())  # as if another model's scopes were in it
    with pytest.raises(CheckpointError, match=r"config.json .* put config.json there"):
        read_config(folder)
    ConvBertConfig().save_pretrained(folder)
    assert read_config(folder) == ConvBertConfig()

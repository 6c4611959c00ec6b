"""What meets goes in, what does not is reported, what does not fit is refused by name."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convbert import (
    ConvBertConfig,
    ConvBertError,
    ConvBertForMaskedLM,
    ConvBertForSequenceClassification,
    ConvBertForTokenClassification,
    ConvBertModel,
    WeightsError,
)
from convbert.checkpoints import LoadReport, fitted, load_into
from convbert.checkpoints.loading import tied_names

HEAD = [f"classifier.{part}" for part in ("dense.bias", "dense.weight", "out_proj.bias", "out_proj.weight")]
WORDS, LM_HEAD = "convbert.embeddings.word_embeddings.weight", "generator_lm_head.weight"


def load(model: ConvBertModel, weights: dict[str, torch.Tensor]) -> LoadReport:
    found, report = fitted(model, weights, base_prefix="convbert.", source="here")
    load_into(model, found, source="here")
    return report


def test_base_weights_go_into_a_task_model(
    classifier: ConvBertForSequenceClassification, config: ConvBertConfig
) -> None:
    task = ConvBertForSequenceClassification(config)
    head = task.classifier.dense.weight.clone()
    assert load(task, classifier.convbert.state_dict()) == (HEAD, [])
    assert torch.equal(
        task.convbert.encoder.layer[1].output.dense.bias, classifier.convbert.encoder.layer[1].output.dense.bias
    )
    assert torch.equal(task.classifier.dense.weight, head)


def test_task_weights_go_into_a_base_model(
    classifier: ConvBertForSequenceClassification, config: ConvBertConfig
) -> None:
    base = ConvBertModel(config)
    assert load(base, classifier.state_dict()) == ([], HEAD)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(base.eval()(ids).last_hidden_state, classifier.convbert(ids).last_hidden_state)


def test_a_head_beside_base_names_is_found(
    classifier: ConvBertForSequenceClassification, config: ConvBertConfig
) -> None:
    mixed = {**classifier.convbert.state_dict(), **{name: classifier.state_dict()[name] for name in HEAD}}
    assert load(ConvBertForSequenceClassification(config), mixed) == ([], [])


def test_another_tasks_head_is_missing_and_unexpected(
    classifier: ConvBertForSequenceClassification, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classifier.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        ConvBertForTokenClassification.from_pretrained(tmp_path)
    missing, unexpected = caplog.messages
    assert "no weights for classifier.bias, classifier.weight: they are random until trained" in missing
    assert "ConvBertForTokenClassification does not use: " + ", ".join(HEAD) in unexpected


def test_a_discriminators_random_language_head_is_reported(
    classifier: ConvBertForSequenceClassification, config: ConvBertConfig
) -> None:
    report = load(ConvBertForMaskedLM(config), classifier.convbert.state_dict())
    assert report.missing == [
        "generator_lm_head.bias",
        "generator_predictions.LayerNorm.bias",
        "generator_predictions.LayerNorm.weight",
        "generator_predictions.dense.bias",
        "generator_predictions.dense.weight",
    ]


def test_shapes_that_differ_are_refused_by_name(
    classifier: ConvBertForSequenceClassification, config: ConvBertConfig
) -> None:
    with pytest.raises(WeightsError, match=r"classifier.out_proj.bias of here has shape \(2,\), but .* \(3,\)"):
        load(
            ConvBertForSequenceClassification(replace(config, id2label={0: "a", 1: "b", 2: "c"})),
            classifier.state_dict(),
        )


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_quantised_weights_are_refused_by_name(
    classifier: ConvBertForSequenceClassification, dtype: torch.dtype
) -> None:
    weights = {**classifier.state_dict(), "classifier.dense.weight": torch.zeros(12, 12).to(dtype)}
    with pytest.raises(WeightsError, match=rf"classifier.dense.weight of here holds {dtype}, .* before its quantis"):
        load(classifier, weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_take_the_models_type(classifier: ConvBertForSequenceClassification, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in classifier.state_dict().items()}
    load(classifier, weights)
    assert {tensor.dtype for tensor in classifier.state_dict().values()} == {torch.float32}
    assert torch.equal(classifier.classifier.dense.weight, weights["classifier.dense.weight"].float())


def test_from_pretrained_gives_the_type_that_is_asked_for(
    classifier: ConvBertForSequenceClassification, tmp_path: Path
) -> None:
    classifier.save_pretrained(tmp_path)
    half = ConvBertForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}
    assert not half.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 2**31 - 1}, r"word_embeddings.weight of .* has shape \(17, 7\)"),
        ({"max_position_embeddings": 2**31 - 1}, r"position_embeddings.weight of .* has shape \(9, 7\)"),
        ({"hidden_size": 2**31 - 4, "num_groups": 1}, "a tensor that no memory holds"),
    ],
)
def test_what_a_config_claims_is_checked_before_memory_is_taken(
    classifier: ConvBertForSequenceClassification,
    config: ConvBertConfig,
    tmp_path: Path,
    change: dict[str, int],
    message: str,
) -> None:
    classifier.save_pretrained(tmp_path)
    with pytest.raises(ConvBertError, match=message) as found:
        ConvBertForSequenceClassification.load(tmp_path, config=replace(config, **change))
    assert str(tmp_path) in str(found.value)


def test_a_model_far_larger_than_its_weights_is_refused(
    classifier: ConvBertForSequenceClassification, config: ConvBertConfig, tmp_path: Path
) -> None:
    classifier.save_pretrained(tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"asks for 15,0\d\d,\d{3},\d{3} weights that .* does not hold"):
        ConvBertModel.load(tmp_path, config=replace(config, vocab_size=2**31 - 1))


class TestTies:
    def test_are_found(self, language_model: ConvBertForMaskedLM) -> None:
        assert tied_names(language_model) == {LM_HEAD: WORDS}

    @pytest.mark.parametrize("left_out", [WORDS, LM_HEAD, None])
    def test_one_name_is_enough(
        self, language_model: ConvBertForMaskedLM, config: ConvBertConfig, left_out: str | None
    ) -> None:
        weights = language_model.state_dict()
        weights.pop(left_out, None)
        loaded = ConvBertForMaskedLM(config)
        assert load(loaded, weights) == ([], [])
        assert loaded.generator_lm_head.weight is loaded.convbert.embeddings.word_embeddings.weight
        assert torch.equal(loaded.generator_lm_head.weight, language_model.generator_lm_head.weight)

    def test_without_either_both_are_missing(self, language_model: ConvBertForMaskedLM, config: ConvBertConfig) -> None:
        weights = language_model.state_dict()
        del weights[WORDS], weights[LM_HEAD]
        assert load(ConvBertForMaskedLM(config), weights).missing == [WORDS, LM_HEAD]

    def test_two_different_matrices_are_refused(self, language_model: ConvBertForMaskedLM) -> None:
        weights = {**language_model.state_dict(), LM_HEAD: torch.zeros(17, 7)}
        with pytest.raises(WeightsError, match="set tie_word_embeddings to false"):
            load(language_model, weights)

    def test_untied_ones_load_where_the_config_says_so(
        self, language_model: ConvBertForMaskedLM, config: ConvBertConfig
    ) -> None:
        weights = {**language_model.state_dict(), LM_HEAD: torch.ones(17, 7)}
        loaded = ConvBertForMaskedLM(replace(config, tie_word_embeddings=False))
        assert load(loaded, weights) == ([], [])
        assert torch.equal(loaded.generator_lm_head.weight, torch.ones(17, 7))
        assert torch.equal(loaded.convbert.embeddings.word_embeddings.weight, weights[WORDS])
        del weights[LM_HEAD]
        assert load(loaded, weights).missing == [LM_HEAD]

    def test_are_compared_as_the_model_holds_them(
        self, language_model: ConvBertForMaskedLM, config: ConvBertConfig
    ) -> None:
        weights = language_model.state_dict()
        weights[WORDS] = weights[WORDS].bfloat16()
        weights[LM_HEAD] = weights[WORDS].float()
        assert load(ConvBertForMaskedLM(config), weights) == ([], [])


def test_a_whole_checkpoint_draws_no_random_weights_and_keeps_its_ties(
    classifier: ConvBertForSequenceClassification, tmp_path: Path
) -> None:
    ConvBertForMaskedLM(classifier.config).save_pretrained(tmp_path)
    before = torch.get_rng_state()
    model = ConvBertForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert tied_names(model) == {LM_HEAD: WORDS}
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())

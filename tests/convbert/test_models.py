"""Behaviour of the classes: masks, inputs that are refused, training, ties, resizing.

That their numbers are Transformers' is test_models_oracle.py.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import convbert
from convbert import (
    ConfigError,
    ConvBertConfig,
    ConvBertForMaskedLM,
    ConvBertForMultipleChoice,
    ConvBertForQuestionAnswering,
    ConvBertForSequenceClassification,
    ConvBertForTokenClassification,
    ConvBertModel,
    InputError,
    WeightsError,
)
from convbert.models import PreTrainedModel

CONFIG = ConvBertConfig(
    vocab_size=23,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=12,
    embedding_size=8,
    conv_kernel_size=3,
    pad_token_id=0,
    initializer_range=0.2,
)
CLASSES = (
    ConvBertModel,
    ConvBertForMaskedLM,
    ConvBertForSequenceClassification,
    ConvBertForMultipleChoice,
    ConvBertForTokenClassification,
    ConvBertForQuestionAnswering,
)
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def encoder() -> ConvBertModel:
    return ConvBertModel(CONFIG).eval()


def hidden(model: ConvBertModel, mask: Tensor | None, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(inputs.pop("input_ids", IDS), mask, **inputs).last_hidden_state


class TestMask:
    @pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.long, torch.float32])
    def test_two_dimensions_of_any_type(self, encoder: ConvBertModel, dtype: torch.dtype) -> None:
        assert torch.equal(hidden(encoder, MASK.to(dtype)), hidden(encoder, MASK))

    def test_all_ones_are_no_mask(self, encoder: ConvBertModel) -> None:
        assert torch.equal(hidden(encoder, torch.ones_like(MASK)), hidden(encoder, None))

    @pytest.mark.parametrize(
        "mask",
        [
            MASK[:, None].expand(2, 5, 5),
            MASK[:, None, None],
            MASK[:, None, None].bool(),
            MASK[:, None, None].expand(2, 2, 5, 5),
            (1.0 - MASK[:, None, None]) * torch.finfo(torch.float32).min,
            (1.0 - MASK[:, None, None]) * -1e9,
            (1.0 - MASK[:, None, None]).double() * -1e300,
            torch.zeros(2, 1, 1, 5).masked_fill(MASK[:, None, None] == 0, -torch.inf),
        ],
        ids=[
            "3-D",
            "4-D 1/0",
            "4-D bool",
            "4-D heads",
            "additive",
            "additive -1e9",
            "additive double",
            "additive -inf",
        ],
    )
    def test_more_dimensions_say_the_same(self, encoder: ConvBertModel, mask: Tensor) -> None:
        torch.testing.assert_close(hidden(encoder, mask), hidden(encoder, MASK), atol=1e-6, rtol=0)

    def test_each_token_can_have_its_own_view(self, encoder: ConvBertModel) -> None:
        """Attention probabilities lie exactly where the mask lets them."""
        mask = torch.tril(torch.ones(2, 5, 5, dtype=torch.long))
        for given in (mask, mask[:, None].bool(), (1.0 - mask[:, None]) * -1e9):
            with torch.no_grad():
                attentions = encoder(IDS, given, output_attentions=True).attentions
            for probabilities in attentions:
                assert torch.equal(probabilities > 0, mask[:, None].expand_as(probabilities) > 0)

    def test_own_views_equal_transformers(self, encoder: ConvBertModel) -> None:
        """Transformers 4 takes three dimensions of 1 and 0, Transformers 5 four of floats to add."""
        transformers = pytest.importorskip("transformers")
        theirs = transformers.ConvBertModel(
            transformers.ConvBertConfig(**{k: v for k, v in CONFIG.to_dict().items() if k != "model_type"})
        ).eval()
        theirs.load_state_dict(encoder.state_dict())
        mask = (torch.rand(2, 5, 5) < 0.6).long()
        if transformers.__version__ < "5":
            pairs = [(mask, mask), (mask[:, None].bool(), mask)]
        else:
            lowest, bias = torch.finfo(torch.float32).min, torch.randn(2, 1, 5, 5)
            pairs = [(mask, (1.0 - mask[:, None]) * lowest), (bias, bias)]
        for ours, their_mask in pairs:
            with torch.no_grad():
                expected = theirs(IDS, attention_mask=their_mask).last_hidden_state
            torch.testing.assert_close(hidden(encoder, ours), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_a_row_that_sees_nothing_attends_to_all_alike(self, encoder: ConvBertModel, dtype: torch.dtype) -> None:
        encoder = encoder.to(dtype)
        with torch.no_grad():
            for layer in encoder.encoder.layer:  # scores large enough to overflow float16 beside its lowest number
                layer.attention.self.query.weight.mul_(30)
            output = encoder(IDS, torch.zeros_like(MASK), output_attentions=True)
        assert output.last_hidden_state.isfinite().all()
        if dtype == torch.float32:
            torch.testing.assert_close(output.attentions[0], torch.full_like(output.attentions[0], 0.2))

    @pytest.mark.parametrize(
        "shape", [(5,), (2, 4), (3, 5), (2, 5, 4), (2, 3, 5), (2, 3, 5, 5), (2, 1, 5, 5, 5), (2, 1)]
    )
    def test_a_shape_that_does_not_fit_is_named(self, encoder: ConvBertModel, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match="attention_mask has"):
            encoder(IDS, torch.ones(shape, dtype=torch.long))


class TestInputs:
    def test_embeds_stand_for_ids(self, encoder: ConvBertModel) -> None:
        words = encoder.embeddings.word_embeddings(IDS)
        assert torch.equal(hidden(encoder, MASK, input_ids=None, inputs_embeds=words), hidden(encoder, MASK))

    def test_positions_count_from_zero(self, encoder: ConvBertModel) -> None:
        positions = torch.arange(5)[None]
        assert torch.equal(hidden(encoder, MASK, position_ids=positions), hidden(encoder, MASK))
        assert torch.equal(hidden(encoder, MASK, position_ids=positions.expand(2, 5)), hidden(encoder, MASK))
        assert not torch.equal(hidden(encoder, MASK, position_ids=positions + 1), hidden(encoder, MASK))

    def test_a_sequence_may_be_longer_than_the_table_where_positions_are_given(self, encoder: ConvBertModel) -> None:
        ids = torch.ones(1, 20, dtype=torch.long)
        assert hidden(encoder, None, input_ids=ids, position_ids=torch.arange(20)[None] % 12).shape == (1, 20, 16)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({}, "give either input_ids or inputs_embeds"),
            ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 5, 8)}, "give either input_ids or inputs_embeds"),
            ({"input_ids": IDS[0]}, r"input_ids has the shape \(5,\): give \(B, L\)"),
            ({"inputs_embeds": torch.zeros(5, 8)}, r"inputs_embeds has the shape \(5, 8\): give \(B, L, E\)"),
            ({"inputs_embeds": torch.zeros(2, 5, 9)}, r"inputs_embeds has the shape \(2, 5, 9\), .* \(2, 5, 8\)"),
            ({"input_ids": IDS[:, :0]}, "at least one token"),
            ({"input_ids": torch.ones(1, 13, dtype=torch.long)}, r"13 tokens exceed max_position_embeddings \(12\)"),
            ({"input_ids": IDS + 14}, r"input_ids reaches from 14 to 26, but vocab_size \(23\) allows 0 to 22"),
            ({"input_ids": IDS - 1}, r"input_ids reaches from -1 to 11"),
            (
                {"input_ids": IDS, "token_type_ids": IDS},
                r"token_type_ids reaches from 0 to 12, but type_vocab_size \(2\)",
            ),
            ({"input_ids": IDS, "position_ids": IDS + 2}, r"position_ids reaches from 2 to 14, but max_position"),
            ({"input_ids": IDS, "token_type_ids": IDS[:, :3]}, r"token_type_ids has the shape \(2, 3\)"),
            ({"input_ids": IDS, "position_ids": torch.arange(5)}, r"position_ids has the shape \(5,\)"),
        ],
    )
    def test_what_cannot_be_read_is_named(
        self, encoder: ConvBertModel, inputs: dict[str, Tensor], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            encoder(**inputs)

    def test_choices_have_one_more_axis(self) -> None:
        model = ConvBertForMultipleChoice(CONFIG).eval()
        with pytest.raises(InputError, match=r"input_ids has the shape \(2, 5\): give \(B, C, L\)"):
            model(IDS)
        with pytest.raises(InputError, match="give either"):
            model()
        mask = MASK[:, None].expand(2, 3, 5)
        ids = IDS[:, None].expand(2, 3, 5)
        flat = model(ids, mask).logits
        torch.testing.assert_close(model(ids, mask[:, :, None].expand(2, 3, 5, 5)).logits, flat)

    @pytest.mark.parametrize("name", ["position_ids", "token_type_ids", "attention_mask"])
    def test_one_row_stands_for_all_choices(self, name: str) -> None:
        model = ConvBertForMultipleChoice(CONFIG).eval()
        ids, row = IDS[:, None].expand(2, 3, 5), torch.tensor([[1, 1, 0, 1, 0]])
        one, whole = (model(ids, **{name: values}).logits for values in (row, row.expand(2, 3, 5)))
        torch.testing.assert_close(one, whole)
        assert not torch.allclose(one, model(ids).logits)
        with pytest.raises(InputError, match=rf"{name} has the shape \(2, "):
            model(ids, **{name: row.expand(2, 5)})


class TestTraining:
    @pytest.mark.parametrize("model_class", CLASSES[1:], ids=lambda c: c.__name__)
    def test_overfits_32_examples(self, model_class: type[PreTrainedModel]) -> None:
        config = replace(CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.1)
        model = model_class(config).train()
        shape = (32, 3, 6) if model_class is ConvBertForMultipleChoice else (32, 6)
        ids = torch.randint(1, 23, shape)
        labels: dict[str, Tensor]
        match model_class.__name__:
            case "ConvBertForMaskedLM":
                labels = {"labels": ids.clone()}
                ids[:, 2] = 0
            case "ConvBertForQuestionAnswering":
                labels = {"start_positions": torch.randint(6, (32,)), "end_positions": torch.randint(6, (32,))}
            case "ConvBertForTokenClassification":
                labels = {"labels": torch.randint(2, (32, 6))}
            case "ConvBertForMultipleChoice":
                labels = {"labels": torch.randint(3, (32,))}
            case _:
                labels = {"labels": torch.randint(2, (32,))}
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        first = model(ids, **labels).loss.item()
        for _ in range(150):
            loss = model(ids, **labels).loss
            if loss.item() < 0.05 * first:
                return
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        pytest.fail(f"loss {first:.3f} -> {loss.item():.3f}")

    def test_dropout_falls_where_transformers_lets_it_fall(self) -> None:
        """With one seed, both draw the same masks in the same order."""
        transformers = pytest.importorskip("transformers")
        config = replace(CONFIG, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2, classifier_dropout=0.4)
        extra = {"summary_first_dropout": 0.2, "summary_last_dropout": 0.3}
        for model_class in CLASSES:
            name = model_class.__name__
            ours = model_class(replace(config, extra=extra)).train()
            values = {**config.to_dict(), **extra}
            values.pop("model_type")
            theirs = getattr(transformers, name)(transformers.ConvBertConfig(**values)).train()
            theirs.load_state_dict(ours.state_dict())
            ids = IDS[:, None].repeat(1, 3, 1) if name == "ConvBertForMultipleChoice" else IDS
            results = []
            for model in (ours, theirs):
                torch.manual_seed(7)
                results.append(model(ids)[0])
            torch.testing.assert_close(*results, atol=1e-5, rtol=0)
            assert not torch.equal(ours(ids)[0], ours(ids)[0])
            assert torch.equal(ours.eval()(ids)[0], ours(ids)[0])

    def test_gradient_checkpointing_changes_no_number(self) -> None:
        model = ConvBertForSequenceClassification(replace(CONFIG, hidden_dropout_prob=0.3)).train()
        gradients = []
        for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
            enable()
            torch.manual_seed(7)
            model.zero_grad()
            model(IDS, MASK, labels=torch.tensor([0, 1])).loss.backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})  # type: ignore[union-attr]
        assert model.convbert.encoder.gradient_checkpointing
        model.gradient_checkpointing_disable()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        assert model.convbert.encoder.gradient_checkpointing
        with pytest.raises(InputError, match=r"use_reentrant \(True\) is none of use_reentrant=False: leave it out"):
            model.gradient_checkpointing_enable({"use_reentrant": True})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)

    def test_initialisation_is_normal_and_keeps_padding_at_zero(self) -> None:
        model = ConvBertForMaskedLM(replace(CONFIG, hidden_size=64, vocab_size=500, initializer_range=0.05))
        words = model.convbert.embeddings.word_embeddings.weight
        assert not words[0].any()
        for weight in (words, model.convbert.encoder.layer[0].intermediate.dense.weight):
            assert weight.std().item() == pytest.approx(0.05, rel=0.1)
        assert not model.generator_lm_head.bias.any()


class TestWeights:
    @pytest.mark.parametrize("model_class", CLASSES)
    @pytest.mark.parametrize("tied", [True, False])
    def test_they_are_counted_as_in_transformers(self, model_class: type[PreTrainedModel], tied: bool) -> None:
        transformers = pytest.importorskip("transformers")
        ours = model_class(replace(CONFIG, tie_word_embeddings=tied))
        values = {name: value for name, value in ours.config.to_dict().items() if name != "model_type"}
        theirs = getattr(transformers, model_class.__name__)(transformers.ConvBertConfig(**values))
        for model in (ours, theirs):
            model.base_model.encoder.requires_grad_(False)
            model.base_model.embeddings.position_embeddings.requires_grad_(False)
        for only_trainable, exclude_embeddings in ((False, False), (False, True), (True, False), (True, True)):
            options = {"only_trainable": only_trainable, "exclude_embeddings": exclude_embeddings}
            assert ours.num_parameters(**options) == theirs.num_parameters(**options)

    def test_they_lie_where_they_are_moved(self, encoder: ConvBertModel) -> None:
        assert (encoder.device, encoder.dtype) == (torch.device("cpu"), torch.float32)
        assert encoder.to("meta", torch.bfloat16).device == torch.device("meta")
        assert encoder.dtype == torch.bfloat16

    @pytest.mark.parametrize("model_class", CLASSES)
    def test_the_words_can_be_taken_and_replaced(self, model_class: type[PreTrainedModel]) -> None:
        model = model_class(CONFIG)
        assert model.get_input_embeddings() is model.base_model.embeddings.word_embeddings
        is_language_model = model_class is ConvBertForMaskedLM
        assert model.get_output_embeddings() is (model.generator_lm_head if is_language_model else None)
        old = model.get_input_embeddings().weight
        new = torch.nn.Embedding(CONFIG.vocab_size, CONFIG.embedding_size)
        model.set_input_embeddings(new)
        assert model.base_model.embeddings.word_embeddings is new
        if is_language_model:  # as in Transformers
            assert model.get_output_embeddings().weight is old
            model.tie_weights()
            assert model.get_output_embeddings().weight is new.weight


class TestLanguageModel:
    def test_the_matrix_is_one_and_stays_one(self) -> None:
        model = ConvBertForMaskedLM(CONFIG)
        for same in (model, copy.deepcopy(model), model.to(torch.float64)):
            assert same.generator_lm_head.weight is same.convbert.embeddings.word_embeddings.weight
        assert len(list(model.parameters())) == len(model.state_dict()) - 1

    def test_it_can_be_untied(self) -> None:
        model = ConvBertForMaskedLM(replace(CONFIG, tie_word_embeddings=False))
        assert model.generator_lm_head.weight is not model.convbert.embeddings.word_embeddings.weight


class TestLoading:
    def test_fields_of_the_config_may_be_changed(self, tmp_path: Path) -> None:
        ConvBertModel(CONFIG).save_pretrained(tmp_path)
        model = ConvBertForSequenceClassification.from_pretrained(tmp_path, num_labels=3, hidden_dropout_prob=0.0)
        assert (model.classifier.out_proj.out_features, model.config.hidden_dropout_prob) == (3, 0.0)
        with pytest.raises(ConfigError, match=r"num_label \(3\) is no field"):
            ConvBertForSequenceClassification.from_pretrained(tmp_path, num_label=3)

    @pytest.mark.parametrize("dtype", ["no_type", "int8", "torch.float16", "nn", torch.int8])
    def test_a_type_that_no_weights_have_is_refused(self, tmp_path: Path, dtype: Any) -> None:
        ConvBertModel(CONFIG).save_pretrained(tmp_path)
        with pytest.raises(InputError, match=rf"dtype \({dtype!r}\) must be a floating-point type"):
            ConvBertModel.from_pretrained(tmp_path, dtype=dtype)

    @pytest.mark.parametrize("dtype", ["bfloat16", "half", "float64", "auto", torch.float16])
    @pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
    @pytest.mark.parametrize("said", [None, "dtype", "torch_dtype"])
    def test_a_type_may_be_named_as_in_transformers(
        self, dtype: Any, argument: str, said: str | None, tmp_path: Path
    ) -> None:
        transformers = pytest.importorskip("transformers")
        ConvBertModel(CONFIG).to(torch.bfloat16).save_pretrained(tmp_path)
        values = {**CONFIG.to_dict(), **({} if said is None else {said: "float16"})}
        (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
        ours, theirs = (
            package.ConvBertModel.from_pretrained(tmp_path, **{argument: dtype}) for package in (convbert, transformers)
        )
        assert ours.dtype == theirs.dtype != torch.float32
        assert {weight.dtype for weight in ours.state_dict().values()} == {ours.dtype}

    @pytest.mark.parametrize("name", ["ConvBertForMaskedLM", "ConvBertForTokenClassification"])
    @pytest.mark.parametrize("dtype", ["auto", torch.float64])
    def test_64_bits_are_never_rounded_to_32(self, name: str, dtype: Any, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        saved = ConvBertForMaskedLM(CONFIG).double()
        for weight in saved.parameters():
            weight.data = torch.randn_like(weight)
        saved.save_pretrained(tmp_path)
        for package in (convbert, transformers):  # the token class has a head that is drawn
            model = getattr(package, name).from_pretrained(tmp_path, dtype=dtype)
            assert {weight.dtype for weight in model.parameters()} == {torch.float64}
            own = model.state_dict()
            assert all(torch.equal(own[key], value) for key, value in saved.state_dict().items() if key in own)

    def test_none_is_float32_whatever_torchs_default_is(self, tmp_path: Path) -> None:
        ConvBertModel(CONFIG).save_pretrained(tmp_path)
        torch.set_default_dtype(torch.float16)
        try:
            assert ConvBertModel.from_pretrained(tmp_path).dtype == torch.float32
        finally:
            torch.set_default_dtype(torch.float32)

    def test_dtype_goes_before_its_older_name(self, tmp_path: Path) -> None:
        ConvBertModel(CONFIG).save_pretrained(tmp_path)
        model = ConvBertModel.from_pretrained(tmp_path, dtype="bfloat16", torch_dtype="float16")
        assert model.dtype == torch.bfloat16

    @pytest.mark.parametrize(
        ("model_class", "change", "head"),
        [
            (ConvBertForSequenceClassification, {"num_labels": 5}, "classifier.out_proj"),
            (ConvBertForTokenClassification, {"num_labels": 5}, "classifier"),
            (ConvBertForMaskedLM, {"vocab_size": 29}, "generator_lm_head"),
        ],
    )
    def test_weights_of_another_shape_may_be_started_anew_as_in_transformers(
        self,
        model_class: type[PreTrainedModel],
        change: dict[str, int],
        head: str,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        transformers = pytest.importorskip("transformers")
        saved = model_class(CONFIG)
        with torch.no_grad():
            for weight in saved.parameters():
                weight.copy_(torch.randn_like(weight))
        saved.save_pretrained(tmp_path)
        with pytest.raises(
            WeightsError, match=r"from_pretrained\(…, ignore_mismatched_sizes=True\) would start it anew"
        ):
            model_class.from_pretrained(tmp_path, **change)
        change = {**change, "ignore_mismatched_sizes": True}
        theirs = getattr(transformers, model_class.__name__).from_pretrained(tmp_path, **change).state_dict()
        assert not caplog.messages
        ours = model_class.from_pretrained(tmp_path, **change)
        new = {name for name, weight in ours.state_dict().items() if weight.shape != saved.state_dict()[name].shape}
        assert {name for name in new if name.startswith(head)} == {f"{head}.weight", f"{head}.bias"}
        for name, weight in ours.state_dict().items():
            assert weight.shape == theirs[name].shape
            assert torch.equal(weight, theirs[name]) == (name not in new or name == f"{head}.bias")
        assert ours.get_parameter(f"{head}.weight").std() < 2 * CONFIG.initializer_range
        old, now = (tuple(model.get_parameter(f"{head}.bias").shape) for model in (saved, ours))
        assert "holds weights of other shapes, which are left out: " in caplog.messages[0]
        assert f"{head}.bias {old} in place of {now}" in caplog.messages[0]
        assert f"has no fitting weights for {', '.join(sorted(new))}: they are random" in caplog.messages[1]

    def test_tensors_of_a_subclass_are_as_it_makes_them(self, tmp_path: Path) -> None:
        class Weighted(ConvBertModel):
            def __init__(self, config: ConvBertConfig) -> None:
                super().__init__(config)
                self.register_buffer("of_classes", torch.tensor([1.0, 3.0]), persistent=False)
                self.plain = torch.tensor([2.0])
                self.register_buffer("n_steps", torch.tensor(0))

        model = Weighted(CONFIG)
        model.n_steps += 5
        model.save_pretrained(tmp_path)
        loaded = Weighted.from_pretrained(tmp_path)
        assert (loaded.of_classes.tolist(), loaded.plain.tolist()) == ([1.0, 3.0], [2.0])
        assert loaded.n_steps == 5


class TestResizing:
    @pytest.mark.parametrize("n_tokens", [30, 23, 11])
    @pytest.mark.parametrize("tied", [True, False])
    def test_known_words_keep_their_numbers(self, n_tokens: int, tied: bool) -> None:
        model = ConvBertForMaskedLM(replace(CONFIG, tie_word_embeddings=tied)).eval()
        ids = IDS % 10
        before = model(ids)
        table = model.resize_token_embeddings(n_tokens)
        after = model(ids, labels=ids)
        n_kept = min(n_tokens, 23)
        assert table is model.convbert.embeddings.word_embeddings
        assert (table.num_embeddings, table.weight.shape) == (n_tokens, (n_tokens, 8))
        assert model.config.vocab_size == model.convbert.config.vocab_size == n_tokens
        torch.testing.assert_close(after.logits[..., :n_kept], before.logits[..., :n_kept])
        assert after.logits.shape[-1] == n_tokens
        assert (model.generator_lm_head.weight is table.weight) == tied
        assert not model.generator_lm_head.bias[n_kept:].any()
        after.loss.backward()

    @pytest.mark.parametrize(
        ("arguments", "options", "n_tokens"),
        [
            ((), {}, 23),
            ((None,), {"pad_to_multiple_of": 8}, 24),
            ((25,), {"pad_to_multiple_of": 8, "mean_resizing": False}, 32),
            ((24,), {"pad_to_multiple_of": 8}, 24),
        ],
    )
    def test_sizes_are_asked_for_as_in_transformers(
        self, arguments: tuple[Any, ...], options: dict[str, Any], n_tokens: int
    ) -> None:
        transformers = pytest.importorskip("transformers")
        theirs = transformers.ConvBertForMaskedLM(transformers.ConvBertConfig(**CONFIG.to_dict()))
        for model in (ConvBertForMaskedLM(CONFIG), theirs):
            assert model.resize_token_embeddings(*arguments, **options).weight.shape == (n_tokens, 8)
            assert model.config.vocab_size == n_tokens
            assert model.generator_lm_head.weight.shape == (n_tokens, 8)

    @pytest.mark.parametrize(
        ("options", "message"), [({"mean_resizing": True}, "mean_resizing"), ({"pad_to_multiple_of": 0}, "at least 1")]
    )
    def test_what_is_not_done_is_told(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            ConvBertModel(CONFIG).resize_token_embeddings(40, **options)

    def test_other_models_of_the_config_stay_as_they_are(self) -> None:
        one, other = ConvBertModel(CONFIG), ConvBertModel(CONFIG)
        one.resize_token_embeddings(40)
        assert one.resize_token_embeddings(40).weight[23:].std() > 0
        assert (CONFIG.vocab_size, other.config.vocab_size) == (23, 23)

    def test_transformers_reads_the_result(self, tmp_path: Any) -> None:
        transformers = pytest.importorskip("transformers")
        model = ConvBertForMaskedLM(CONFIG).eval()
        model.resize_token_embeddings(29)
        model.save_pretrained(tmp_path)
        theirs = transformers.ConvBertForMaskedLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=0)

    @pytest.mark.parametrize(("pad", "size", "message"), [(0, 0, "vocab_size"), (20, 11, "pad_token_id")])
    def test_a_size_that_no_model_can_have_changes_nothing(self, pad: int, size: int, message: str) -> None:
        model = ConvBertModel(replace(CONFIG, pad_token_id=pad))
        with pytest.raises(ConfigError, match=message):
            model.resize_token_embeddings(size)
        assert model.embeddings.word_embeddings.weight.shape == (23, 8)


@pytest.mark.parametrize(
    ("n_labels", "labels"),
    [(1, torch.tensor([3.5, 1.0])), (2, torch.tensor([0, 1])), (3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))],
    ids=["regression", "single_label", "multi_label"],
)
def test_the_first_labels_tell_what_kind_of_problem_it_is_as_in_transformers(
    n_labels: int, labels: Tensor, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    model = ConvBertForSequenceClassification(replace(CONFIG, id2label={i: f"L{i}" for i in range(n_labels)}))
    model.save_pretrained(tmp_path)
    theirs = transformers.ConvBertForSequenceClassification.from_pretrained(tmp_path)
    for each in (model, theirs):
        each(IDS, labels=labels)
    assert model.config.problem_type == theirs.config.problem_type is not None
    assert model.convbert.config.problem_type == model.config.problem_type
    assert CONFIG.problem_type is None


def test_a_loss_compiles_before_labels_have_told_the_problem() -> None:
    model = ConvBertForSequenceClassification(CONFIG).eval()
    labels = torch.zeros(len(IDS), dtype=torch.long)
    compiled = torch.compile(model, fullgraph=True, backend="eager")(IDS, labels=labels).loss
    exported = torch.export.export(model, (IDS,), {"labels": labels}, strict=True).module()(IDS, labels=labels).loss
    assert model.config.problem_type is None
    expected = model(IDS, labels=labels).loss
    assert model.config.problem_type == "single_label_classification"
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)


def test_weights_are_loaded_to_the_processor_whatever_the_default_device_is(tmp_path: Path) -> None:
    ConvBertModel(CONFIG).save_pretrained(tmp_path / "base")
    ConvBertForSequenceClassification(CONFIG).save_pretrained(tmp_path / "whole")
    for name in ("base", "whole"):
        with torch.device("meta"):
            model = ConvBertForSequenceClassification.from_pretrained(tmp_path / name)
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


class TestConfigs:
    def test_question_answering_needs_two_labels(self) -> None:
        with pytest.raises(ConfigError, match="has 3 labels; question answering needs 2"):
            ConvBertForQuestionAnswering(replace(CONFIG, id2label={0: "a", 1: "b", 2: "c"}))

    def test_question_answering_needs_both_positions(self) -> None:
        model = ConvBertForQuestionAnswering(CONFIG)
        with pytest.raises(InputError, match="give both start_positions and end_positions"):
            model(IDS, start_positions=torch.tensor([0, 1]))

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            ({"summary_type": "attn"}, r"summary_type \('attn'\) is unknown: choose one of last, first, mean"),
            ({"summary_activation": "prelu"}, r"summary_activation \('prelu'\) is unknown"),
            ({"summary_activation": ["gelu"]}, r"summary_activation \(\['gelu'\]\) is unknown: choose one of gelu, "),
            ({"summary_first_dropout": "x"}, r"summary_first_dropout \('x'\) must lie between 0 and 1"),
            ({"summary_first_dropout": None}, r"summary_first_dropout \(None\) must lie between 0 and 1"),
            ({"summary_last_dropout": 1.5}, r"summary_last_dropout \(1.5\) must lie between 0 and 1"),
            (
                {"summary_use_proj": True, "summary_proj_to_labels": True},
                r"projects to 2 labels, .* hidden_size \(16\)",
            ),
        ],
    )
    def test_summaries_that_cannot_work(self, extra: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            ConvBertForMultipleChoice(replace(CONFIG, extra=extra))


def test_the_package_exports_every_class_of_the_contract() -> None:
    names = {model_class.__name__ for model_class in CLASSES} | {"ConvBertConfig", "ConvBertTokenizer"}
    assert names <= set(convbert.__all__)
    assert all(re.fullmatch(r"\w+", name) and hasattr(convbert, name) for name in convbert.__all__)

"""Losses against their formulas, and labels that do not fit."""

from __future__ import annotations

import math

import pytest
import torch

from convbert import InputError
from convbert.losses import class_loss, span_loss, text_loss

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0], [0.0, 3.0, 1.0]])


def surprise(row: int, label: int) -> float:
    """-log softmax of one row."""
    exponentials = [math.exp(value) for value in LOGITS[row].tolist()]
    return -math.log(exponentials[label] / sum(exponentials))


def test_class_loss_is_the_mean_surprise_of_labels_that_count() -> None:
    assert class_loss(LOGITS, torch.tensor([0, -100, 2])).item() == pytest.approx(
        (surprise(0, 0) + surprise(2, 2)) / 2, rel=1e-6
    )
    stacked = class_loss(LOGITS[None], torch.tensor([[0, 1, 2]], dtype=torch.int32))
    assert stacked.item() == pytest.approx((surprise(0, 0) + surprise(1, 1) + surprise(2, 2)) / 3, rel=1e-6)


def test_class_loss_without_a_label_that_counts_is_nan_as_in_transformers() -> None:
    assert class_loss(LOGITS, torch.full((3,), -100)).isnan()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3, 1]), "must lie between 0 and 2, or be -100"),
        (torch.tensor([0, 1]), r"labels \(2,\) do not fit logits \(3, 3\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "must be whole numbers"),
    ],
)
def test_class_labels_that_do_not_fit(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        class_loss(LOGITS, labels)


class TestTextLoss:
    def test_one_output_is_regression(self) -> None:
        logits = torch.tensor([[1.0], [3.0]])
        for labels in (torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]])):
            assert text_loss(logits, labels, None).item() == pytest.approx((1 + 4) / 2)

    def test_several_outputs_of_regression(self) -> None:
        assert text_loss(LOGITS, LOGITS + 2, "regression").item() == pytest.approx(4)

    def test_whole_numbers_are_classes(self) -> None:
        labels = torch.tensor([0, 1, 2])
        assert text_loss(LOGITS, labels, None) == class_loss(LOGITS, labels)

    @pytest.mark.parametrize("problem", [None, "multi_label_classification"])
    def test_floats_are_several_labels(self, problem: str | None) -> None:
        labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
        terms = [
            math.log1p(math.exp(-value if label else value))
            for value, label in zip(LOGITS.flatten().tolist(), labels.flatten().tolist(), strict=True)
        ]
        assert text_loss(LOGITS, labels, problem).item() == pytest.approx(sum(terms) / 9, rel=1e-6)

    def test_whole_numbers_may_be_several_labels_where_the_config_says_so(self) -> None:
        labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]])
        assert text_loss(LOGITS, labels, "multi_label_classification") == text_loss(LOGITS, labels.float(), None)

    @pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
    def test_targets_are_not_rounded_to_a_models_type(self, problem: str) -> None:
        logits = LOGITS.bfloat16().requires_grad_()
        targets = torch.full_like(LOGITS, 0.3001)  # 0.30078125 in bf16
        loss = text_loss(logits, targets, problem)
        torch.testing.assert_close(loss, text_loss(LOGITS, targets, problem), rtol=1e-6, atol=0)
        loss.backward()
        assert logits.grad is not None
        assert logits.grad.dtype == torch.bfloat16

    @pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
    def test_a_shape_that_would_broadcast_is_refused(self, problem: str) -> None:
        with pytest.raises(InputError, match=r"labels \(3,\) do not fit logits \(3, 3\)"):
            text_loss(LOGITS, torch.zeros(3), problem)


class TestSpanLoss:
    def test_mean_of_start_and_end(self) -> None:
        starts, ends = torch.tensor([0, 1, 2]), torch.tensor([[1], [1], [1]])
        expected = sum(surprise(row, row) + surprise(row, 1) for row in range(3)) / 6
        assert span_loss(LOGITS, LOGITS, starts, ends).item() == pytest.approx(expected, rel=1e-6)

    def test_a_position_beyond_the_window_does_not_count(self) -> None:
        starts, ends = torch.tensor([0, 3, 99]), torch.tensor([0, 1, 2])
        expected = (surprise(0, 0) + (surprise(0, 0) + surprise(1, 1) + surprise(2, 2)) / 3) / 2
        assert span_loss(LOGITS, LOGITS, starts, ends).item() == pytest.approx(expected, rel=1e-6)

    def test_a_position_below_zero_counts_as_zero(self) -> None:
        zero = torch.zeros(3, dtype=torch.long)
        assert span_loss(LOGITS, LOGITS, zero - 5, zero) == span_loss(LOGITS, LOGITS, zero, zero)

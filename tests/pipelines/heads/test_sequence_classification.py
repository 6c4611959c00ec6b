from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from convbert import ConvBertConfig
from pipelines.errors import ModelError
from pipelines.heads import head_for
from pipelines.heads.sequence_classification import SequenceClassification

LABELS = {0: "a", 1: "b", 2: "c"}


def head() -> SequenceClassification:
    return SequenceClassification(ConvBertConfig(id2label=LABELS))


def test_scores_are_the_softmax_and_the_label_its_best() -> None:
    logits = np.array([[1, 2, 3], [300, -300, 0], [0, 0, 0]], np.float32)
    column = head().to_arrow(logits)
    expected = torch.tensor(logits).softmax(1)
    assert column.type == SequenceClassification.schema
    assert column.field("label").to_pylist() == ["c", "a", "a"]
    np.testing.assert_allclose(column.field("score").to_numpy(), expected.max(1).values, rtol=1e-6)
    np.testing.assert_allclose(np.stack(column.field("scores").to_numpy(zero_copy_only=False)), expected, rtol=1e-6)


def test_the_column_is_the_contract() -> None:
    fields = [("label", pa.string()), ("score", pa.float32()), ("scores", pa.list_(pa.float32()))]
    assert SequenceClassification.schema == pa.struct(fields)


def test_counts_leave_failures_out() -> None:
    column = head().to_arrow(np.eye(3, dtype=np.float32)[[0, 0, 2]])
    assert head().counts(column.take(pa.array([0, 1, None, 2]))) == {"a": 2, "c": 1}


@pytest.mark.parametrize("changes", [{"id2label": {0: "x"}}, {"problem_type": "multi_label_classification"}])
def test_other_problems_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="not available yet"):
        SequenceClassification(ConvBertConfig(**changes))


def test_the_architecture_decides_the_head() -> None:
    config = ConvBertConfig(extra={"architectures": ["ConvBertForSequenceClassification"]})
    assert isinstance(head_for(config, source="here"), SequenceClassification)
    with pytest.raises(ModelError, match="here is a checkpoint for ConvBertModel .*fine-tuned"):
        head_for(ConvBertConfig(extra={"architectures": ["ConvBertModel"]}), source="here")
    with pytest.raises(ModelError, match="for no task"):
        head_for(ConvBertConfig(), source="here")

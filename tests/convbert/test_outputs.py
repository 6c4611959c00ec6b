"""Outputs answer to names and places, as Transformers' do."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import BaseModelOutput, QuestionAnsweringModelOutput, SequenceClassifierOutput

from convbert import ConvBertConfig, ConvBertForTokenClassification
from convbert.outputs import EncoderOutput, LogitsOutput, ModelOutput, SpanOutput


def test_places_count_the_fields_that_are_given() -> None:
    loss, logits, states = torch.tensor(1.0), torch.zeros(2), (torch.ones(1),)
    output = LogitsOutput(loss=loss, logits=logits, hidden_states=states)
    assert output[0] is output["loss"] is output.loss is loss
    assert output[1] is logits
    assert output.to_tuple() == (loss, logits, states)
    assert output[1:] == (logits, states)
    assert LogitsOutput(logits=logits)[0] is logits
    assert LogitsOutput(logits=logits)["attentions"] is None


def test_an_output_is_a_mapping_of_the_fields_that_are_given() -> None:
    logits, states = torch.zeros(2), (torch.ones(1),)
    output = LogitsOutput(logits=logits, hidden_states=states)
    assert "logits" in output
    assert "loss" not in output
    assert "anything" not in output
    assert list(output.keys()) == ["logits", "hidden_states"]
    assert dict(output) == dict(output.items()) == {"logits": logits, "hidden_states": states}
    assert tuple(output.values()) == output.to_tuple()


def test_order_of_the_others() -> None:
    first, second = torch.zeros(1), torch.ones(1)
    assert SpanOutput(start_logits=first, end_logits=second).to_tuple() == (first, second)
    assert EncoderOutput(last_hidden_state=first, attentions=(second,)).to_tuple() == (first, (second,))


PLACES = {"start_logits": torch.zeros(1), "end_logits": torch.ones(1)}
WITH_LOSS = {"loss": torch.tensor(1.0), "logits": torch.zeros(2), "attentions": (torch.ones(1),)}


@pytest.mark.parametrize(
    ("kind", "theirs", "given"),
    [
        (LogitsOutput, SequenceClassifierOutput, WITH_LOSS),
        (LogitsOutput, SequenceClassifierOutput, {"logits": torch.zeros(2)}),
        (SpanOutput, QuestionAnsweringModelOutput, PLACES),
        (EncoderOutput, BaseModelOutput, {"last_hidden_state": torch.zeros(1)}),
    ],
)
def test_outputs_answer_as_transformers_do(
    kind: type[ModelOutput], theirs: type, given: dict[str, torch.Tensor]
) -> None:
    ours, expected = kind(**given), theirs(**given)
    assert len(ours) == len(expected)
    assert dict(ours) == dict(expected)
    assert ours.to_tuple() == expected.to_tuple()
    for name in ("loss", "logits", "start_logits", "last_hidden_state", "hidden_states", "no_field"):
        assert ours.get(name) is expected.get(name)
        assert ours.get(name, 7) is expected.get(name, 7)
    for output in (ours, expected):
        with pytest.raises(KeyError):
            output["no_field"]
        with pytest.raises(KeyError):
            output["keys"]


def test_an_output_unpacks_as_a_tuple() -> None:
    loss, logits, attentions = LogitsOutput(**WITH_LOSS)
    assert (loss, logits, attentions) == tuple(WITH_LOSS.values())


@pytest.mark.parametrize(
    "output", [LogitsOutput(**WITH_LOSS), SpanOutput(**PLACES), EncoderOutput(last_hidden_state=torch.zeros(1))]
)
def test_torch_looks_into_outputs(output: ModelOutput) -> None:
    leaves = [leaf for value in output.values() for leaf in (value if isinstance(value, tuple) else (value,))]
    assert pytree.tree_leaves(output) == leaves
    doubled = pytree.tree_map(lambda tensor: 2 * tensor, output)
    assert type(doubled) is type(output)
    assert doubled.keys() == output.keys()
    assert [leaf.tolist() for leaf in pytree.tree_leaves(doubled)] == [(2 * leaf).tolist() for leaf in leaves]


def test_a_model_can_be_exported() -> None:
    config = ConvBertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, embedding_size=8
    )
    model = ConvBertForTokenClassification(config).eval()
    ids, mask = torch.tensor([[3, 4, 1], [5, 1, 1]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    exported = torch.export.export(model, (ids, mask)).module()(ids, mask)
    assert isinstance(exported, LogitsOutput)
    assert torch.equal(exported.logits, model(ids, mask).logits)

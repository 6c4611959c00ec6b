"""Outputs answer to names and places, as Transformers' do."""

from __future__ import annotations

import torch

from convbert.outputs import EncoderOutput, LogitsOutput, SpanOutput


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

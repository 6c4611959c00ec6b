"""Messages: one printable line each, whatever they quote."""

from __future__ import annotations

import pickle

import pytest

from convbert import errors
from convbert.errors import LONGEST_MESSAGE, ConvBertError

RAISED = [errors.ConfigError, errors.CheckpointError, errors.WeightsError, errors.TokenizerError, errors.InputError]


@pytest.mark.parametrize("kind", [*RAISED, ConvBertError])
def test_a_message_is_one_printable_line(kind: type[Exception]) -> None:
    error = kind("a\nb\0c\x1b[31md\ud800e \u2028é")
    assert str(error) == r"a\nb\x00c\x1b[31md\ud800e \u2028é"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_long_message_keeps_its_ends() -> None:
    message = str(ConvBertError("the thing " + "x" * 10**6 + " the remedy"))
    assert len(message) == LONGEST_MESSAGE + 3
    assert message.startswith("the thing x")
    assert message.endswith("x the remedy")

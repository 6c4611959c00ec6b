"""The job's messages are one printable line, as the model's are."""

from __future__ import annotations

import pickle

from pipelines.errors import SourceError


def test_a_message_is_one_printable_line_wherever_it_travels() -> None:
    error = SourceError("a\nb\0c\x1b[31md\ud800e \u2028é")
    assert str(error) == r"a\nb\x00c\x1b[31md\ud800e \u2028é"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)

"""JSON lines that nobody sane has written: every line comes out, as a record or with a reason."""

from __future__ import annotations

import json

from hypothesis import given

from tests.fuzz.targets import FEW, PACKERS, RECORDS, TARGETS, Files, outcome


def test_undamaged_shards_are_read() -> None:
    body = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)
    for name, packed in PACKERS.items():
        assert outcome(TARGETS["jsonl"], {name: packed(body)}) == "ok"


@FEW
@given(TARGETS["jsonl"].files)
def test_jsonl(files: Files) -> None:
    outcome(TARGETS["jsonl"], files)

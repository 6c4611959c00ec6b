from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.brown import accuracy as brown
from examples.spam import accuracy as spam

LABELS = ["spam", "ham", "ham"]
WORDS = [[{"label": "NOUN", "start": 0}, {"label": "VERB", "start": 4}], [{"label": "X", "start": 0}]]
CASES = {
    "spam": (
        spam.main,
        {"label": ["spam", "spam", "ham"], "spam": [{"label": label} for label in LABELS], "error": [None] * 3},
        "accuracy 0.6667 on 3 e-mails: 1 spam missed, 0 false alarms",
    ),
    "brown": (
        brown.main,
        {
            "pos": [{"entities": words} for words in WORDS],
            "prose": [{"label": "informative"}, {"label": "imaginative"}],
            "tokens": ["0:3:NOUN 4:9:VERB", "0:2:ADV"],
            "kind": ["informative", "informative"],
        },
        "pos: accuracy 0.6667 on 3 tokens\nprose: accuracy 0.5000 on 2 sentences",
    ),
}


@pytest.mark.parametrize("example", CASES)
def test_parts_are_counted_whatever_lies_beside_them(
    example: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count, columns, said = CASES[example]
    pq.write_table(pa.table(columns), tmp_path / "part-a-0.parquet")
    for name in ("_manifest.json", "_result.json", "_SUCCESS", "report.html", "report.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    run: Callable[[str], Any] = count
    run(str(tmp_path))
    assert said in capsys.readouterr().out

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from benchmarks.rows import Row
from benchmarks.table import measured, reached, render


@pytest.mark.parametrize(
    ("goal", "value", "word"),
    [(1.5, 1.5, "yes"), (1.5, 1.499, "no"), (None, 2.0, ""), (1.5, math.nan, "")],
)
def test_a_goal_is_reached_from_its_value_on(goal: float | None, value: float, word: str) -> None:
    assert reached(Row("work", "against", goal, value)) == word


def test_goal_and_measured_value_stand_side_by_side() -> None:
    rows = [
        Row("engine", "Transformers", 1.5, 1.6123456, "a|b"),
        Row("cost", "one head", None, 0.99),
        Row("engine", "OpenVINO", 1.0, math.nan, "not installed"),
    ]
    assert render(rows).splitlines() == [
        "| work | against | goal | measured | reached? | note |",
        "|---|---|---|---|---|---|",
        "| engine | Transformers | ≥ 1.5 | 1.612 | yes | a\\|b |",
        "| cost | one head |  | 0.99 |  |  |",
        "| engine | OpenVINO | ≥ 1 |  |  | not installed |",
    ]


def test_rows_are_printed_before_a_later_benchmark_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> list[Row]:
        raise RuntimeError("no memory")

    rooms = {
        "benchmarks.first": SimpleNamespace(measure=lambda: [Row("engine", "peer", 2.0, 2.5, "note")]),
        "benchmarks.second": SimpleNamespace(measure=fail),
    }
    monkeypatch.setattr("benchmarks.table.importlib.import_module", rooms.__getitem__)
    with pytest.raises(RuntimeError, match="no memory"):
        measured(["first", "second"])
    assert "| engine | peer | ≥ 2 | 2.5 | yes | note |" in capsys.readouterr().err

"""That what fails is not timed."""

import sys
from pathlib import Path

import pytest

from benchmarks.start import _run


def test_a_command_that_fails_or_writes_nothing_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="has failed: no corpus"):
        _run([sys.executable, "-c", "raise SystemExit('no corpus')"], tmp_path / "output")
    with pytest.raises(RuntimeError, match="has failed"):
        _run([sys.executable, "-c", ""], tmp_path / "output")
    output = tmp_path / "output"
    _run([sys.executable, "-c", f"import os; os.mkdir({str(output)!r})"], output)
    assert not output.exists()  # for the next

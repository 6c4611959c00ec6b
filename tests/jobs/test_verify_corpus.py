from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.verify_corpus import main
from pipelines import verify
from tests.pipelines.labelling import parts, run_here, whole_job


def test_the_exit_status_says_whether_all_is_well(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"text": ["free mail"] * 9}), tmp_path / "a.parquet")
    run_here(whole_job(tmp_path / "a.parquet", tmp_path / "out", checkpoint))
    assert main([str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "9 records (0 failed) of 1 shards in 2 parts: every record is there once\n"
    with monkeypatch.context() as refused:
        refused.setattr(verify, "shard_at", lambda url: (_ for _ in ()).throw(PermissionError("Forbidden")))
        assert main([str(tmp_path / "out")]) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("none of the shards could be compared")
    parts(tmp_path / "out")[0].unlink()
    assert main([str(tmp_path / "out")]) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith(": 1 faults")


def test_an_output_that_nobody_has_finished_is_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path} has no _manifest.json: no run has finished there yet\n"

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from convbert import ConvBertConfig
from pipelines.envelope import Envelope
from pipelines.errors import RunError
from pipelines.figures import shares, total_figures
from pipelines.heads.sequence_classification import SequenceClassification
from pipelines.partitions import Partitioning
from pipelines.results import N_COPIED, N_TOKENS
from pipelines.storage import locate
from pipelines.write import MOST_REASONS, Format, Part, part_figures, write_part
from tests.pipelines.labelling import job

HEAD = SequenceClassification(
    ConvBertConfig(id2label={0: "ham", 1: "spam"}),
    object(),  # type: ignore[arg-type]  # this head asks no tokenizer
    job(model="m"),
)


def block(n_rows: int = 3) -> pa.Table:
    names = ["ham", "spam"]
    labels = pa.array(
        [{"label": names[i % 2], "score": 1, "scores": [1 - i % 2, i % 2]} for i in range(n_rows)], HEAD.schema
    )
    rows = pa.array([None if row == 1 else row for row in range(n_rows)], pa.int64())
    return pa.table(
        {
            "id": [str(row) for row in range(n_rows)],
            "error": pa.array(["text is null" if row == 1 else None for row in range(n_rows)], pa.string()),
            "prediction": labels.take(rows),
            N_TOKENS: pa.array([4] * n_rows, pa.int32()),
            N_COPIED: pa.array([0, 0, 4][:n_rows] + [0] * (n_rows - 3), pa.int32()),
        }
    )


def write(
    table: pa.Table, folder: Path, output_format: Format = "parquet", *, n_rows: int | None = None, busy_s: float = 0.0
) -> Part:
    envelope = Envelope("part-a-0123-00000", len(table) if n_rows is None else n_rows, True, table, busy_s=busy_s)
    return write_part(envelope, output=str(folder), output_format=output_format, heads={"prediction": HEAD})


def test_a_part_holds_the_rows_and_the_figures_tell_of_them(tmp_path: Path) -> None:
    part = write(block(), tmp_path)
    path = tmp_path / "part-a-0123-00000.parquet"
    assert part == Part(
        name=path.name,
        rows=3,
        failed=1,
        tokens=12,
        copied_tokens=4,
        bytes=path.stat().st_size,
        labels={"prediction": {"ham": 2}},
        reasons={"text is null": 1},
        examples={"text is null": "1"},
    )
    assert pq.read_table(path).column_names == ["id", "prediction", "error"]


def test_a_part_tells_its_commonest_reasons(tmp_path: Path) -> None:
    reasons = [f"reason {chr(97 + kind)}" for kind in range(MOST_REASONS + 2) for _ in range(kind + 1)]
    table = block(len(reasons)).set_column(1, "error", pa.array(reasons, pa.string()))
    table = table.set_column(2, "prediction", pa.nulls(len(reasons), HEAD.schema))
    part = write(table, tmp_path)
    assert list(part.reasons.values()) == [*range(MOST_REASONS + 2, 2, -1)]
    assert part.examples.keys() == part.reasons.keys()


def test_a_part_without_records_counts_nothing(tmp_path: Path) -> None:
    part = write(block().slice(0, 0), tmp_path)
    assert (part.rows, part.failed, part.tokens, part.copied_tokens, part.n_cut) == (0, 0, 0, 0, 0)


def test_both_formats_hold_the_same_table(tmp_path: Path) -> None:
    write(block(), tmp_path, "arrow")
    write(block(), tmp_path, "parquet")
    arrow = pa.ipc.open_file(tmp_path / "part-a-0123-00000.arrow").read_all()
    assert arrow.equals(pq.read_table(tmp_path / "part-a-0123-00000.parquet"))


@pytest.mark.parametrize("output_format", ["parquet", "arrow"])
def test_a_part_tells_its_own_figures(output_format: Format, tmp_path: Path) -> None:
    part = write(block(), tmp_path, output_format)
    found = part_figures(locate(str(tmp_path)).child(part.name), part.bytes)
    assert (found, found.figures) == (part, part.figures)


def test_a_part_tells_how_its_lengths_and_scores_are_spread(tmp_path: Path) -> None:
    part = write(block(30), tmp_path)
    figures = total_figures([part.figures])
    assert figures.lengths.counts == {4: 29}  # four tokens each, but for the one that failed
    assert figures.scores == {"prediction": {"score": shares([1.0] * 29)}}
    assert set(part.stages_s) == {"reading", "tokenising", "model", "decoding", "writing", "waiting"}


def test_a_part_of_an_earlier_version_is_read_without_them(tmp_path: Path) -> None:
    part = write(block(), tmp_path)
    path = tmp_path / part.name
    table = pq.read_table(path)
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"convbert.figures"}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    found = part_figures(locate(str(tmp_path)).child(part.name), part.bytes)
    assert (found, found.figures) == (part, "")


def test_the_same_block_gives_the_same_bytes(tmp_path: Path) -> None:
    parts = [write(block(), tmp_path / folder, busy_s=busy_s) for folder, busy_s in (("a", 0.5), ("b", 0.25))]
    assert [part.busy_s for part in parts] == [0.5, 0.25]
    assert parts[0] == parts[1]
    assert (tmp_path / "a/part-a-0123-00000.parquet").read_bytes() == (
        tmp_path / "b/part-a-0123-00000.parquet"
    ).read_bytes()


def test_a_unit_without_records_is_an_empty_part(tmp_path: Path) -> None:
    part = write(block(0), tmp_path)
    assert (part.rows, part.failed) == (0, 0)
    assert pq.read_schema(tmp_path / part.name).names == ["id", "prediction", "error"]


def test_a_unit_that_has_lost_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="part-a-0123-00000 arrived with 3 of its 5 rows"):
        write(block(3), tmp_path, n_rows=5)
    assert list(tmp_path.iterdir()) == []


def test_files_that_overwrite_each_other_are_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Partitioning, "split", lambda self, table, part: [("x=1/a", table[:2]), ("x=1/a", table[2:])])
    envelope = Envelope("part-a-0123-00000", 3, True, block(3), busy_s=0.0)
    with pytest.raises(RunError, match="the files of unit part-a-0123-00000 hold 1 of its 3 rows"):
        write_part(
            envelope,
            output=str(tmp_path),
            output_format="parquet",
            heads={"prediction": HEAD},
            partitioning=Partitioning("x"),
        )
    assert not (tmp_path / "_units").exists()


def test_reasons_that_differ_in_numbers_count_as_one(tmp_path: Path) -> None:
    table = block(4)
    errors = ["no UTF-8: byte 0xff at 3", "text is null", "no UTF-8: byte 0x8a at 17", None]
    table = table.set_column(1, "error", pa.array(errors))
    part = write(table, tmp_path)
    assert part.reasons == {"no UTF-8: byte # at #": 2, "text is null": 1}
    assert part.examples == {"no UTF-8: byte # at #": "0", "text is null": "1"}


def test_figures_hold_no_values_and_no_secrets_of_records(tmp_path: Path) -> None:
    table = block(5)
    errors = [
        "note holds 'patient John Doe, not int64 but i, not int64",
        "note holds 'another', not int64",
        None,
        "text is null",
        "text is a list",
    ]
    long_password = f"secret{'x' * 200}"  # whose end would be cut off
    ids = ["https://store/a?X-Amz-Signature=secret", "b", "c", "long" * 9999, f"https://me:{long_password}@store/a"]
    table = table.set_column(1, "error", pa.array(errors)).set_column(0, "id", pa.array(ids))
    part = write(table, tmp_path)
    assert part.reasons == {"note holds ..., not int64": 2, "text is a list": 1, "text is null": 1}
    assert part.examples == {
        "note holds ..., not int64": "https://store/a?X-Amz-Signature=***",
        "text is null": "long" * 50,
        "text is a list": "https://***@store/a",
    }
    assert pq.read_table(tmp_path)["error"].to_pylist() == errors

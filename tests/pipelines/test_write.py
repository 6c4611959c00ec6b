from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from convbert import ConvBertConfig
from pipelines.errors import RunError
from pipelines.heads.sequence_classification import SequenceClassification
from pipelines.predict import N_TOKENS
from pipelines.read import WAYBILL
from pipelines.storage import locate
from pipelines.write import Format, Part, part_figures, parts_from, write_part
from tests.pipelines.labelling import job

HEAD = SequenceClassification(
    ConvBertConfig(id2label={0: "ham", 1: "spam"}),
    object(),  # type: ignore[arg-type]  # this head asks no tokenizer
    job(model="m"),
)


def block(n_rows: int = 3, *, planned: int | None = None) -> pa.Table:
    waybill = json.dumps({"part": "part-a-0123-00000", "rows": n_rows if planned is None else planned})
    names = ["ham", "spam"]
    labels = pa.array(
        [{"label": names[i % 2], "score": 1, "scores": [1 - i % 2, i % 2]} for i in range(n_rows)], HEAD.schema
    )
    rows = pa.array([None if row == 1 else row for row in range(n_rows)])
    return pa.table(
        {
            "id": [str(row) for row in range(n_rows)],
            "error": pa.array(["text is null" if row == 1 else None for row in range(n_rows)], pa.string()),
            WAYBILL: pa.array([waybill] * n_rows).dictionary_encode(),
            "prediction": labels.take(rows),
            N_TOKENS: pa.array([4] * n_rows, pa.int32()),
        }
    )


def write(table: pa.Table, folder: Path, output_format: Format = "parquet") -> Part:
    options: dict[str, Any] = {"output_format": output_format, "heads": {"prediction": HEAD}}
    return parts_from(write_part(table, output=str(folder), **options))[0]


def test_a_part_holds_the_rows_and_the_figures_tell_of_them(tmp_path: Path) -> None:
    part = write(block(), tmp_path)
    path = tmp_path / "part-a-0123-00000.parquet"
    assert part == Part(
        name=path.name,
        rows=3,
        failed=1,
        tokens=12,
        bytes=path.stat().st_size,
        labels={"prediction": {"ham": 2}},
        reasons={"text is null": 1},
    )
    assert pq.read_table(path).column_names == ["id", "prediction", "error"]


def test_both_formats_hold_the_same_table(tmp_path: Path) -> None:
    write(block(), tmp_path, "arrow")
    write(block(), tmp_path, "parquet")
    arrow = pa.ipc.open_file(tmp_path / "part-a-0123-00000.arrow").read_all()
    assert arrow.equals(pq.read_table(tmp_path / "part-a-0123-00000.parquet"))


@pytest.mark.parametrize("output_format", ["parquet", "arrow"])
def test_a_part_tells_its_own_figures(output_format: Format, tmp_path: Path) -> None:
    part = write(block(), tmp_path, output_format)
    assert part_figures(locate(str(tmp_path)).child(part.name), part.bytes) == part


def test_the_same_block_gives_the_same_bytes(tmp_path: Path) -> None:
    write(block(), tmp_path / "a")
    write(block(), tmp_path / "b")
    assert (tmp_path / "a/part-a-0123-00000.parquet").read_bytes() == (
        tmp_path / "b/part-a-0123-00000.parquet"
    ).read_bytes()


def test_a_unit_without_records_is_an_empty_part(tmp_path: Path) -> None:
    part = write(block(1, planned=0), tmp_path)
    assert (part.rows, part.failed) == (0, 0)
    assert pq.read_schema(tmp_path / part.name).names == ["id", "prediction", "error"]


def test_a_unit_that_was_split_or_merged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="units must stay whole"):
        write(block(3, planned=5), tmp_path)
    other = block(2)
    renamed = pa.array([json.dumps({"part": "part-b-0123-00000", "rows": 2})] * 2).dictionary_encode()
    other = other.set_column(other.column_names.index(WAYBILL), WAYBILL, renamed)
    with pytest.raises(RunError, match="units must stay whole"):
        write(pa.concat_tables([block(), other]), tmp_path)
    assert list(tmp_path.iterdir()) == []

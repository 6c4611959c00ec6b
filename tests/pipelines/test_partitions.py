from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipelines.errors import OutputError, RunError, SpecError
from pipelines.partitions import MAX_VALUES, NULL_VALUE, Partitioning, escaped
from pipelines.run import run
from pipelines.spec import JobSpec
from pipelines.storage import locate
from pipelines.verify import verify
from pipelines.write import part_figures
from tests.fault_proxy import FaultProxy
from tests.pipelines.labelling import label_here, manifest, parts, run_here
from tests.pipelines.labelling import whole_job as job

PART = "part-a-0123456789abcdef-00000"


def split(table: pa.Table, by: Partitioning) -> dict[str, pa.Table]:
    return {name.rsplit("/", 1)[0]: rows for name, rows in by.split(table, PART)}


@pytest.mark.parametrize(
    ("values", "folders"),
    [
        (["de", NULL_VALUE, None, "en", "", NULL_VALUE], ["lang=__HIVE_DEFAULT_PARTITION__", "lang=de", "lang=en"]),
        (["de", "en", "de", None, ""], ["lang=__HIVE_DEFAULT_PARTITION__", "lang=de", "lang=en"]),
        ([3, -1, None], ["lang=-1", "lang=3", "lang=__HIVE_DEFAULT_PARTITION__"]),
        ([True, False], ["lang=false", "lang=true"]),
        ([datetime.date(2026, 11, 25)], ["lang=2026-11-25"]),
        (["a/b=c%", "ü é"], ["lang=a%2Fb%3Dc%25", "lang=ü é"]),
    ],
    ids=["Hive's own name for null", "strings", "numbers", "booleans", "dates", "odd characters"],
)
def test_each_value_has_a_folder_and_rows_keep_their_order(values: list[Any], folders: list[str]) -> None:
    table = pa.table({"id": [str(n) for n in range(len(values))], "lang": values})
    by = Partitioning("lang")
    by.check({"lang": table.schema.field("lang").type})
    found = split(table, by)
    assert sorted(found) == sorted(folders)
    assert all(rows.column_names == ["id"] for rows in found.values())
    ids = [rows["id"].to_pylist() for rows in found.values()]
    assert sorted(id for its in ids for id in its) == table["id"].to_pylist()
    assert all(its == sorted(its, key=int) for its in ids)


def test_a_heads_field_stays_in_the_files() -> None:
    labels = pa.array([{"label": "ham"}, None, {"label": "spam"}], pa.struct([("label", pa.string())]))
    found = split(pa.table({"id": ["a", "b", "c"], "prediction": labels}), Partitioning("prediction", "label"))
    assert {folder: rows.to_pylist() for folder, rows in found.items()} == {
        f"prediction_label={NULL_VALUE}": [{"id": "b", "prediction": None}],
        "prediction_label=ham": [{"id": "a", "prediction": {"label": "ham"}}],
        "prediction_label=spam": [{"id": "c", "prediction": {"label": "spam"}}],
    }


def test_names_tell_how_the_whole_unit_was_parted() -> None:
    one = [name for name, _ in Partitioning("x").split(pa.table({"id": [1, 2, 3], "x": ["a", "b", "b"]}), PART)]
    same = [name for name, _ in Partitioning("x").split(pa.table({"id": [1, 2, 3], "x": ["a", "b", "b"]}), PART)]
    other = [name for name, _ in Partitioning("x").split(pa.table({"id": [1, 2, 3], "x": ["a", "a", "b"]}), PART)]
    assert one == same
    assert not set(one) & set(other)
    assert len({name.rsplit("-", 1)[1] for name in one}) == 2  # x=a and x=A may be one folder on some disks


def test_too_many_or_too_long_values_are_refused() -> None:
    many = pa.table({"id": range(MAX_VALUES + 1), "user": range(MAX_VALUES + 1)})
    message = r"--partition-by user: 257 values in one unit .*more than 256: choose .* or lower --unit-rows"
    with pytest.raises(RunError, match=message):
        split(many, Partitioning("user"))
    with pytest.raises(RunError, match="of record two is too long for a folder's name"):
        split(pa.table({"id": ["one", "two"], "url": ["ü", "ü" * 130]}), Partitioning("url"))


@pytest.mark.parametrize("type_", [pa.float32(), pa.list_(pa.string()), pa.timestamp("us"), pa.struct([])])
def test_values_that_name_no_folder_are_refused(type_: pa.DataType) -> None:
    with pytest.raises(SpecError, match=r"--partition-by n holds .*: folders are named by strings, whole numbers"):
        Partitioning("n").check({"n": type_})


def test_a_head_without_the_field_is_refused() -> None:
    with pytest.raises(SpecError, match=r"--partition-by p.tag: this head has no such field, but label, score"):
        Partitioning("p", "tag").check({"p": pa.struct([("label", pa.string()), ("score", pa.float32())])})


def test_what_hive_escapes_is_escaped() -> None:
    assert escaped("".join(map(chr, [0x01, 0x1F, 0x7F]))) == "%01%1F%7F"
    assert escaped("\"#%'*/:=?\\{[]^") == "%22%23%25%27%2A%2F%3A%3D%3F%5C%7B%5B%5D%5E"
    assert escaped("a-b_c.d e+f~ü日") == "a-b_c.d e+f~ü日"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition_by": "error"}, "--partition-by error: give a column of the input"),
        ({"partition_by": "prediction"}, "a head's field such as prediction.label"),
        ({"partition_by": "_lang"}, "readers pass over folders that begin with '_'"),
        (
            {"partition_by": "prediction.label", "keep_column": ["prediction_label"]},
            "a column 'prediction_label' already",
        ),
    ],
)
def test_columns_that_cannot_part_rows_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        job("in", "out", "model", **changes)


def test_the_column_is_kept_and_stands_in_the_recipe() -> None:
    assert job("in", "out", "model", partition_by="lang").keep_column == ["lang"]
    assert job("in", "out", "model", partition_by="prediction.label").keep_column == []
    assert job("in", "out", "model", partition_by="lang").recipe()["partition_by"] == "lang"
    assert "partition_by" not in job("in", "out", "model").recipe()  # outputs made without it stay what they are


# --- whole jobs ---------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    n = 24
    table = {"id": [f"p{i}" for i in range(n)], "text": ["free mail", "the offer", "x 12"] * 8}
    table["lang"] = [["de", "en", None, "a/b"][i % 4] for i in range(n)]
    pq.write_table(pa.table(table), folder / "a.parquet", row_group_size=6)
    lines = [f'{{"id": "j{i}", "text": "free mail {i}", "lang": "de"}}' for i in range(10)]
    (folder / "b.jsonl").write_text("\n".join([*lines, "{broken"]))
    (folder / "c.jsonl").touch()
    return folder


def read(output: Path, key: str = "lang") -> list[dict[str, Any]]:
    """What hive readers see of an output."""
    type_ = ds.partitioning(pa.schema([(key, pa.string())]), flavor="hive")
    files = sorted(map(str, output.glob(f"{key}=*/part-*")))
    rows = ds.dataset(files, partitioning=type_, partition_base_dir=str(output)).to_table().to_pylist()
    return sorted(rows, key=lambda row: row["id"])


def data_files(output: Path) -> dict[str, bytes]:
    found = sorted(output.rglob("part-*"))
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


def check(output: Path, ids: set[str], *, gone: tuple[Path, ...] = ()) -> None:
    """The output has these records once each, and manifest, files and recount agree."""
    rows, written = read(output), manifest(output)
    assert {row["id"] for row in rows if row["id"][0] in "pjn"} == ids
    assert len(rows) == written["rows_in"] == written["rows_out"] == sum(part["rows"] for part in written["parts"])
    assert [(part["name"], part["bytes"]) for part in written["parts"]] == [
        (name, len(data)) for name, data in data_files(output).items() if not name.startswith("_units/")
    ]
    assert [one["name"] for one in written["indexes"]] == [n for n in data_files(output) if n.startswith("_units/")]
    assert written["units"] == len(written["indexes"])
    verdict = verify(str(output))
    assert (verdict.faults, verdict.changed, verdict.rows) == ([], [str(path) for path in gone], len(rows))


IDS = {*(f"p{i}" for i in range(24)), *(f"j{i}" for i in range(10))}


@pytest.fixture
def labelled(corpus: Path, checkpoint: Path, tmp_path: Path) -> JobSpec:
    spec = job(corpus, tmp_path / "out", checkpoint, partition_by="lang")
    run_here(spec)
    return spec


def test_a_parted_output_has_every_record_once(labelled: JobSpec, tmp_path: Path) -> None:
    output = tmp_path / "out"
    check(output, IDS)
    plain = run_here(labelled.model_copy(update={"partition_by": None, "output": str(tmp_path / "plain")}))
    flat = sorted(ds.dataset(parts(tmp_path / "plain")).to_table().to_pylist(), key=lambda row: row["id"])
    assert plain.rows == len(flat)
    assert [{name: row[name] for name in flat[0]} for row in read(output)] == flat
    assert run(labelled).lines()[0].startswith("nothing to do")


@pytest.mark.slow
def test_units_that_are_not_whole_are_labelled_again(ray_cluster: None, labelled: JobSpec, tmp_path: Path) -> None:
    """What a run leaves that is killed before, between and after a unit's files: its index comes last."""
    output = tmp_path / "out"
    before = data_files(output)
    indexes = sorted(output.glob("_units/part-a-*"))
    figures = [part_figures(locate(str(index)), 0) for index in indexes[:3]]
    (output / "_manifest.json").unlink()
    indexes[0].unlink()
    (output / min(figures[1].files)).unlink()
    for name in (indexes[2], *(output / name for name in figures[2].files)):
        name.unlink()
    assert run(labelled).new_rows == sum(one.rows for one in figures) > 0
    assert data_files(output) == before
    check(output, IDS)


@pytest.mark.parametrize("other", ["prediction.label", None])
def test_what_a_killed_overwrite_has_left_goes_however_it_was_parted(
    other: str | None, labelled: JobSpec, tmp_path: Path
) -> None:
    output, overwriting = tmp_path / "out", labelled.model_copy(update={"partition_by": other, "overwrite": True})
    finished = data_files(output)
    label_here(overwriting)
    left = [name for name in data_files(output) if name not in finished]
    assert left
    assert {fault.partition(" ")[0] for fault in verify(str(output)).faults} == set(left)
    run(labelled)
    assert data_files(output) == finished
    run_here(overwriting)
    label_here(labelled.model_copy(update={"overwrite": True}))
    run(overwriting.model_copy(update={"overwrite": False}))
    assert not any(name.startswith("lang=") for name in data_files(output))
    assert verify(str(output)).faults == []


def test_files_of_a_unit_that_was_done_twice_are_those_that_its_index_names(labelled: JobSpec, tmp_path: Path) -> None:
    """On machines whose last digits differ they have other names; the manifest then follows, and nothing goes."""
    output = tmp_path / "out"
    before, text = data_files(output), (output / "_manifest.json").read_text()
    name = manifest(output)["parts"][0]["name"]
    (output / "_manifest.json").write_text(text.replace(name, re.sub(r"-[0-9a-f]{8}\.", "-00000000.", name)))
    assert run(labelled).rows == len(IDS) + 1
    assert data_files(output) == before
    check(output, IDS)


def test_a_parted_output_can_lie_in_an_object_store(
    s3: FaultProxy, corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    here, there = (
        job(corpus, output, checkpoint, partition_by="lang", unit_rows=100)
        for output in (tmp_path / "out", "s3://bucket/parted")
    )
    run_here(here)
    with s3.faults(0.05, seed=4):
        run_here(there)
    store = fsspec.filesystem("s3")
    stored = {path.removeprefix("bucket/parted/"): store.cat_file(path) for path in store.find("bucket/parted")}
    expected = data_files(tmp_path / "out")
    assert {name: data for name, data in stored.items() if "/part-" in name} == expected
    assert [name for name in stored if name.startswith("lang=a%2Fb/")]
    assert run(there).lines()[0].startswith("nothing to do")
    verdict = verify("s3://bucket/parted")
    assert (verdict.faults, verdict.changed, verdict.rows) == ([], [], 35)


@pytest.mark.slow
def test_a_parted_output_from_night_to_night(
    ray_cluster: None, labelled: JobSpec, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    (corpus / "d.jsonl").write_text('{"id": "new", "text": "free", "lang": "fr"}\n')
    (corpus / "b.jsonl").write_text('{"id": "j77", "text": "offer", "lang": "en"}\n')
    assert run(labelled).new_rows >= 2
    check(output, {*(f"p{i}" for i in range(24)), "new", "j77"})
    assert {row["lang"] for row in read(output)} == {"de", "en", None, "a/b", "fr"}
    (corpus / "a.parquet").unlink()
    run(labelled)
    check(output, {*(f"p{i}" for i in range(24)), "new", "j77"}, gone=(corpus / "a.parquet",))
    run(labelled.model_copy(update={"prune": True}))
    check(output, {"new", "j77"})
    stray = output / "lang=de/part-a-0123456789abcdef-00000-01234567.parquet"
    stray.write_bytes(b"left by a run that was killed")
    foreign = output / "day=1/part-00000-1234.snappy.parquet"
    foreign.parent.mkdir()
    foreign.write_bytes(b"not ours")
    assert [fault for fault in verify(str(output)).faults if stray.name in fault]
    run(labelled.model_copy(update={"overwrite": True}))
    assert (stray.exists(), foreign.exists()) == (False, True)
    foreign.unlink()
    check(output, {"new", "j77"})


@pytest.mark.slow
def test_another_column_is_refused_until_it_is_overwritten(
    ray_cluster: None, labelled: JobSpec, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    for other in ("prediction.label", None):
        changed = labelled.model_copy(update={"partition_by": other})
        with pytest.raises(OutputError, match=r"made by another job .*partition_by was .*--overwrite"):
            run(changed)
        run(changed.model_copy(update={"overwrite": True}))
        assert verify(str(output)).faults == []
        if other:
            rows = read(output, "prediction_label")
            assert all(row["prediction_label"] == (row["prediction"] or {}).get("label") for row in rows)
            assert {row["prediction_label"] for row in rows} >= {None}
            assert not [name for name in data_files(output) if name.startswith("lang=")]
            labelled = changed
    assert not [name for name in data_files(output) if "/" in name]
    assert run(changed).lines()[0].startswith("nothing to do")


def test_a_column_of_the_wrong_type_stops_before_work_starts(checkpoint: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["free"], "weight": [0.5]}), tmp_path / "a.parquet")
    with pytest.raises(SpecError, match="--partition-by weight holds double"):
        run(job(tmp_path / "a.parquet", tmp_path / "out", checkpoint, partition_by="weight"))
    assert not (tmp_path / "out").exists()


def test_long_strings_name_folders() -> None:
    Partitioning("lang").check({"lang": pa.large_string()})
    table = pa.table({"id": ["a"], "lang": pa.array(["de"], pa.large_string())})
    ((name, _),) = Partitioning("lang").split(table, "part-a-0123456789abcdef-00000")
    assert name.split("/")[0] == "lang=de"

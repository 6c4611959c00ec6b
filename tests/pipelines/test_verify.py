from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import verify as module
from pipelines.errors import OutputError, SourceError, StoreError
from pipelines.run import run
from pipelines.spec import JobSpec
from pipelines.units import Shard, shard_at
from pipelines.verify import Verdict, verify
from tests.pipelines.labelling import manifest, run_here
from tests.pipelines.labelling import whole_job as job


@pytest.fixture(scope="module")
def labelled(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of every kind of shard, and its labels."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "in").mkdir()
    texts = ["free mail"] * 20
    pq.write_table(pa.table({"text": texts}), folder / "in/a.parquet", row_group_size=7)
    lines = [json.dumps({"id": f"j{i}", "text": text}) for i, text in enumerate(texts)] + ["{broken"]
    (folder / "in/b.jsonl").write_text("\n".join(lines))
    (folder / "in/c.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "in/d.jsonl").write_text('{"id": "s", "text": "small"}\n')
    (folder / "in/e.jsonl").write_text('{"id": "t", "text": "too"}\n')
    (folder / "in/f.jsonl").touch()
    spec = {"input": [str(folder / "in")], "output": str(folder / "out"), "model": str(checkpoint), "unit_rows": 5}
    run_here(JobSpec.of({**spec, "max_failed_fraction": 0.5}))
    return folder


@pytest.fixture(autouse=True)
def put_back(labelled: Path) -> Iterator[None]:
    """What a test does to the parts is undone after it."""
    before = {path: path.read_bytes() for path in (labelled / "out").iterdir()}
    yield
    for path in (labelled / "out").iterdir():
        path.unlink()
    for path, data in before.items():
        path.write_bytes(data)


def test_a_finished_output_has_every_record_once(labelled: Path) -> None:
    verdict = verify(str(labelled / "out"))
    assert (verdict.faults, verdict.changed) == ([], [])
    assert (verdict.rows, verdict.failed, verdict.shards) == (64, 2, 6)
    assert verdict.lines() == [
        f"64 records (2 failed) of 6 shards in {verdict.parts} parts: every record is there once"
    ]


def rewrite(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def apply(part: Path) -> None:
        table = pq.read_table(part)
        pq.write_table(change(table), part)

    return apply


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (Path.unlink, "cannot be read: FileNotFoundError"),
        (lambda part: part.write_bytes(part.read_bytes()[:100]), "cannot be read: Arrow"),
        (rewrite(lambda t: t.slice(1)), "has 4 records, 0 failed; not 5 and 0"),
        (rewrite(lambda t: pa.concat_tables([t.slice(1), t.slice(1, 1)])), "but the shard has record '"),
        (rewrite(lambda t: t.take([1, 0, 2, 3, 4])), "but the shard has record '"),
        (
            rewrite(lambda t: t.set_column(1, "prediction", pa.nulls(5, t.schema.field("prediction").type))),
            "has 5 records with neither or both of a prediction and an error",
        ),
    ],
    ids=["removed", "cut", "shorter", "doubled", "disordered", "without a prediction"],
)
def test_what_is_wrong_is_found(damage: Callable[[Path], None], fault: str, labelled: Path) -> None:
    for stem in ("a", "b"):
        damage(
            next(path for path in sorted((labelled / "out").glob(f"part-{stem}-*")) if len(pq.read_table(path)) == 5)
        )
    verdict = verify(str(labelled / "out"))
    assert len([found for found in verdict.faults if fault in found]) == 2
    assert verdict.lines()[-1].endswith("2 faults")


def test_parts_that_nobody_knows_are_faults(labelled: Path) -> None:
    part = min((labelled / "out").glob("part-a-*"))
    part.with_name("part-a-0123456789abcdef-00000.parquet").write_bytes(part.read_bytes())
    assert verify(str(labelled / "out")).faults == [
        "part-a-0123456789abcdef-00000.parquet is there, but the manifest does not name it"
    ]


def test_parts_whose_columns_differ_from_the_others_are_faults(labelled: Path) -> None:
    first, part = (min((labelled / "out").glob(f"part-{stem}-*")) for stem in ("a", "b"))
    rewrite(lambda t: t.set_column(2, "error", t["error"].cast(pa.binary())))(part)
    assert verify(str(labelled / "out")).faults == [
        f"column 'error' is binary in {part.name}, but string in {first.name}"
    ]
    rewrite(lambda t: t.rename_columns(["id", "prediction", "wrong"]))(part)
    assert verify(str(labelled / "out")).faults[:2] == [
        f"column 'error' is missing in {part.name}, but string in {first.name}",
        f"column 'wrong' is binary in {part.name}, but missing in {first.name}",
    ]


def test_shards_that_have_changed_are_named(labelled: Path) -> None:
    shard = labelled / "in/b.jsonl"
    shard.rename(labelled / "away")
    try:
        verdict = verify(str(labelled / "out"))
    finally:
        (labelled / "away").rename(shard)
    assert (verdict.faults, verdict.changed) == ([], [str(shard)])
    assert verdict.lines()[-1].endswith("every record is there once (1 shards could not be compared)")


def test_a_shard_that_can_no_longer_be_read_leaves_the_others_compared(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ids_of(shard: Shard, column: str) -> Iterator[str]:
        if shard.url.endswith("a.parquet"):
            raise SourceError("a.parquet cannot be read: copy it again")
        yield from real(shard, column)

    real = module.ids_of
    monkeypatch.setattr(module, "ids_of", ids_of)
    verdict = verify(str(labelled / "out"))
    assert (verdict.faults, verdict.unanswered) == ([], ["a.parquet cannot be read: copy it again"])
    assert not verdict.is_good


def refusing(url: str) -> Shard:
    raise PermissionError("Forbidden")


def test_a_store_that_does_not_answer_has_not_said_that_shards_are_gone(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expired credentials, as a rule: nothing is compared then, and all is not well."""
    monkeypatch.setattr(module, "shard_at", refusing)
    verdict = verify(str(labelled / "out"))
    assert (verdict.faults, verdict.changed, len(verdict.unanswered)) == ([], [], 6)
    assert not verdict.is_good
    assert verdict.lines()[0] == (
        f"cannot be looked up, check rights and credentials: {labelled}/in/a.parquet (Forbidden)"
    )
    assert verdict.lines()[-1].endswith("none of the shards could be compared")


def unopened(url: str) -> Shard:
    raise StoreError(f"{url} cannot be opened (Connection refused): check the address and credentials")


@pytest.mark.parametrize("not_showing", [refusing, unopened])
def test_some_shards_that_a_store_does_not_show_are_not_good_either(
    not_showing: Callable[[str], Shard], labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "shard_at", lambda url: (not_showing if url.endswith("b.jsonl") else shard_at)(url))
    verdict = verify(str(labelled / "out"))
    assert [line.split(" (")[0] for line in verdict.unanswered] == [str(labelled / "in/b.jsonl")]
    assert not verdict.is_good
    assert verdict.lines()[-1].endswith("every record is there once (1 shards could not be compared)")


def test_shards_whose_address_held_a_secret_are_not_looked_up(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = labelled / "out/_manifest.json"
    manifest.write_text(manifest.read_text().replace("/in/b.jsonl", "/in/token=***"))
    asked = []
    monkeypatch.setattr(module, "shard_at", lambda url: asked.append(url) or shard_at(url))
    verdict = verify(str(labelled / "out"))
    assert (verdict.faults, verdict.hidden, verdict.is_good) == ([], [f"{labelled}/in/token=***"], True)
    assert not [url for url in asked if "***" in url]
    assert "not compared, since the manifest keeps no secrets of addresses: " in verdict.lines()[0]


def test_an_output_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no _manifest\.json"):
        verify(str(tmp_path))


@pytest.mark.parametrize("column", ["id", "n", "prediction"])
def test_a_part_that_is_damaged_in_any_column_is_named(column: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"id": f"{i:040}", "text": "free mail", "n": 7 * i}) for i in range(200)]
    (tmp_path / "in/a.jsonl").write_text("\n".join(lines))
    run_here(job(tmp_path / "in", tmp_path / "out", checkpoint, keep_column=["n"], unit_rows=200))
    (part,) = (tmp_path / "out").glob("part-*")
    group = pq.ParquetFile(part).metadata.row_group(0)
    chunks = [group.column(number) for number in range(group.num_columns)]
    (chunk, *_) = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column]
    data = bytearray(part.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + 12] = bytes(12)
    part.write_bytes(data)
    (fault,) = verify(str(tmp_path / "out")).faults
    assert fault.startswith(f"{part.name} cannot be read: ")


def test_a_shard_that_is_cut_off_is_no_success(checkpoint: Path, tmp_path: Path) -> None:
    """One error stands for half of its records, which would be few enough."""
    (tmp_path / "in").mkdir()
    packed = gzip.compress("".join(json.dumps({"text": f"free mail {i}"}) + "\n" for i in range(2000)).encode())
    (tmp_path / "in/a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    spec = job(tmp_path / "in", tmp_path / "out", checkpoint, unit_rows=500)
    summary = run_here(spec)
    assert 500 < summary.rows < 1100
    assert summary.failed == 1
    assert summary.too_many_failed == (
        "an unknown number of records failed, the rest of 1 damaged compressed shard, and --max-failed-fraction is 0.2"
    )
    assert not (tmp_path / "out/_SUCCESS").exists()
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["output"]["damaged_shards"] == 1
    (fault,) = verify(str(tmp_path / "out")).faults
    assert "has one error for all that is lost of a damaged compressed shard" in fault
    assert not run(spec.model_copy(update={"max_failed_fraction": 1.0})).has_failed_too_often


def test_ids_of_another_column_are_compared(checkpoint: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": list("abc"), "text": ["free"] * 3}), tmp_path / "a.parquet")
    run_here(job(tmp_path / "a.parquet", tmp_path / "out", checkpoint, id_column="key"))
    assert verify(str(tmp_path / "out")).faults == []


@pytest.mark.parametrize("partition_by", [None, "lang"], ids=["flat", "in folders"])
def test_records_behind_the_last_part_are_missed(partition_by: str | None, checkpoint: Path, tmp_path: Path) -> None:
    """Part and entry of the last unit are gone, as if it had never been."""
    table = {"id": list("abcdefghi"), "text": ["free"] * 9, "lang": ["de", "en", "de"] * 3}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=3)
    spec = job(tmp_path / "a.parquet", tmp_path / "out", checkpoint, unit_rows=3, partition_by=partition_by)
    run_here(spec)
    values = manifest(tmp_path / "out")
    for key in ("parts", "indexes"):
        for entry in [one for one in values.get(key, []) if "-00002" in one["name"]]:
            values[key].remove(entry)
            (tmp_path / "out" / entry["name"]).unlink()
    (tmp_path / "out/_manifest.json").write_text(json.dumps(values))
    (fault,) = verify(str(tmp_path / "out")).faults
    assert fault.endswith("record 6 of its parts is nothing, but the shard has record 'g' there")


def test_an_output_of_arrow_files_is_compared_too(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "free"}\n{"id": "b", "text": "mail"}\n')
    run_here(job(tmp_path / "in.jsonl", tmp_path / "out", checkpoint, output_format="arrow"))
    verdict = verify(str(tmp_path / "out"))
    assert (verdict.rows, verdict.faults) == (2, [])
    (part,) = (tmp_path / "out").glob("part-*")
    table = pa.ipc.open_file(part).read_all()
    with pa.ipc.new_file(part, table.schema) as file:
        file.write_table(table.take([1, 0]))
    (fault,) = verify(str(tmp_path / "out")).faults
    assert fault.endswith("record 0 of its parts is 'b', but the shard has record 'a' there")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"changed": ["a"]}, "every record is there once (1 shards could not be compared)"),
        ({"changed": ["a"], "hidden": ["b"], "unanswered": ["c"]}, "none of the shards could be compared"),
        ({"changed": ["a"], "hidden": ["b"], "unanswered": ["c"], "faults": ["x"]}, "1 faults (3 shards could not be"),
        ({"hidden": ["b"], "faults": ["x"]}, "1 faults (1 shards could not be compared)"),
    ],
    ids=str,
)
def test_the_verdict_says_how_many_shards_it_leaves_open(changes: dict[str, list[str]], verdict: str) -> None:
    values = {"shards": 3, "parts": 3, "rows": 30, "failed": 0, "faults": []}
    found = Verdict(**{**values, **changes})
    assert found.lines()[-1].startswith(f"30 records (0 failed) of 3 shards in 3 parts: {verdict}")
    assert len(found.lines()) == 1 + sum(map(len, changes.values()))

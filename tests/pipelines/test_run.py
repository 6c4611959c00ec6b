"""The whole way of the data on a real Ray cluster, against Transformers text by text."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import transformers
from ray.exceptions import RayError

from pipelines import run as module
from pipelines import stages
from pipelines.admission import Admission
from pipelines.errors import ModelError, OutputError, PipelineError, RunError, SourceError, StoreError
from pipelines.nights import Meter
from pipelines.plan import JobPlan, make_plan
from pipelines.read import Columns
from pipelines.resources import Hardware
from pipelines.run import pipeline, run
from pipelines.spec import JobSpec
from pipelines.storage import locate
from pipelines.survive import open_ledger
from pipelines.units import Shard, Stream
from pipelines.verify import verify
from pipelines.write import Part
from tests.conftest import save_checkpoint
from tests.fault_proxy import FaultProxy
from tests.oracle import classify
from tests.pipelines.labelling import label_here, manifest, parts, run_here
from tests.pipelines.labelling import whole_job as job
from tests.pipelines.nights import STEM, UNITS, made, plan_of, state

on_ray = pytest.mark.usefixtures("ray_cluster")


def make_corpus(folder: Path, sentences: list[str]) -> None:
    """Parquet, plain JSONL with broken lines, and a compressed shard, all with the same texts."""
    folder.mkdir()
    ids = [f"p{i}" for i in range(len(sentences))]
    pq.write_table(
        pa.table({"id": ids, "text": sentences, "n": list(range(len(ids)))}), folder / "a.parquet", row_group_size=4
    )
    lines = [json.dumps({"id": f"j{i}", "text": text, "n": i}).encode() for i, text in enumerate(sentences)]
    lines[3:3] = [b"{broken", b"", b'{"text": null, "n": 1}', b'{"n": 2}']
    (folder / "b.jsonl").write_bytes(b"\r\n".join(lines))
    (folder / "sub").mkdir()
    zipped = "".join(json.dumps({"id": f"z{i}", "text": text}) + "\n" for i, text in enumerate(sentences))
    (folder / "sub/c.jsonl.gz").write_bytes(gzip.compress(zipped.encode()))
    (folder / "d.jsonl").touch()


def table(output: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in parts(output)])


@pytest.fixture
def corpus(tmp_path: Path, sentences: list[str]) -> Path:
    make_corpus(tmp_path / "in", sentences)
    return tmp_path / "in"


@on_ray
def test_every_record_comes_out_once_with_transformers_answer(
    corpus: Path, checkpoint: Path, sentences: list[str], tmp_path: Path
) -> None:
    tokenizer = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
    checkpoint = shutil.copytree(checkpoint, tmp_path / "model", ignore=shutil.ignore_patterns("vocab.txt"))
    tokenizer.save_pretrained(checkpoint)  # model and tokenizer now lie there as Transformers saves them
    summary = run(job(corpus, tmp_path / "out", checkpoint, keep_column=["text"]))
    rows = table(tmp_path / "out").to_pylist()
    n = len(sentences)
    expected_ids = [*(f"p{i}" for i in range(n)), "j0", "j1", "j2", None, None, None]
    expected_ids += [*(f"j{i}" for i in range(3, n)), *(f"z{i}" for i in range(n))]
    assert len(rows) == len(expected_ids) == summary.rows
    assert all(row["id"] == wanted for row, wanted in zip(rows, expected_ids, strict=True) if wanted)
    assert [row["error"] for row in rows if row["error"]] == [
        "the line is no JSON: Expecting property name enclosed in double quotes at column 2",
        "text is null",
        "text is missing",
    ]
    good = [row for row in rows if row["error"] is None]
    for row, expected in zip(good, classify(checkpoint, [row["text"] for row in good]), strict=True):
        assert row["prediction"]["label"] == expected["label"]
        np.testing.assert_allclose(row["prediction"]["scores"], expected["scores"], atol=1e-4)
    written = manifest(tmp_path / "out")
    assert (written["rows_in"], written["rows_out"], written["rows_failed"]) == (len(rows), len(rows), 3)
    assert [part["name"] for part in written["parts"]] == [path.name for path in parts(tmp_path / "out")]
    assert [part["bytes"] for part in written["parts"]] == [path.stat().st_size for path in parts(tmp_path / "out")]
    assert sum(written["labels"]["prediction"].values()) == len(good)
    assert written["busy_s"] > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} - {path.name for path in parts(tmp_path / "out")} == {
        "_manifest.json",
        "_SUCCESS",
        "report.html",
        "report.json",
    }


@on_ray
@pytest.mark.slow
def test_arrow_parts_hold_the_same_table_and_a_second_run_does_nothing(
    corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    run(job(corpus, tmp_path / "parquet", checkpoint))
    run(job(corpus, tmp_path / "arrow", checkpoint, output_format="arrow"))
    arrow = pa.concat_tables([pa.ipc.open_file(path).read_all() for path in parts(tmp_path / "arrow")])
    assert arrow.equals(table(tmp_path / "parquet"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "arrow").iterdir()}
    again = run(job(corpus, tmp_path / "arrow", checkpoint, output_format="arrow"))
    assert again.lines()[0].startswith(f"nothing to do: all {len(arrow)} rows are labelled")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "arrow").iterdir()} == before


@on_ray
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job(corpus, tmp_path / "out", checkpoint))
    before = {path.name: path.read_bytes() for path in parts(tmp_path / "out")}
    for name in ("_manifest.json", "_SUCCESS", *list(before)[1::2]):
        (tmp_path / "out" / name).unlink()
    monkeypatch.setattr(stages, "MOST_READ_TASKS", 2)  # as in a corpus of very many shards
    summary = run(job(corpus, tmp_path / "out", checkpoint))
    assert {path.name: path.read_bytes() for path in parts(tmp_path / "out")} == before
    assert 0 < summary.new_rows < summary.rows == sum(part["rows"] for part in manifest(tmp_path / "out")["parts"])
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["night"]["rows"], report["run"]["rows"]) == (summary.rows, summary.new_rows)
    n_good = summary.rows - summary.failed
    assert report["lengths"]["n"] == report["heads"][0]["scores"]["score"]["n"] == n_good  # of all parts, read or made
    [night] = manifest(tmp_path / "out")["nights"]
    stages_s = night["details"]["run"]["stages_s"]
    assert min(stages_s[name] for name in ("reading", "tokenising", "model", "decoding", "writing", "waiting")) > 0


def test_nights_add_change_and_lose_shards(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_here(job(corpus, output, checkpoint))
    first = {path.name for path in parts(output)}
    n_dropped = sum(name.startswith(("j", "/")) for name in table(output)["id"].to_pylist())
    (corpus / "e.jsonl").write_text('{"id": "new", "text": "free"}\n')
    (corpus / "sub/c.jsonl.gz").unlink()
    (corpus / "b.jsonl").write_text('{"id": "changed", "text": "offer", "n": 1}\n')
    os.utime(corpus / "b.jsonl", (1, 1))
    summary = run_here(job(corpus, output, checkpoint))
    assert summary.night_rows == 2
    ids = table(output)["id"].to_pylist()
    assert {"new", "changed", "p0", "z0"} <= set(ids)
    assert not {"j0", "j1"} & set(ids)
    names = {path.name for path in parts(output)}
    assert {name for name in first if name.startswith(("part-a-", "part-c-"))} <= names
    assert [part["name"] for part in manifest(output)["parts"]] == sorted(names)
    (output / "report.html").unlink()
    (output / "report.json").unlink()
    assert run(job(corpus, output, checkpoint)).new_rows == 0
    report = json.loads((output / "report.json").read_text())  # of the night that labelled something
    assert [its["rows"] for its in report["nights"]] == [2, len(ids) - 2 + n_dropped]
    assert verify(str(output)).faults == []


@on_ray
@pytest.mark.slow
def test_kept_columns_keep_their_type_from_night_to_night(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text('{"text": "free", "n": 1}\n')
    run(job(tmp_path / "in", tmp_path / "out", checkpoint, keep_column=["n"], max_failed_fraction=1))
    (tmp_path / "in/b.jsonl").write_text('{"text": "free", "n": "two"}\n{"text": "mail", "n": 3}\n')
    run(job(tmp_path / "in", tmp_path / "out", checkpoint, keep_column=["n"], max_failed_fraction=1))
    rows = table(tmp_path / "out")
    assert rows["n"].to_pylist() == [1, None, 3]
    assert rows["error"].to_pylist() == [None, "n holds 'two', not int64", None]


@on_ray
@pytest.mark.slow
def test_another_job_on_the_same_output_is_refused_until_it_is_overwritten(
    corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(job(corpus, output, checkpoint))
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    other = save_checkpoint(tmp_path / "other", seed=9, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    for changed, difference in [
        (job(corpus, output, other), "head prediction fingerprint was"),
        (job(corpus, output, checkpoint, unit_rows=7), "unit_rows was 6, now 7"),
        (job(corpus, output, checkpoint, precision="bf16"), 'precision was "fp32", now "bf16"'),
    ]:
        with pytest.raises(OutputError, match=f"made by another job .*{difference}.*--overwrite"):
            run(changed)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    run(job(corpus, output, other, overwrite=True))
    assert set(manifest(output)["labels"]["prediction"]) <= {"a", "b"}
    assert not set(before) & {path.name for path in parts(output)}
    assert run(job(corpus, output, other)).new_rows == 0
    assert run(job(corpus, output, other, overwrite=True)).new_rows > 0


@on_ray
@pytest.mark.slow
def test_number_of_actors_and_cuts_change_nothing(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    run(job(corpus, tmp_path / "one", checkpoint, unit_rows=1000))
    run(job(corpus, tmp_path / "two", checkpoint, unit_rows=3, max_actors=2, max_batch_tokens=40))
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    assert one["id"].to_pylist() == two["id"].to_pylist()
    scores = [np.array([row["score"] for row in t["prediction"].to_pylist() if row]) for t in (one, two)]
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.slow
@on_ray
def test_file_urls_work_like_paths(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    spec = JobSpec.of(
        {"input": [f"file://{corpus}/*.parquet"], "output": f"file://{tmp_path}/out", "model": f"file://{checkpoint}"}
    )
    assert run(spec).rows == len(table(tmp_path / "out")) > 0


@on_ray
@pytest.mark.slow
def test_corpus_model_and_output_can_lie_in_an_object_store(
    corpus: Path, checkpoint: Path, sentences: list[str], s3: FaultProxy
) -> None:
    spec = put_into_store(corpus, checkpoint)
    summary = run(spec)
    assert (summary.rows, summary.failed) == (3 * len(sentences) + 3, 3)
    assert verify(spec.output).faults == []
    assert run(spec).lines()[0].startswith("nothing to do")


@pytest.mark.slow
@on_ray
def test_a_stormy_store_gives_the_bytes_of_a_calm_one_and_the_rows_of_a_disk(
    corpus: Path, checkpoint: Path, tmp_path: Path, s3: FaultProxy
) -> None:
    in_store = run(put_into_store(corpus, checkpoint))
    on_disk = run(job(corpus, tmp_path / "out", checkpoint))
    assert (in_store.rows, in_store.failed, in_store.labels) == (on_disk.rows, on_disk.failed, on_disk.labels)
    calm = stored_files("bucket/out")
    own = {"_manifest.json", "_SUCCESS", "report.html", "report.json"}
    assert len(calm) == len(parts(tmp_path / "out")) + len(own)
    with s3.faults(0.05, seed=9):
        stormy = run(job("s3://bucket/corpus", "s3://bucket/stormy", "s3://bucket/same-model"))
    assert sum(s3.counts.values()) >= 3, s3.requests
    assert (stormy.rows, stormy.failed, stormy.labels) == (in_store.rows, in_store.failed, in_store.labels)
    stormy_files = stored_files("bucket/stormy")
    assert own < set(calm) == set(stormy_files)
    assert {name: data for name, data in stormy_files.items() if name not in own} == {
        name: data for name, data in calm.items() if name not in own
    }


def put_into_store(corpus: Path, checkpoint: Path) -> JobSpec:
    """A job whose corpus, model and output lie in an object store."""
    store = fsspec.filesystem("s3")
    for source, target in ((corpus, "corpus"), (checkpoint, "model"), (checkpoint, "same-model")):
        store.put(f"{source}/", f"bucket/{target}/", recursive=True)
    return job("s3://bucket/corpus", "s3://bucket/out", "s3://bucket/model")


def stored_files(folder: str) -> dict[str, bytes]:
    store = fsspec.filesystem("s3")
    return {path.rsplit("/", 1)[-1]: store.cat_file(path) for path in store.ls(folder, detail=False, refresh=True)}


def test_many_tasks_share_as_many_read_tasks_as_ray_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "MOST_READ_TASKS", 3)
    tasks: Any = list(range(8))
    for n, expected in ((0, []), (2, [[0], [1]]), (8, [[0, 3, 6], [1, 4, 7], [2, 5]])):
        source = stages.TaskSource(tasks[:n], Columns(("text",), "id", pa.schema([])), ledger=None)  # type: ignore[arg-type]
        assert source.read_tasks == expected
        assert len(source.get_read_tasks(1)) == len(expected)


@on_ray
def test_reading_and_encoding_run_beside_the_actors(
    corpus: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray fuses neighbouring stages with equal resources: tokenising would then run inside the GPU actor."""
    plan = make_plan(job(corpus, tmp_path / "out", checkpoint))
    choosy = Hardware(1, 4, 0, 1, None, 0.5, actor_nodes=({"zone": "a"}, {"zone": "b"}))
    for hardware in (Hardware(1, 1, 1, 0, 2, 0.5), Hardware(1, 4, 0, 1, None, 0.5), choosy):
        pipeline(plan, hardware, open_ledger()).explain()
        physical = capsys.readouterr().out.split("Physical Plan (Optimized)")[-1]
        assert [line.strip(" +-") for line in physical.splitlines() if "[" in line] == [
            "TaskPoolMapOperator[MapBatches(decode)->MapBatches(write)]",
            "ActorPoolMapOperator[MapBatches(Predictor)]",
            "TaskPoolMapOperator[MapBatches(encode)]",
            "TaskPoolMapOperator[ReadTaskSource]",
            "InputDataBuffer[Input]",
        ]


@on_ray
@pytest.mark.slow
def test_a_stage_that_fails_is_one_line_and_finished_parts_stay(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    run(job(corpus / "a.parquet", tmp_path / "out", model))
    finished = {path.name: path.read_bytes() for path in parts(tmp_path / "out")}

    def lose_the_model(output: object) -> None:
        shutil.rmtree(model)

    monkeypatch.setattr("pipelines.run.check_writable", lose_the_model)
    with pytest.raises(ModelError, match=r"no checkpoint folder at .*start the same command again") as raised:
        run(job(corpus, tmp_path / "out", model))
    assert "\n" not in str(raised.value)
    assert {path.name: path.read_bytes() for path in parts(tmp_path / "out")} == finished
    assert (tmp_path / "out/_manifest.json").exists()
    assert not (tmp_path / "out/_SUCCESS").exists()


@on_ray
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"text_column": "body"}, SourceError, "has no column 'body'"),
        ({"id_column": "key"}, SourceError, "has no column 'key'"),
        ({"input": ["/none/*.parquet"]}, SourceError, "no input at /none"),
        ({"model": "/none"}, ModelError, "no checkpoint folder at /none"),
        ({"output": "/proc/none/out"}, OutputError, "/proc/none/out.* cannot be written"),
    ],
)
def test_what_cannot_work_stops_before_work_starts(
    changes: dict[str, Any], error: type[PipelineError], message: str, corpus: Path, checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipelines.run._label", lambda *_: pytest.fail("work has started"))
    with pytest.raises(error, match=message) as raised:
        run(job(corpus, tmp_path / "out", checkpoint).model_copy(update={**changes, **_head(changes)}))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def _head(changes: dict[str, Any]) -> dict[str, Any]:
    return {"head": {"prediction": changes["model"]}} if "model" in changes else {}


def test_an_output_inside_the_input_is_refused(corpus: Path, checkpoint: Path) -> None:
    shutil.copytree(corpus / "sub", corpus / "out")
    with pytest.raises(SourceError, match="lies inside the output folder"):
        run(job(corpus, corpus / "out", checkpoint))


@pytest.mark.slow
@on_ray
def test_an_empty_corpus_gives_an_empty_output(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").touch()
    (tmp_path / "in/b.jsonl").write_bytes(b"\n\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in/c.parquet")
    summary = run(job(tmp_path / "in", tmp_path / "out", checkpoint))
    assert (summary.rows, manifest(tmp_path / "out")["rows_in"]) == (0, 0)
    assert (tmp_path / "out/_SUCCESS").exists()
    assert run(job(tmp_path / "in", tmp_path / "out", checkpoint)).lines()[0].startswith("nothing to do")


@on_ray
def test_a_dry_run_writes_nothing(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    lines = run(job(corpus, tmp_path / "out", checkpoint, dry_run=True)).lines()
    assert lines[0].startswith("dry run: ")
    assert "one encoder pass: prediction (text-classification)" in lines
    assert lines[-1].startswith("estimate: ")
    assert not (tmp_path / "out").exists()


@on_ray
@pytest.mark.slow
def test_small_shards_share_parts_from_night_to_night(checkpoint: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()

    def add(*numbers: int, text: str = "free") -> None:
        for n in numbers:
            (folder / f"{n:03d}.jsonl").write_text(f'{{"id": "{n}", "text": "{text}"}}\n')

    add(*range(60))
    first = run(job(folder, output, checkpoint, unit_rows=1))
    assert (first.rows, first.new_rows) == (60, 60)
    names = {path.name for path in parts(output)}
    assert 2 <= len(names) < 40  # where groups end depends on the names of the folders above
    add(60, 61)
    assert run(job(folder, output, checkpoint, unit_rows=1)).new_rows == 2
    assert names < {path.name for path in parts(output)}
    add(5, text="offer now")  # a new version: its group is labelled anew, the others stay
    group = next(entry["group"] for entry in manifest(output)["shards"] if entry["url"].endswith("005.jsonl"))
    n_group = sum(entry["group"] == group for entry in manifest(output)["shards"])
    assert run(job(folder, output, checkpoint, unit_rows=1)).new_rows == n_group
    assert sorted(table(output)["id"].to_pylist(), key=int) == [str(n) for n in range(62)]
    assert run(job(folder, output, checkpoint, unit_rows=1)).new_rows == 0


@on_ray
@pytest.mark.slow
def test_records_of_a_vanished_shard_stay_until_they_are_pruned(checkpoint: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for n in range(20):
        (folder / f"{n:03d}.jsonl").write_text(f'{{"id": "{n}", "text": "free"}}\n')
    run(job(folder, output, checkpoint, unit_rows=1000))
    entries = manifest(output)["shards"]
    gone = entries[3]
    sibling = next(entry for entry in entries if entry["group"] == gone["group"] and entry != gone)
    Path(gone["url"]).unlink()
    assert run(job(folder, output, checkpoint, unit_rows=1000)).rows == 20
    Path(sibling["url"]).write_text('{"id": "new", "text": "offer"}\n')
    with pytest.raises(OutputError, match=r"003\.jsonl is no longer among the inputs .* has changed: .*--prune"):
        run(job(folder, output, checkpoint, unit_rows=1000))
    assert len(table(output)) == 20
    pruned = run(job(folder, output, checkpoint, unit_rows=1000, prune=True))
    n_group = sum(entry["group"] == gone["group"] for entry in entries)
    assert (pruned.rows, pruned.new_rows) == (19, n_group - 1)
    lost = {str(int(Path(entry["url"]).stem.split(".")[0])) for entry in (gone, sibling)}
    assert set(table(output)["id"].to_pylist()) == {str(n) for n in range(20)} - lost | {"new"}
    assert run(job(folder, output, checkpoint, unit_rows=1000)).new_rows == 0


@on_ray
def test_a_job_that_has_waited_for_its_turn_plans_again(
    checkpoint: Path, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job before it may have labelled the same output."""
    pq.write_table(pa.table({"text": sentences}), tmp_path / "a.parquet")
    spec = job(tmp_path / "a.parquet", tmp_path / "out", checkpoint)
    hardware = Hardware(1, 1, actor_cpus=1, actor_gpus=0, n_threads=1, task_cpus=0.5)
    waits: list[Hardware] = []

    def waited(self: Admission, its: Hardware) -> bool:
        waits.append(its)
        is_first = len(waits) == 1
        if is_first:
            run(spec)  # the other one
        return is_first

    monkeypatch.setattr(module, "_hardware", lambda plan: hardware)
    monkeypatch.setattr(Admission, "has_waited", waited)
    summary = run(spec)
    assert (summary.rows, summary.new_rows) == (len(sentences), 0)
    assert waits == [hardware] * 2


@on_ray
@pytest.mark.slow
def test_a_compressed_shard_becomes_many_parts_and_goes_on_where_it_was(checkpoint: Path, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"id": f"z{i}", "text": "free mail " * (i % 7)}) + "\n" for i in range(60))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    spec = job(tmp_path / "a.jsonl.gz", tmp_path / "out", checkpoint, unit_rows=4)
    run(spec)
    assert table(tmp_path / "out")["id"].to_pylist() == [f"z{i}" for i in range(60)]
    before = {path.name: path.read_bytes() for path in parts(tmp_path / "out")}
    assert len(before) > 10
    missing = [*sorted(before)[2:5], max(before)]
    for name in ("_manifest.json", *missing):
        (tmp_path / "out" / name).unlink()
    summary = run(spec)
    assert summary.new_rows == sum(len(pq.read_table(tmp_path / "out" / name)) for name in missing)
    assert {path.name: path.read_bytes() for path in parts(tmp_path / "out")} == before
    assert run(spec).new_rows == 0


@on_ray
@pytest.mark.slow
@pytest.mark.parametrize("partition_by", [None, "prediction.label"], ids=["flat", "in folders"])
def test_a_run_that_another_one_overtakes_plans_again(
    partition_by: str | None, corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run begins later, knows one shard more, and finishes first."""
    label, others = module._label, []
    spec = job(corpus, tmp_path / "out", checkpoint, partition_by=partition_by)

    def label_and_be_overtaken(plan: JobPlan, hardware: Hardware, meter: Meter, admission: Admission) -> list[Part]:
        if not others:
            others.append(1)
            (corpus / "late.jsonl").write_text('{"id": "late", "text": "free"}\n')
            others.append(run(spec))
        return label(plan, hardware, meter, admission)

    monkeypatch.setattr(module, "_label", label_and_be_overtaken)
    mine = run(spec)
    verdict = verify(str(tmp_path / "out"))
    assert (verdict.faults, verdict.changed, verdict.shards) == ([], [], 5)
    assert mine.rows == others[1].rows == verdict.rows


@on_ray
@pytest.mark.slow
def test_a_run_that_has_gone_wrong_stops_and_says_why(checkpoint: Path, tmp_path: Path) -> None:
    lines = [f'{{"id": "r{i}", "text": {i}}}' for i in range(80)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    spec = job(tmp_path / "a.jsonl", tmp_path / "out", checkpoint, unit_rows=2, max_failed_fraction=0.05)
    with pytest.raises(
        RunError, match=r"too many .*text is a number, not a string \(\d+, such as r\d+\).*raise"
    ) as raised:
        run(spec)
    assert "\n" not in str(raised.value)
    n_parts = len(parts(tmp_path / "out"))
    assert 10 <= n_parts < 40
    assert not (tmp_path / "out/_manifest.json").exists()
    tolerant = run(spec.model_copy(update={"max_failed_fraction": 1.0}))
    assert (tolerant.rows, tolerant.failed) == (80, 80)


@pytest.mark.parametrize(
    ("last", "kind", "message"),
    [
        ("pipelines.errors.StoreError: s3://b/a.jsonl cannot be read", StoreError, "s3://b/a.jsonl cannot be read"),
        ("pipelines.errors.OutputError: s3://k:s@b cannot be written", OutputError, "s3://k:***@b cannot be written"),
        ("convbert.errors.CheckpointError: no checkpoint folder at /m", ModelError, "no checkpoint folder at /m"),
        (
            "pipelines.errors.SpecError: s3://b cannot be opened: install s3fs",
            RunError,
            "s3://b cannot be opened: install s3fs",
        ),
        ("pipelines.errors.one_line: nothing of that kind", RunError, "nothing of that kind"),
        ("ValueError: a fault of ours", RunError, "ValueError: a fault of ours"),
        (
            "ValueError: a fault of ours\nFailed to map after 1/1 attempts (total backoff 0.0s).\nTo change retry "
            "attempts, configure `ray.data.DataContext.get_current()` if you believe this to be transient.",
            RunError,
            "ValueError: a fault of ours",
        ),
        (
            "KeyError: 'text\\nFailed to map after 1/1 attempts (total backoff 0.0s).\\nTo change it, configure'",
            RunError,
            "KeyError: 'text",
        ),
    ],
)
def test_what_a_worker_raises_keeps_its_kind(last: str, kind: type[PipelineError], message: str) -> None:
    text = f'ray::MapBatches()\n  File "x.py"\npipelines.errors.SourceError: the cause\n\n{last}\n'
    if kind is RunError:
        text = text.replace("pipelines.errors.SourceError", "KeyError")
    assert module._root_cause(RayError(text)) == (kind, message)


# --- the end of a run, on parts that this process has made --------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A corpus of two shards with a unit each."""
    folder = tmp_path / "small"
    folder.mkdir()
    for name in ("a", "b"):
        pq.write_table(
            pa.table({"id": [f"{name}{i}" for i in range(6)], "text": ["free mail"] * 6}), folder / f"{name}.parquet"
        )
    return folder


FOREIGN = ("part-00000-6ff0d4a5-41e2-4c37-9f4a-bd6a7d2c0e11-c000.snappy.parquet", "part-list.txt")


@pytest.mark.parametrize("partition_by", [None, "prediction.label"], ids=["flat", "in folders"])
def test_what_killed_runs_have_left_goes_and_what_others_have_put_there_stays(
    partition_by: str | None, small: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, output = job(small, tmp_path / "out", checkpoint, partition_by=partition_by), tmp_path / "out"
    run_here(spec)
    finished = {path for path in output.rglob("part-*") if path.is_file()}
    for name in FOREIGN:
        (output / name).write_text("not ours")
    label_here(spec.model_copy(update={"overwrite": True}))  # and is killed before its manifest
    assert len(list(output.rglob("part-*"))) == 2 * len(finished) + len(FOREIGN)
    assert run(spec).lines()[0].startswith("nothing to do")
    assert set(output.rglob("part-*")) == finished | {output / name for name in FOREIGN}
    assert (output / "_SUCCESS").exists()
    run_here(spec.model_copy(update={"overwrite": True}))
    assert not finished & set(output.rglob("part-*"))
    assert all((output / name).exists() for name in FOREIGN)
    assert verify(str(output)).faults == []
    for name in ("own_files", "read_manifest", "remove"):  # what plans already know is not asked for again
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(name))
    assert run(spec).lines()[0].startswith("nothing to do")


def test_a_finished_output_that_another_run_changes_meanwhile_is_planned_again(
    small: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts must not go as left-overs."""
    spec, output = job(small, tmp_path / "out", checkpoint), tmp_path / "out"
    run_here(spec)
    plan_it, plans = module.make_plan, []

    def plan_and_be_overtaken(spec: JobSpec) -> JobPlan:
        if not plans:
            label_here(spec.model_copy(update={"overwrite": True}))
        plans.append(plan_it(spec))
        if len(plans) == 1:
            with monkeypatch.context() as calm:
                calm.setattr(module, "make_plan", plan_it)
                run(spec.model_copy(update={"overwrite": True}))
        return plans[-1]

    monkeypatch.setattr(module, "make_plan", plan_and_be_overtaken)
    assert run(spec).rows == 12
    assert len(plans) == 2
    assert verify(str(output)).faults == []


def test_runs_that_always_find_the_output_changed_give_up(
    small: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job(small, tmp_path / "out", checkpoint)
    label_here(spec)
    monkeypatch.setattr(module, "_commit", lambda *_: None)
    with pytest.raises(RunError, match="other runs keep changing .*out: let one of them finish, and start again"):
        run(spec)
    assert not (tmp_path / "out/_SUCCESS").exists()


@pytest.mark.parametrize("n_nodes", [1, 2])
def test_parts_on_workers_own_disks_are_told(
    small: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_nodes: int
) -> None:
    """They are not labelled three times over, as where another run has taken them away."""
    spec = job(small, tmp_path / "out", checkpoint)
    label_here(spec)
    plan = make_plan(spec)
    parts(tmp_path / "out")[0].rename(tmp_path / "elsewhere")
    monkeypatch.setattr(module.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(module, "nodes_alive", lambda: [{"CPU": 1.0}] * n_nodes)
    if n_nodes == 1:
        assert module._commit(plan, [], locate(spec.output), Meter()) is None
        return
    with pytest.raises(RunError, match=r"^1 of \d parts are not in .*out: on several nodes a local --output must be"):
        module._commit(plan, [], locate(spec.output), Meter())
    assert not (tmp_path / "out/_manifest.json").exists()


def test_seconds_are_those_of_all_nights(small: Path, checkpoint: Path, tmp_path: Path) -> None:
    spec = job(small / "a.parquet", tmp_path / "out", checkpoint)
    run_here(spec)
    first = manifest(tmp_path / "out")["seconds"]
    run_here(spec.model_copy(update={"input": [str(small)]}))
    written = manifest(tmp_path / "out")
    assert 0 < first < written["seconds"]
    assert written["seconds"] == pytest.approx(sum(night["seconds"] for night in written["nights"]), abs=1e-9)


def test_a_night_is_judged_by_itself_too(small: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Of 14 records two fail, which the job would take; but they are all that is new."""
    spec, marker = job(small, tmp_path / "out", checkpoint), tmp_path / "out/_SUCCESS"
    assert not run_here(spec).has_failed_too_often
    (small / "c.jsonl").write_text('{"text": 1}\n{"text": 2}\n')
    for start in (run_here, run):  # started again it is the same night
        summary = start(spec)
        assert summary.too_many_failed == "2 of 2 new records failed, more than --max-failed-fraction 0.2"
        assert not marker.exists()
    assert not run(spec.model_copy(update={"max_failed_fraction": 1.0})).has_failed_too_often
    assert marker.exists()
    assert run(spec.model_copy(update={"max_failed_fraction": 0.1})).too_many_failed is not None
    assert not marker.exists()  # what the run says and what the folder says agree


def test_where_only_records_go_there_is_something_to_do(small: Path, checkpoint: Path, tmp_path: Path) -> None:
    spec = job(small, tmp_path / "out", checkpoint)
    run_here(spec)
    (small / "b.parquet").unlink()
    for changes in ({"prune": True, "dry_run": True}, {"prune": True}):
        told = run(spec.model_copy(update=changes)).lines()[0]
        assert told == f"nothing to label: all 6 rows are labelled in {tmp_path / 'out'}"
    assert run(spec).lines()[0].startswith("nothing to do: all 6 rows")


def test_a_run_that_gets_no_cluster_leaves_the_marker_of_the_night_before(
    small: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job(small / "a.parquet", tmp_path / "out", checkpoint)
    run_here(spec)

    def refused() -> None:
        raise RunError("the cluster is down")

    monkeypatch.setattr(module, "connect", refused)
    with pytest.raises(RunError, match="the cluster is down"):
        run(spec.model_copy(update={"input": [str(small)]}))
    assert (tmp_path / "out/_SUCCESS").exists()


def test_vanished_shards_are_named_and_many_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    plan = replace(plan_of(None), vanished=[f"/in/{n}.jsonl" for n in range(7)])
    with caplog.at_level(logging.WARNING):
        module._warn_of_vanished(plan)
        for goes in ("prune", "overwrite"):
            module._warn_of_vanished(replace(plan_of(None, **{goes: True}), vanished=["/in/x.jsonl"]))
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "/in/0.jsonl is no longer among the inputs: its records stay (--prune drops them)"
    assert told[5] == "… and so are 2 more"
    assert told[6:] == ["/in/x.jsonl is no longer among the inputs: its records go"] * 2


def test_a_complete_state_is_complete_whatever_its_number_of_units() -> None:
    plan = replace(plan_of(None), pending=[UNITS[:3]])
    module._check_complete(plan, state([made(0), made(1), made(2)]))
    n = 100_002  # numbers of five and of six digits
    module._check_complete(plan, state([made(number) for number in range(n)], n_units=n))


@pytest.mark.parametrize(
    ("parts_there", "message"),
    [
        ([made(0), made(2)], r"/in/a.parquet has parts \[0, 2\] of 3: start the job again"),
        ([made(0), made(1), made(1), made(2)], r"/in/a.parquet has parts \[0, 1, 1, 2\] of 3"),
        ([made(0), made(1), made(2), made(0, stem="part-b-fedcba9876543210")], "there are parts that no shard has"),
        ([made(0), made(1, rows=9), made(2)], "part-a-0123456789abcdef-00001 has 9 rows of 10: start the job again"),
    ],
    ids=["lacking", "doubled", "stray", "short"],
)
def test_what_is_lost_or_doubled_ends_the_run(parts_there: list[Part], message: str) -> None:
    with pytest.raises(RunError, match=message):
        module._check_complete(replace(plan_of(None), pending=[UNITS[:3]]), state(parts_there))


def test_a_stream_whose_last_part_is_not_there_ends_the_run() -> None:
    stream = Stream(Shard("/in/a.jsonl.gz?sig=SECRET", 99, "1"), STEM, 10, 100)
    plan = replace(plan_of(None), pending=[stream])
    unfinished = [made(0, is_last=False), made(1, is_last=False)]
    module._check_complete(plan, state([*unfinished, made(2)]))
    with pytest.raises(RunError, match=r"a\.jsonl\.gz\?sig=\*\*\* was not read to its end: start the job again"):
        module._check_complete(plan, state(unfinished, n_units=2))


def test_old_parts_go_after_the_new_manifest_and_the_marker_comes_last(
    small: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever follows a manifest finds its parts, and whoever waits for _SUCCESS all of the night."""
    spec, output = job(small, tmp_path / "out", checkpoint), tmp_path / "out"
    run_here(spec)
    old = set(parts(output))
    steps: list[tuple[str, bool, bool]] = []

    def watched(name: str) -> Any:
        step = getattr(module, name)

        def run(*args: Any) -> Any:
            steps.append((name, old <= set(parts(output)), (output / "_SUCCESS").exists()))
            return step(*args)

        return run

    for name in ("write_manifest", "write_report", "mark_success"):
        monkeypatch.setattr(module, name, watched(name))
    run_here(spec.model_copy(update={"overwrite": True}))
    assert steps == [("write_manifest", True, False), ("write_report", False, False), ("mark_success", False, False)]
    assert not old & set(parts(output))


def test_a_state_that_another_run_has_written_meanwhile_is_left_alone(
    small: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """The other run knows one shard more, whose parts would go as left-overs."""
    spec = job(small, tmp_path / "out", checkpoint)
    label_here(spec)
    plan = make_plan(spec)
    shutil.copy(small / "a.parquet", small / "late.parquet")
    run_here(spec)
    before = manifest(tmp_path / "out")
    assert module._commit(plan, [], locate(spec.output), Meter()) is None
    assert (manifest(tmp_path / "out"), len(parts(tmp_path / "out"))) == (before, 3)


def test_seconds_of_what_was_overwritten_are_not_counted(small: Path, checkpoint: Path, tmp_path: Path) -> None:
    spec = job(small, tmp_path / "out", checkpoint)
    run_here(spec)
    path = tmp_path / "out/_manifest.json"
    path.write_text(json.dumps({**manifest(tmp_path / "out"), "seconds": 1000.0}))
    run_here(spec.model_copy(update={"overwrite": True}))
    assert manifest(tmp_path / "out")["seconds"] < 1000


def test_a_compressed_shard_goes_on_where_it_was(checkpoint: Path, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"id": f"z{i}", "text": "free mail " * (i % 7)}) + "\n" for i in range(60))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    spec = job(tmp_path / "a.jsonl.gz", tmp_path / "out", checkpoint, unit_rows=4)
    label_here(spec)
    made = {path: path.read_bytes() for path in parts(tmp_path / "out")}
    assert make_plan(spec).pending == []
    missing = [2, 3, len(made) - 1]  # at first the last is there
    for number in missing:
        list(made)[number].unlink()
        (stream,) = make_plan(spec).pending
        assert isinstance(stream, Stream)
        assert number not in stream.present
    assert stream.present == set(range(len(made))) - set(missing)
    run_here(spec)
    assert {path: path.read_bytes() for path in parts(tmp_path / "out")} == made


def test_a_changed_shard_takes_no_records_of_a_vanished_one_with_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.units._share", lambda name: 1.0)  # no name ends a group
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"in/{name}.jsonl").write_text(f'{{"id": "{name}", "text": "free"}}\n')
    spec = job(tmp_path / "in", tmp_path / "out", checkpoint, unit_rows=1000)
    run_here(spec)
    first, second = manifest(tmp_path / "out")["shards"]
    assert first["group"] == second["group"]
    Path(first["url"]).unlink()
    assert make_plan(spec).is_done
    os.utime(second["url"], (1, 1))
    with pytest.raises(OutputError, match=r"a\.jsonl is no longer among the inputs and a shard that shares .*--prune"):
        make_plan(spec)
    (pending,) = make_plan(spec.model_copy(update={"prune": True})).pending
    assert [shard.url for unit in pending for shard in unit.shards] == [second["url"]]

"""What is decided before work starts, on outputs that this process has labelled."""

from __future__ import annotations

import gzip
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import plan as module
from pipelines.errors import OutputError, SourceError
from pipelines.models import EncoderPass
from pipelines.plan import JobPlan, make_plan
from pipelines.spec import JobSpec
from pipelines.storage import Location, locate, put
from pipelines.units import Stream
from pipelines.write import Part
from tests.conftest import save_checkpoint, with_labels
from tests.pipelines.labelling import label_here, parts, run_here
from tests.pipelines.labelling import whole_job as job


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A shard of three units, and one of a single unit."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, n in (("a", 18), ("b", 6)):
        table = {"id": [f"{name}{i}" for i in range(n)], "text": ["free mail"] * n, "n": range(n)}
        pq.write_table(pa.table(table), folder / f"{name}.parquet", row_group_size=6)
    return folder


def pending(plan: JobPlan) -> list[str]:
    """Names of the units to label; no shard of the corpus is a stream."""
    return [unit.name for task in plan.pending if not isinstance(task, Stream) for unit in task]


# --- what has been labelled ---------------------------------------------------------------------------


def test_the_order_of_heads_labels_nothing_anew(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "other", seed=1, **with_labels("no", "yes"))
    heads = {"spam": str(checkpoint), "topic": str(other)}
    spec = job(corpus, tmp_path / "out", checkpoint).model_copy(update={"model": None, "head": heads})
    run_here(spec)
    turned = spec.model_copy(update={"head": dict(reversed(heads.items()))})
    plan = make_plan(turned)
    assert plan.is_done
    assert [head["name"] for head in plan.heads] == ["spam", "topic"]
    anew = make_plan(turned.model_copy(update={"overwrite": True}))
    assert [head["name"] for head in anew.heads] == ["topic", "spam"]
    with pytest.raises(OutputError, match=r"made by another job .*head topic"):
        make_plan(spec.model_copy(update={"head": {"spam": str(checkpoint)}}))


def test_a_precision_that_auto_meant_is_kept(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    run_here(job(corpus, tmp_path / "out", checkpoint, precision="bf16", device="cpu"))
    spec = job(corpus, tmp_path / "out", checkpoint, device="cpu")
    assert (make_plan(spec).precision, make_plan(spec).is_done) == ("bf16", True)
    assert make_plan(spec.model_copy(update={"overwrite": True})).precision == "fp32"


def test_an_output_keeps_its_rows_of_a_unit(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    run_here(job(corpus, tmp_path / "out", checkpoint, unit_rows=7))
    spec = job(corpus, tmp_path / "out", checkpoint, unit_rows=None)
    assert make_plan(spec).is_done
    anew = make_plan(spec.model_copy(update={"overwrite": True}))
    assert anew.recipe["unit_rows"] == 5000


def test_a_vanished_shard_whose_part_is_missing_is_named(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    spec = job(corpus, tmp_path / "out", checkpoint)
    run_here(spec)
    (corpus / "b.parquet").unlink()
    for changes in ({}, {"overwrite": True}):  # which drops its records, too
        assert make_plan(spec.model_copy(update=changes)).vanished == [str(corpus / "b.parquet")]
    next((tmp_path / "out").glob("part-b-*")).unlink()
    with pytest.raises(
        OutputError, match=r"b\.parquet is no longer .* parts with its records are missing or damaged: .*--prune"
    ):
        make_plan(spec)
    assert len(make_plan(spec.model_copy(update={"prune": True})).parts) == 3


@pytest.mark.parametrize("partition_by", [None, "prediction.label"], ids=["flat", "in folders"])
def test_a_lost_manifest_costs_no_records_of_vanished_shards(
    partition_by: str | None, corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    spec, output = job(corpus, tmp_path / "out", checkpoint, partition_by=partition_by), tmp_path / "out"
    run_here(spec)
    (output / "_manifest.json").unlink()
    assert (pending(make_plan(spec)), len(make_plan(spec).parts)) == ([], 4)
    (corpus / "a.parquet").unlink()
    lost = r"out has lost its _manifest\.json, and 3 of its parts, such as .*part-a-.*: put it back, .*--prune"
    with pytest.raises(OutputError, match=lost):
        make_plan(spec)
    (output / "_SUCCESS").unlink()  # as while a run goes on
    with pytest.raises(OutputError, match=lost):
        make_plan(spec)
    for letting_go in ("prune", "overwrite"):
        assert len(make_plan(spec.model_copy(update={letting_go: True})).parts) == 1


def test_after_an_overwrite_a_lost_manifest_labels_nothing_anew_unasked(
    corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    spec = job(corpus, tmp_path / "out", checkpoint)
    for overwrite in (False, True):
        run_here(spec.model_copy(update={"overwrite": overwrite}))
    (tmp_path / "out/_manifest.json").unlink()
    with pytest.raises(OutputError, match=r"has lost its _manifest\.json, and 4 of its parts"):
        make_plan(spec)


@pytest.mark.parametrize("letting_go", [None, "prune", "overwrite"])
@pytest.mark.parametrize(("before", "now"), [("prediction.label", None), ("prediction.label", "n"), ("n", None)])
def test_parts_in_other_folders_are_not_doubled_where_the_manifest_is_lost(
    before: str | None, now: str | None, letting_go: str | None, corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    spec, output = job(corpus, tmp_path / "out", checkpoint), tmp_path / "out"
    label_here(spec.model_copy(update={"partition_by": before, "keep_column": ["n"]}))
    changed = spec.model_copy(update={"partition_by": now, "keep_column": ["n"]})
    if letting_go:
        changed = changed.model_copy(update={letting_go: True})
    with pytest.raises(OutputError, match=r"another --partition-by, such as .*: put it back, remove the folders \("):
        make_plan(changed)
    for folder in output.glob("*"):
        shutil.rmtree(folder)
    assert make_plan(changed).parts == []


def test_folders_of_others_are_nobodys_lost_parts(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "out/day=1/part-00000-6ff0d4a5.c000.snappy.parquet"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    assert len(make_plan(job(corpus, tmp_path / "out", checkpoint)).pending) > 0


def test_a_manifest_that_another_run_writes_meanwhile_is_not_lost(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (job(corpus / name, tmp_path / "out", checkpoint) for name in ("a.parquet", "b.parquet"))
    plan_passes = module.plan_passes

    def slow(spec: JobSpec) -> list[EncoderPass]:
        monkeypatch.setattr(module, "plan_passes", plan_passes)
        run_here(first)
        return plan_passes(spec)

    monkeypatch.setattr(module, "plan_passes", slow)
    plan = make_plan(second)
    assert plan.vanished == [str(corpus / "a.parquet")]
    assert (len(plan.parts), len(plan.pending)) == (3, 1)


# --- what a killed run has left -----------------------------------------------------------------------


def cut(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-9])


def strip(part: Path) -> None:
    pq.write_table(pq.read_table(part).replace_schema_metadata({"by": "somebody else"}), part)


def replace_by_its_neighbour(part: Path) -> None:
    shutil.copy(part.with_name(part.name.replace("-00001.", "-00002.")), part)


@pytest.mark.parametrize("spoil", [cut, strip, replace_by_its_neighbour])
def test_a_part_that_cannot_be_read_is_labelled_again(
    spoil: Callable[[Path], None], corpus: Path, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = job(corpus, tmp_path / "out", checkpoint)
    label_here(spec)
    names = [path.name for path in parts(tmp_path / "out")]
    good = parts(tmp_path / "out")[1].read_bytes()
    spoil(parts(tmp_path / "out")[1])
    with caplog.at_level(logging.WARNING):
        plan = make_plan(spec)
    assert pending(plan) == [names[1].removesuffix(".parquet")]
    assert [part.name for part in plan.parts] == [names[0], *names[2:]]
    [record] = caplog.records
    assert names[1] in record.getMessage()
    assert "its unit is labelled again" in record.getMessage()
    run_here(spec)
    assert parts(tmp_path / "out")[1].read_bytes() == good


def test_what_a_killed_first_run_has_left_of_other_inputs_holds_up_nothing(
    corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    spec = job(corpus, tmp_path / "out", checkpoint)
    label_here(spec)
    os.utime(corpus / "a.parquet", (1, 1))
    plan = make_plan(spec)
    assert (len(plan.pending), len(plan.parts)) == (3, 1)
    run_here(spec)
    assert len(parts(tmp_path / "out")) == 4


def test_kept_columns_have_one_type_whatever_inputs_killed_runs_had(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    for name, value in (("a", "5"), ("b", '"five"')):
        lines = (f'{{"id": "{name}{i:02}", "text": "free mail", "n": {value}}}\n' for i in range(42))
        (tmp_path / f"in/{name}.jsonl").write_text("".join(lines))
    spec = job(tmp_path / "in", tmp_path / "out", checkpoint, keep_column=["n"])
    for name in ("a", "b"):
        label_here(spec.model_copy(update={"input": [str(tmp_path / f"in/{name}.jsonl")]}))
    with caplog.at_level(logging.WARNING):
        plan = make_plan(spec)
    assert [name.split("-")[1] for name in pending(plan)] == ["a"] * 7
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 6
    assert all(re.search(r"/part-a-.* cannot be used \(its n is int64, not string\)", text) for text in messages[:5])
    assert messages[5] == "… and so are the units of 2 more parts"
    run_here(spec)
    undisturbed = job(tmp_path / "in", tmp_path / "whole", checkpoint, keep_column=["n"])
    run_here(undisturbed)
    for part in parts(tmp_path / "whole"):
        assert (tmp_path / "out" / part.name).read_bytes() == part.read_bytes()
    assert pq.read_table(parts(tmp_path / "out"))["n"].to_pylist() == ["5"] * 42 + ["five"] * 42


def test_a_part_that_goes_while_it_is_looked_at_is_labelled_again(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job(corpus, tmp_path / "out", checkpoint)
    label_here(spec)
    gone, read = parts(tmp_path / "out")[3], module.part_figures

    def read_after_it_went(place: Location, n_bytes: int, kept: pa.Schema) -> Part:
        gone.unlink(missing_ok=True)
        return read(place, n_bytes, kept)

    monkeypatch.setattr(module, "part_figures", read_after_it_went)
    assert pending(make_plan(spec)) == [gone.name.removesuffix(".parquet")]


def test_a_finished_part_that_tells_no_types_is_named(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    spec = job(corpus, tmp_path / "out", checkpoint, keep_column=["n"])
    run_here(spec)
    part = parts(tmp_path / "out")[0]
    part.write_bytes(part.read_bytes()[:-9] + bytes(9))  # of the size that the manifest says
    with pytest.raises(OutputError, match=f"{part.name} cannot be read .*: move it away and start the same command"):
        make_plan(spec)
    part.rename(tmp_path / "away")
    assert len(make_plan(spec).pending) == 1


@pytest.mark.parametrize(
    ("partition_by", "files"),
    [(None, "part-*"), ("prediction.label", "prediction_label=*/*")],
    ids=["flat", "in folders"],
)
def test_a_finished_part_that_is_cut_off_later_is_labelled_again(
    partition_by: str | None,
    files: str,
    corpus: Path,
    checkpoint: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = job(corpus, tmp_path / "out", checkpoint, partition_by=partition_by)
    run_here(spec)
    assert make_plan(spec).is_done
    part = max((tmp_path / "out").glob(files))
    good = part.read_bytes()
    cut(part)
    with caplog.at_level(logging.WARNING):
        plan = make_plan(spec)
    assert not plan.is_done
    assert len(pending(plan)) == 1
    assert "its unit is labelled again" in caplog.text
    run_here(spec)
    assert part.read_bytes() == good
    assert make_plan(spec).is_done


@pytest.mark.parametrize("partition_by", [None, "prediction.label"], ids=["flat", "in folders"])
def test_a_unit_without_records_is_done_once(partition_by: str | None, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b""))
    spec = job(tmp_path / "a.jsonl.gz", tmp_path / "out", checkpoint, partition_by=partition_by)
    run_here(spec)
    plan = make_plan(spec)
    assert plan.is_done
    assert [part.rows for part in plan.parts] == [0]


def test_a_kind_of_small_shard_that_stands_in_every_folder_is_seen(checkpoint: Path, tmp_path: Path) -> None:
    for day in range(70):
        for name, price in (("de", "1"), ("en", "1.5")):
            shard = tmp_path / f"in/d{day:03}/{name}.jsonl"
            shard.parent.mkdir(parents=True, exist_ok=True)
            shard.write_text(f'{{"id": "{day}{name}", "text": "free mail", "price": {price}, "{name}": 1}}\n')
    plan = make_plan(job(tmp_path / "in", tmp_path / "out", checkpoint, keep_column=["price", "de", "en"]))
    assert plan.seen_columns < 140
    assert plan.columns.kept.field("price").type == pa.float64()


def test_a_kept_key_that_earlier_shards_have_shown_need_not_come_every_night(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    spec = job(tmp_path / "in", tmp_path / "out", checkpoint, keep_column=["topic", "text"])
    (tmp_path / "in/b.jsonl").write_text('{"text": "free mail"}\n')
    with pytest.raises(SourceError, match=r"b\.jsonl has no column 'topic': it has text"):
        make_plan(spec)
    (tmp_path / "in/b.jsonl").rename(tmp_path / "b.jsonl")
    (tmp_path / "in/a.jsonl").write_text('{"text": "free mail", "topic": 5}\n')
    run_here(spec)
    (tmp_path / "b.jsonl").rename(tmp_path / "in/b.jsonl")
    run_here(spec)
    assert [pq.read_table(part)["topic"].to_pylist() for part in parts(tmp_path / "out")] == [[5], [None]]
    (tmp_path / "in/c.jsonl").write_text('{"body": "free mail", "topic": 5}\n')
    with pytest.raises(SourceError, match=r"c\.jsonl has no column 'text': it has body, topic"):
        make_plan(spec)
    (tmp_path / "in/c.jsonl").unlink()
    pq.write_table(pa.table({"text": ["free mail"]}), tmp_path / "in/c.parquet")
    with pytest.raises(SourceError, match=r"c\.parquet has no column 'topic': it has text"):
        make_plan(spec)


# --- checks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", ["token", "sig"])
def test_shards_that_differ_only_in_a_secret_are_refused(
    secret: str, corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        shutil.copytree(corpus, tmp_path / f"all/{secret}={name}/x")
    spec = job(tmp_path / f"all/{secret}=*/x/a.parquet", tmp_path / "out", checkpoint)
    with pytest.raises(
        SourceError, match=rf"/all/{secret}=\*\*\*/x/a\.parquet would stand for several shards, .*: rename"
    ) as raised:
        make_plan(spec)
    assert "one" not in str(raised.value)


def test_an_output_in_the_input_is_known_by_any_name(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w").mkdir()
    shutil.copytree(corpus, tmp_path / "far")
    shutil.copytree(corpus, corpus / "labelled")
    (corpus / "linked").symlink_to(tmp_path / "far")
    monkeypatch.chdir(tmp_path / "w")
    for folder, output in (
        ("labelled", corpus / "labelled"),
        ("labelled", f"{tmp_path}/w/..//in/labelled"),
        ("linked", tmp_path / "far"),
        ("linked", corpus / "linked"),
    ):
        with pytest.raises(SourceError, match=rf"in/{folder}/.\.parquet lies inside the output folder"):
            make_plan(job("../in", output, checkpoint))


def test_what_only_begins_like_the_output_folder_is_no_output(corpus: Path, checkpoint: Path) -> None:
    shutil.copytree(corpus, corpus / "labelled-2025")
    for output in ("labelled", "labelled/"):
        assert make_plan(job(corpus / "labelled-2025", f"{corpus}/{output}", checkpoint)).pending
    shutil.copytree(corpus / "labelled-2025", corpus / "labelled")
    for output in ("labelled", "labelled/"):
        with pytest.raises(SourceError, match=r"labelled/a\.parquet lies inside the output folder.* another --output"):
            make_plan(job(corpus, f"{corpus}/{output}", checkpoint))


@pytest.fixture(params=["local", "memory", "s3"])
def full_folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a folder with shards of all kinds, also in a folder."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    root = f"{tmp_path}/in" if request.param == "local" else f"{request.param}://bucket/{tmp_path.name}"
    for name in ("a.jsonl", "b.json", "day/c.jsonl", "day/d.json", "day/hour/e.jsonl"):
        put(locate(f"{root}/{name}"), b'{"text": "free mail", "lang": "en"}\n')
    return root


@pytest.mark.parametrize(
    ("input", "output", "changes"),
    [
        ("", "labelled", {}),
        ("", "day/labelled/", {}),
        ("day", "day/x/_y/../labelled", {}),
        ("*", "labelled", {}),
        ("d*", "day/labelled", {}),
        ("**", "labelled", {}),
        ("**", "day/new/labelled", {}),
        ("*/*", "labelled", {}),
        ("**/*.json", "labelled", {}),  # which report.json is, where no report.html is beside it
        ("*/*.json", "labelled", {"output_format": "arrow"}),
        ("*/*/*", "labelled", {"keep_column": ["lang"], "partition_by": "lang"}),
    ],
)
def test_an_output_that_a_later_night_would_read_is_refused_on_the_first(
    input: str, output: str, changes: dict[str, Any], full_folder: str, checkpoint: Path
) -> None:
    if ".." in output and "://" in full_folder:  # which stores take for a name
        output = "day/x/labelled"
    with pytest.raises(SourceError, match=r"the output folder .*labelled/? lies inside the input .*: choose another"):
        make_plan(job(f"{full_folder}/{input}", f"{full_folder}/{output}", checkpoint, **changes))


@pytest.mark.parametrize(
    ("input", "output", "changes"),
    [
        ("", "_labelled", {}),
        ("day", "day/.out/labelled", {}),
        ("**", "_labelled", {}),
        ("*", "day/_labelled", {}),
        ("*.json*", "labelled", {}),
        ("d*", "labelled", {}),
        ("**/*.jsonl", "labelled", {}),
        ("*/*/*", "labelled", {}),
        ("", "labelled", {"output_format": "arrow"}),
    ],
)
def test_an_output_that_an_input_passes_over_may_lie_in_it(
    input: str, output: str, changes: dict[str, Any], full_folder: str, checkpoint: Path
) -> None:
    spec = job(f"{full_folder}/{input}", f"{full_folder}/{output}", checkpoint, **changes)
    run_here(spec)
    assert make_plan(spec).is_done


def test_an_output_is_known_behind_links_on_the_first_night(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "alias").symlink_to(corpus)
    (corpus / "labelled").symlink_to(tmp_path / "far")
    for input, output in ((tmp_path / "alias", corpus / "new"), (corpus, tmp_path / "alias/new"), (corpus, "labelled")):
        with pytest.raises(SourceError, match="lies inside the input"):
            make_plan(job(input, corpus / output, checkpoint))
    assert make_plan(job(corpus, tmp_path / "far-away", checkpoint)).pending


def test_a_plan_tells_how_much_there_is_to_label(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    spec = job(corpus, tmp_path / "out", checkpoint)
    plan = make_plan(spec)
    assert (plan.n_units, plan.n_rows) == (4, 24)
    stream = corpus / "c.jsonl.gz"
    stream.write_bytes(gzip.compress(b'{"text": "free mail"}\n' * 1000, compresslevel=0))
    plan = make_plan(spec)
    (task,) = (task for task in plan.pending if isinstance(task, Stream))
    assert (plan.n_units, plan.n_rows) == (4 + task.about_n_units, None)
    stream.unlink()
    (corpus / "d.jsonl").write_text('{"text": "free mail"}\n' * 1000)
    assert make_plan(spec).n_rows is None


def test_a_column_of_ids_that_no_shard_has_is_refused(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nope"):
        make_plan(job(corpus, tmp_path / "out", checkpoint, id_column="nope"))

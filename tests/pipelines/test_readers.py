"""Outputs in DuckDB, pandas, Polars and Spark, as they are, by the globs that docs/reading.md gives."""

from __future__ import annotations

import glob
import re
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Schema, convert_to_deltalake

from pipelines.spec import JobSpec
from tests.conftest import save_checkpoint, with_labels
from tests.pipelines.labelling import run_here

DOCS = Path(__file__).parents[2] / "docs/reading.md"
N = 12
BESIDE = ("report.html", "report.json", "_result.json")  # what else lies in a job's output folder
IDS = [f"r{i:02d}" for i in range(N)]
LANGS = [["de", "en", None, "a/b c"][i % 4] for i in range(N)]
FAILED = 4


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders plain/ and parted/ with labels and entities, and vectors/ with embeddings of float16 in Arrow files."""
    folder = tmp_path_factory.mktemp("readers")
    texts = [None if i == FAILED else "free mail offer now" for i in range(N)]
    columns = {"id": IDS, "text": texts, "n": range(N), "lang": LANGS, "tags": [["x"] * (i % 3) for i in range(N)]}
    pq.write_table(pa.table(columns), folder / "corpus.parquet", row_group_size=4)
    labels = with_labels("O", "B-PER", "I-PER")
    heads = {
        "topic": save_checkpoint(folder / "topic", **with_labels("ham", "spam")),
        "names": save_checkpoint(folder / "names", architecture="ConvBertForTokenClassification", **labels),
    }
    common = {"input": [str(folder / "corpus.parquet")], "unit_rows": 4, "max_failed_fraction": 0.5}
    both = {**common, "head": {name: str(path) for name, path in heads.items()}, "aggregation": "tokens"}
    both["keep_column"] = ["n", "lang", "tags"]
    run_here(JobSpec.of({**both, "output": str(folder / "plain")}))
    run_here(JobSpec.of({**both, "output": str(folder / "parted"), "partition_by": "lang"}))
    vectors = {"task": "feature-extraction", "model": str(heads["topic"]), "output": str(folder / "vectors")}
    run_here(JobSpec.of({**common, **vectors, "embedding_type": "float16", "output_format": "arrow"}))
    for output in ("plain", "parted", "vectors"):
        for name in BESIDE:
            (folder / output / name).write_text("{}")
    return folder


def check_rows(rows: list[dict[str, Any]], *, but: str = "") -> None:
    """Rows as Python has them, in any order: nothing lost but this language, every type readable."""
    rows = sorted(rows, key=lambda row: row["id"])
    numbers = [i for i in range(N) if LANGS[i] != but]
    assert [row["id"] for row in rows] == [IDS[i] for i in numbers]
    assert [row["lang"] for row in rows] == [LANGS[i] for i in numbers]
    assert [int(row["n"]) for row in rows] == numbers
    assert [list(row["tags"]) for row in rows] == [["x"] * (i % 3) for i in numbers]
    for i, row in zip(numbers, rows, strict=True):
        if i == FAILED:
            assert row["error"] == "text is null"
            continue
        assert row["topic"]["label"] in ("ham", "spam")
        assert max(row["topic"]["scores"]) == pytest.approx(row["topic"]["score"])
        assert "".join(token["text"] for token in row["names"]["entities"]) == "freemailoffernow"


def with_none(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def documented(reader: str, outputs: Path) -> list[str]:
    """The lines that docs/reading.md gives for a reader, with the folders of the tests."""
    (block,) = re.findall(
        rf"^{reader}:\n\n```\w+\n(.*?)\n```", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    for there, here in (("part-*.parquet", "plain"), ("part-*.arrow", "vectors"), ("lang=*", "parted"), ("", "parted")):
        block = block.replace(f"labelled/{there}", f"{outputs / here}/{there}")
    return block.split("\n")


def check_vectors(structs: list[Any]) -> None:
    assert [None if one is None else len(one["embedding"]) for one in structs] == [
        None if i == FAILED else 32 for i in range(N)
    ]


def test_duckdb(outputs: Path) -> None:
    counted, parted = documented("DuckDB", outputs)
    assert sum(count for _, count, _ in duckdb.sql(counted.replace("prediction", "topic")).fetchall()) == N - 1
    plain = duckdb.sql(f"from '{outputs}/plain/part-*.parquet'")
    check_rows(plain.arrow().read_all().to_pylist())
    check_rows(duckdb.sql(parted).arrow().read_all().to_pylist())


def test_pandas(outputs: Path) -> None:
    plain, by_lang, parted, vectors = documented("pandas", outputs)
    names: dict[str, Any] = {"pd": pd, "glob": glob, "pyarrow": pa}
    check_rows(with_none(eval(plain, names)))
    exec(by_lang, names)
    check_rows(with_none(eval(parted, names)))
    check_vectors(eval(vectors, names)["prediction"].tolist())


def test_polars(outputs: Path) -> None:
    plain, parted, vectors = (eval(line, {"pl": pl}).collect() for line in documented("Polars", outputs))
    check_rows(plain.to_dicts())
    check_rows(parted.to_dicts())
    check_vectors(vectors["prediction"].to_list())


@pytest.mark.parametrize("output", ["plain", "parted"])
def test_delta(outputs: Path, output: str, tmp_path: Path) -> None:
    """What docs/decisions/0016-delta.md tells users to do: a finished folder becomes a table where it lies."""
    shutil.copytree(outputs / output, tmp_path / "table")
    if output == "parted":
        shutil.rmtree(tmp_path / "table/lang=a%2Fb c")  # deltalake 1.6 looks for such files at lang=a/b c
    by_lang = Schema.from_arrow(pa.schema([("lang", pa.string())])) if output == "parted" else None
    convert_to_deltalake(tmp_path / "table", partition_by=by_lang, partition_strategy=by_lang and "hive")
    check_rows(DeltaTable(tmp_path / "table").to_pyarrow_table().to_pylist(), but="a/b c" if output == "parted" else "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Spark's own
def test_spark(outputs: Path) -> None:
    pyspark_sql = pytest.importorskip("pyspark.sql", reason="Spark is no test dependency (456 MB): pip install pyspark")
    if shutil.which("java") is None:
        pytest.skip("Spark needs a Java runtime: apt-get install openjdk-17-jre-headless")
    spark = pyspark_sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        plain, parted = (eval(line, {"spark": spark}) for line in documented("Spark", outputs))
        check_rows([row.asDict(recursive=True) for row in plain.collect()])
        check_rows([row.asDict(recursive=True) for row in parted.collect()])
        assert parted.where("lang = 'de' and topic.label is not null").count() == len(
            [i for i in range(N) if LANGS[i] == "de" and i != FAILED]
        )
        for output in ("plain", "parted"):  # pointed at the folder, when nothing lies there but what the job needs
            bare = outputs / f"bare-{output}"
            shutil.copytree(outputs / output, bare, ignore=shutil.ignore_patterns(*BESIDE))
            check_rows([row.asDict(recursive=True) for row in spark.read.parquet(str(bare)).collect()])
    finally:
        spark.stop()

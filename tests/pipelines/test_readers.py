"""Outputs in DuckDB, pandas, Polars and Spark, as they are, by the globs that docs/reading.md gives."""

from __future__ import annotations

from glob import glob
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.run import run
from pipelines.spec import JobSpec
from tests.conftest import save_checkpoint, with_labels

N = 12
BESIDE = ("report.html", "report.json", "_result.json")  # what else lies in a job's output folder
IDS = [f"r{i:02d}" for i in range(N)]
LANGS = [["de", "en", None, "a/b c"][i % 4] for i in range(N)]
FAILED = 4


@pytest.fixture(scope="module")
def outputs(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    run(JobSpec.of({**both, "output": str(folder / "plain")}))
    run(JobSpec.of({**both, "output": str(folder / "parted"), "partition_by": "lang"}))
    vectors = {"task": "feature-extraction", "model": str(heads["topic"]), "output": str(folder / "vectors")}
    run(JobSpec.of({**common, **vectors, "embedding_type": "float16", "output_format": "arrow"}))
    for output in ("plain", "parted", "vectors"):
        for name in BESIDE:
            (folder / output / name).write_text("{}")
    return folder


def check_rows(rows: list[dict[str, Any]]) -> None:
    """Rows as Python has them, in any order: nothing lost, every type readable."""
    rows = sorted(rows, key=lambda row: row["id"])
    assert [row["id"] for row in rows] == IDS
    assert [row["lang"] for row in rows] == LANGS
    assert [int(row["n"]) for row in rows] == list(range(N))
    assert [list(row["tags"]) for row in rows] == [["x"] * (i % 3) for i in range(N)]
    for i, row in enumerate(rows):
        if i == FAILED:
            assert row["error"] == "text is null"
            continue
        assert row["topic"]["label"] in ("ham", "spam")
        assert max(row["topic"]["scores"]) == pytest.approx(row["topic"]["score"])
        assert "".join(token["text"] for token in row["names"]["entities"]) == "freemailoffernow"


def with_none(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


PLAIN, PARTED, VECTORS = "plain/part-*.parquet", "parted/*/part-*.parquet", "vectors/part-*.arrow"


def test_duckdb(outputs: Path) -> None:
    plain = duckdb.sql(f"select * from '{outputs / PLAIN}'")
    check_rows(plain.arrow().read_all().to_pylist())
    counted = duckdb.sql(f"select topic.label, count(*) from '{outputs / PLAIN}' where error is null group by 1")
    assert sum(count for _, count in counted.fetchall()) == N - 1
    parted = duckdb.sql(f"select * from read_parquet('{outputs / PARTED}', hive_partitioning = true)")
    check_rows(parted.arrow().read_all().to_pylist())


def test_pandas(outputs: Path) -> None:
    check_rows(with_none(pd.concat(map(pd.read_parquet, sorted(glob(str(outputs / PLAIN)))))))
    check_rows(with_none(pd.read_parquet(sorted(glob(str(outputs / PARTED))), partitioning="hive")))
    vectors = pd.concat(map(pd.read_feather, sorted(glob(str(outputs / VECTORS)))))
    assert vectors["prediction"].dropna().map(lambda row: len(row["embedding"])).tolist() == [32] * (N - 1)


def test_polars(outputs: Path) -> None:
    check_rows(pl.scan_parquet(outputs / PLAIN).collect().to_dicts())
    check_rows(pl.scan_parquet(outputs / PARTED, hive_partitioning=True).collect().to_dicts())
    vectors = pl.scan_ipc(outputs / VECTORS).collect()
    assert vectors["prediction"].drop_nulls().struct.field("embedding").arr.len().to_list() == [32] * (N - 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Spark's own
def test_spark(outputs: Path) -> None:
    pyspark_sql = pytest.importorskip("pyspark.sql", reason="Spark is no test dependency (400 MB): pip install pyspark")
    if shutil.which("java") is None:
        pytest.skip("Spark needs a Java runtime: apt-get install openjdk-17-jre-headless")
    spark = pyspark_sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        plain = spark.read.parquet(str(outputs / PLAIN))
        check_rows([row.asDict(recursive=True) for row in plain.collect()])
        parted = spark.read.option("basePath", str(outputs / "parted")).parquet(str(outputs / "parted/lang=*"))
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

"""What processes import: torch takes them seconds, and only those with a model need it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from ray import cloudpickle

from pipelines.decode import decode
from pipelines.encode import encode
from pipelines.models import heads_of
from pipelines.plan import make_plan
from pipelines.predict import Predictor
from pipelines.read import read
from pipelines.write import write_part
from tests.conftest import save_checkpoint, with_labels
from tests.pipelines.labelling import job

WITHOUT_A_MODEL = """
import importlib, pkgutil, sys
from ray import cloudpickle
import jobs, pipelines

for package in (jobs, pipelines):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
with open(sys.argv[1], "rb") as file:
    work = cloudpickle.load(file)
envelope = next(work["read"](*work["task"]))
encoded = work["encode"](envelope.block, [encoder_pass.encoding for encoder_pass in work["passes"]])
assert encoded.equals(work["encoded"])
labelled = work["decode"](work["predicted"], work["passes"])
part = work["write"](envelope._replace(block=labelled), **work["options"])
assert part.rows == len(encoded) and part.failed == 1, part
print("torch" in sys.modules)
"""


def test_processes_without_a_model_import_no_torch(tmp_path: Path) -> None:
    texts = ["a free [MASK]", None, "the [MASK], now!"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    heads = {
        "topic": save_checkpoint(tmp_path / "topic", **with_labels("ham", "spam")),
        "names": save_checkpoint(tmp_path / "names", architecture="ConvBertForTokenClassification", seed=1),
        "words": save_checkpoint(tmp_path / "words", architecture="ConvBertForMaskedLM", seed=2),
        "vectors": save_checkpoint(tmp_path / "vectors", architecture="ConvBertModel", seed=3),
    }
    paths = {"input": [str(tmp_path / "a.parquet")], "output": str(tmp_path / "out")}
    spec = job(head={name: str(folder) for name, folder in heads.items()}, max_failed_fraction=1.0, **paths)
    plan = make_plan(spec)
    encoded = encode(
        next(read(plan.pending[0], plan.columns)).block, [encoder_pass.encoding for encoder_pass in plan.passes]
    )
    work = {
        "read": read,
        "task": (plan.pending[0], plan.columns),
        "encode": encode,
        "encoded": encoded,
        "predicted": Predictor(plan.passes, max_batch_tokens=100)(encoded),
        "decode": decode,
        "passes": plan.passes,
        "write": write_part,
        "options": {
            "output": spec.output,
            "output_format": "parquet",
            "heads": heads_of(plan.passes),
            "partitioning": None,
        },
    }
    (tmp_path / "work").write_bytes(cloudpickle.dumps(work))
    command = [sys.executable, "-c", WITHOUT_A_MODEL, str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr

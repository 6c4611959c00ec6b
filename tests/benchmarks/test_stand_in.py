"""The actors in place of the model: what they give must be what the real one's successors expect."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.stand_in import Call, NullPredictor, calls_of, waiting
from pipelines.decode import decode
from pipelines.encode import encode
from pipelines.models import plan_passes
from pipelines.predict import Predictor
from pipelines.read import text_name
from pipelines.results import N_TOKENS
from pipelines.spec import JobSpec


def test_the_null_actor_gives_the_columns_of_the_real_one(checkpoint: Path) -> None:
    passes = plan_passes(JobSpec.of({"input": ["-"], "output": "-", "model": str(checkpoint)}))
    errors = pa.array([None, "broken", None], pa.string())
    block = pa.table({text_name("text"): ["free offer", "", "the mail"], "error": errors})
    block = encode(block, [encoder_pass.encoding for encoder_pass in passes])
    real, null = Predictor(passes)(block), NullPredictor(passes)(block)
    assert {field.name: field.type for field in null.schema} == {field.name: field.type for field in real.schema}
    assert null[N_TOKENS].equals(real[N_TOKENS])
    column = decode(null, passes)["prediction"].to_pylist()
    assert [row and row["scores"] for row in column] == [[0.5, 0.5], None, [0.5, 0.5]]


def test_a_waiting_actor_takes_as_long_as_its_rate_says(checkpoint: Path, tmp_path: Path) -> None:
    passes = plan_passes(JobSpec.of({"input": ["-"], "output": "-", "model": str(checkpoint)}))
    block = pa.table({text_name("text"): ["free offer"] * 5, "error": pa.nulls(5, pa.string())})
    block = encode(block, [encoder_pass.encoding for encoder_pass in passes])
    n_tokens = np.sum(waiting(tokens_per_s=1e9, log=str(tmp_path / "first"))(passes)(block)[N_TOKENS].to_numpy())
    waiting(tokens_per_s=100.0, log=str(tmp_path / "second"))(passes)(block)
    (call,) = calls_of((tmp_path / "second").read_text().splitlines())
    assert call.wait_s == n_tokens / 100.0
    assert call.stop - call.start >= 0.99 * call.wait_s


def test_calls_are_read_as_they_were_written() -> None:
    assert calls_of(["7 1.5 2.25 0.5"]) == [Call(actor=7, start=1.5, stop=2.25, wait_s=0.5)]

"""A plan in, a few hundred of its records read, tokenised and labelled out: the job's own pieces, with a clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

from pipelines.culprits import good_rows
from pipelines.decode import decode
from pipelines.encode import encode
from pipelines.estimate import Estimate, Sample, Stratum, Timing, shards_of, stratum_of
from pipelines.inspect import open_parquet
from pipelines.jsonl import compression_of, unpacked_head
from pipelines.models import EncoderPass
from pipelines.plan import JobPlan
from pipelines.predict import Predictor
from pipelines.read import read, read_unit, unchanged
from pipelines.resources import Hardware, connect, nodes_alive, share_out
from pipelines.sequences import sequences_of
from pipelines.storage import open_input
from pipelines.units import Shard, Stream, Unit

RECORDS = 400
SHARDS = 8  # or two of each stratum, where that is more
LIMIT_S = 20.0  # for labelling
WAIT_S = 90.0  # for a process with the actor's resources that has loaded the models
_WARM_RECORDS = 16
_PIECE_BYTES = 1 << 18


def estimate(plan: JobPlan) -> Estimate:
    """What the plan's run will take on the connected cluster, or on one that is started on this machine.

    Raises:
        PipelineError: a record's shard cannot be read, or the model does not run.
    """
    connect()
    hardware = share_out(plan.spec, plan.device, n_units=plan.n_units)
    present = ray.cluster_resources()
    return Estimate.of(plan, hardware, take_sample(plan, hardware), present=present)


def take_sample(plan: JobPlan, hardware: Hardware) -> Sample:
    """Read and tokenise here, label in a task that has what an actor of the job will have, decode here."""
    started = time.perf_counter()
    pieces = list(chosen(plan))
    blocks = [_some_records(shard, start, max(1, RECORDS // len(pieces)), plan) for _, shard, start in pieces]
    block = pa.concat_tables(blocks)
    encoded = encode(block, [encoder_pass.encoding for encoder_pass in plan.passes])
    beside_s = time.perf_counter() - started
    tokens = _tokens(encoded, plan.passes)
    good = good_rows(encoded)
    timing, why_not, seconds = None, "none of these records can be labelled", 0.0
    if len(good):
        timing, why_not, seconds = _label(encoded.take(pa.array(good)), plan, hardware)
    ends = np.cumsum([len(each) for each in blocks[:-1]])
    means = [its.mean() if len(its) else 0.0 for its in np.split(tokens, ends)]
    strata: dict[Stratum, list[tuple[float, float, float]]] = {}
    for (stratum, shard, _), mean in zip(pieces, means, strict=True):
        strata.setdefault(stratum, []).append((shard.size, _about_n_rows(shard), mean))
    densities = {stratum: _densities(its) for stratum, its in strata.items()}
    return Sample(
        records=len(block),
        shards=len(pieces),
        failed=len(encoded) - len(good),
        tokens=int(tokens.sum()),
        rows_per_byte={stratum: rows for stratum, (rows, _) in densities.items()},
        tokens_per_row={stratum: tokens for stratum, (_, tokens) in densities.items()},
        beside_s=beside_s + seconds * len(good) / (timing.records if timing else 1),
        timing=timing,
        why_not=why_not,
    )


def _densities(shards: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Rows for each byte and tokens for each row of shards, given each one's bytes, rows and mean tokens of a row."""
    n_bytes, n_rows, mean_tokens = np.array(shards).T
    return n_rows.sum() / n_bytes.sum(), n_rows @ mean_tokens / max(1.0, n_rows.sum())


def chosen(plan: JobPlan) -> Iterator[tuple[Stratum, Shard, int]]:
    """Shards of every stratum from all over the plan, each with the row or byte where something is to be read."""
    strata: dict[Stratum, dict[Shard, int]] = {}
    for task in plan.pending:
        start, stop = (0, 0) if isinstance(task, Stream) else (task[0].start, task[0].stop)
        for shard in shards_of(task):
            strata.setdefault(stratum_of(shard, in_group=stop is None), {}).setdefault(shard, start)
    n_each = max(2, SHARDS // max(1, len(strata)))
    for stratum, starts in strata.items():
        its = list(starts.items())
        for place in np.unique(np.linspace(0, len(its) - 1, n_each).astype(int)):
            yield stratum, *its[place]


def _some_records(shard: Shard, start: int, n_records: int, plan: JobPlan) -> pa.Table:
    """About so many records of a shard, as the job reads them."""
    if compression_of(shard.url):
        stream = Stream(shard, "sample", n_records, _PIECE_BYTES, most_bytes=_PIECE_BYTES)
        block = next(read(stream, plan.columns)).block
    elif shard.is_parquet:
        with open_parquet(shard) as file:
            stop = min(start + n_records, file.metadata.num_rows)
        block = read_unit(Unit("sample", (shard,), start, stop), plan.columns)
    else:
        block = read_unit(Unit("sample", (shard,), start, start + _PIECE_BYTES), plan.columns)
    return block.slice(0, n_records)


def _about_n_rows(shard: Shard) -> float:
    """Records of the whole file: those that its footer tells, or as many for each byte as at its beginning."""
    if shard.is_parquet:
        with open_parquet(shard) as file:
            return float(file.metadata.num_rows)
    with unchanged(shard), open_input(shard.location) as raw:
        head = raw.read(_PIECE_BYTES)
    plain = unpacked_head(head, compression_of(shard.url))
    n_lines = sum(not line.isspace() for line in plain.split(b"\n") if line)
    return n_lines if len(head) == shard.size else max(1.0, n_lines - 0.5) * shard.size / len(head)


def _tokens(encoded: pa.Table, passes: Sequence[EncoderPass]) -> NDArray[np.int64]:
    """(R,) tokens of each record, over all passes; none of one that has failed."""
    tokens = np.zeros(len(encoded), np.int64)
    if len(rows := good_rows(encoded)):
        for encoder_pass in passes:
            tokens[rows] += np.diff(sequences_of(encoded, encoder_pass.encoding.name, pa.array(rows)).tokens)
    return tokens


def _label(encoded: pa.Table, plan: JobPlan, hardware: Hardware) -> tuple[Timing | None, str, float]:
    """The model's timing or why there is none, and the seconds that decoding took for as many records."""
    wanted = {"CPU": hardware.actor_cpus, "GPU": hardware.actor_gpus}
    if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes_alive()):
        return None, "no node with room for a model actor is up yet; start the dry run again while one is", 0.0
    model = {**plan.model, "n_threads": hardware.n_threads}
    once = ray.remote(max_calls=1, max_retries=0)(_timed)  # a process of its own: it sets torch's threads
    options = {"num_cpus": hardware.actor_cpus, "num_gpus": hardware.actor_gpus, **hardware.placement}
    asked = time.perf_counter()
    result = once.options(**options).remote(encoded, plan.passes, model, LIMIT_S)
    if not ray.wait([result], timeout=WAIT_S + LIMIT_S)[0]:
        ray.cancel(result, force=True)
        return None, f"the cluster has given no process for the sample in {WAIT_S + LIMIT_S:.0f} s", 0.0
    try:
        labelled, timing, taken_s = ray.get(result)
    except (WorkerCrashedError, OutOfMemoryError, NodeDiedError):
        return None, "the process that labelled the sample has died, of its memory or of a record", 0.0
    started = time.perf_counter()
    decode(labelled, plan.passes)
    ready_s = timing.ready_s + started - asked - taken_s  # until the process was there
    return replace(timing, ready_s=ready_s), "", time.perf_counter() - started


def _timed(
    encoded: pa.Table, passes: list[EncoderPass], model: dict[str, Any], limit_s: float
) -> tuple[pa.Table, Timing, float]:
    """Label as many of the records, taken from all over them, as the limit allows; and the seconds of all of it."""
    started = time.perf_counter()
    predictor = Predictor(passes, **model)
    predictor(spread(encoded, _WARM_RECORDS))
    warm = time.perf_counter()
    predictor(spread(encoded, _WARM_RECORDS))  # the first time, caches are filled
    each_s = (time.perf_counter() - warm) / min(_WARM_RECORDS, len(encoded))
    some = spread(encoded, max(_WARM_RECORDS, int(limit_s / 2 / each_s)))
    n_tokens = int(_tokens(some, passes).sum())
    before = time.perf_counter()
    labelled = predictor(some)
    end = time.perf_counter()
    return labelled, Timing(len(some), n_tokens, end - before, warm - started), end - started


def spread(block: pa.Table, n_rows: int) -> pa.Table:
    """So many rows at most, from all over the block."""
    return block.take(pa.array(np.unique(np.linspace(0, len(block) - 1, min(n_rows, len(block))).astype(int))))

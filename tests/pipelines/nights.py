"""Made-up nights, without Ray: the plans, manifests and summaries that tests start from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.figures import Figures, Histogram, lengths, shares
from pipelines.manifest import Manifest, ShardEntry, in_order
from pipelines.nights import Meter, with_night
from pipelines.plan import JobPlan
from pipelines.read import Columns
from pipelines.resources import Hardware
from pipelines.spec import JobSpec
from pipelines.summary import Summary
from pipelines.units import Shard, Unit
from pipelines.write import Part

HARDWARE = Hardware(2, 2, actor_cpus=1, actor_gpus=0, n_threads=1, task_cpus=0.5)
SUMMARY = Summary(
    output="out",
    rows=1000,
    failed=10,
    night_rows=500,
    night_failed=5,
    labels={"spam": {"ham": 700, "spam": 290}},
    reasons={"text is null": 10},
    new_rows=500,
    new_tokens=20_000,
    copied_tokens=0,
    n_actors=2,
    busy_s=3.0,
    seconds=2.0,
    max_failed_fraction=0.01,
)


def head(name: str = "spam", **changes: Any) -> dict[str, Any]:
    """A head as the manifest tells of it."""
    values = {"name": name, "task": "text-classification", "labels": ["ham", "spam"], "fingerprint": "f" * 64}
    return {**values, **changes}


def part(
    n: int,
    labels: dict[str, dict[str, int]],
    *,
    failed: int = 0,
    seed: int = 0,
    scores: dict[str, dict[str, Histogram]] | None = None,
    **changes: Any,
) -> Part:
    """A part whose records have the labels of its first head, random lengths and random scores."""
    rng = np.random.default_rng(seed)
    rows = sum(next(iter(labels.values())).values())
    tokens = rng.integers(3, 300, rows)
    if scores is None:
        scores = {name: {"score": shares(rng.beta(8, 1, rows))} for name in labels}
    values = {
        "name": f"part-a-{n:016x}-00000.parquet",
        "rows": rows + failed,
        "failed": failed,
        "tokens": int(tokens.sum()),
        "bytes": 40 * rows,
        "labels": labels,
        "reasons": {"text is null": failed} if failed else {},
        "examples": {"text is null": f"a.jsonl@{n}"} if failed else {},
        "busy_s": 1.5,
        "stages_s": {"reading": 0.1, "tokenising": 0.5, "model": 1.5, "decoding": 0.1, "writing": 0.2, "waiting": 0.1},
        "figures": Figures(lengths(tokens), scores).to_text(),
    }
    return Part(**{**values, **changes})


def plan_of(previous: Manifest | None, **changes: Any) -> JobPlan:
    """A plan of which only what a night keeps is there."""
    settings = {"input": ["/in?sig=SECRET"], "output": "/out", "model": "m", "task": "text-classification"}
    return JobPlan(
        spec=JobSpec.of({**settings, **changes}),
        passes=[],
        device="cpu",
        precision="fp32",
        columns=Columns(texts=("text",), lists=(), id="id", kept=pa.schema([])),
        recipe={},
        previous=previous,
        strays=[],
        shards=[],
        parts=[],
        pending=[],
        vanished=[],
        seen_columns=0,
    )


def night(previous: Manifest | None, parts: list[Part], heads: list[dict[str, Any]] | None = None) -> Manifest:
    """The manifest after a night that added these parts."""
    meter = Meter()
    meter.hardware = HARDWARE
    meter.add(parts)
    kept = [] if previous is None else [replace(part, figures="", stages_s={}) for part in previous.parts]
    manifest = Manifest(
        recipe={},
        heads=heads or [head()],
        passes=[["spam"]],
        shards=[ShardEntry(f"/in/{each.name}", each.name, 1, each.name) for each in [*kept, *parts]],
        parts=[*kept, *parts],
        seconds=1.0,
        versions={"torch": "2.13"},
    )
    return replace(manifest, nights=with_night(manifest, plan_of(previous), meter))


SHARD = Shard("/in/a.parquet", 99, "1")
STEM = "part-a-0123456789abcdef"
UNITS = tuple(Unit(f"{STEM}-{n:05d}", (SHARD,), 10 * n, 10 * n + 10) for n in range(20))


def made(n: int, *, rows: int = 10, failed: int = 0, stem: str = STEM, **changes: Any) -> Part:
    values = {"reasons": {"text is null": failed} if failed else {}, "examples": {"text is null": f"r{n}"}}
    return Part(f"{stem}-{n:05d}.parquet", rows, failed, 0, **{**values, **changes})


def state(made_parts: list[Part], n_units: int = 3) -> Manifest:
    entry = ShardEntry(SHARD.url, "0123456789abcdef", n_units, "0123456789abcdef")
    return Manifest(recipe={}, heads=[], passes=[], shards=[entry], parts=in_order(made_parts), seconds=1.0)

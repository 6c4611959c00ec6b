"""What Prometheus would read of the tests' Ray cluster."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Collection

import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def scrape(prefix: str = "ray_convbert") -> list[Sample]:
    """Our own samples, or others, on the metrics port of the node."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return [sample for family in families for sample in family.samples if sample.name.startswith(prefix)]


def scraped(names: Collection[str], *, prefix: str = "ray_convbert", patience_s: float = 30) -> list[Sample]:
    """The samples of a scrape that has all these names, or of the last one."""
    deadline = time.monotonic() + patience_s
    while True:
        samples = scrape(prefix)
        if set(names) <= {sample.name for sample in samples} or time.monotonic() > deadline:
            return samples
        time.sleep(0.3)

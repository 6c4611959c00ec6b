"""Kills, storage faults and broken input in, whether every part equals the undisturbed run's out: a seeded campaign.

A cluster of a head and two worker nodes labels a corpus of every kind of shard again and again, in turn on local disk
and in an S3 store whose answers are spoilt, while drivers, model actors, task workers and whole nodes are killed at
random moments. The command is started again until it succeeds; then every part must be the same, byte by byte, as in
the run that nobody disturbed, and a recount must find every record once, but for those that a damaged shard has lost.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

from pipelines.manifest import read_manifest
from pipelines.partitions import own_files
from pipelines.storage import locate, read_bytes
from pipelines.verify import verify
from tests.fault_proxy import FaultProxy
from tests.soak.stores import find_weed, seaweedfs

ROOT = Path(__file__).parents[2]
KINDS = ("driver", "actor", "worker", "node")
STORAGE_FAULTS = 0.05  # share of requests to the store
NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
TASK_WORKERS = ("ray::IDLE", "ray::ReadTaskSource", "ray::MapBatches")  # an agent's death would be its node's
KILLS_A_RUN = 6
MOST_STARTS = 60  # of one run: more means that it does not get on
QUICK_TO_NOTICE = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 2,
}
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
Files = dict[str, bytes]


@dataclass
class Campaign:
    """What the campaign runs on, and what it has done so far.

    Attributes:
        corpus: folder with the shards.
        cluster: with worker nodes that may be killed.
        rng: decides when what is killed.
        partition_by: the job's flag, or None.
        kills: by kind, while a run was labelling.
        next_kinds: of what is killed next, the next one last.
        faults: of the store, by kind.
        runs: that were finished.
        starts: of the command, the undisturbed run's included.
    """

    corpus: Path
    cluster: Cluster
    rng: random.Random
    partition_by: str | None = None
    kills: Counter[str] = field(default_factory=Counter)
    next_kinds: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    starts: int = 0

    def undisturbed(self, output: Path) -> Files:
        """The parts of a run that nobody disturbs."""
        driver = self._start(str(output))
        errors = driver.communicate()[1]
        assert driver.returncode == 0, errors
        return parts_in(str(output))

    def disturbed(self, output: str, n_kills: int) -> None:
        """Start the job, kill something, so many times, and start it again until it has finished.

        Raises:
            RuntimeError: it does not get on.
        """
        killed_before = self.kills.total()
        for _ in range(MOST_STARTS):
            driver = self._start(output)
            errors: list[str] = []
            reader = threading.Thread(target=lambda: errors.extend(driver.stderr or ()))  # noqa: B023
            reader.start()
            while driver.poll() is None and self.kills.total() - killed_before < n_kills:
                self._disturb(driver)
            driver.wait()
            reader.join()
            if driver.returncode == 0:
                self.runs += 1
                return
        raise RuntimeError(f"{output} was not finished in {MOST_STARTS} starts: {''.join(errors)[-2000:]}")

    def _start(self, output: str) -> subprocess.Popen[str]:
        """The job, as a user starts it."""
        self.starts += 1
        flags = {"input": self.corpus, "output": output, "head": f"spam={ROOT / 'examples/spam/checkpoint'}"}
        flags |= {"unit-rows": 12, "max-failed-fraction": 1, "keep-column": "label", "device": "cpu"}
        flags |= {"partition-by": self.partition_by} if self.partition_by else {}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        return subprocess.Popen(
            [sys.executable, str(ROOT / "jobs/classify_corpus.py"), *words],
            env={**os.environ, "RAY_ADDRESS": self.cluster.address, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _disturb(self, driver: subprocess.Popen[str]) -> None:
        """Wait until the model is at work, and some time more, and kill something, if the job is still there."""
        while driver.poll() is None and not self._processes("actor"):
            time.sleep(0.1)
        time.sleep(self.rng.uniform(0, 2))
        self.next_kinds = self.next_kinds or self.rng.sample(KINDS, len(KINDS))  # each in turn, in any order
        kind = self.next_kinds[-1]
        victims = self._processes(kind)
        if driver.poll() is not None or (kind in ("actor", "worker") and not victims):
            return
        if kind == "driver":
            driver.kill()
            driver.wait()
        elif kind == "node":
            nodes = sorted(self.cluster.worker_nodes, key=lambda node: str(node.unique_id))
            self.cluster.remove_node(self.rng.choice(nodes), allow_graceful=False)
            self.cluster.add_node(**NODE)
        else:
            os.kill(self.rng.choice(victims), signal.SIGKILL)
        self.kills[self.next_kinds.pop()] += 1

    def _processes(self, kind: str) -> list[int]:
        """Ids of the processes on the worker nodes that hold a model, or that run tasks or wait for them."""
        found = []
        for node in self.cluster.worker_nodes:
            raylet = node.all_processes["raylet"][0].process.pid
            for pid in _children(raylet):
                title = _read(f"/proc/{pid}/cmdline")
                if title.startswith("ray::MapWorker" if kind == "actor" else TASK_WORKERS):
                    found.append(pid)
        return sorted(found)


def _children(pid: int) -> list[int]:
    return [int(child) for child in _read(f"/proc/{pid}/task/{pid}/children").split()]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""  # it is gone


def make_corpus(folder: Path, n_texts: int, rng: random.Random) -> None:
    """E-mails of the spam example in every kind of shard, with broken records among them."""
    source = ds.dataset(sorted((ROOT / "examples/spam/corpus").glob("*.parquet"))).to_table(["id", "text", "label"])
    source = source.take(pa.array(rng.sample(range(len(source)), n_texts)))
    source = source.set_column(1, "text", pc.utf8_slice_codeunits(source["text"], 0, 600))
    n = n_texts // 4
    folder.mkdir()
    pq.write_table(source.slice(0, n), folder / "a.parquet", row_group_size=30)
    broken = ["{broken", '{"text": null}', '{"text": 1}', "\x00", "[]"]
    records = [json.dumps(row) for row in source.slice(n).to_pylist()]
    for line in broken * 2:
        records.insert(rng.randrange(len(records)), line)
    quarter = len(records) // 3
    (folder / "b.jsonl").write_text("\n".join(records[:quarter]))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(records[quarter : 2 * quarter]).encode()))
    padded = [
        f'{{"pad": "{rng.randbytes(40_000).hex()}", "text": "Offer {number}", "label": "spam"}}' for number in range(40)
    ]
    damaged = gzip.compress("\n".join([*padded, *records[2 * quarter :]]).encode())
    (folder / "d.jsonl.gz").write_bytes(damaged[: len(damaged) * 2 // 3])  # more than a megabyte can be read
    for number in range(20):
        (folder / f"small-{number:02d}.jsonl").write_text(f'{{"text": "Free offer {number}", "label": "spam"}}\n')
    (folder / "empty.jsonl").touch()


def parts_in(output: str) -> Files:
    """Every part of a finished output, and with --partition-by every index and file."""
    place = locate(output)
    manifest = read_manifest(place)
    assert manifest is not None
    names = own_files(place)
    return {name: read_bytes(place.child(name)) for name in names if name.rsplit("/", 1)[-1].startswith("part-")}


def compare(found: Files, expected: Files) -> None:
    """Part by part.

    Raises:
        AssertionError: naming the parts that differ.
    """
    assert sorted(found) == sorted(expected), set(found) ^ set(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


@contextmanager
def spoilt_store(folder: Path, seed: int) -> Iterator[FaultProxy]:
    """An S3 store behind a proxy that spoils its answers; this process's environment leads there."""
    with ExitStack() as stack:
        if find_weed():
            store = stack.enter_context(seaweedfs(folder))
            upstream, environment = (store.host, store.port), store.environment
        else:
            server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            server.start()
            stack.callback(server.stop)
            upstream, environment = server.get_host_and_port(), CREDENTIALS
        proxy = stack.enter_context(FaultProxy(upstream))
        os.environ.update({**environment, "AWS_ENDPOINT_URL": proxy.url})
        fsspec.filesystem("s3").mkdir("soak")
        with proxy.faults(STORAGE_FAULTS, seed=seed):
            yield proxy


@contextmanager
def cluster_of(n_nodes: int) -> Iterator[Cluster]:
    """A head without work, and worker nodes; their workers see this process's environment."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(n_nodes):
            cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()


def run_campaign(
    folder: Path, *, n_kills: int, n_texts: int, seed: int, with_store: bool, partition_by: str | None
) -> Campaign:
    """Runs with up to six kills each, until there were so many; every other one in the store.

    Raises:
        AssertionError: an output differs from the undisturbed one.
        RuntimeError: a run does not get on.
    """
    rng = random.Random(seed)
    make_corpus(folder / "corpus", n_texts, rng)
    with ExitStack() as stack:
        proxy = stack.enter_context(spoilt_store(folder / "store", seed)) if with_store else None
        campaign = Campaign(folder / "corpus", stack.enter_context(cluster_of(2)), rng, partition_by)
        expected = campaign.undisturbed(folder / "undisturbed")
        faults = verify(str(folder / "undisturbed")).faults
        assert ["damaged compressed shard" in fault for fault in faults] == [True], faults
        print(f"seed {seed}: {len(expected)} parts", flush=True)
        while campaign.kills.total() < n_kills:
            in_store = proxy is not None and campaign.runs % 2 == 1
            output = f"s3://soak/out{campaign.runs}" if in_store else str(folder / f"out{campaign.runs}")
            campaign.disturbed(output, min(KILLS_A_RUN, n_kills - campaign.kills.total()))
            compare(parts_in(output), expected)
            verdict = verify(output)
            assert verdict.faults == faults, verdict.lines()
            assert not verdict.changed, verdict.lines()
            print(f"{output}: {dict(campaign.kills)}; {verdict.lines()[-1]}", flush=True)
        campaign.faults = Counter(proxy.counts if proxy else {})
    return campaign


def main() -> None:
    """Run the campaign and print what was injected."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--texts", type=int, default=400, help="e-mails in the corpus (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="decides what happens when (default: 0)")
    parser.add_argument("--no-store", action="store_true", help="local disk only")
    parser.add_argument("--partition-by", metavar="COLUMN", help="as the job's flag, such as spam.label")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = run_campaign(
            Path(folder),
            n_kills=options.kills,
            n_texts=options.texts,
            seed=options.seed,
            with_store=not options.no_store,
            partition_by=options.partition_by,
        )
    for kind in KINDS:
        print(f"{done.kills[kind]:6} {kind} killed")
    for kind, count in sorted(done.faults.items()):
        print(f"{count:6} store: {kind}")
    print(f"{done.starts} starts, {done.runs} runs finished: every part as in the undisturbed run")


if __name__ == "__main__":
    main()

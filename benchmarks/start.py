"""A job that has next to nothing to do, forty texts, from the command to its end, against the recipe as a script.

Both are processes of their own that start Ray on this machine, load the shipped checkpoint, label, write and stop Ray.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.inputs import CHECKPOINT, ROOT, texts
from benchmarks.machine import describe
from benchmarks.rows import Row
from benchmarks.timing import interleaved, ratio

N_TEXTS = 40


def measure(rounds: int = 3) -> list[Row]:
    """The job's speed over the recipe's."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus, output = folder / "corpus.parquet", folder / "output"
        pq.write_table(pa.table({"text": texts(N_TEXTS)}), corpus)
        job = ["jobs/classify_corpus.py", "--input", corpus, "--model", CHECKPOINT, "--output", output]
        recipe = ["-m", "benchmarks.start_recipe", corpus, CHECKPOINT, output]
        contenders = {
            name: partial(_run, [sys.executable, *map(str, command)], output)
            for name, command in (("job", job), ("recipe", recipe))
        }
        seconds = interleaved(contenders, rounds)
    ours, theirs = (statistics.median(seconds[name]) for name in ("job", "recipe"))
    work, note = f"{N_TEXTS} texts, from the command to its end", f"{ours:.1f} to {theirs:.1f} s"
    return [Row(work, "the recipe as a script", None, ratio(seconds["recipe"], seconds["job"]), note)]


def _run(command: list[str], output: Path) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not output.is_dir():
        raise RuntimeError(f"{command[1:3]} has failed: {done.stderr[-2000:]}")
    shutil.rmtree(output)


def main() -> None:
    """Print the row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="that count (default: 3)")
    options = parser.parse_args()
    print(f"# benchmarks/start.py, {describe()}, {options.rounds} rounds")
    for row in measure(options.rounds):
        print(f"{row.work} / {row.against}: {row.measured:.2f}; {row.note}")


if __name__ == "__main__":
    main()

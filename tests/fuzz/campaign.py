"""Minutes and a seed in, hostile files read in processes of bounded memory and time; what went wrong is kept.

    python -m tests.fuzz.campaign --minutes 60 --seed 1

The targets take turns, each for a round of examples with another seed in a process of its own. A violation is an
error that is not the house's or not clear, a crash, more memory than the limit, or an example that takes too long. Its
files lie in ``--output`` afterwards, with what happened beside them. The exit status is 1 where there was one.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

MEMORY_BYTES = 2 << 30  # beyond what the process has after its imports
LARGEST_GROWTH_BYTES = 600 << 20  # of what is really used, by one example
TIMEOUT_S = 60  # for an example
START_S = 300  # for the imports and the first example
OUTCOMES = ("ok", "clear error", "violation")
CURRENT, LOG, COUNTS = "current", "violations", "counts.json"


def main() -> int:
    """Run rounds until the time is over; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=500, help="examples a round")
    parser.add_argument("--target", action="append", help="only these")
    parser.add_argument("--output", type=Path, default=Path("out/fuzz"), help="where violations are kept")
    parser.add_argument("--round", nargs=2, metavar=("TARGET", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.round:
        return run_round(options.round[0], options.seed, options.examples, Path(options.round[1]))

    from tests.fuzz.targets import TARGETS

    names = options.target or list(TARGETS)
    counts = {name: Counter(dict.fromkeys(OUTCOMES, 0)) for name in names}
    end, number = time.monotonic() + 60 * options.minutes, 0
    while time.monotonic() < end:
        name = names[number % len(names)]
        counts[name].update(supervise(name, options.seed * 1_000_003 + number, options.examples, options.output))
        number += 1
        if number % len(names) == 0 or time.monotonic() >= end:
            print(table(counts), flush=True)
    return 1 if any(count["violation"] for count in counts.values()) else 0


def table(counts: dict[str, Counter[str]]) -> str:
    """What the targets came to, a line each."""
    rows = [("target", "examples", *OUTCOMES)]
    rows += [(name, str(sum(count.values())), *(str(count[o]) for o in OUTCOMES)) for name, count in counts.items()]
    return "\n".join(f"{row[0]:20}" + "".join(f"{cell:>13}" for cell in row[1:]) for row in rows) + "\n"


def supervise(name: str, seed: int, examples: int, output: Path) -> Counter[str]:
    """One round in a process of its own, whose end says whether the example at hand was its last."""
    with tempfile.TemporaryDirectory(prefix="fuzz-round-") as scratch:
        command = [sys.executable, "-m", "tests.fuzz.campaign", "--seed", str(seed), "--examples", str(examples)]
        log = Path(scratch) / "log"
        with log.open("w") as stream:
            process = subprocess.Popen([*command, "--round", name, scratch], stdout=stream, stderr=stream)
            try:
                how = wait(process, Path(scratch) / COUNTS)
            finally:
                process.kill()
        counts_path = Path(scratch) / COUNTS
        counts = Counter(json.loads(counts_path.read_text())) if counts_path.exists() else Counter()
        if how is not None:
            counts["violation"] += 1
            (Path(scratch) / CURRENT).mkdir(exist_ok=True)
            (Path(scratch) / CURRENT / "what-happened.txt").write_text(f"{how}\n{log.read_text()[-20_000:]}")
            keep(Path(scratch) / CURRENT, output / f"{name}-{seed}-end", how)
        for found in sorted((Path(scratch) / LOG).glob("*")):
            keep(
                found, output / f"{name}-{seed}-{found.name}", (found / "what-happened.txt").read_text().splitlines()[0]
            )
        return counts


def wait(process: subprocess.Popen[bytes], counts: Path) -> str | None:
    """None where the process ended well, or how it ended otherwise; it counts each example."""
    seen, since = None, time.monotonic()
    while True:
        try:
            status = process.wait(timeout=0.2)
            return None if status == 0 else f"the process ended with status {status}"
        except subprocess.TimeoutExpired:
            mark = counts.stat().st_mtime_ns if counts.exists() else None
            if mark != seen:
                seen, since = mark, time.monotonic()
            limit_s = TIMEOUT_S if seen else START_S
            if time.monotonic() - since > limit_s:
                process.kill()
                process.wait()
                return f"an example took more than {limit_s} s"


def keep(found: Path, target: Path, what: str) -> None:
    print(f"VIOLATION {target}: {what}", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(found, target)


def run_round(name: str, seed: int, examples: int, scratch: Path) -> int:
    """The examples of one round; every violation that leaves the process alive is written down."""
    import hypothesis

    from tests.fuzz.targets import TARGETS, Files, outcome

    target, counts, current = TARGETS[name], Counter(), scratch / CURRENT
    faulthandler.enable()
    warnings.simplefilter("error")

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(target.files)
    def attempt(files: Files) -> None:
        shutil.rmtree(current, ignore_errors=True)
        current.mkdir()
        for file_name, content in files.items():
            (current / file_name).write_bytes(content)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            ended, what = outcome(target, files), ""
            growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            if growth > LARGEST_GROWTH_BYTES:
                ended, what = "violation", f"it took {growth >> 20} MiB of memory"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            ended, what = "violation", f"{type(error).__name__}: {error!s:.300}\n{traceback.format_exc()}"
        counts[ended] += 1
        found = scratch / LOG / hashlib.sha256(re.sub(r"\W\w*\d\w*|'.*", "", what[:200]).encode()).hexdigest()[:8]
        if what and not found.exists():  # one of a kind
            shutil.copytree(current, found)
            (found / "what-happened.txt").write_text(what, encoding="utf-8", errors="backslashreplace")
        (scratch / "next").write_text(json.dumps(counts))
        (scratch / "next").replace(scratch / COUNTS)

    limit_memory()
    attempt()
    return 0


def limit_memory() -> None:
    """What an example allocates beyond the limit is refused."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())

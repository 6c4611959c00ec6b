"""What a result must say of where it was measured: processor, versions, commit and date."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("ray", "torch", "tokenizers", "pyarrow")
_ROOT = Path(__file__).parents[1]


def describe() -> str:
    """Two lines for the top of a result; no host names, no paths."""
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"{datetime.now(timezone.utc):%Y-%m-%d}, {_processor()}, {os.cpu_count()} cores, commit {_commit()}\n"
        f"Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """The commit, and whether product or benchmarks differ from it."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", "convbert", "pipelines", "benchmarks/*.py")
    return (commit or "unknown") + (" with changes" if changed else "")


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""

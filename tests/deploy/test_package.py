"""What the wheel and the source distribution hold, by their settings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
ALWAYS = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}  # by setuptools itself


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="no checkout of git")
def test_every_tracked_file_is_in_a_distribution() -> None:
    tomllib = pytest.importorskip("tomllib")
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()]
    named = ALWAYS | {name for verb, *names in lines if verb == "include" for name in names}
    grafted = {name for verb, *names in lines if verb == "graft" for name in names}

    def is_packaged(path: PurePosixPath) -> bool:
        package = ".".join(path.parent.parts)
        is_data = path.name in setuptools["package-data"].get(package, [])
        return package in setuptools["packages"] and (path.suffix == ".py" or is_data)

    run = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = [PurePosixPath(name) for name in run.stdout.splitlines()]
    assert len(tracked) > 100
    left_out = [path for path in tracked if str(path) not in named and path.parts[0] not in grafted]
    assert [str(path) for path in left_out if not is_packaged(path)] == []

"""The pages as a site: every link and anchor leads somewhere, and every page is in the map."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAGMENT = 12  # characters of a quoted message that must stand in the code as they are


def build(site: Path, docs: Path = ROOT / "docs") -> subprocess.CompletedProcess[str]:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    config = config.replace("docs_dir: docs", f"docs_dir: {docs}").replace("docs/outside.py", f"{docs}/outside.py")
    (site.parent / "mkdocs.yml").write_text(config, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(site.parent / "mkdocs.yml"), "-d", str(site)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_holds_every_page(site: Path) -> None:
    assert {f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md")} <= {page.name for page in site.glob("*.html")}


def test_files_outside_the_pages_are_taken_along(site: Path) -> None:
    html = (site / "performance.html").read_text(encoding="utf-8")
    kept = re.findall(r'href="(repository/benchmarks/results/[^"]+)"', html)
    assert kept
    assert [link for link in kept if not (site / link).exists()] == []


def test_every_decision_is_listed() -> None:
    listed = (ROOT / "docs/decisions/index.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs/decisions").glob("0*.md") if f"]({page.name})" not in listed] == []


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for page in (ROOT / "docs").rglob("*"):
        target = docs / page.relative_to(ROOT / "docs")
        if page.is_dir():
            target.mkdir(exist_ok=True)
        elif page.suffix in (".md", ".py"):
            target.write_bytes(page.read_bytes())
    broken = "\n[nowhere](nowhere.md) and [no anchor](storage.md#none)\n"
    (docs / "jobs.md").write_text((docs / "jobs.md").read_text(encoding="utf-8") + broken, encoding="utf-8")
    done = build(tmp_path / "site", docs)
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
    assert "#none" in done.stderr


def test_every_message_that_troubleshooting_quotes_is_one_that_the_code_prints() -> None:
    code = " ".join(
        path.read_text(encoding="utf-8")
        for room in ("convbert", "pipelines", "jobs")
        for path in (ROOT / room).rglob("*.py")
    )
    code = re.sub(r'"\s+f?"', "", code)  # literals that Python joins
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    quoted = [message for row in rows for message in re.findall(r"`([^`]{25,})`", row)]
    fragments = [part.strip() for message in quoted for part in re.split(r"…|'text'", message)]
    fragments = [part for part in fragments if len(part) >= FRAGMENT]
    assert len(fragments) > 20
    assert [part for part in fragments if part not in code] == []


def test_the_map_of_the_code_has_every_file() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## Where things are")[1]
    files = [path for room in ("convbert", "convbert/engine", "pipelines") for path in (ROOT / room).glob("*.py")]
    assert [path.name for path in files if path.stem != "__init__" and path.name not in page] == []

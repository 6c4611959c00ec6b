"""Habits of the house, each a small test: import direction, exports, what the product may import."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["convbert", "pipelines", "jobs"]  # each may import those before it


def imported(package: str) -> Iterator[tuple[Path, str]]:
    """Every top-level module that a package's files import."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.split(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield path, node.module.split(".")[0]


@pytest.mark.parametrize("package", LAYERS)
def test_imports_run_one_way(package: str) -> None:
    above = set(LAYERS[LAYERS.index(package) + 1 :])
    assert [(path, name) for path, name in imported(package) if name in above] == []


@pytest.mark.parametrize("package", LAYERS)
def test_the_product_never_imports_transformers(package: str) -> None:
    assert [path for path, name in imported(package) if name == "transformers"] == []


def test_convbert_needs_neither_ray_nor_arrow() -> None:
    assert {name for _, name in imported("convbert")} & {"ray", "pyarrow", "pydantic", "yaml"} == set()


def test_convbert_works_where_they_are_not_installed() -> None:
    block = "import sys; sys.modules.update(dict.fromkeys(['ray', 'pyarrow', 'pydantic', 'yaml', 'rich']))"
    everything = "; ".join(f"from {name} import *" for name in ("convbert", "convbert.engine", "convbert.checkpoints"))
    run = subprocess.run([sys.executable, "-c", f"{block}; {everything}"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("module", ["convbert", "convbert.engine", "convbert.checkpoints", "pipelines.heads"])
def test_exports_exist(module: str) -> None:
    loaded = importlib.import_module(module)
    assert sorted(loaded.__all__, key=str.lower) == sorted(set(loaded.__all__), key=str.lower)
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_says_what_it_does(package: str) -> None:
    silent = [
        path
        for path in (ROOT / package).rglob("*.py")
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")], ids=str
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_api_page_lists_every_public_name_as_its_docstring_does() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    package = importlib.import_module("convbert")
    rows = [f"| `{name}` | {inspect.getdoc(getattr(package, name)).splitlines()[0]} |" for name in package.__all__]
    assert [row for row in rows if row not in page] == []


def test_what_the_product_imports_is_declared() -> None:
    """Each distribution by its name, not only as some other's dependency."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["tf"]]
    declared = {re.match(r"[\w-]+", line)[0].lower().replace("-", "_") for line in lines}
    names = {name for package in LAYERS for _, name in imported(package)} - set(sys.stdlib_module_names) - set(LAYERS)
    distributions = {"yaml": "pyyaml"}
    brought = {"triton"}  # by the builds of torch for a GPU, each the version that fits; there is none without
    assert {distributions.get(name, name) for name in names} - declared - brought == set()

"""The dashboard file: what Grafana needs of it, and that it asks for nothing that is not exported."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/convbert.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = [variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}


def defined() -> dict[str, set[str]]:
    """The labels of every name under which Ray exports a metric of ours, as the source defines them."""
    found = {}
    for source in ("job_metrics.py", "serving.py"):
        for node in ast.walk(ast.parse((ROOT / "pipelines" / source).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SUFFIXES:
                name = node.args[0].value  # type: ignore[attr-defined]
                tags = [keyword.value for keyword in node.keywords if keyword.arg == "tag_keys"]
                tags += [argument for argument in node.args if isinstance(argument, ast.Tuple)]
                labels = {one.value for tag in tags for one in ast.walk(tag) if isinstance(one, ast.Constant)}
                labels |= {"output"} if "_job_" in name else {"application"}
                labels |= {"le"} if node.func.id == "Histogram" else set()
                found.update({f"ray_{name}{suffix}": labels for suffix in SUFFIXES[node.func.id]})
    return found


@cache
def of_serve() -> dict[str, set[str]]:
    """The same of Serve's gauges, whose labels its source has in variables: test_serving.py reads them back."""
    ray = importlib.util.find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    source = (Path(ray.origin).parent / "serve/_private/deployment_state.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    gauges = [call.args[0].value for call in calls if ast.unparse(call.func) == "metrics.Gauge"]  # type: ignore[attr-defined]
    return {f"ray_{name}": {"application", "deployment"} for name in gauges}


def test_labels_are_those_of_their_metric_alone() -> None:
    labels = defined()
    assert labels["ray_convbert_job_failed_rows_total"] == {"output", "reason"}
    assert labels["ray_convbert_job_units_total"] == {"output"}
    assert labels["ray_convbert_errors_total"] == {"application", "path", "kind"}
    assert labels["ray_convbert_latency_ms_bucket"] == {"application", "path", "le"}
    assert labels["ray_convbert_tokens_total"] == {"application"}


def names_in(query: str) -> set[str]:
    return set(re.findall(r"\bray_[a-z_]+", query))


def test_it_has_what_grafana_imports() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["title"]
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", DASHBOARD["uid"])
    assert "id" not in DASHBOARD  # of one Grafana's database
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["title"]
        assert panel["type"] in ("timeseries", "stat", "gauge")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["expr"] and target["refId"] for target in panel["targets"])
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_panels_neither_overlap_nor_leave_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("query", [*QUERIES, *(variable["definition"] for variable in VARIABLES)])
def test_it_asks_only_for_what_is_exported(query: str) -> None:
    names = names_in(query)
    assert names
    exported = defined() | of_serve()
    assert names <= set(exported)
    assert query.count("(") == query.count(")")
    for label in re.findall(r"by \((\w+)\)", query) + re.findall(r"[{,](\w+)(?:=~|!=)", query):
        assert all(label in exported[name] for name in names), label


def test_load_balancers_that_ask_after_health_make_no_request_look_fast() -> None:
    latencies = [query for query in QUERIES if "ray_convbert_latency_ms" in query]
    assert len(latencies) == 3
    assert all('path!="other"' in query for query in latencies)


def test_it_shows_everything_that_is_exported() -> None:
    bases = {re.sub(r"_(total|bucket|sum|count)$", "", name) for query in QUERIES for name in names_in(query)}
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in defined()} - bases == {
        "ray_convbert_job_rows_planned"  # unknown for most kinds of shards
    }
    assert "ray_serve_deployment_replica_healthy" in bases

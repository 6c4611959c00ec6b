"""The report's page: its words here, its looks in a real Chromium under its own policy."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from pipelines.figures import Histogram, numbers, shares
from pipelines.report import report_of
from pipelines.report_page import (
    Notice,
    duration,
    label_rows,
    moved_most,
    notices,
    number,
    page_of,
    percent,
    worst_drift,
)
from pipelines.write import Part
from tests.browser import chromium, needs_chromium
from tests.pipelines.nights import head, night, part
from tests.pipelines.test_page import COLOURS, luminance

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"
Values = dict[str, Any]


def scores(seed: int) -> dict[str, dict[str, Histogram]]:
    rng = np.random.default_rng(seed)
    return {
        "spam": {"score": shares(rng.beta(8, 1, 1000))},
        "topic": {"score": shares(rng.beta(2, 2, 1000))},
        "grade": {HOSTILE: numbers(rng.normal(-1, 3, 1000))},
        "vectors": {},
    }


def make_report() -> Values:
    """Two nights of four heads: labels that have changed, a thousand hostile and long labels, numbers, and nothing."""
    heads = [
        head(),
        head("topic", labels=["x"] * 1000, aggregation=HOSTILE),
        head("grade"),
        head("vectors", task="feature-extraction", labels=[]),
    ]
    topics = {f"{HOSTILE} {n:04} " + "long" * (n % 40): 1000 - n for n in range(1000)}
    before = {"spam": {"ham": 800, "spam": 200}, "topic": topics, "grade": {}, "vectors": {}}
    now = {**before, "spam": {"ham": 300, "spam": 700}}
    first = night(None, [part(1, before, scores=scores(1))], heads)
    reasons = {"reasons": {HOSTILE: 5, "text is null": 2}, "examples": {HOSTILE: HOSTILE * 9, "text is null": "a@7"}}
    second = night(first, [part(2, now, scores=scores(2), failed=7, **reasons)], heads)
    return json.loads(json.dumps(report_of(second)))


@pytest.fixture(scope="module")
def report() -> Values:
    return make_report()


@pytest.fixture(scope="module")
def page(report: Values) -> str:
    return page_of(report)


def test_the_page_is_a_function_of_the_report(report: Values, page: str) -> None:
    untouched = copy.deepcopy(report)
    assert page_of(report) == page
    assert report == untouched


def test_the_page_is_one_small_file_without_script_or_outside_assets(page: str) -> None:
    assert len(page.encode()) < 150_000
    assert re.findall(r"https?:", page) == []
    elements = Elements()
    elements.feed(page)
    assert not elements.tags & {"script", "img", "iframe", "object", "embed", "form", "base", "a"}
    assert {name for name in elements.attributes if name.startswith("on") or name in ("style", "src")} == set()
    assert re.findall(r'href="([^"]*)"', page) == ["data:,"]


class Elements(HTMLParser):
    """Tags and names of attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_a_thousand_labels_are_told_as_twenty_and_the_others(report: Values, page: str) -> None:
    labels = report["heads"][1]["labels"]
    rows = label_rows(labels)
    assert [row["label"] for row in rows[:20]] == [label["label"] for label in labels[:20]]
    assert rows[20]["label"] == "980 other labels"
    assert sum(row["count"] for row in rows) == sum(range(1, 1001))
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-3)
    assert len(label_rows(labels[:21])) == 21  # one other label is told by its name
    assert "980 other labels" in page


def test_what_moved_most_is_told_first(report: Values) -> None:
    assert {label["label"] for label in moved_most(report["heads"][0]["labels"])} == {"spam", "ham"}
    assert moved_most(report["heads"][1]["labels"]) == []


def test_the_notices_say_what_to_do(report: Values) -> None:
    assert [(notice.kind, notice.text) for notice in notices(report)] == [
        ("look", "7 of 1,007 new records failed (0.7%)."),
        (
            "act",
            "The labels of spam, against the night before: changed, find out why before you rely on them"
            f" (PSI {report['heads'][0]['drift'][0]['psi']:.2f}).",
        ),
        ("good", "The labels of topic, against the night before: about the same (PSI 0.00)."),
    ]
    calm = {**report, "night": {**report["night"], "failed": 0}, "heads": []}
    assert [notice.kind for notice in notices(calm)] == ["good"]
    hopeless = {**calm, "output": {**report["output"], "failed": 1000}}
    assert notices(hopeless)[0].text.startswith("Too many records failed: 1,000 of 2,007 in the output, 49.8%")
    cut = {**calm, "output": {**report["output"], "damaged_shards": 1}}
    assert [(notice.kind, notice.text) for notice in notices(cut)] == [
        (
            "act",
            "An unknown number of records failed, the rest of 1 damaged compressed shard: copy again what is damaged.",
        )
    ]
    assert [n.kind for n in notices({**cut, "job": {**report["job"], "max_failed_fraction": 1.0}})] == ["good"]
    bad_night = {**calm, "night": {**report["night"], "failed": 51}}  # of 1,007, of which the job takes 5%
    assert [(notice.kind, notice.text) for notice in notices(bad_night)] == [
        ("act", "Too many new records failed: 51 of 1,007, 5.1%; the job takes 5.0%.")
    ]
    exactly = {
        **calm,
        "output": {**report["output"], "failed": 29, "rows": 100},
        "job": {**report["job"], "max_failed_fraction": 0.29},
    }
    assert [notice.kind for notice in notices(exactly)] == ["good"]  # 0.29 * 100 is less than 29 in floats
    gone = {**calm, "job": {**report["job"], "vanished": 3}}
    assert notices(gone)[-1].text == "3 labelled shards are no longer among the inputs."


@pytest.mark.parametrize(("n_records", "is_told"), [(50, True), (4, False)])
def test_a_head_that_finds_nothing_any_more_is_told(n_records: int, is_told: bool) -> None:
    """Where a night has no label there is nothing to compare, and a page without a word would look sound."""
    before = night(None, [part(1, {"spam": {"ham": 30, "spam": 70}})])  # as many labels as records
    last = night(before, [part(2, {"spam": {}}, rows=n_records + 2, failed=2)])
    text = (
        "spam has found no label in 50 new records, where some 50 are to be expected from those before: "
        "find out why before you rely on it."
    )
    assert notices(report_of(last))[1:] == ([Notice("act", text)] if is_told else [])


def test_what_is_clear_is_told_before_what_chance_may_have_done() -> None:
    unclear, shifted = {"verdict": "unclear", "psi": 0.9}, {"verdict": "shifted", "psi": 0.2}
    assert worst_drift([unclear, shifted]) == shifted
    assert worst_drift([]) is None


def test_figures_are_written_for_people() -> None:
    assert [percent(share) for share in (None, 0, 0.0004, 0.5, 0.9996, 1)] == [
        "–", "0%", "<0.1%", "50.0%", ">99.9%", "100%",
    ]  # fmt: skip
    assert [duration(seconds) for seconds in (0, 2.25, 60, 150, 7500)] == [
        "0 s", "2.2 s", "60 s", "2 min 30 s", "2 h 5 min",
    ]  # fmt: skip
    assert [number(value) for value in (0.30000000000000004, -12.3456, 123456, 1e-9)] == [
        "0.3", "-12.35", "123,456", "1e-09",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "parts",
    [[], [part(1, {"spam": {}}, failed=3, stages_s={}, busy_s=0.0)], [part(1, {"spam": {"ham": 1}}, figures="")]],
)
def test_a_night_with_next_to_nothing_has_a_page(parts: list[Part]) -> None:
    page = page_of(report_of(night(None, parts)))
    assert page.rstrip().endswith("</html>")
    assert not re.search(r"\b(None(?!\.)|nan|inf|Undefined)\b", page)


# --- in a browser ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """The page opened from disk; afterwards its console is silent and nothing else has been asked for."""
    path = Path(tmp_path_factory.mktemp("report")) / "report.html"
    path.write_text(page, encoding="utf-8")
    with chromium() as browser:
        browser.get(path.as_uri())
        yield browser
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in messages if e["method"] == "Network.requestWillBeSent"]
        assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}
        assert browser.get_log("browser") == []


def set_size(browser: Chrome, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@needs_chromium
def test_hostile_labels_are_text(browser: Chrome) -> None:
    assert browser.title.startswith("Labelling report, ")
    assert browser.find_elements(By.CSS_SELECTOR, "script, img") == []
    rows = browser.find_elements(By.CSS_SELECTOR, "section:nth-of-type(2) tbody th")
    assert rows[0].text.strip() == f"{HOSTILE} 0000"
    assert f"{(HOSTILE * 9)[:399]}…" in [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "td.words")]


@needs_chromium
@pytest.mark.parametrize("width", [360, 1000])
def test_nothing_is_wider_than_the_screen(browser: Chrome, width: int) -> None:
    set_size(browser, width)
    browser.execute_script("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    too_wide = """return [...document.querySelectorAll("main *")].filter(
        (e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 200))"""
    assert browser.execute_script(too_wide) == []


@needs_chromium
def test_charts_have_their_columns_in_proportion_and_a_table_behind_them(browser: Chrome, report: Values) -> None:
    set_size(browser, 1000)
    bins = report["heads"][0]["scores"]["score"]["bins"]
    heights = browser.execute_script(
        """return [...document.querySelector(".columns").querySelectorAll("rect:not(.area)")].map(
        (rect) => rect.getBoundingClientRect().height)"""
    )
    highest = max(max(each["share"], each["share_before"]) for each in bins)
    chart = browser.find_elements(By.CSS_SELECTOR, ".columns")[0]
    inside = browser.execute_script("return arguments[0].clientHeight", chart)
    assert heights == pytest.approx([inside * each["share"] / highest for each in bins], abs=0.5)
    assert chart.get_attribute("aria-label")
    figure = chart.find_element(By.XPATH, "..")
    table = figure.find_elements(By.CSS_SELECTOR, "tbody td:nth-of-type(1)")
    assert [cell.get_attribute("textContent") for cell in table] == [f"{each['count']:,}" for each in bins]


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_in_light_and_dark(browser: Chrome, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    [[_, _, ground]] = browser.execute_script(COLOURS, "body")
    assert luminance(ground) > 0.9 if scheme == "light" else luminance(ground) < 0.02
    shown = "h1, h2, h3, p, dt, dd, th, td, li b, li span:not(.key), summary, code, .good, .look, .act, .note, .faint"
    for html, *colours in browser.execute_script(COLOURS, shown):
        dark, light = sorted(map(luminance, colours))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, html

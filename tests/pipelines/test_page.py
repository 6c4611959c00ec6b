"""The page in a real Chromium, under its real policy, against a service whose answers are written here."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from pipelines.page import PAGE, content_security_policy
from tests.browser import chromium, needs_chromium

pytestmark = needs_chromium

HEADS = [
    {"name": "spam", "task": "text-classification", "labels": ["ham", "spam"]},
    {"name": "names", "task": "token-classification", "labels": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]},
    {"name": "answers", "task": "question-answering", "labels": []},
    {"name": "words", "task": "fill-mask", "labels": [], "mask_token": "[MASK]"},
    {"name": "blanks", "task": "fill-mask", "labels": [], "mask_token": "<mask>", "truncation_side": "left"},
    {"name": "vectors", "task": "feature-extraction", "labels": []},
    {"name": "choices", "task": "multiple-choice", "labels": []},
]
SPAM = [{"label": "spam", "score": 0.925}, {"label": "ham", "score": 0.075}]


class Service(ThreadingHTTPServer):
    """Canned answers by head, over HTTP as the real service gives them.

    Attributes:
        page: the document at ``/``; its policy is always that of the real page.
        answers: for each head the status and the answer of its next requests.
        token: the bearer token that every request but the page's needs; None: none.
        held: a text whose requests wait until ``release`` is set.
        requests: head, body of each request that was let in.
        strangers: paths that no service has.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.reset()

    def reset(self) -> None:
        self.page = PAGE
        self.answers: dict[str, tuple[int, Any]] = {"spam": (200, SPAM)}
        self.token: str | None = None
        self.held: str | None = None
        self.release = threading.Event()
        self.requests: list[tuple[str, Any]] = []
        self.strangers: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone is no error."""


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        if self.path == "/":
            self._send(200, self.server.page.encode(), "text/html; charset=utf-8")
        elif self.path != "/info":
            self.server.strangers.append(self.path)
            self._send_json(404, {"error": "no such path"})
        elif self._is_let_in():
            self._send_json(200, {"heads": HEADS, "limits": {}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_let_in():
            return
        head = self.path[1:]
        self.server.requests.append((head, body))
        if body["inputs"] == self.server.held:
            self.server.release.wait(10)
        status, answer = self.server.answers[head]
        if isinstance(answer, bytes):  # of a proxy
            self._send(status, answer, "text/html")
        else:
            self._send_json(status, answer)

    def _is_let_in(self) -> bool:
        if self.server.token is None or self.headers["Authorization"] == f"Bearer {self.server.token}":
            return True
        self._send_json(401, {"error": "A bearer token is needed."})
        return False

    def _send_json(self, status: int, answer: Any) -> None:
        self._send(status, json.dumps(answer).encode(), "application/json")

    def _send(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", content_security_policy(PAGE))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class Page:
    """The page as a person has it: fields, keys, and what is to be seen."""

    def __init__(self, browser: Chrome, service: Service) -> None:
        self.browser, self.service = browser, service

    def open(self) -> None:
        self.browser.get(self.service.url)
        self.wait_until(lambda: not self.all("[aria-busy=true]") and (self.all("#head option") or self.all(".error")))

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [found.text for found in self.all(selector)]

    def wait_until(self, is_so: Any) -> None:
        WebDriverWait(self.browser, 10, poll_frequency=0.02).until(lambda _: is_so())

    def choose(self, head: str) -> None:
        offered = [each["name"] for each in HEADS if each["task"] != "multiple-choice"]
        self.all("#head option")[offered.index(head)].click()

    def fill(self, field: str, value: str) -> None:
        """Through the DOM: chromedriver's keys have no astral characters."""
        self.browser.execute_script("document.getElementById(arguments[0]).value = arguments[1]", field, value)

    def run(self) -> None:
        self.all("button[type=submit]")[0].click()
        self.wait_for_answer()

    def wait_for_answer(self) -> None:
        self.wait_until(lambda: self.all("#result[aria-busy=false] > *"))

    def label(self, head: str, text: str, answer: Any, *, status: int = 200) -> None:
        """The answer of a head for a text, on the page."""
        self.service.answers[head] = (status, answer)
        self.choose(head)
        self.fill("text", text)
        self.run()

    def set_media(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def console(self) -> list[dict[str, Any]]:
        """Messages since the last call; a status from 400 on is one too, but no trouble of the page."""
        return [entry for entry in self.browser.get_log("browser") if entry["source"] != "network"]

    def network(self) -> list[dict[str, Any]]:
        """What the browser did on the network since the last call."""
        entries = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        return [entry for entry in entries if entry["method"].startswith("Network.")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def running_service() -> Iterator[Service]:
    with Service() as service:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield service
        service.shutdown()
        thread.join()


@pytest.fixture
def service(running_service: Service) -> Service:
    running_service.reset()
    return running_service


@pytest.fixture
def page(browser: Chrome, service: Service) -> Iterator[Page]:
    """The page, opened; afterwards its console is silent, and nobody else has been asked for anything."""
    page = Page(browser, service)
    page.network(), page.console()
    page.set_media("light")
    page.open()
    yield page
    service.release.set()
    asked = [e["params"]["request"]["url"] for e in page.network() if e["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith((service.url, "data:"))} == set()
    assert service.url in asked or asked == []  # empty where a test has read them
    assert page.console() == []
    assert service.strangers == []


def test_every_head_that_it_can_show_is_offered(page: Page) -> None:
    assert [each.split()[0] for each in page.texts("#head option")] == [
        "spam", "names", "answers", "words", "blanks", "vectors",
    ]  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
def test_labels_have_bars(page: Page, nested: bool) -> None:
    page.label("spam", "Buy now", [SPAM] if nested else SPAM)
    assert page.service.requests == [("spam", {"inputs": "Buy now", "parameters": {"top_k": 2}})]
    assert page.texts(".bars li") == ["spam\n92.5 %", "ham\n7.5 %"]
    widths = [
        bar.rect["width"] / track.rect["width"] for bar, track in zip(page.all(".bar"), page.all(".track"), strict=True)
    ]
    assert widths == pytest.approx([0.925, 0.075], abs=0.01)
    assert re.fullmatch(r"Answered by spam in [\d.]+ ms", *page.texts(".status"))


def test_a_regression_has_a_number(page: Page) -> None:
    page.label("spam", "How good?", [{"label": "stars", "score": 4.25}])
    assert page.texts(".bars li") == ["stars\n4.250"]
    assert page.all(".bar") == []


def entity(text: str, word: str, group: str) -> dict[str, Any]:
    start = text.index(word)
    return {"entity_group": group, "score": 0.99, "word": word.lower(), "start": start, "end": start + len(word)}


def test_entities_are_marked_where_python_counts_them(page: Page) -> None:
    text = "😀👩‍🚀 Ada Lovelace\nin 𝕷ondon 🎈, London"
    found = [entity(text, "London", "LOC"), entity(text, "Ada Lovelace", "PER"), entity(text, "𝕷ondon", "LOC")]
    page.label("names", text, found)
    assert page.service.requests[0][1] == {"inputs": text, "parameters": {"aggregation_strategy": "simple"}}
    marks = page.all(".text mark")
    assert [(m.get_property("textContent"), m.get_attribute("data-label")) for m in marks] == [
        ("Ada Lovelace", "PER 99.0 %"), ("𝕷ondon", "LOC 99.0 %"), ("London", "LOC 99.0 %"),
    ]  # fmt: skip
    assert page.all(".text")[0].get_property("textContent") == text
    person, *places = [m.value_of_css_property("background-color") for m in marks]
    assert len(set(places)) == 1
    assert person != places[0]
    assert page.texts(".legend li") == ["PER × 1", "LOC × 2"]
    assert [m.value_of_css_property("background-color") for m in page.all(".legend mark")] == [person, places[0]]


def test_a_text_from_right_to_left_is_shown_so(page: Page) -> None:
    text = "وصلت سارة إلى London."
    page.label("names", text, [entity(text, "سارة", "PER")])
    for selector in ("#text", "#result .text"):
        assert [found.value_of_css_property("direction") for found in page.all(selector)] == ["rtl"], selector
    page.label("answers", text, {"answer": "سارة", "score": 0.5, "start": 5, "end": 9})
    assert page.all(".bars span")[0].value_of_css_property("direction") == "rtl"
    page.label("spam", "text", SPAM)
    assert page.all("#text")[0].value_of_css_property("direction") == "ltr"


def test_no_entity_is_said(page: Page) -> None:
    page.label("names", "nobody", [])
    assert page.texts("#result p")[0] == "No entity found."


@pytest.mark.parametrize("listed", [False, True])
def test_an_answer_is_marked_in_its_context(page: Page, listed: bool) -> None:
    context = "🦊 says: the den is under the oak."
    start = context.index("under")
    best = {"answer": "under the oak", "score": 0.75, "start": start, "end": start + len("under the oak")}
    page.choose("answers")
    page.fill("question", "Where is it?")
    page.label("answers", context, [best, {"answer": "", "score": 0.2, "start": 0, "end": 0}] if listed else best)
    assert page.service.requests[0][1]["inputs"] == {"question": "Where is it?", "context": context}
    assert page.texts(".text mark") == ["under the oak"]
    assert page.all(".text")[0].get_property("textContent") == context
    assert page.texts(".bars li") == ["under the oak\n75.0 %", "(no answer)\n20.0 %"][: 1 + listed]


def word(token: str, score: float) -> dict[str, Any]:
    return {"sequence": f"a {token}", "score": score, "token": 7, "token_str": token}


def test_a_mask_has_words(page: Page) -> None:
    page.label("words", "Paris is in [MASK].", [word("france", 0.5), word("texas", 0.25)])
    assert page.service.requests[0][1] == {"inputs": "Paris is in [MASK].", "parameters": {"top_k": 5}}
    assert page.texts(".text") == ["Paris is in france."]
    assert page.texts(".bars li") == ["france\n50.0 %", "texas\n25.0 %"]


def test_several_masks_have_their_own_words(page: Page) -> None:
    page.label("words", "[MASK] is in [MASK].", [[word("paris", 0.5)], [word("france", 0.25)]])
    assert page.texts(".text") == ["paris is in france."]
    assert page.texts("h2") == ["Words for mask 1", "Words for mask 2"]


def test_a_vector_has_dimensions_and_first_values(page: Page) -> None:
    values = [i / 8 for i in range(12)]
    for answer, shape in ((values, "12"), ([values], "1 × 12"), ([[values] * 3], "1 × 3 × 12")):
        page.label("vectors", "text", answer)
        assert page.texts("#result p")[0] == f"12 dimensions (shape {shape})"
        assert page.texts("pre") == ["[0.0000, 0.1250, 0.2500, 0.3750, 0.5000, 0.6250, 0.7500, 0.8750, …]"]


def test_a_mask_is_what_the_head_calls_it(page: Page) -> None:
    page.choose("blanks")
    assert "<mask>" in page.all("#text")[0].get_property("value")
    page.label("blanks", "[MASK] is <mask>.", [word("paris", 0.5)])
    assert page.texts(".text") == ["[MASK] is paris."]


def test_a_text_that_was_cut_on_the_left_has_words_for_its_last_masks(page: Page) -> None:
    page.label("blanks", "<mask> and <mask> is in <mask>.", [[word("paris", 0.5)], [word("france", 0.25)]])
    assert page.texts(".text") == ["<mask> and paris is in france."]


HOSTILE = "<img src=x onerror='document.title=1'><b>bold</b><script>document.title=2</script>"


def test_html_stays_text_wherever_it_comes_from(page: Page) -> None:
    title = page.browser.title
    marked = entity(HOSTILE, "<b>bold</b>", HOSTILE)
    for head, answer in {
        "spam": [{"label": HOSTILE, "score": 0.5}],
        "names": [marked],
        "words": [word(HOSTILE, 0.5)],
    }.items():
        page.label(head, HOSTILE, answer)
        assert HOSTILE in page.all("#result")[0].get_property("textContent")
        assert page.all("#result :is(img, b, script)") == []
    page.label("spam", HOSTILE, {"error": HOSTILE}, status=422)
    assert page.texts(".error") == [HOSTILE]
    assert page.browser.title == title


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (413, {"error": "a text has at most 100 characters"}, "a text has at most 100 characters"),
        (503, {"error": ["queue full", "try later"]}, "queue full try later"),
        (500, {}, "HTTP 500"),
        (503, b"<p>No server is available", "HTTP 503, and what came is no JSON of the service."),
        (200, {"unlike": "labels"}, "The service cannot be reached, or its answer is not understood."),
    ],
)
def test_an_error_is_shown(page: Page, status: int, answer: Any, said: str) -> None:
    page.label("spam", "text", answer, status=status)
    assert page.texts(".error") == [said]
    page.label("spam", "text", SPAM)
    assert page.all(".error") == []
    assert len(page.all(".bars li")) == 2


def test_a_token_is_asked_for_where_one_is_needed(page: Page) -> None:
    page.service.token = "sesame"
    page.open()
    assert page.texts(".error") == ["A bearer token is needed."]
    field = page.browser.switch_to.active_element
    assert (field.get_attribute("id"), field.get_attribute("type")) == ("token", "password")
    assert not page.all("#api")[0].is_displayed()  # whose answer to a link is 401
    field.send_keys("sesame", Keys.ENTER)
    page.wait_until(lambda: page.all("#head option"))
    page.label("spam", "text", SPAM)
    page.service.token = "changed"
    page.run()
    assert page.texts(".error") == ["A bearer token is needed."]
    field.clear()
    field.send_keys("changed", Keys.ENTER)
    page.wait_until(lambda: page.all(".bars"))
    stored = "return [localStorage.length, sessionStorage.length, document.cookie]"
    assert page.browser.execute_script(stored) == [0, 0, ""]


def test_a_token_beyond_ascii_is_a_wrong_one_like_others(page: Page) -> None:
    page.service.token = "sesame"
    page.open()
    page.fill("token", "Сезам\u200b")
    page.run()
    assert page.texts(".error") == ["A bearer token is needed."]


def test_no_token_is_asked_for_elsewhere(page: Page) -> None:
    assert not page.all("#token")[0].is_displayed()
    assert page.all("#api")[0].is_displayed()


def test_a_new_request_ends_the_one_before(page: Page) -> None:
    page.service.held = "slow"
    page.fill("text", "slow")
    page.all("button[type=submit]")[0].click()
    page.wait_until(lambda: page.service.requests)
    page.network()
    page.service.answers["spam"] = (200, [{"label": "new", "score": 1.0}])
    page.fill("text", "quick")
    page.run()
    failed = [entry["params"] for entry in page.network() if entry["method"] == "Network.loadingFailed"]
    assert [each["canceled"] for each in failed] == [True]
    assert page.texts(".bars li") == ["new\n100.0 %"]


def test_examples_come_with_a_head_but_spare_what_was_typed(page: Page) -> None:
    def value(field: str) -> str:
        return page.all(f"#{field}")[0].get_property("value")

    page.choose("words")
    assert "[MASK]" in value("text")
    assert not page.all("#question")[0].is_displayed()
    page.choose("answers")
    assert value("question").endswith("?")
    assert page.texts("#text-label") == ["Context"]
    page.fill("text", "mine")
    page.choose("spam")
    assert value("text") == "mine"
    page.all("#example")[0].click()
    assert value("text") not in ("", "mine")


def test_the_keyboard_is_enough(page: Page) -> None:
    def press(*keys: str) -> None:
        ActionChains(page.browser).send_keys(*keys).perform()

    def focused() -> str:
        return page.browser.switch_to.active_element.get_attribute("id")

    page.service.answers["answers"] = (200, {"answer": "den", "score": 0.5, "start": 4, "end": 7})
    press(Keys.TAB, Keys.TAB)  # past the link to the API
    assert focused() == "head"
    press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.TAB)
    assert focused() == "question"
    outline = page.all("#question")[0]
    assert (outline.value_of_css_property("outline-style"), outline.value_of_css_property("outline-width")) == (
        "solid", "3px",
    )  # fmt: skip
    ActionChains(page.browser).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
    press("Where?", Keys.TAB)
    assert focused() == "text"
    ActionChains(page.browser).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
    press("the den")
    ActionChains(page.browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    page.wait_for_answer()
    inputs = {"question": "Where?", "context": "the den"}
    assert page.service.requests == [("answers", {"inputs": inputs, "parameters": {}})]
    assert page.texts(".text mark") == ["den"]
    assert focused() == "text"
    assert page.all("#result")[0].get_attribute("aria-live") == "polite"


def test_every_field_has_a_label(page: Page) -> None:
    page.choose("answers")
    page.browser.execute_script("document.getElementById('token-field').hidden = false")
    fields = page.all("select, input, textarea, button")
    assert [field.accessible_name for field in fields] == [
        "Head", "Question", "Context", "Access token", "Run", "Example",
    ]  # fmt: skip


def test_a_phone_scrolls_in_one_direction_only(page: Page) -> None:
    metrics = {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        text = "long" * 100 + " London"
        for head, answer in {
            "spam": [{"label": "label" * 40, "score": 0.5}],
            "names": [entity(text, "long" * 100, "LONG" * 20), entity(text, "London", "LOC")],
            "vectors": [[1e9] * 8],
        }.items():
            page.label(head, text, answer)
            widths = "return [innerWidth, document.documentElement.scrollWidth]"
            assert page.browser.execute_script(widths) == [360, 360], head
        assert min(button.rect["height"] for button in page.all("button")) >= 44  # a finger's width
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


COLOURS = """
return [...document.querySelectorAll(arguments[0])].map((shown) => {
  let ground = shown;
  while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
  return [shown.outerHTML, getComputedStyle(shown).color, getComputedStyle(ground).backgroundColor];
});
"""


def luminance(colour: str) -> float:
    """Relative luminance of a computed colour: WCAG 2.2."""
    shares = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_in_light_and_dark(page: Page, scheme: str) -> None:
    page.set_media(scheme)
    text = " ".join(f"entity{i:02}" for i in range(40))
    page.browser.execute_script("document.getElementById('token-field').hidden = false")

    def check() -> None:
        shown = "h1, p, a, label, select, textarea, button, kbd, mark, .score, .legend li"
        for html, *colours in page.browser.execute_script(COLOURS, shown):
            dark, light = sorted(map(luminance, colours))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, html

    [[_, _, ground]] = page.browser.execute_script(COLOURS, "body")
    assert luminance(ground) > 0.9 if scheme == "light" else luminance(ground) < 0.02
    page.label("names", text, [entity(text, f"entity{i:02}", f"G{i}") for i in range(40)])
    check()
    page.label("spam", text, SPAM)
    check()
    page.label("spam", text, {"error": "no"}, status=400)
    check()


def test_the_policy_allows_the_page_and_nothing_else(page: Page) -> None:
    page.service.page = PAGE.replace(
        "</main>", "<p style='color:red' onclick='1'>x</p><script>document.title='no'</script></main>"
    )
    page.open()
    assert page.browser.title == "ConvBERT: try the service"
    refused = [entry["message"] for entry in page.console() if entry["source"] == "security"]
    assert sum("inline script" in message for message in refused) == 1
    assert sum("inline style" in message for message in refused) == 1
    with pytest.raises(Exception, match="TrustedHTML"):
        page.browser.execute_script("document.body.innerHTML = '<b>no</b>'")
    page.console()

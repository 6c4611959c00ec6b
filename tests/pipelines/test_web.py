"""The HTTP side before models that are written here; with real ones: test_serving.py."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipelines.online import Answer, Request
from pipelines.serve_spec import ServeSpec
from pipelines.web import BusyError, Page, create_app, digests

HEADS = [
    {"name": "spam", "task": "text-classification", "labels": ["ham", "spam"], "columns": ["text"], "mask_token": None},
    {"name": "words", "task": "fill-mask", "labels": [], "columns": ["text"], "mask_token": "<mask>"},
]
WORD = {"token": "mail", "score": 0.5, "id": 7}
ROWS = {"spam": {"label": "spam", "score": 0.75, "scores": [0.25, 0.75]}, "words": {"masks": [[WORD], [WORD]]}}


class Models:
    """Does what the text says."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.is_ready = True
        self.n_cancelled = 0

    async def answer(self, request: Request) -> Answer:
        self.asked.append(request)
        text = request.records[0]["text"]
        if text == "busy":
            raise BusyError("no room (max_queued_tokens)")
        if text == "broken":
            raise RuntimeError("secret")
        if text == "slow":
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.n_cancelled += 1
                raise
        if text == "unknown setting":
            return Answer(refusal="spam: no")
        return Answer(
            tuple({"error": None, **{name: ROWS[name] for name, _ in request.heads}} for _ in request.records)
        )

    async def ready(self) -> bool:
        return self.is_ready


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def seen() -> list[tuple[str, int]]:
    return []


@pytest.fixture
def web(models: Models, seen: list[tuple[str, int]]) -> TestClient:
    spec = ServeSpec.of({"head": {"spam": "x", "words": "y"}, "timeout_s": 0.01})
    app = create_app(
        spec,
        models,
        {"heads": HEADS, "versions": {"convbert": "1"}},
        page=Page("<p>hello", "default-src 'none'"),
        observe=lambda path, status, seconds: seen.append((path, status)),
    )
    return TestClient(app, raise_server_exceptions=False)


def test_words_stand_in_their_text(web: TestClient) -> None:
    found = web.post("/words", json={"inputs": "a <mask> b <mask>"}).json()
    assert [words[0]["sequence"] for words in found] == ["a mail b <mask>", "a <mask> b mail"]


def test_labels_are_ranked_and_cut(web: TestClient) -> None:
    ranked = [{"label": "spam", "score": 0.75}, {"label": "ham", "score": 0.25}]
    assert web.post("/spam", json={"inputs": "a"}).json() == [ranked]
    cut = web.post("/spam", json={"inputs": ["a", "b"], "parameters": {"top_k": 1}, "options": {"use_cache": False}})
    assert cut.json() == [ranked[:1], ranked[:1]]


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("busy", 503, "no room (max_queued_tokens)"),
        ("slow", 504, "no answer within 0.01 s (timeout_s)"),
        ("unknown setting", 422, "spam: no"),
        ("broken", 500, "the service failed on this request"),
    ],
)
def test_failures_have_their_status(
    web: TestClient, models: Models, seen: list[tuple[str, int]], text: str, status: int, message: str
) -> None:
    response = web.post("/spam", json={"inputs": text})
    assert (response.status_code, response.json()) == (status, {"error": message})
    assert response.headers.get("Retry-After") == ("1" if status == 503 else None)
    assert models.n_cancelled == (status == 504)
    assert seen == [("/spam", status)]


def test_a_client_that_goes_while_it_sends_asks_nothing(web: TestClient, models: Models) -> None:
    async def go() -> None:
        scope = {"type": "http", "path": "/spam", "method": "POST", "headers": []}
        messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            raise AssertionError(message)

        with pytest.raises(asyncio.CancelledError):
            await web.app(scope, receive, send)

    asyncio.run(go())
    assert models.asked == []


def test_keys_that_are_no_text_are_refused(web: TestClient) -> None:
    for body in (b'{"texts": ["a"], "\\ud800": 1}', b'{"texts": ["a"], "heads": ["\\ud800"]}'):
        assert web.post("/label", content=body, headers={"Content-Type": "application/json"}).status_code == 422
    for rest in (b'"\\ud800": 1', b'"parameters": {"\\ud800": 1}', b'"parameters": {"function_to_apply": "\\ud800"}'):
        body = b'{"inputs": "a", ' + rest + b"}"
        assert web.post("/spam", content=body, headers={"Content-Type": "application/json"}).status_code == 422


def test_a_form_of_another_site_is_refused(web: TestClient, models: Models) -> None:
    """Browsers send text/plain to any site without asking it."""
    body = json.dumps({"inputs": "a"}).encode()
    assert web.post("/spam", content=body, headers={"Content-Type": "text/plain"}).status_code == 422
    assert models.asked == []


def test_ready_waits_for_the_models(web: TestClient, models: Models) -> None:
    models.is_ready = False
    assert (web.get("/ready").status_code, web.get("/health").status_code) == (503, 200)


def test_the_page_comes_under_its_policy(web: TestClient) -> None:
    page = web.get("/")
    assert (page.text, page.headers["Content-Security-Policy"]) == ("<p>hello", "default-src 'none'")


def test_digests_are_of_each_token() -> None:
    assert digests("") == digests(" , ") == ()
    assert digests("a, b") == (*digests("a"), *digests("b"))

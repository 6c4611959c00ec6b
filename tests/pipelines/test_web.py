"""The HTTP side before models that are written here; with real ones: test_serving.py."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from pipelines.inference_form import settings_from
from pipelines.online import Answer, RefusedError, Request
from pipelines.request_body import LabelRequest
from pipelines.serve_spec import ServeSpec
from pipelines.web import BusyError, Gate, Page, create_app, digests

HEADS = [
    {"name": "spam", "task": "text-classification", "labels": ["ham", "spam"], "columns": ["text"], "mask_token": None},
    {
        "name": "words",
        "task": "fill-mask",
        "labels": [],
        "columns": ["text"],
        "mask_token": "<mask>",
        "truncation_side": "right",
    },
    {"name": "names", "task": "token-classification", "labels": [], "columns": ["text"], "aggregation": "none"},
    {"name": "choices", "task": "multiple-choice", "labels": [], "columns": ["text", "choices"]},
]
WORD = {"token": "mail", "score": 0.5, "id": 7}
ENTITY = {"label": "I-PER", "score": 0.5, "start": 0, "end": 1, "text": "a"}
ROWS = {
    "spam": {"label": "new", "score": 0.75, "top": [{"label": "new", "score": 0.75}, {"label": "old", "score": 0.25}]},
    "words": {"masks": [[WORD], [WORD]]},
    "names": {"entities": [ENTITY]},
    "choices": {"index": 0, "score": 1.0, "scores": [1.0]},
}


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
            tuple({"error": None, **{name: ROWS[name] for name, _ in request.heads}} for _ in request.records), 7
        )

    async def ready(self) -> bool:
        return self.is_ready


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def seen() -> list[tuple[str, int]]:
    return []


def app_of(models: Models, seen: list[tuple[str, int]], *, tokens: str = "", heads: Any = HEADS, **limits: Any) -> Any:
    return create_app(
        ServeSpec.of({"head": {"spam": "x", "words": "y"}, "timeout_s": 0.01, **limits}),
        models,
        {"heads": heads, "versions": {"convbert": "1"}},
        token_digests=digests(tokens),
        page=Page("<p>hello", "default-src 'none'"),
        observe=lambda path, status, seconds: seen.append((path, status)),
    )


@pytest.fixture
def web(models: Models, seen: list[tuple[str, int]]) -> TestClient:
    return TestClient(app_of(models, seen), raise_server_exceptions=False)


class Sender:
    """A client as the Gate has it: these messages, and then silence.

    Attributes:
        n_read: messages that the service has taken.
        status: of the answer, None as long as there is none.
        headers: of the answer.
    """

    def __init__(self, *messages: dict[str, Any]) -> None:
        self._messages = list(messages)
        self.n_read = 0
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}

    async def ask(self, app: Any, path: str = "/spam", **scope: Any) -> None:
        whole = {"type": "http", "path": path, "method": "POST", "headers": [], "query_string": b"", **scope}
        await asyncio.wait_for(app(whole, self._receive, self._send), 30)

    async def _receive(self) -> dict[str, Any]:
        if self.n_read == len(self._messages):
            await asyncio.sleep(3600)
        self.n_read += 1
        return self._messages[self.n_read - 1]

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])


def chunk(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_words_stand_in_their_text(web: TestClient) -> None:
    found = web.post("/words", json={"inputs": "a <mask> b <mask>"}).json()
    assert [words[0]["sequence"] for words in found] == ["a mail b <mask>", "a <mask> b mail"]


def test_labels_are_those_of_the_models_and_cut(web: TestClient) -> None:
    """Not those of /info: while new weights are rolled out, the two may differ."""
    ranked = [{"label": "new", "score": 0.75}, {"label": "old", "score": 0.25}]
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


def test_entities_have_the_key_of_the_head_s_own_way_unless_the_request_says_otherwise(web: TestClient) -> None:
    (alone,) = web.post("/names", json={"inputs": "a"}).json()
    assert alone == {"entity": "I-PER", "score": 0.5, "word": "a", "start": 0, "end": 1}
    (joined,) = web.post("/names", json={"inputs": "a", "parameters": {"aggregation_strategy": "simple"}}).json()
    assert joined["entity_group"] == "I-PER"


def test_label_tells_the_tokens(web: TestClient) -> None:
    found = web.post("/label", json={"texts": ["a", "b"], "heads": ["spam"]}).json()
    assert found["tokens"] == 7
    assert [row["spam"]["label"] for row in found["results"]] == ["new", "new"]


def test_the_words_that_label_gives_for_masks_have_a_limit(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.inference_form.MOST_WORDS_OF_LABEL", 100)
    many = [{**HEADS[1], "name": "many", "top_k": 10}]
    web = TestClient(app_of(models, [], heads=[*HEADS, *many]), raise_server_exceptions=False)

    def ask(n_masks: int, *heads: str) -> tuple[int, str]:
        answer = web.post("/label", json={"texts": ["<mask> a " * (n_masks - 1), "<mask>"], "heads": heads})
        return answer.status_code, answer.json().get("error", "")

    monkeypatch.setitem(ROWS, "many", ROWS["words"])
    assert [ask(20, "words", "words")[0], ask(10, "many")[0], ask(50, "spam")[0]] == [200, 200, 200]
    assert ask(11, "many") == (
        422,
        "texts: the answer may have 110 words for their masks, above the limit of 100: give fewer texts or masks",
    )
    assert [ask(21, "words")[0], ask(7, "many", "words")[0]] == [422, 422]


@pytest.mark.parametrize(("path", "field"), [("/spam", "inputs"), ("/choices", "inputs"), ("/label", "texts")])
def test_too_many_texts_are_refused_before_anything_is_made_of_each(
    models: Models, monkeypatch: pytest.MonkeyPatch, path: str, field: str
) -> None:
    web = TestClient(app_of(models, [], max_texts=4), raise_server_exceptions=False)
    monkeypatch.setattr("pipelines.web.records_of", None)
    monkeypatch.setattr("pipelines.web._check_size", None)
    answer = web.post(path, json={field: [""] * 5})
    assert (answer.status_code, answer.json()) == (413, {"error": "5 texts are above the limit of 4 (max_texts)"})


def test_label_without_a_head_that_reads_texts_is_refused(models: Models) -> None:
    web = TestClient(app_of(models, [], heads=HEADS[3:]), raise_server_exceptions=False)
    response = web.post("/label", json={"texts": ["a"]})
    assert (response.status_code, response.json()) == (
        422,
        {"error": "heads: none reads any text; ask one of /choices"},
    )
    assert models.asked == []


@pytest.mark.parametrize(
    ("records", "status", "message"),
    [
        ([{"text": "a", "choices": [""] * 5}], 413, "5 texts are above the limit of 4 (max_texts)"),
        ([{"text": "a", "choices": ["", ""]}] * 2 + [{"text": "a", "choices": []}], 413, "5 texts are above the limit"),
        (
            [{"text": "a" * 10, "choices": ["b"] * 3}],
            422,
            "text of record 0 has 30 characters, all choices together, above the limit of 20 (max_characters)",
        ),
        ([{"text": "a" * 10, "choices": ["b"] * 2}], 200, ""),
    ],
)
def test_choices_count_and_each_has_the_whole_prompt(
    models: Models, records: list[dict[str, Any]], status: int, message: str
) -> None:
    web = TestClient(app_of(models, [], max_texts=4, max_characters=20), raise_server_exceptions=False)
    response = web.post("/choices", json={"inputs": records})
    assert (response.status_code, message in response.text) == (status, True)


def test_a_client_that_goes_while_it_sends_asks_nothing(models: Models, seen: list[tuple[str, int]]) -> None:
    async def go() -> None:
        sender = Sender(chunk(b"{"), {"type": "http.disconnect"})
        with pytest.raises(asyncio.CancelledError):
            await sender.ask(app_of(models, seen, timeout_s=30))
        assert sender.status is None

    asyncio.run(go())
    assert models.asked == []
    assert seen == [("/spam", 499)]


@pytest.mark.parametrize(("tokens", "status"), [("", 408), ("a", 401)])
def test_a_body_that_does_not_come_in_time_is_given_up(
    models: Models, seen: list[tuple[str, int]], tokens: str, status: int
) -> None:
    sender = Sender(chunk(b"{"))
    asyncio.run(sender.ask(app_of(models, seen, tokens=tokens)))
    assert sender.status == status
    assert (sender.headers.get(b"connection") == b"close") == (status == 408)
    assert seen == [("/spam", status)]


@pytest.mark.parametrize(("tokens", "status", "n_read"), [("a", 401, 3), ("", 413, 6)])
def test_of_a_stranger_s_body_no_more_is_read_than_of_a_good_one(
    models: Models, monkeypatch: pytest.MonkeyPatch, tokens: str, status: int, n_read: int
) -> None:
    """Of a client's that is too large, more, so that it gets to reading why."""
    monkeypatch.setattr("pipelines.web.MOST_DRAINED_BYTES", 30)
    sender = Sender(*[chunk(b"x" * 10) for _ in range(20)])
    asyncio.run(sender.ask(app_of(models, [], tokens=tokens, max_body_bytes=25, timeout_s=30)))
    assert (sender.status, sender.n_read) == (status, n_read)


def test_a_body_that_is_too_large_and_slow_is_too_large(models: Models, seen: list[tuple[str, int]]) -> None:
    """Many clients send it once more where it was slow only."""
    sender = Sender(chunk(b"x" * 26))
    asyncio.run(sender.ask(app_of(models, seen, max_body_bytes=25)))
    assert (sender.status, sender.headers[b"connection"]) == (413, b"close")
    assert seen == [("/spam", 413)]


@pytest.mark.parametrize("path", ["/", "/health", "/ready"])
def test_a_stranger_s_body_is_dropped_where_nobody_needs_a_token(models: Models, path: str) -> None:
    sender = Sender(*[chunk(b"x" * 10) for _ in range(20)])
    asyncio.run(sender.ask(app_of(models, [], tokens="a", max_body_bytes=25, timeout_s=30), path, method="GET"))
    assert (sender.status, sender.n_read) == (200, 3)


@pytest.mark.parametrize(("token", "kept"), [(b"a", b"xy"), (b"b", b"")])
def test_only_a_known_client_s_body_is_kept(token: bytes, kept: bytes) -> None:
    bodies = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])

    limits = {"max_body_bytes": 25, "timeout_s": 30, "token_digests": digests("a"), "hosts": ()}
    gate = Gate(app, observe=lambda path, status, seconds: None, **limits)
    headers = [(b"authorization", b"Bearer " + token)]
    asyncio.run(Sender(chunk(b"x"), chunk(b"y", more=False)).ask(gate, "/health", headers=headers))
    assert bodies == [kept]


@pytest.mark.parametrize("scheme", ["Basic", "", "bearer"])
def test_a_token_counts_as_a_bearer_s_only(models: Models, scheme: str) -> None:
    web = TestClient(app_of(models, [], tokens="a"))
    response = web.get("/info", headers={"Authorization": f"{scheme} a".strip()})
    assert response.status_code == (200 if scheme == "bearer" else 401)


def test_under_a_prefix_paths_are_the_same(models: Models, seen: list[tuple[str, int]]) -> None:
    """Serve leaves the application's route_prefix in the path."""
    app = app_of(models, seen, tokens="a")
    for path, status in (("/health", 200), ("/info", 401), ("", 307)):
        sender = Sender(chunk(b"", more=False))
        asyncio.run(sender.ask(app, f"/nlp{path}", root_path="/nlp", method="GET"))
        assert sender.status == status, path
    assert seen == [("/health", 200), ("/info", 401), ("/", 307)]


@pytest.mark.parametrize("prefix", ["", "/nlp"])
def test_a_slash_too_many_leads_to_the_path_whatever_a_proxy_calls_the_service(models: Models, prefix: str) -> None:
    """A whole URL would lead a client that came by HTTPS to send its text once more, by HTTP."""
    web = TestClient(app_of(models, []), base_url="https://testserver", root_path=prefix)
    for path, place in (("/spam/", "../spam"), ("/label/", "../label"), ("/nobody/", None), ("/spam//", None)):
        answer = web.post(f"{prefix}{path}", json={"inputs": "a"}, follow_redirects=False)
        assert (answer.status_code, answer.headers.get("Location")) == (307 if place else 404, place)
    moved = web.post(f"{prefix}/spam/", json={"inputs": "a"})
    assert (moved.status_code, moved.url) == (200, f"https://testserver{prefix}/spam")


def test_a_bare_prefix_leads_to_the_page(models: Models) -> None:
    web = TestClient(app_of(models, []), base_url="https://testserver", root_path="/a/nlp")
    assert web.get("/a/nlp", follow_redirects=False).headers["Location"] == "nlp/"
    page = web.get("/a/nlp")
    assert (page.text, page.url) == ("<p>hello", "https://testserver/a/nlp/")


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/info", "/docs", "/openapi.json"])
def test_whoever_asks_for_the_head_of_an_answer_gets_it(web: TestClient, path: str) -> None:
    """Load balancers and monitors ask so after health."""
    head, whole = web.head(path), web.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert dict(head.headers) == dict(whole.headers)


def test_a_wrong_method_is_told_the_right_one(web: TestClient) -> None:
    for method, path, right in (("GET", "/spam", "POST"), ("HEAD", "/label", "POST"), ("DELETE", "/health", "GET")):
        answer = web.request(method, path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, right)
        assert method == "HEAD" or answer.json() == {"error": f"this path takes {right}"}


def test_every_answer_says_what_browsers_may_not_do_with_it(web: TestClient) -> None:
    for path in ("/health", "/nobody"):
        headers = web.get(path).headers
        assert {name: headers.get(name) for name in ("X-Content-Type-Options", "Referrer-Policy", "Cache-Control")} == {
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }


def test_keys_that_are_no_text_are_refused(web: TestClient) -> None:
    for body in (b'{"texts": ["a"], "\\ud800": 1}', b'{"texts": ["a"], "heads": ["\\ud800"]}'):
        assert web.post("/label", content=body, headers={"Content-Type": "application/json"}).status_code == 422
    for rest in (b'"\\ud800": 1', b'"parameters": {"\\ud800": 1}', b'"parameters": {"function_to_apply": "\\ud800"}'):
        body = b'{"inputs": "a", ' + rest + b"}"
        assert web.post("/spam", content=body, headers={"Content-Type": "application/json"}).status_code == 422


def test_a_form_of_another_site_is_refused(web: TestClient, models: Models) -> None:
    """Browsers send text/plain to any site without asking it."""
    body = json.dumps({"inputs": "a"}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", ""):
        answer = web.post("/spam", content=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()) == (
            422,
            {"error": "say what the body is: Content-Type: application/json"},
        )
    assert models.asked == []


@pytest.mark.parametrize("kind", ["Application/JSON ; charset=utf-8", "application/vnd.api+json"])
def test_json_by_any_of_its_names_is_taken(web: TestClient, kind: str) -> None:
    answer = web.post("/spam", content=b'{"inputs": "a"}', headers={"Content-Type": kind, "Content-Encoding": " "})
    assert answer.status_code == 200


def test_a_body_that_cannot_be_read_is_told_why(web: TestClient) -> None:
    for body in (
        '{"inputs": "é"}'.encode("latin-1"),
        b'{"inputs": ' + b"[" * 100_000,
        b'{"inputs": ' + b"9" * 5000 + b"}",
    ):
        answer = web.post("/spam", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("the body is not JSON")


def test_a_body_that_is_compressed_is_told_so(web: TestClient) -> None:
    body = gzip.compress(b'{"inputs": "a"}')
    answer = web.post("/spam", content=body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"})
    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "identity")
    assert answer.json() == {"error": "send the body as it is, without Content-Encoding: none is read here"}
    assert web.post("/spam", json={"inputs": "a"}, headers={"Content-Encoding": "Identity"}).status_code == 200


@pytest.mark.parametrize("path", ["/spam", "/label"])
def test_a_body_that_is_no_object_is_told_so(web: TestClient, path: str) -> None:
    for body in (b"null", b"[]", b'"inputs"', b"1", b"true"):
        answer = web.post(path, content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()) == (422, {"error": "the body is no JSON object: give {…}"})
    answer = web.post(path, content=b"", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()) == (400, {"error": "the body is not JSON"})


def test_a_body_of_nothing_but_faults_costs_no_more_than_one(models: Models) -> None:
    """pydantic makes an error of each, and FastAPI a mapping, which took seconds and a gigabyte."""
    for body in (
        {"texts": [1] * 9999},
        {"texts": ["a"], "heads": [1] * 9999},
        {"texts": ["a"], **dict.fromkeys(map(str, range(9999)))},
    ):
        with pytest.raises(ValidationError) as error:
            LabelRequest.model_validate(body)
        assert error.value.error_count() == 1
    with pytest.raises(RefusedError, match="'0' is not one for"):
        settings_from("text-classification", dict.fromkeys(map(str, range(9999)), 1), [{"text": "a"}])


def test_past_the_framework_a_request_is_answered_as_by_it(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers() -> list[tuple[int, Any, str | None]]:
        web = TestClient(app_of(models, [], max_texts=3), raise_server_exceptions=False)
        found = []
        for path, body in (
            *(("/spam", {"inputs": text}) for text in ("a", ["a"], "busy", "broken", "slow", "unknown setting", 1)),
            *(("/label", {"texts": texts}) for texts in (["a"], ["a"] * 4, [], "a", ["broken"])),
            ("/nobody", {}),
            ("/spam/", {"inputs": "a"}),
        ):
            answer = web.post(path, json=body)
            found.append((answer.status_code, answer.json(), answer.headers.get("Retry-After")))
        found += [(web.request(method, "/spam").status_code, None, None) for method in ("GET", "PUT", "OPTIONS")]
        with pytest.raises(RuntimeError, match="secret"):  # for the server's log
            TestClient(app_of(models, [])).post("/spam", json={"inputs": "broken"})
        return found

    past = answers()
    monkeypatch.setattr("pipelines.web.Shortcut", lambda app, posts, respond: app)
    assert past == answers()
    assert {status for status, _, _ in past} == {200, 404, 405, 413, 422, 500, 503, 504}


def test_a_selection_of_no_heads_is_none(web: TestClient, models: Models) -> None:
    answer = web.post("/label", json={"texts": ["a"], "heads": []})
    assert (answer.status_code, models.asked) == (422, [])
    assert answer.json()["error"].startswith("heads: List should have at least 1 item")


def test_ready_waits_for_the_models(web: TestClient, models: Models) -> None:
    models.is_ready = False
    assert (web.get("/ready").status_code, web.get("/health").status_code) == (503, 200)


def test_the_page_comes_under_its_policy(web: TestClient) -> None:
    page = web.get("/")
    assert (page.text, page.headers["Content-Security-Policy"]) == ("<p>hello", "default-src 'none'")


def test_digests_are_of_each_token() -> None:
    assert digests("") == digests(" , ") == ()
    assert digests("a, b") == (*digests("a"), *digests("b"))


def test_limits_are_taken_to_the_last(models: Models) -> None:
    limits = {"max_texts": 3, "max_characters": 5, "max_body_bytes": 40}
    web = TestClient(app_of(models, [], **limits), raise_server_exceptions=False)

    def ask(inputs, n_bytes=0):
        body = json.dumps({"inputs": inputs}).encode()
        return web.post("/spam", content=body.ljust(n_bytes), headers={"Content-Type": "application/json"}).status_code

    assert [ask(["a"] * n) for n in (3, 4)] == [200, 413]
    assert [ask("a" * n) for n in (5, 6)] == [200, 422]
    assert [ask("a", n) for n in (40, 41)] == [200, 413]


def test_which_of_several_inputs_failed_is_told(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    web = TestClient(app_of(models, []), raise_server_exceptions=False)

    async def answer(request: Request) -> Answer:
        return Answer(
            tuple({"error": "no" if r["text"] == "b" else None, "spam": ROWS["spam"]} for r in request.records)
        )

    monkeypatch.setattr(models, "answer", answer)
    assert web.post("/spam", json={"inputs": ["a", "b"]}).json() == {"error": "inputs[1]: no"}
    assert web.post("/spam", json={"inputs": "b"}).json() == {"error": "no"}


def test_either_of_several_tokens_is_good(models: Models) -> None:
    web = TestClient(app_of(models, [], tokens="a, b"))
    assert [web.get("/info", headers={"Authorization": f"Bearer {t}"}).status_code for t in "abc"] == [200, 200, 401]


def test_a_head_that_is_asked_twice_is_run_once(models: Models) -> None:
    web = TestClient(app_of(models, []))
    web.post("/label", json={"texts": ["a"], "heads": ["spam", "names", "spam"]})
    assert models.asked[0].heads == (("names", ()), ("spam", ()))


def test_the_models_are_told_what_their_answers_are_read_as(models: Models) -> None:
    web = TestClient(app_of(models, []))
    web.post("/names", json={"inputs": "a"})
    web.post("/label", json={"texts": ["a"], "heads": ["spam", "names"]})
    names, spam = ("names", "token-classification"), ("spam", "text-classification")
    assert [request.tasks for request in models.asked] == [(names,), (names, spam)]

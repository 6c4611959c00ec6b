"""One service on the tests' cluster, over HTTP."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import ray
import requests
from ray import serve
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from pipelines import serving
from pipelines.serve_spec import ServeSpec
from tests.browser import chromium, needs_chromium
from tests.conftest import save_checkpoint, with_labels
from tests.metrics import scraped
from tests.oracle import answer, classify, embed, fill, tag
from tests.pipelines.labelling import job, label

TOKEN, OTHER_TOKEN = "first-token", "second-token"
MAX_BODY_BYTES, MAX_TEXTS, MAX_CHARACTERS = 50_000, 16, 2_000
TEXTS = ["free mail now!", "the offer", "x 12", "offering mail . now", "zebra , the mail"]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Serve's open sockets


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("serving")
    labels = with_labels("O", "B-PER", "I-PER")
    return {
        "spam": save_checkpoint(folder / "spam", **with_labels("ham", "spam")),
        "names": save_checkpoint(folder / "names", architecture="ConvBertForTokenClassification", **labels),
        "words": save_checkpoint(folder / "words", architecture="ConvBertForMaskedLM"),
        "answers": save_checkpoint(folder / "answers", architecture="ConvBertForQuestionAnswering"),
        "choices": save_checkpoint(folder / "choices", architecture="ConvBertForMultipleChoice"),
    }


@pytest.fixture(scope="module")
def spec(checkpoints: dict[str, Path]) -> ServeSpec:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ServeSpec.of(
        {
            "head": {name: str(folder) for name, folder in checkpoints.items()},
            "embed": {"vectors": str(checkpoints["spam"])},
            "port": port,
            "replica_cpus": 0,
            "min_replicas": 2,
            "max_replicas": 2,
            "threads": 1,
            "max_body_bytes": MAX_BODY_BYTES,
            "max_texts": MAX_TEXTS,
            "max_characters": MAX_CHARACTERS,
        }
    )


@pytest.fixture(scope="module")
def url(ray_cluster: None, spec: ServeSpec) -> Iterator[str]:
    os.environ[serving.TOKENS] = f"{TOKEN}, {OTHER_TOKEN}"
    try:
        yield serving.start(spec)
    finally:
        del os.environ[serving.TOKENS]
        serve.shutdown()


def headers(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}


def post(url: str, path: str, body: Any, token: str = TOKEN) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(f"{url}/{path}", data=data, headers=headers(token), timeout=60)


@pytest.fixture(autouse=True)
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' environment forbids Hugging Face's client any request."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def client(url: str, head: str) -> huggingface_hub.InferenceClient:
    return huggingface_hub.InferenceClient(model=f"{url}/{head}", token=OTHER_TOKEN)


# --- Hugging Face's client ----------------------------------------------------------------------------


def test_text_classification(url: str, checkpoints: dict[str, Path]) -> None:
    (expected,) = classify(checkpoints["spam"], ["free mail"])
    found = client(url, "spam").text_classification("free mail")
    assert {one.label: one.score for one in found} == pytest.approx(
        dict(zip(["ham", "spam"], expected["scores"], strict=True)), abs=1e-4
    )
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    (best,) = client(url, "spam").text_classification("free mail", top_k=1)
    assert best.label == expected["label"]
    raw = client(url, "spam").text_classification("free mail", function_to_apply="none")
    powers = np.exp([one.score for one in raw])
    assert (powers / powers.sum()).tolist() == pytest.approx(sorted(expected["scores"], reverse=True), abs=1e-4)


@pytest.mark.parametrize("strategy", ["none", "simple", "average"])
def test_token_classification(url: str, checkpoints: dict[str, Path], strategy: str) -> None:
    (expected,) = tag(checkpoints["names"], ["the free zebra , now"], aggregation=strategy)
    found = client(url, "names").token_classification("the free zebra , now", aggregation_strategy=strategy)
    assert [(one.entity_group or one.entity, one.start, one.end, one.word) for one in found] == [
        (one["label"], one["start"], one["end"], one["text"]) for one in expected
    ]
    assert [one.score for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-4)


def test_question_answering(url: str, checkpoints: dict[str, Path]) -> None:
    context = "free mail , the offer now !"
    (expected,) = answer(checkpoints["answers"], ["the mail"], [context], max_length=128, stride=64)
    found = client(url, "answers").question_answering(question="the mail", context=context, top_k=2)
    alone = client(url, "answers").question_answering(question="the mail", context=context)
    assert len(found) == 2
    for best in (found[0], alone):
        assert (best.answer, best.start, best.end) == (expected["answer"], expected["start"], expected["end"])
        assert best.score == pytest.approx(expected["score"], abs=1e-4)


def test_fill_mask(url: str, checkpoints: dict[str, Path]) -> None:
    ((expected,),) = fill(checkpoints["words"], ["the [MASK] now"], top_k=3)
    found = client(url, "words").fill_mask("the [MASK] now", top_k=3)
    assert [(one.token, one.token_str) for one in found] == [(one["id"], one["token"]) for one in expected]
    assert found[0].sequence == f"the {expected[0]['token']} now"
    both = post(url, "words", {"inputs": "[MASK] mail [MASK]"}).json()
    assert [len(words) for words in both] == [5, 5]
    assert both[1][0]["sequence"].startswith("[MASK] mail ")


def test_feature_extraction(url: str, checkpoints: dict[str, Path]) -> None:
    (expected,) = embed(checkpoints["spam"], ["free mail"])
    mean = expected.mean(0).numpy()
    np.testing.assert_allclose(client(url, "vectors").feature_extraction("free mail"), [mean], atol=1e-4)
    normal = client(url, "vectors").feature_extraction("free mail", normalize=True)
    np.testing.assert_allclose(normal, [mean / np.linalg.norm(mean)], atol=1e-4)


def test_a_refusal_reaches_the_client_with_its_reason(url: str) -> None:
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="the text has no \\[MASK\\]"):
        client(url, "words").fill_mask("the mail")


# --- the service's own routes -------------------------------------------------------------------------


def test_many_texts_and_heads_come_out_as_the_job_writes_them(url: str, checkpoints: dict[str, Path]) -> None:
    expected = label(job(head={name: str(checkpoints[name]) for name in ("spam", "names")}), text=TEXTS)
    found = post(url, "label", {"texts": TEXTS, "heads": ["spam", "names"]}).json()["results"]
    for row, other in zip(found, expected.select(["error", "spam", "names"]).to_pylist(), strict=True):
        assert row["spam"]["label"] == other["spam"]["label"]
        assert row["spam"]["scores"] == pytest.approx(other["spam"]["scores"], abs=1e-5)
        assert [one["text"] for one in row["names"]["entities"]] == [one["text"] for one in other["names"]["entities"]]
    nested = post(url, "spam", {"inputs": TEXTS}).json()
    assert [one[0]["label"] for one in nested] == [row["spam"]["label"] for row in found]
    assert set(post(url, "label", {"texts": ["mail"]}).json()["results"][0]) == {"error", "names", "spam", "vectors"}


def test_choices_and_pairs(url: str) -> None:
    found = post(url, "choices", {"inputs": {"text": "the", "choices": ["mail", "offer now", "x"]}}).json()
    assert len(found["scores"]) == 3
    assert found["index"] == int(np.argmax(found["scores"]))
    pair = post(url, "spam", {"inputs": {"text": "the", "text_pair": "mail"}}).json()
    assert {one["label"] for one in pair[0]} == {"ham", "spam"}


def test_what_the_service_tells_of_itself(url: str) -> None:
    assert requests.get(f"{url}/health", timeout=60).json() == {"status": "ok"}
    assert requests.get(f"{url}/ready", timeout=60).json() == {"status": "ready"}
    info = requests.get(f"{url}/info", headers=headers(), timeout=60).json()
    assert [head["name"] for head in info["heads"]] == ["spam", "names", "words", "answers", "choices", "vectors"]
    assert info["heads"][0]["labels"] == ["ham", "spam"]
    assert len(info["heads"][0]["fingerprint"]) == 64
    assert info["limits"]["max_texts"] == MAX_TEXTS
    schema = requests.get(f"{url}/openapi.json", headers=headers(), timeout=60).json()
    assert {"/spam", "/label", "/health", "/ready", "/info"} <= set(schema["paths"])
    docs = requests.get(f"{url}/docs", headers=headers(), timeout=60)
    assert docs.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "http" not in docs.text  # no outside asset
    assert "POST /spam" in docs.text


# --- limits -------------------------------------------------------------------------------------------

SECRET = "xyzzy"
REFUSED: dict[str, tuple[str, Any, int, str]] = {
    "not JSON": ("spam", b'{"inputs": "xyzzy', 400, "the body is not JSON"),
    "deep": ("spam", b"[" * 40_000, 400, ""),
    "not UTF-8": ("spam", b'{"inputs": "\xff xyzzy"}', 400, ""),
    "a list": ("spam", [SECRET], 422, ""),
    "no inputs": ("spam", {"text": SECRET}, 422, "inputs: Field required"),
    "a number": ("spam", {"inputs": 5}, 422, "inputs: give a string or {text, text_pair}"),
    "none": ("spam", {"inputs": []}, 422, "inputs is empty"),
    "mixed": ("spam", {"inputs": [SECRET, {"text": "a", "text_pair": "b"}]}, 422, "either pairs or texts"),
    "surrogate": ("spam", b'{"inputs": "\\ud800 xyzzy"}', 422, "half of a surrogate pair"),
    "parameter": ("spam", {"inputs": SECRET, "parameters": {"foo": 1}}, 422, "'foo' is not one for text-classif"),
    "value": ("spam", {"inputs": SECRET, "parameters": {"top_k": SECRET}}, 422, "parameters: top_k: Input should be"),
    "stride": (
        "answers",
        {"inputs": {"question": "a", "context": SECRET}, "parameters": {"doc_stride": 500}},
        422,
        "s",
    ),
    "question": ("answers", {"inputs": {"question": " ", "context": SECRET}}, 422, "question is empty"),
    "head": ("nobody", {"inputs": SECRET}, 404, "the heads are /spam, /names"),
    "label's head": ("label", {"texts": [SECRET], "heads": ["answers"]}, 422, "'answers' is not one of spam"),
    "label's texts": ("label", {"texts": SECRET}, 422, "texts: Input should be a valid list"),
    "body": ("spam", b" " * (MAX_BODY_BYTES + 1), 413, "above the limit of 50,000 bytes (max_body_bytes)"),
    "huge body": ("spam", b"x" * 3_000_000, 413, "max_body_bytes"),
    "texts": ("spam", {"inputs": [SECRET] * 17}, 413, "17 texts are above the limit of 16 (max_texts)"),
    "characters": (
        "spam",
        {"inputs": SECRET * 500},
        422,
        "2,500 characters, above the limit of 2,000 (max_characters)",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_a_bad_request_is_refused_with_a_reason_and_without_its_text(url: str, case: str) -> None:
    path, body, status, message = REFUSED[case]
    response = post(url, path, body)
    assert response.status_code == status
    assert message in response.json()["error"]
    assert SECRET not in response.text


@pytest.mark.parametrize("token", ["", "first-toke", "first-token, second-token", "FIRST-TOKEN"])
def test_without_a_token_only_health_answers(url: str, token: str) -> None:
    for path in ("spam", "label", "info", "docs", "openapi.json", "nobody"):
        response = post(url, path, {"inputs": "mail"}, token)
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert requests.get(f"{url}/health", timeout=60).status_code == 200


def test_either_token_is_good(url: str) -> None:
    assert post(url, "spam", {"inputs": "mail"}, TOKEN).status_code == 200
    assert post(url, "spam", {"inputs": "mail"}, OTHER_TOKEN).status_code == 200


# --- everything at once -------------------------------------------------------------------------------

N_REQUESTS = int(os.environ.get("CONVBERT_MIXED_REQUESTS", "300"))  # 2,000 by hand


def disconnect(url: str, text: str) -> None:
    """Ask, and go away without the answer."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"inputs": text}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = (
            f"POST /spam HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer {TOKEN}\r\n"
        )
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)


def test_mixed_requests_while_a_replica_is_killed(url: str) -> None:
    """No 500, no wrong answer; who is refused is told why."""
    expected = {text: post(url, "spam", {"inputs": text}).json() for text in TEXTS}
    bad = list(REFUSED)
    n_done = 0
    lock = threading.Lock()

    def one(number: int) -> tuple[str, int, bool]:
        nonlocal n_done
        rng = random.Random(number)
        kind = rng.choices(["good", "bad", "stranger", "gone"], [6, 2, 1, 1])[0]
        with lock:
            n_done += 1
        text = rng.choice(TEXTS)
        if kind == "bad":
            path, body, status, _ = REFUSED[rng.choice(bad)]
            response = post(url, path, body)
            return kind, response.status_code, response.status_code == status
        if kind == "stranger":
            return kind, (status := post(url, "spam", {"inputs": text}, "nobody").status_code), status == 401
        if kind == "gone":
            disconnect(url, text)
            return kind, 0, True
        response = post(url, "spam", {"inputs": text})
        scores = {row["label"]: row["score"] for row in response.json()[0]} if response.ok else {}
        wanted = {row["label"]: row["score"] for row in expected[text][0]}
        return kind, response.status_code, scores == pytest.approx(wanted, abs=1e-5)

    def kill() -> None:
        while n_done < N_REQUESTS // 3:
            time.sleep(0.001)
        killed.append(kill_a_replica())

    killed: list[str] = []
    killer = threading.Thread(target=kill)
    killer.start()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(N_REQUESTS)))
    killer.join()
    assert len(killed) == 1
    assert [result for result in results if result[1] >= 500] == []
    assert [result for result in results if not result[2]] == []
    assert {kind for kind, _, _ in results} == {"good", "bad", "stranger", "gone"}


def kill_a_replica() -> str:
    """End the process of one of the model's replicas."""
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if "#Model#" in actor["name"]]
    ray.kill(ray.get_actor(names[0], namespace="serve"))
    return names[0]


@pytest.mark.slow
@needs_chromium
def test_the_page_shows_what_the_service_answers(url: str) -> None:
    """In a real browser, with a token typed in: every head that the page offers, asked by hand."""
    with chromium() as browser:

        def all_of(selector: str) -> list[Any]:
            return browser.find_elements(By.CSS_SELECTOR, selector)

        def run() -> None:
            all_of("button[type=submit]")[0].click()
            WebDriverWait(browser, 20).until(lambda _: all_of("#result[aria-busy=false] > *"))

        browser.get(url)
        WebDriverWait(browser, 20).until(lambda _: all_of("#token")[0].is_displayed())
        all_of("#token")[0].send_keys(TOKEN, Keys.ENTER)
        WebDriverWait(browser, 20).until(lambda _: all_of("#head option"))
        shown = {}
        for option in all_of("#head option"):
            option.click()
            name = option.text.split()[0]
            text = "the [MASK] now" if name == "words" else "free mail"
            browser.execute_script("document.getElementById('text').value = arguments[0]", text)
            browser.execute_script("document.getElementById('question').value = 'the mail'")
            run()
            assert [error.text for error in all_of(".error")] == [], name
            shown[name] = all_of("#result")[0].text
    assert list(shown) == ["spam", "names", "words", "answers", "vectors"]
    best = max(post(url, "spam", {"inputs": "free mail"}).json()[0], key=lambda row: row["score"])
    assert f"{best['label']}\n{100 * best['score']:.1f} %" in shown["spam"]
    for row in post(url, "words", {"inputs": "the [MASK] now"}).json():
        assert row["token_str"] in shown["words"]


@pytest.mark.slow
def test_new_weights_are_rolled_out_without_a_failed_request(url: str, spec: ServeSpec, tmp_path: Path) -> None:
    """Every answer on the way is the old checkpoint's or the new one's."""
    text = TEXTS[0]
    other = save_checkpoint(tmp_path / "other", seed=9, **with_labels("ham", "spam"))
    old = post(url, "spam", {"inputs": text}).json()
    found: list[requests.Response] = []
    is_done = threading.Event()

    def ask() -> None:
        while not is_done.is_set():
            found.append(post(url, "spam", {"inputs": text}))

    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(ask) for _ in range(2)]
        try:
            serving.start(ServeSpec.of({**spec.model_dump(), "head": {**spec.head, "spam": str(other)}}))
        finally:
            is_done.set()
    assert [task.exception() for task in tasks] == [None, None]
    new = post(url, "spam", {"inputs": text}).json()
    assert new != old
    assert {response.status_code for response in found} == {200}
    known = [{row["label"]: row["score"] for row in rows[0]} for rows in (old, new)]
    scores = [{row["label"]: row["score"] for row in response.json()[0]} for response in found]
    assert [
        one for one in scores if one != pytest.approx(known[0], abs=1e-5) and one != pytest.approx(known[1], abs=1e-5)
    ] == []


def test_requests_are_on_rays_metrics_port(url: str) -> None:
    assert post(url, "spam", {"inputs": "free mail"}).status_code == 200
    assert post(url, "spam", b"{").status_code == 400
    names = {f"ray_convbert_{name}_total" for name in ("requests", "errors", "tokens")}
    names |= {f"ray_convbert_{name}_bucket" for name in ("latency_ms", "queue_ms", "batch_ms", "batch_tokens")}
    samples = scraped(names)
    assert names <= {sample.name for sample in samples}
    good = {"path": "/spam", "status": "200", "application": "convbert"}
    assert [s for s in samples if s.name == "ray_convbert_requests_total" and good.items() <= s.labels.items()]
    bad = {"path": "/spam", "kind": "malformed"}
    assert [s for s in samples if s.name == "ray_convbert_errors_total" and bad.items() <= s.labels.items()]

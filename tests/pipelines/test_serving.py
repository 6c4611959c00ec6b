"""One service on the tests' cluster, over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import huggingface_hub
import numpy as np
import pytest
import ray
import requests
from ray import serve
from ray.exceptions import ActorDiedError, ObjectReconstructionFailedError
from ray.serve.config import AutoscalingPolicy
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from pipelines import serving
from pipelines.batching import Batcher, Speed
from pipelines.errors import DeviceError, RunError, SpecError
from pipelines.online import Answer, OnlinePredictor, Request, plan_service
from pipelines.scaling import desired_replicas
from pipelines.serve_spec import ServeSpec
from pipelines.web import BusyError
from tests.browser import chromium, needs_chromium
from tests.conftest import save_checkpoint, with_labels
from tests.metrics import scraped
from tests.oracle import answer, classify, embed, fill, tag
from tests.pipelines.labelling import job, label
from tests.standing_cluster import free_ports

Result = TypeVar("Result")
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
    (port,) = free_ports(1)
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


# --- without Ray --------------------------------------------------------------------------------------

ASKED = Request(({"text": "a"},), (("spam", ()),))


class Handle:
    """The model deployment, whose calls end in turn as they are told to: an answer, None, or an error."""

    def __init__(self, *ends: Any) -> None:
        self.answer = self.ready = self
        self.options = lambda **_: self
        self.ends = list(ends)
        self.responses: list[Response] = []

    def remote(self, *_: Any) -> Response:
        self.responses.append(Response(self.ends[len(self.responses)]))
        return self.responses[-1]


class Response:
    def __init__(self, end: Any) -> None:
        self.end = end
        self.is_cancelled = False

    def __await__(self) -> Any:
        return self._result().__await__()

    async def _result(self) -> Any:
        if self.end == "never":
            await asyncio.sleep(3600)
        if isinstance(self.end, Exception):
            raise self.end
        return self.end

    def cancel(self) -> None:
        self.is_cancelled = True


def replicas(*ends: Any) -> tuple[serving.Replicas, Handle]:
    handle: Any = Handle(*ends)
    return serving.Replicas(handle), handle


DIED = ActorDiedError()
LOST = ObjectReconstructionFailedError("00", None, "here")  # an answer, with the node that it was on
UNAVAILABLE = DeploymentUnavailableError(serve._private.common.DeploymentID("Model"))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([None, None], "more waits already"),
        ([None, DIED], "no replica of the models is in working order"),
        ([BackPressureError(num_queued_requests=1, max_queued_requests=1)], "too many requests"),
        ([UNAVAILABLE, Answer()], "no replica of the models is in working order"),
        ([DIED, DIED, Answer()], "no replica of the models is in working order"),
    ],
)
def test_a_request_that_nobody_takes_is_one_too_many(ends: list[Any], message: str) -> None:
    backend, _ = replicas(*ends)
    with pytest.raises(BusyError, match=message):
        asyncio.run(backend.answer(ASKED))


@pytest.mark.parametrize("end", [DIED, LOST, None])
def test_a_request_whose_replica_dies_or_is_full_is_another_one_s(end: Any) -> None:
    backend, handle = replicas(end, Answer(n_tokens=3))
    assert asyncio.run(backend.answer(ASKED)) == Answer(n_tokens=3)
    assert len(handle.responses) == 2


def test_a_request_whose_client_has_gone_is_cancelled_at_its_replica() -> None:
    backend, handle = replicas("never")

    async def go() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(backend.answer(ASKED), 0.01)

    asyncio.run(go())
    assert handle.responses[0].is_cancelled


def test_the_service_is_ready_once_a_replica_has_been() -> None:
    backend, handle = replicas(DIED, True)
    assert [asyncio.run(backend.ready()) for _ in range(3)] == [False, True, True]
    assert len(handle.responses) == 2  # and nobody is asked again
    answered, handle = replicas(Answer(n_tokens=3))
    asyncio.run(answered.answer(ASKED))
    assert asyncio.run(answered.ready())
    assert len(handle.responses) == 1  # a second call would wake a replica that has gone meanwhile


@pytest.mark.parametrize(
    ("n_tokens", "parts"),
    [([4, 4], [2]), ([4, 6], [2]), ([4, 7], [1, 1]), ([4, 4, 4, 4, 4], [2, 2, 1]), ([50, 1, 9, 1], [1, 2, 1])],
)
def test_a_request_beyond_a_batch_goes_in_slices(n_tokens: list[int], parts: list[int]) -> None:
    request = Request(tuple({"text": str(place)} for place in range(len(n_tokens))), ASKED.heads)
    slices = serving.sliced(request, n_tokens, 10)
    assert [len(one.records) for one, _ in slices] == parts
    assert [record for one, _ in slices for record in one.records] == list(request.records)
    assert sum(n for _, n in slices) == sum(n_tokens)
    assert (slices[0][0] is request) == (len(slices) == 1)


def test_answers_of_slices_are_one() -> None:
    one, other = Answer(({"a": 1},), 3), Answer(({"a": 2},), 4)
    assert serving.joined([one]) is one
    assert serving.joined([one, other]) == Answer(({"a": 1}, {"a": 2}), 7)
    assert serving.joined([one, Answer(refusal="x"), Answer(refusal="y")]).refusal == "x"


def model_of(predictor: Any, run: Any = None, **limits: Any) -> serving.Model:
    """A replica without Serve; to be made in a running loop."""
    model = serving.Model.__new__(serving.Model)
    model._predictor = predictor
    model._refusal_s = serving.REFUSAL_S
    values = {"max_wait_s": 0.0, "max_queued_tokens": 10**6, **limits}
    model._batcher = Batcher(run or predictor, max_batch_tokens=predictor.max_batch_tokens, **values)
    return model


def test_a_request_in_slices_is_answered_as_in_one_piece(checkpoints: dict[str, Path]) -> None:
    heads = {"spam": str(checkpoints["spam"])}
    predictor = OnlinePredictor(plan_service(heads, {}), max_batch_tokens=20)
    request = Request(tuple({"text": text} for text in [*TEXTS, 5] * 4), ASKED.heads)
    batches: list[list[Request]] = []

    def run(requests: list[Request]) -> list[Answer]:
        batches.append(requests)
        return predictor(requests)

    async def go() -> tuple[Answer | None, Answer | None]:
        model = model_of(predictor, run)
        return await model.answer(request), await model.answer(Request(ASKED.records, (("spam", (("top_k", 0),)),)))

    answer, refused = asyncio.run(go())
    (whole,) = predictor([request])
    assert len(batches) > 3
    assert answer is not None
    assert answer.n_tokens == whole.n_tokens
    assert [row.get("error") for row in answer.rows] == [row.get("error") for row in whole.rows]
    scores = [[row["spam"]["scores"] for row in one.rows if not row.get("error")] for one in (answer, whole)]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert refused is not None
    assert str(refused.refusal).startswith("spam: top-k (0)")


def test_a_head_that_a_replica_does_not_have_yet_is_for_another(checkpoints: dict[str, Path]) -> None:
    """Where a new version has more heads, its web side is there before its models."""

    async def go() -> Answer | None:
        predictor = OnlinePredictor(plan_service({"spam": str(checkpoints["spam"])}, {}), max_batch_tokens=20)
        return await model_of(predictor).answer(Request(ASKED.records, (("nobody", ()),)))

    assert asyncio.run(go()) is None


class Stub:
    """A predictor for a replica's own affairs."""

    max_batch_tokens = 10

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.n_checks = 0

    def estimated_tokens(self, request: Request) -> list[int]:
        return [10] * len(request.records)

    def __call__(self, requests: list[Request]) -> list[Answer]:
        if self.error is not None:
            raise self.error
        return [Answer() for _ in requests]

    def check(self) -> None:
        self.n_checks += 1
        if self.error is not None:
            raise self.error


def test_a_full_queue_is_told_by_no_answer_and_not_at_once() -> None:
    async def go() -> list[Answer | None]:
        model = model_of(Stub(), max_queued_tokens=5)
        started = time.perf_counter()
        answers = await asyncio.gather(*(model.answer(ASKED) for _ in range(3)))
        assert time.perf_counter() - started >= serving.REFUSAL_S
        return answers

    assert asyncio.run(go()) == [Answer(), None, None]


@pytest.mark.parametrize(("n_records", "is_beside"), [(1, False), (100, True)])
def test_the_tokens_of_many_records_are_estimated_beside_the_event_loop(n_records: int, is_beside: bool) -> None:
    """256 long questions held all other requests of the replica up for half a second."""
    threads: list[int] = []

    class Noting(Stub):
        def estimated_tokens(self, request: Request) -> list[int]:
            threads.append(threading.get_ident())
            return super().estimated_tokens(request)

    request = Request(ASKED.records * n_records, ASKED.heads)
    assert asyncio.run(model_of(Noting(), max_queued_tokens=10_000).answer(request)) == Answer()
    assert (threads != [threading.get_ident()]) == is_beside


@pytest.mark.parametrize(("timeout_s", "seconds"), [(30, 0.2), (2, 0.2), (0.4, 0.04)])
def test_a_no_comes_before_the_time_is_up(timeout_s: float, seconds: float) -> None:
    assert serving.refusal_s(timeout_s) == pytest.approx(seconds)


def test_a_replica_says_no_as_fast_as_its_timeout_asks(checkpoints: dict[str, Path]) -> None:
    """Of the shortest timeouts two refusals took longer than the whole: what was refused got 504."""
    heads = {"spam": str(checkpoints["spam"])}
    spec = ServeSpec.of({"head": heads, "timeout_s": 0.3, "threads": 1})
    model = serving.Model(spec, plan_service(heads, {}), "cpu", "fp32")
    assert model._refusal_s * serving.MOST_TRIES < spec.timeout_s / 2


def test_a_request_that_no_replica_can_do_in_time_is_refused_for_good() -> None:
    async def go() -> Answer | None:
        model = model_of(Stub(), max_queued_s=30, speed=Speed(n_tokens=1, seconds=4))
        return await model.answer(ASKED)

    refused = asyncio.run(go())
    assert refused is not None
    assert refused.refusal == (
        "about 10 tokens take 40 s here, above the limit of 30 s (half of timeout_s): "
        "send fewer or shorter texts at a time"
    )


@pytest.mark.parametrize("tokens", ["", " , ", "\n"])
def test_tokens_that_are_none_open_no_service(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path], tokens: str
) -> None:
    monkeypatch.setenv(serving.TOKENS, tokens)
    with pytest.raises(SpecError, match="CONVBERT_TOKENS is set, but holds no token"):
        serving.build({"head": {"spam": str(checkpoints["spam"])}})


@pytest.mark.parametrize("tokens", ["one,two", None])
def test_a_service_that_anybody_may_ask_is_built_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path], tokens: str | None
) -> None:
    """`serve deploy` builds it on the cluster, where a variable of one's own shell is not."""
    told: list[str] = []
    monkeypatch.setattr(serving.logger, "warning", lambda message, *args: told.append(message % args))
    if tokens:
        monkeypatch.setenv(serving.TOKENS, tokens)
    serving.build({"head": {"spam": str(checkpoints["spam"])}})
    warning = "CONVBERT_TOKENS is not set where the service is built: whoever reaches its port may ask"
    assert told == ([warning] if tokens is None else [])


def test_replicas_are_added_for_requests_under_way_or_for_full_queues_and_kept_where_they_are_busy() -> None:
    def wanted(n_requests: float, fullness: list[float], n_replicas: int = 1, *, busy: tuple[float, ...] = ()) -> float:
        context = SimpleNamespace(
            current_num_replicas=n_replicas,
            target_num_replicas=1,
            total_num_requests=n_requests,
            config=SimpleNamespace(get_target_ongoing_requests=lambda: 32.0),
            aggregated_metrics={
                name: dict(enumerate(values)) for name, values in (("fullness", fullness), ("busy", busy)) if values
            },
        )
        return policy(context)[0]

    made = AutoscalingPolicy(policy_function=desired_replicas)
    policy = made.get_policy()
    assert "pipelines" not in [getattr(value, "__name__", "") for value in policy.__globals__.values()]
    assert wanted(0, [0.0]) == 0
    assert wanted(64, [0.1]) == 2
    assert wanted(22, [1.0]) == 2  # long ones: what fills a queue need not be many
    assert wanted(22, [0.5, 0.5], n_replicas=2) == 2
    assert wanted(16, []) == 0.5  # before a replica has told anything
    assert wanted(0, [], n_replicas=0) == 1
    assert wanted(3, [0.1], busy=(1.0,)) == 1  # busy, and yet in time
    assert 1 < wanted(3, [0.1, 0.1], n_replicas=2, busy=(0.5, 0.4)) <= 2  # one alone would be busy for 0.9
    assert wanted(3, [0.1, 0.1], n_replicas=2, busy=(0.4, 0.3)) < 1
    assert serving._scaling(ServeSpec.of({"head": {"spam": "-"}, "max_replicas": 2}))["autoscaling_config"]["policy"]


def test_a_replica_whose_device_is_lost_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class EndedError(Exception):
        pass

    def end(status: int) -> None:
        raise EndedError(status)

    async def go() -> None:
        await model_of(Stub(DeviceError("CUDA error"))).answer(ASKED)

    monkeypatch.setattr("pipelines.serving.os._exit", end)
    with pytest.raises(EndedError, match="1"):
        asyncio.run(go())


def test_a_health_check_runs_the_models() -> None:
    async def go(stub: Stub) -> None:
        await model_of(stub).check_health()

    asyncio.run(go(good := Stub()))
    assert good.n_checks == 1
    with pytest.raises(RuntimeError, match="lost"):
        asyncio.run(go(Stub(RuntimeError("lost"))))


def test_requests_are_noted_by_path_and_kind() -> None:
    noted: list[tuple[str, Any]] = []

    def metric(name: str) -> Any:
        note = lambda *_, tags: noted.append((name, tags))  # noqa: E731
        return SimpleNamespace(inc=note, observe=note)

    ingress: Any = SimpleNamespace(
        _paths={"/spam"}, _requests=metric("requests"), _latency_ms=metric("latency"), _errors=metric("errors")
    )
    for path, status in (("/spam", 200), ("/made/up", 404), ("/spam", 499), ("/spam", 500), ("/spam", 408)):
        serving.Ingress._observe(ingress, path, status, 0.5)
    assert [tags for name, tags in noted if name == "errors"] == [
        {"path": "other", "kind": "unknown_path"},
        {"path": "/spam", "kind": "gone"},
        {"path": "/spam", "kind": "internal"},
        {"path": "/spam", "kind": "slow_body"},
    ]
    assert [tags for name, tags in noted if name == "requests"][:2] == [
        {"path": "/spam", "status": "200"},
        {"path": "other", "status": "404"},
    ]


@pytest.fixture
def built(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any], str], Any]:
    """``built(settings, device)`` is the ingress of an application for a machine with that device."""

    def build(settings: dict[str, Any], device: str) -> Any:
        monkeypatch.setattr(serving, "choose_device", lambda _: device)
        return serving.build({"head": {"spam": str(checkpoints["spam"])}, **settings})._bound_deployment

    return build


@pytest.mark.parametrize(
    ("settings", "device", "cpus"),
    [
        ({}, "cpu", 1),
        ({"threads": 4}, "cpu", 4),
        ({"threads": 4}, "cuda", 0),
        ({"threads": 4, "replica_cpus": 0.5}, "cpu", 0.5),
        ({"replica_cpus": 2}, "cuda", 2),
    ],
)
def test_a_replica_reserves_its_threads_or_no_cpu_beside_a_gpu(
    built: Callable[[dict[str, Any], str], Any], settings: dict[str, Any], device: str, cpus: float
) -> None:
    (model,) = (arg for arg in built(settings, device).init_args if isinstance(arg, serve.Application))
    options = model._bound_deployment.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"]) == (cpus, int(device == "cuda"))


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [
        ({}, "cpu", 1),
        ({"max_replicas": 3}, "cpu", 2),
        ({}, "cuda", 4),
        ({"ingress_replicas": 3}, "cpu", 3),
        ({"ingress_replicas": 1}, "cuda", 1),
    ],
)
def test_a_gpus_replica_has_several_ingresses(
    built: Callable[[dict[str, Any], str], Any], settings: dict[str, Any], device: str, expected: int
) -> None:
    assert built(settings, device).num_replicas == expected


@pytest.mark.parametrize("percent", [0, 25])
def test_a_rollout_begins_with_new_replicas_where_there_is_room(
    built: Callable[[dict[str, Any], str], Any], percent: int
) -> None:
    ingress = built({"max_surge_percent": percent}, "cpu")
    (model,) = (arg for arg in ingress.init_args if isinstance(arg, serve.Application))
    assert model._bound_deployment._deployment_config.max_surge_percent == percent
    assert ingress._deployment_config.max_surge_percent == 100  # it reserves nothing


def test_an_ingress_that_stops_finishes_what_it_has(built: Callable[[dict[str, Any], str], Any]) -> None:
    """A body and then an answer may each take timeout_s."""
    assert built({"timeout_s": 7}, "cpu")._deployment_config.graceful_shutdown_timeout_s >= 14


class Started:
    """What ``start`` asks of Serve."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, listens: tuple[str, int] | None, fails: str = "") -> None:
        self.http_options: dict[str, Any] | None = None
        self.fails = fails
        client = listens and SimpleNamespace(http_config=SimpleNamespace(host=listens[0], port=listens[1]))
        monkeypatch.setattr(serving, "_get_global_client", lambda **_: client)
        monkeypatch.setattr(serving, "_application", lambda spec, tokens, **names: None)
        monkeypatch.setattr(serve, "start", lambda http_options: setattr(self, "http_options", http_options))
        monkeypatch.setattr(serve, "run", self.run)

    def run(self, *_: Any, **__: Any) -> None:
        if self.fails:
            raise RuntimeError(self.fails)


def spec_at(port: int) -> ServeSpec:
    return ServeSpec.of({"head": {"spam": "x"}, "port": port})


def test_serve_gives_up_later_than_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 408 has no word of why: a body and then an answer may each take timeout_s."""
    started = Started(monkeypatch, listens=None)
    (port,) = free_ports(1)
    assert serving.start(spec_at(port)) == f"http://127.0.0.1:{port}"
    assert started.http_options == {"host": "127.0.0.1", "port": port, "request_timeout_s": 70}


def test_an_address_of_ipv6_stands_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    Started(monkeypatch, listens=("::1", 9000))
    assert serving.start(spec_at(9000).model_copy(update={"host": "::1"})) == "http://[::1]:9000"


def test_a_port_that_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve itself would share it with another Serve, and clients would ask now one, now the other."""
    started = Started(monkeypatch, listens=None)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SpecError, match=rf"cannot listen at 127.0.0.1:{port} \(Address already in use\): give"):
            serving.start(spec_at(port))
    assert started.http_options is None


def test_a_port_of_haproxys_own_that_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Started(monkeypatch, listens=None)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    mine, free = free_ports(2)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_METRICS_PORT", str(free))
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", str(port))
        with pytest.raises(SpecError, match=rf"0.0.0.0:{port} \(.*\): give another RAY_SERVE_HAPROXY_STATS_PORT"):
            serving.start(spec_at(mine))


def test_replicas_that_this_machine_has_no_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Started(monkeypatch, listens=("127.0.0.1", 9000))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    fits = spec_at(9000).model_copy(update={"threads": 2, "device": "cpu"})
    serving.start(fits)
    with pytest.raises(SpecError, match="1 replicas of 8 CPUs: this machine has 2 CPUs: lower --threads"):
        serving.start(fits.model_copy(update={"threads": 8}))
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # which may grow
    serving.start(fits.model_copy(update={"threads": 8}))


def test_a_serve_that_listens_elsewhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Started(monkeypatch, listens=("127.0.0.1", 9000))
    with pytest.raises(SpecError, match="Ray Serve listens at 127.0.0.1:9000 on this cluster already: give its host"):
        serving.start(spec_at(8000))
    assert serving.start(spec_at(9000)) == "http://127.0.0.1:9000"


def test_what_serve_cannot_run_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    Started(
        monkeypatch,
        listens=("127.0.0.1", 9000),
        fails="\x1b[36mDeploying\x1b[39m failed:\n  Traceback\n  ModelError: no weights\n",
    )
    with pytest.raises(
        RunError, match="^Ray Serve cannot run the service: Deploying failed: … ModelError: no weights$"
    ):
        serving.start(spec_at(9000))


def test_who_gives_up_before_the_service_is_ready_leaves_none_on_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    Started(monkeypatch, listens=("127.0.0.1", 9000))
    deleted: list[str] = []
    monkeypatch.setattr(serve, "run", give_up)
    monkeypatch.setattr(serve, "delete", lambda name, *, _blocking: deleted.append(name))
    with pytest.raises(KeyboardInterrupt):
        serving.start(spec_at(9000))
    assert deleted == [serving.APPLICATION]


def test_the_wait_for_a_signal_ends_with_the_last_node(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([[{"Alive": True}, {"Alive": False}], [{"Alive": False}]])
    monkeypatch.setattr(serving, "WATCH_S", 0.001)
    monkeypatch.setattr(ray, "nodes", lambda: next(seen))
    with pytest.raises(RunError, match="Ray has died"):
        serving.watch(threading.Event())
    stopped = threading.Event()
    stopped.set()
    serving.watch(stopped)


def test_a_service_that_does_not_end_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(name: str) -> None:
        raise TimeoutError(f"Some of these applications weren't deleted after 60s: {[name]}")

    monkeypatch.setattr(serve, "delete", endless)
    monkeypatch.setattr(serving, "STOP_S", 0)
    with socket.create_server(("127.0.0.1", 0)) as gcs:
        port = gcs.getsockname()[1]
        context = SimpleNamespace(gcs_address=f"127.0.0.1:{port}")
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
        with pytest.raises(RunError, match="^Ray Serve does not end the service: Some of these applications weren't"):
            serving.stop()
    with pytest.raises(RunError, match="^Ray has ended at the same time: send SIGTERM to this process alone$"):
        serving.stop()


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
    cut = client(url, "vectors").feature_extraction("free mail", truncate=True, truncation_direction="right")
    np.testing.assert_allclose(cut, [mean], atol=1e-4)
    refused = post(url, "vectors", {"inputs": "free mail", "parameters": {"truncation_direction": "left"}})
    assert (refused.status_code, "cuts texts on the right" in refused.json()["error"]) == (422, True)


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
        "stride (500) leaves no room",
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


def test_heads_and_slashes_pass_serve_as_they_are(url: str) -> None:
    head = requests.head(f"{url}/health", timeout=60)
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", "15")
    moved = requests.post(f"{url}/spam/", json={"inputs": TEXTS[0]}, headers=headers(), timeout=60)
    assert (moved.status_code, moved.url) == (200, f"{url}/spam")
    assert moved.history[0].headers["Location"] == "../spam"


def test_either_token_is_good(url: str) -> None:
    assert post(url, "spam", {"inputs": "mail"}, TOKEN).status_code == 200
    assert post(url, "spam", {"inputs": "mail"}, OTHER_TOKEN).status_code == 200


# --- everything at once -------------------------------------------------------------------------------

N_REQUESTS = int(os.environ.get("CONVBERT_MIXED_REQUESTS", "300"))  # 2,000 in make soak


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


@contextmanager
def repeated(action: Callable[[], Result], *, threads: int = 1) -> Iterator[list[Result]]:
    """What an action gives that threads do again and again meanwhile; all that they raise is raised at the end."""
    found: list[Result] = []
    is_done = threading.Event()

    def repeat() -> None:
        while not is_done.is_set():
            found.append(action())

    with ThreadPoolExecutor(threads) as pool:
        tasks = [pool.submit(repeat) for _ in range(threads)]
        try:
            yield found
        finally:
            is_done.set()
    for task in tasks:
        task.result()


@pytest.mark.slow
def test_new_weights_are_rolled_out_without_a_failed_request(url: str, spec: ServeSpec, tmp_path: Path) -> None:
    """Every answer on the way is the old checkpoint's or the new one's."""
    text = TEXTS[0]
    other = save_checkpoint(tmp_path / "other", seed=9, **with_labels("ham", "spam"))
    old = post(url, "spam", {"inputs": text}).json()
    with repeated(lambda: post(url, "spam", {"inputs": text}), threads=2) as found:
        serving.start(ServeSpec.of({**spec.model_dump(), "head": {**spec.head, "spam": str(other)}}))
    new = post(url, "spam", {"inputs": text}).json()
    assert new != old
    assert {response.status_code for response in found} == {200}
    known = [{row["label"]: row["score"] for row in rows[0]} for rows in (old, new)]
    scores = [{row["label"]: row["score"] for row in response.json()[0]} for response in found]
    assert [
        one for one in scores if one != pytest.approx(known[0], abs=1e-5) and one != pytest.approx(known[1], abs=1e-5)
    ] == []


@pytest.mark.slow
def test_a_head_that_gets_another_task_is_told_to_try_again_at_worst(
    url: str, spec: ServeSpec, checkpoints: dict[str, Path]
) -> None:
    swapped = {**spec.head, "spam": str(checkpoints["names"]), "names": str(checkpoints["spam"])}
    serving.start(spec)  # where another test has left other weights
    before = [post(url, head, {"inputs": TEXTS[0]}).json() for head in ("spam", "names")]
    try:
        with repeated(lambda: post(url, "spam", {"inputs": TEXTS[0]}), threads=2) as found:
            serving.start(ServeSpec.of({**spec.model_dump(), "head": swapped}))
        after = [post(url, head, {"inputs": TEXTS[0]}).json() for head in ("spam", "names")]
        assert after == before[::-1]
    finally:
        serving.start(spec)
    assert {response.status_code for response in found} <= {200, 503}
    assert {response.headers["Retry-After"] for response in found if response.status_code == 503} <= {"1"}


@pytest.mark.slow
def test_a_single_replica_with_room_for_another_is_rolled_out_without_a_gap(
    url: str, spec: ServeSpec, tmp_path: Path
) -> None:
    single = ServeSpec.of({**spec.model_dump(), "min_replicas": 1, "max_replicas": 1, "max_surge_percent": 100})
    other = save_checkpoint(tmp_path / "other", seed=11, **with_labels("ham", "spam"))

    def running() -> dict[str, int]:
        """Replicas of each deployment; ``serve.status`` disturbs a start in another thread."""
        details = _get_global_client().get_serve_details()
        deployments = details["applications"][serving.APPLICATION]["deployments"]
        return {
            name: sum(replica["state"] == "RUNNING" for replica in its["replicas"]) for name, its in deployments.items()
        }

    try:
        serving.start(single)
        old = post(url, "spam", {"inputs": TEXTS[0]}).json()
        with repeated(lambda: post(url, "spam", {"inputs": TEXTS[0]})) as answers, repeated(running) as seen:
            serving.start(ServeSpec.of({**single.model_dump(), "head": {**spec.head, "spam": str(other)}}))
        assert post(url, "spam", {"inputs": TEXTS[0]}).json() != old
        assert {response.status_code for response in answers} == {200}
        assert {name for n_running in seen for name in n_running} == {"Model", "Ingress"}
        assert [n_running for n_running in seen if 0 in n_running.values()] == []
    finally:
        serving.start(spec)


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


@pytest.mark.slow
def test_serve_counts_the_replicas_there_too(url: str) -> None:
    """What the dashboard shows; a replica that another test has ended counts until Serve asks for its health."""
    name = "ray_serve_deployment_replica_healthy"
    up: Counter[str] = Counter()
    deadline = time.monotonic() + 60
    while up != {"Model": 2, "Ingress": 2} and time.monotonic() < deadline:
        up.clear()
        for sample in scraped({name}, prefix=name):
            if sample.labels["application"] == "convbert":
                up[sample.labels["deployment"]] += int(sample.value)
        time.sleep(0.3)
    assert up == {"Model": 2, "Ingress": 2}

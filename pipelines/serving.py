"""A ServeSpec in, a Ray Serve application out: an HTTP ingress, and apart from it replicas of the predictor.

serve run pipelines.serving:build head.spam=examples/spam/checkpoint
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayError
from ray.serve.context import _get_global_client  # no public way tells where Serve listens
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Histogram
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from pipelines.batching import Batcher, BatchStats, QueueFullError, Speed, TooLongError
from pipelines.errors import DeviceError, RunError, SpecError
from pipelines.manifest import OURS, version_of
from pipelines.models import EncoderPass, heads_of
from pipelines.online import Answer, OnlinePredictor, RefusedError, Request, UnknownHeadError, plan_service
from pipelines.page import PAGE, content_security_policy
from pipelines.resources import MAX_THREADS_PER_ACTOR, choose_device, choose_precision, connect
from pipelines.scaling import desired_replicas
from pipelines.serve_spec import ServeSpec
from pipelines.web import KINDS, BusyError, Page, create_app, digests

__all__ = ["Ingress", "Model", "build", "connect", "start", "stop", "watch"]
logger = logging.getLogger("ray.serve")

APPLICATION = "convbert"  # what Serve calls it, in its metrics too
TOKENS = "CONVBERT_TOKENS"
"""Environment variable with the bearer tokens that may use the service, separated by commas."""

QUIET = LoggingConfig(enable_access_log=False)  # a line for each request costs as much as a small one's answer
LOOPBACK = ("127.0.0.1", "::1", "localhost")
INGRESS_REPLICAS_OF_A_GPU = 4  # one passes 600 requests a second on (docs/performance.md)
MOST_TRIES = 2  # of a request whose replica dies, which may be what has killed it, or has no room
WATCH_S = 5.0  # between two looks at the cluster
STOP_S = 1.0  # until a Ray that is ended at the same moment is gone
MOST_ESTIMATED_AT_ONCE = 8  # records whose tokens are estimated in the event loop
NONE_WORKS = "no replica of the models is in working order: try again"
REFUSAL_S = 0.2
"""Seconds that a full replica takes for a no: one that is quicker than its neighbours' answers draws all requests."""

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
BOUNDARIES_MS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 30000]
BOUNDARIES_TOKENS: list[float] = [16, 64, 256, 1024, 4096, 16384, 65536, 262144]
WARM_UP = {"text": "the", "question": "the", "context": "the", "choices": ["the"]}


def build(args: Mapping[str, Any] | ServeSpec) -> serve.Application:
    """The application; the checkpoints are read here once, and a replica that finds others refuses to start.

    Raises:
        SpecError, ModelError: settings, tokens or checkpoints that cannot work.
    """
    return _application(args if isinstance(args, ServeSpec) else ServeSpec.of(args), os.environ.get(TOKENS))


def _application(spec: ServeSpec, given: str | None, *, hosts: Collection[str] = ()) -> serve.Application:
    passes = plan_service(spec.urls, spec.settings_of_heads)
    device = choose_device(spec.device)
    precision = choose_precision(spec.precision, device, kept=None)
    model = _deployment(Model).options(
        ray_actor_options={"num_cpus": _replica_cpus(spec, device), "num_gpus": int(device == "cuda")},
        max_ongoing_requests=spec.max_ongoing_requests,
        max_queued_requests=spec.max_queued_requests,
        graceful_shutdown_timeout_s=spec.timeout_s,
        logging_config=QUIET,
        health_check_period_s=5,
        # three in a row end a replica, and a batch may take four times its estimate
        health_check_timeout_s=max(30, spec.timeout_s),
        max_surge_percent=spec.max_surge_percent,
        **_scaling(spec),
    )
    ingress = _deployment(Ingress).options(
        num_replicas=spec.ingress_replicas or _ingress_replicas(spec, device),
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=10_000,
        logging_config=QUIET,
        graceful_shutdown_timeout_s=request_timeout_s(spec),
        max_surge_percent=100,  # they reserve nothing, so that there is room for them
    )
    info = describe(spec, passes, device=device, precision=precision)
    tokens = digests(given or "")
    if given is not None and not tokens:
        raise SpecError(f"{TOKENS} is set, but holds no token, so that anybody might ask: give one, or unset it")
    if not tokens and not hosts:
        logger.warning("%s is not set where the service is built: whoever reaches its port may ask", TOKENS)
    return ingress.bind(spec, info, tokens, () if tokens else hosts, model.bind(spec, passes, device, precision))


def describe(spec: ServeSpec, passes: Sequence[EncoderPass], *, device: str, precision: str) -> dict[str, Any]:
    """What ``/info`` tells."""
    import torch  # it has loaded the models of the plan

    heads = {head["name"]: head for one in passes for head in one.describe()}
    for name, head in heads_of(passes).items():
        for its in ("mask_token", "truncation_side"):
            heads[name][its] = getattr(head, its, None)
    limits = ("max_body_bytes", "max_texts", "max_characters", "timeout_s", "max_queued_tokens", "max_queued_requests")
    return {
        "heads": [heads[name] for name in spec.urls],
        "passes": [[plan.name for plan in one.heads] for one in passes],
        "limits": {name: getattr(spec, name) for name in limits},
        "device": device,
        "precision": precision,
        "versions": {
            "convbert": version_of(OURS),
            "torch": str(torch.__version__),  # with its build, such as +cu128
            "ray": ray.__version__,
        },
    }


def start(spec: ServeSpec, tokens: str | None = None) -> str:
    """Run the application on the Ray cluster that is joined, and wait until it is ready.

    Args:
        tokens: in place of what ``CONVBERT_TOKENS`` holds; replicas are given their digests.

    Returns:
        Its address.

    Raises:
        SpecError: a port is another's, Serve listens elsewhere, or this machine has too few CPUs.
        SpecError, ModelError: settings, tokens or checkpoints that cannot work.
        RunError: Serve cannot run it.
    """
    given = os.environ.get(TOKENS) if tokens is None else tokens
    application = _application(spec, given, hosts=LOOPBACK if spec.host in LOOPBACK else ())  # else names are not known
    _check_room(spec)
    running = _get_global_client(raise_if_no_controller_running=False)
    try:
        if running is None:
            _check_port(spec.host, spec.port, "give another --port or --host")
            for name, port in _haproxy_ports().items():
                _check_port("0.0.0.0", port, f"give another {name}")
            http_options = {"host": spec.host, "port": spec.port, "request_timeout_s": request_timeout_s(spec)}
            serve.start(http_options=http_options)
        elif (running.http_config.host, running.http_config.port) != (spec.host, spec.port):
            raise SpecError(
                f"Ray Serve listens at {running.http_config.host}:{running.http_config.port} on this cluster already: "
                "give its host and port, or end it with: serve shutdown"
            )
        _run(application)
    except (RuntimeError, TimeoutError, RayServeException, RayError) as error:
        raise RunError(f"Ray Serve cannot run the service: {_reason(error)}") from error
    return f"http://{f'[{spec.host}]' if ':' in spec.host else spec.host}:{spec.port}"


def _run(application: serve.Application) -> None:
    """Until it is ready; who gives up before leaves none on the cluster, where it would come up all the same."""
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except KeyboardInterrupt:
        serve.delete(APPLICATION, _blocking=False)
        raise


def request_timeout_s(spec: ServeSpec) -> float:
    """When Serve itself gives a request up, without a word of why: behind the body's time and the answer's."""
    return 2 * spec.timeout_s + 10


def _check_room(spec: ServeSpec) -> None:
    """See that a Ray of the service's own, which never grows, has the CPUs that replicas reserve.

    Raises:
        SpecError: it has fewer, so that the service would never be ready.
    """
    if os.environ.get("RAY_ADDRESS") or not ray.is_initialized():
        return
    present, each = ray.cluster_resources().get("CPU", 0), _replica_cpus(spec, choose_device(spec.device))
    if spec.min_replicas * each > present:
        raise SpecError(
            f"{spec.min_replicas} replicas of {each:g} CPUs: this machine has {present:g} CPUs: "
            "lower --threads, --replica-cpus or --min-replicas"
        )


def _haproxy_ports() -> dict[str, int]:
    """Ports that Serve's HAProxy opens beside the service's, by the variables that change them."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return {}
    ports = {"RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}
    return {name: int(os.environ.get(name, port)) for name, port in ports.items()}


def _check_port(host: str, port: int, remedy: str) -> None:
    """Serve's proxies share a port with whoever else listens there, and HAProxy does not start.

    Raises:
        SpecError: somebody does.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        why = str(error.strerror or error).partition(" (")[0]
        raise SpecError(f"cannot listen at {host}:{port} ({why}): {remedy}") from error


def _reason(error: Exception) -> str:
    """First and last line of a message that may have a trace between them, and colours."""
    plain = _COLOUR.sub("", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()] or [type(error).__name__]
    return " … ".join(dict.fromkeys([lines[0], lines[-1]]))


def _replica_cpus(spec: ServeSpec, device: str) -> float:
    """None beside a GPU, whose node may say that it has none; on a CPU the threads, where their number is given."""
    if spec.replica_cpus is not None:
        return spec.replica_cpus
    return 0 if device == "cuda" else spec.threads or 1


def _ingress_replicas(spec: ServeSpec, device: str) -> int:
    """As many as a GPU's replica can keep busy; on CPUs a second one for when the first dies."""
    return INGRESS_REPLICAS_OF_A_GPU if device == "cuda" else min(2, spec.max_replicas)


def watch(stopped: threading.Event) -> None:
    """Wait for the event as long as there is a cluster; the driver itself outlives all of its nodes.

    Raises:
        RunError: the last node has died.
    """
    while not stopped.wait(WATCH_S):
        if not any(node["Alive"] for node in ray.nodes()):
            raise RunError("Ray has died, and the service with it: start it again")


def stop() -> None:
    """Let the application finish what it has, and end it.

    Raises:
        RunError: it does not end in time, or Serve has gone.
    """
    _check_ray()
    try:
        serve.delete(APPLICATION)
    except (TimeoutError, RayServeException, RayError) as error:
        raise RunError(f"Ray Serve does not end the service: {_reason(error)}") from error


def _check_ray() -> None:
    """See that Ray did not get the same signal, as all of a process group or a unit of systemd do.

    Raises:
        RunError: it has ended, and whoever calls it waits for a minute and then aborts.
    """
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    time.sleep(STOP_S)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise RunError("Ray has ended at the same time: send SIGTERM to this process alone") from error


def _scaling(spec: ServeSpec) -> dict[str, Any]:
    if spec.min_replicas == spec.max_replicas:
        return {"num_replicas": spec.max_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": spec.min_replicas,
            "max_replicas": spec.max_replicas,
            "target_ongoing_requests": spec.target_ongoing_requests,
            "upscale_delay_s": spec.upscale_delay_s,
            "downscale_delay_s": spec.downscale_delay_s,
            "policy": {"policy_function": desired_replicas},
        }
    }


class Model:
    """A replica: the predictor behind its queue."""

    def __init__(self, spec: ServeSpec, passes: Sequence[EncoderPass], device: str, precision: str) -> None:
        thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._predictor, speed = thread.submit(self._load, spec, passes, device, precision).result()
        self._refusal_s = refusal_s(spec.timeout_s)
        self._batcher: Batcher[Request, Answer] = Batcher(
            self._predictor,
            max_batch_tokens=self._predictor.max_batch_tokens,
            max_wait_s=spec.max_wait_ms / 1000,
            max_queued_tokens=spec.max_queued_tokens,
            max_queued_s=spec.timeout_s / 2,  # the other half is for the batch that runs
            speed=speed,
            is_work=lambda answer: answer.n_tokens > 0,
            observe=_BatchMetrics(),
            thread=thread,
        )

    @staticmethod
    def _load(
        spec: ServeSpec, passes: Sequence[EncoderPass], device: str, precision: str
    ) -> tuple[OnlinePredictor, Speed]:
        """The predictor, warm: a request to each head, so that the first client waits no longer than others; its speed.

        It is loaded in the thread that runs it. A second thread that computes would bring a second pool of OpenMP's
        threads, and with more of them than cores each sleeps at every barrier rather than look out for the other.
        """
        predictor = OnlinePredictor(
            passes,
            settings=spec.settings_of_heads,
            device=device,
            precision=precision,
            max_batch_tokens=spec.max_batch_tokens,
            n_threads=spec.threads or min(os.cpu_count() or 1, MAX_THREADS_PER_ACTOR),
        )
        for name, head in heads_of(passes).items():
            mask = getattr(head, "mask_token", "[MASK]")
            predictor([Request(({**WARM_UP, "text": f"the {mask}"},), ((name, ()),))])
        return predictor, predictor.speed()

    async def answer(self, request: Request) -> Answer | None:
        """The request's answer, or None where the queue is full, or another replica may know the head.

        A request beyond a batch goes in slices, between which there is time for Serve's question after its health.
        """
        try:
            n_tokens = await self._estimated_tokens(request)
            slices = sliced(request, n_tokens, self._predictor.max_batch_tokens)
            return joined(await self._batcher.submit(slices))
        except (QueueFullError, UnknownHeadError):
            await asyncio.sleep(self._refusal_s)
            return None
        except TooLongError as error:
            return Answer(refusal=f"{error} (half of timeout_s): send fewer or shorter texts at a time")
        except RefusedError as error:
            return Answer(refusal=str(error))
        except DeviceError as error:
            logger.error("%s: this replica ends, and Serve starts another", error)
            os._exit(1)  # alive it would fail faster than others work, and draw all requests to itself

    async def _estimated_tokens(self, request: Request) -> list[int]:
        """Of many records beside the event loop: their questions are tokenised, up to some milliseconds each."""
        estimate = self._predictor.estimated_tokens
        if len(request.records) > MOST_ESTIMATED_AT_ONCE:
            return await asyncio.to_thread(estimate, request)
        return estimate(request)

    async def ready(self) -> bool:
        """True: a replica takes no call before it is warm."""
        return True

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What ``desired_replicas`` is told; Serve looks for this name."""
        return asdict(self._batcher.load())

    async def check_health(self) -> None:
        """Run the shortest input between two batches through every model that no batch has shown to work.

        Serve replaces a replica that cannot.
        """
        await self._batcher.call(self._predictor.check)


class _BatchMetrics:
    """Notes every batch for Prometheus."""

    def __init__(self) -> None:
        self._tokens = Counter("convbert_tokens", description="tokens of requests, about")
        self._batch_tokens = Histogram(
            "convbert_batch_tokens", description="tokens of a batch, about", boundaries=BOUNDARIES_TOKENS
        )
        self._queue_ms = Histogram(
            "convbert_queue_ms",
            description="milliseconds that a request waited for its batch",
            boundaries=BOUNDARIES_MS,
        )
        self._batch_ms = Histogram(
            "convbert_batch_ms", description="milliseconds that a batch took", boundaries=BOUNDARIES_MS
        )

    def __call__(self, batch: BatchStats) -> None:
        self._tokens.inc(max(batch.n_tokens, 1))
        self._batch_tokens.observe(max(batch.n_tokens, 1))
        self._batch_ms.observe(1000 * batch.run_s)
        for wait_s in batch.waits_s:
            self._queue_ms.observe(1000 * wait_s)


@serve.ingress()
class Ingress:
    """The HTTP side: cheap, and apart from the models."""

    def __init__(
        self,
        spec: ServeSpec,
        info: Mapping[str, Any],
        token_digests: Sequence[bytes],
        hosts: Collection[str],
        model: DeploymentHandle[Any],
    ) -> None:
        self._hosts = hosts
        self._spec = spec
        self._info = info
        self._token_digests = token_digests
        self._backend = Replicas(model)
        self._paths = {f"/{head['name']}" for head in info["heads"]} | {"/label"}
        self._requests = Counter("convbert_requests", description="requests", tag_keys=_tags("path", "status"))
        self._errors = Counter("convbert_errors", description="failed requests by kind", tag_keys=_tags("path", "kind"))
        self._latency_ms = Histogram(
            "convbert_latency_ms", description="milliseconds of a request", boundaries=BOUNDARIES_MS, tag_keys=("path",)
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:  # the name that Serve looks for
        return create_app(
            self._spec,
            self._backend,
            self._info,
            token_digests=self._token_digests,
            page=Page(PAGE, content_security_policy(PAGE)),
            hosts=self._hosts,
            observe=self._observe,
        )

    def _observe(self, path: str, status: int, seconds: float) -> None:
        path = path if path in self._paths else "other"  # what clients make up is no tag
        self._requests.inc(tags={"path": path, "status": str(status)})
        self._latency_ms.observe(1000 * seconds, tags={"path": path})
        if status >= 400:
            self._errors.inc(tags={"path": path, "kind": KINDS.get(status, "gone" if status == 499 else "internal")})


def _deployment(of: type) -> serve.Deployment:
    """A class as a deployment; Serve's type hint says what its decorator with arguments gives."""
    made: Any = serve.deployment(of)
    return made


def _tags(*names: str) -> Any:
    """Serve's type hint allows but one."""
    return names


class Replicas:
    """The model deployment as the web side sees it: a replica's death is somebody else's turn."""

    def __init__(self, model: DeploymentHandle[Any]) -> None:
        self._model = model
        self._answer = model.options(request_serialization="pickle", response_serialization="pickle").answer
        self._is_ready = False

    async def answer(self, request: Request) -> Answer:
        """The request's answer.

        Raises:
            BusyError: no replica has room, or none lives long enough.
        """
        why = ""
        for _ in range(MOST_TRIES):
            response = self._answer.remote(request)
            try:
                answer: Answer | None = await response
            except asyncio.CancelledError:
                response.cancel()  # type: ignore[no-untyped-call]
                raise
            except BackPressureError as error:
                raise BusyError("the service has too many requests (max_queued_requests): try again") from error
            except DeploymentUnavailableError as error:
                raise BusyError(NONE_WORKS) from error
            except (RayActorError, ObjectLostError):  # a large answer stays on the replica's node until it is fetched
                why = NONE_WORKS
                continue
            if answer is not None:
                self._is_ready = True
                return answer
            why = "more waits already than is soon done (max_queued_tokens, timeout_s): try again"
        raise BusyError(why)

    async def ready(self) -> bool:
        """Whether a replica has ever been up; asked again, it wakes no service that has scaled to zero."""
        if not self._is_ready:
            try:
                self._is_ready = await asyncio.wait_for(self._model.ready.remote(), 2)
            except (asyncio.TimeoutError, BackPressureError, DeploymentUnavailableError, RayActorError):
                return False
        return self._is_ready


def refusal_s(timeout_s: float) -> float:
    """Seconds that a full replica takes for a no, so few that every try's is told well within ``timeout_s``."""
    return min(REFUSAL_S, timeout_s / 10)


def sliced(request: Request, n_tokens: Sequence[int], max_tokens: int) -> list[tuple[Request, int]]:
    """The request as several of at most so many tokens each, or of one record; a small one as it is.

    Args:
        n_tokens: of each record.
    """
    starts, total = [0], 0
    for place, n in enumerate(n_tokens):
        if total and total + n > max_tokens:
            starts.append(place)
            total = 0
        total += n
    if len(starts) == 1:
        return [(request, total)]
    slices = [slice(*ends) for ends in zip(starts, [*starts[1:], None], strict=True)]
    return [(replace(request, records=request.records[part]), sum(n_tokens[part])) for part in slices]


def joined(answers: Sequence[Answer]) -> Answer:
    """The answer of a request from those of its slices."""
    if len(answers) == 1:
        return answers[0]
    return Answer(
        tuple(row for answer in answers for row in answer.rows),
        sum(answer.n_tokens for answer in answers),
        next((answer.refusal for answer in answers if answer.refusal is not None), None),
    )

"""A ServeSpec in, a Ray Serve application out: an HTTP ingress, and apart from it replicas of the predictor.

serve run pipelines.serving:build head.spam=examples/spam/checkpoint
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Histogram
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from convbert import ConvBertTokenizer
from pipelines.batching import Batcher, BatchStats, QueueFullError
from pipelines.errors import DeviceError
from pipelines.models import EncoderPass
from pipelines.online import Answer, OnlinePredictor, Request, plan_service
from pipelines.page import PAGE, content_security_policy
from pipelines.resources import MAX_THREADS_PER_ACTOR, choose_device, choose_precision, connect
from pipelines.serve_spec import ServeSpec
from pipelines.web import KINDS, BusyError, Page, create_app, digests

__all__ = ["Ingress", "Model", "build", "connect", "start", "stop"]

TOKENS = "CONVBERT_TOKENS"
"""Environment variable with the bearer tokens that may use the service, separated by commas."""

QUIET = LoggingConfig(enable_access_log=False)  # a line for each request costs as much as a small one's answer
MOST_TRIES = 3  # of a request whose replica dies: labelling it again changes nothing
BOUNDARIES_MS: list[float] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 30000]
BOUNDARIES_TOKENS: list[float] = [16, 64, 256, 1024, 4096, 16384, 65536, 262144]
LABELS = {"id": "1", "text": "the", "question": "the", "context": "the", "choices": ["the"]}


def build(args: Mapping[str, Any] | ServeSpec) -> serve.Application:
    """The application; the checkpoints are read here once, and a replica that finds others refuses to start.

    Raises:
        SpecError, ModelError: settings or checkpoints that cannot work.
    """
    spec = args if isinstance(args, ServeSpec) else ServeSpec.of(args)
    passes = plan_service(spec.urls, spec.settings_of_heads)
    device = choose_device(spec.device)
    precision = choose_precision(spec.precision, device, kept=None)
    model = _deployment(Model).options(
        ray_actor_options={"num_cpus": spec.replica_cpus, "num_gpus": int(device == "cuda")},
        max_ongoing_requests=spec.max_ongoing_requests,
        max_queued_requests=spec.max_queued_requests,
        graceful_shutdown_timeout_s=spec.timeout_s,
        logging_config=QUIET,
        health_check_period_s=5,
        health_check_timeout_s=30,
        **_scaling(spec),
    )
    ingress = _deployment(Ingress).options(
        num_replicas=spec.ingress_replicas or min(2, spec.max_replicas),
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=10_000,
        logging_config=QUIET,
        graceful_shutdown_timeout_s=spec.timeout_s,
    )
    info = describe(spec, passes, device=device, precision=precision)
    tokens = digests(os.environ.get(TOKENS, ""))
    return ingress.bind(spec, info, tokens, model.bind(spec, passes, device, precision))


def describe(spec: ServeSpec, passes: Sequence[EncoderPass], *, device: str, precision: str) -> dict[str, Any]:
    """What ``/info`` tells."""
    heads = {plan["name"]: plan for one in passes for plan in one.describe()}
    for name, url in spec.urls.items():
        heads[name]["mask_token"] = ConvBertTokenizer.from_pretrained(url).mask_token
    limits = ("max_body_bytes", "max_texts", "max_characters", "timeout_s", "max_queued_tokens", "max_queued_requests")
    return {
        "heads": [heads[name] for name in spec.urls],
        "passes": [[plan.name for plan in one.heads] for one in passes],
        "limits": {name: getattr(spec, name) for name in limits},
        "device": device,
        "precision": precision,
        "versions": {
            "convbert": importlib.metadata.version("convbert-pipelines"),
            "torch": str(torch.__version__),
            "ray": ray.__version__,
        },
    }


def start(spec: ServeSpec, *, name: str = "convbert") -> str:
    """Run the application on the Ray cluster that is joined, and wait until it is ready.

    Returns:
        Its address.
    """
    serve.start(http_options={"host": spec.host, "port": spec.port})
    serve.run(build(spec), name=name, route_prefix="/")
    return f"http://{spec.host}:{spec.port}"


def stop(*, name: str = "convbert") -> None:
    """Let the application finish what it has, and end it."""
    serve.delete(name)


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
        }
    }


class Model:
    """A replica: the predictor behind its queue."""

    def __init__(self, spec: ServeSpec, passes: Sequence[EncoderPass], device: str, precision: str) -> None:
        thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._predictor = thread.submit(self._load, spec, passes, device, precision).result()
        self._batcher: Batcher[Request, Answer] = Batcher(
            self._predictor,
            max_batch_tokens=self._predictor.max_batch_tokens,
            max_wait_s=spec.max_wait_ms / 1000,
            max_queued_tokens=spec.max_queued_tokens,
            observe=_BatchMetrics(),
            thread=thread,
        )

    @staticmethod
    def _load(spec: ServeSpec, passes: Sequence[EncoderPass], device: str, precision: str) -> OnlinePredictor:
        """The predictor, warm: a request to each head, so that the first client waits no longer than others.

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
        for plan in (plan for one in passes for plan in one.heads):
            mask = getattr(plan.head, "mask_token", "[MASK]")
            predictor([Request(({**LABELS, "text": f"the {mask}"},), ((plan.name, ()),))])
        return predictor

    async def answer(self, request: Request) -> Answer | None:
        """The request's answer, or None where the queue is full."""
        try:
            return await self._batcher.submit(request, n_tokens=estimated_tokens(request))
        except QueueFullError:
            return None

    async def ready(self) -> bool:
        """True: a replica takes no call before it is warm."""
        return True

    async def check_health(self) -> None:
        """Run the shortest input between two batches; Serve replaces a replica that cannot."""
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
        self, spec: ServeSpec, info: Mapping[str, Any], token_digests: Sequence[bytes], model: DeploymentHandle[Any]
    ) -> None:
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
        self._is_ready = False

    async def answer(self, request: Request) -> Answer:
        """The request's answer.

        Raises:
            BusyError: no replica has room, or none lives long enough.
        """
        for _ in range(MOST_TRIES):
            response = self._model.answer.remote(request)
            try:
                answer: Answer | None = await response
            except asyncio.CancelledError:
                response.cancel()  # type: ignore[no-untyped-call]
                raise
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise BusyError("the service has too many requests (max_queued_requests): try again") from error
            except (RayActorError, DeviceError):
                continue
            if answer is None:
                raise BusyError("too many tokens wait already (max_queued_tokens): try again")
            return answer
        raise BusyError("no replica of the models is in working order: try again")

    async def ready(self) -> bool:
        """Whether a replica has ever been up; asked again, it wakes no service that has scaled to zero."""
        if not self._is_ready:
            try:
                self._is_ready = await asyncio.wait_for(self._model.ready.remote(), 2)
            except (asyncio.TimeoutError, BackPressureError, DeploymentUnavailableError, RayActorError):
                return False
        return self._is_ready


def estimated_tokens(request: Request) -> int:
    """About as many tokens as the request has: a word piece is some four characters."""
    return sum(
        2 + len(text) // 4
        for record in request.records
        for value in record.values()
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str)
    )

"""What our service is compared with: Serve's own recipe, the bare engine, and that engine behind Serve alone."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

from convbert.engine import Engine, Packed
from pipelines.online import plan_service
from pipelines.predict import load_engine

HEAD = "texts"
MAX_TOKENS = 512
N_WARM_UP = 20
MOST_AT_ONCE = 256  # requests at a replica, as at ours; the default of 5 would be no batch


class Recipe:
    """The documentation's way; on a GPU in bf16."""

    def __init__(self, checkpoint: str, *, device: str, n_threads: int, max_batch_size: int) -> None:
        torch.set_num_threads(n_threads)
        self._tokenizer = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
        self._model = transformers.ConvBertForSequenceClassification.from_pretrained(checkpoint).eval()
        self._model.to(device, torch.float32 if device == "cpu" else torch.bfloat16)
        batching: Any = self.classify  # Serve's type hint says nothing of its settings
        batching.set_max_batch_size(max_batch_size)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
    async def classify(self, texts: list[str]) -> list[list[dict[str, Any]]]:
        """Labels and scores of each text."""
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            scores = self._model(**batch.to(self._model.device)).logits.float().softmax(-1).tolist()
        labels = self._model.config.id2label
        return [[{"label": labels[place], "score": score} for place, score in enumerate(row)] for row in scores]

    async def __call__(self, request: Request) -> list[list[dict[str, Any]]]:
        """Hugging Face's inference form."""
        return [await self.classify((await request.json())["inputs"])]


class BareModel:
    """A replica that knows its texts' ids and runs nothing but the engine, in a thread of its own as ours does."""

    def __init__(
        self, checkpoint: str, ids: Mapping[str, Sequence[int]], *, device: str, n_threads: int, precision: str
    ) -> None:
        self._ids = ids
        self._thread = ThreadPoolExecutor(1)
        load = partial(
            warm_engine, checkpoint, list(ids.values()), device=device, n_threads=n_threads, precision=precision
        )
        self._engine = self._thread.submit(load).result()

    async def answer(self, text: str) -> float:
        """Milliseconds that the engine took."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, run_ms, self._engine, self._ids[text])


class BareIngress:
    """HTTP without any framework, apart from the model as ours is."""

    def __init__(self, model: DeploymentHandle[Any]) -> None:
        self._model = model

    async def __call__(self, request: Request) -> float:
        """Milliseconds that the engine took."""
        ms: float = await self._model.answer.remote((await request.json())["inputs"])
        return ms


@contextmanager
def recipe(checkpoint: str, *, device: str, n_threads: int, max_batch_size: int) -> Iterator[str]:
    """The URL at which the recipe answers."""
    model = _deployed(Recipe, device)
    with _served(model.bind(checkpoint, device=device, n_threads=n_threads, max_batch_size=max_batch_size)) as url:
        yield url


@contextmanager
def bare(
    checkpoint: str, ids: Mapping[str, Sequence[int]], *, device: str, n_threads: int, precision: str
) -> Iterator[str]:
    """The URL behind which there is nothing but Serve and the engine."""
    model = _deployed(BareModel, device).bind(checkpoint, ids, device=device, n_threads=n_threads, precision=precision)
    with _served(_deployed(BareIngress).bind(model)) as url:
        yield url


def _deployed(of: type, device: str = "cpu") -> Any:
    made: Any = serve.deployment(of)  # Serve's type hint says what its decorator with arguments gives
    return made.options(
        max_ongoing_requests=MOST_AT_ONCE,
        ray_actor_options={"num_cpus": int(of is not BareIngress), "num_gpus": int(device == "cuda")},
    )


@contextmanager
def _served(application: serve.Application) -> Iterator[str]:
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(application, route_prefix="/")
        yield f"http://127.0.0.1:{port}/"
    finally:
        serve.shutdown()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def warm_engine(
    checkpoint: str, texts: Sequence[Sequence[int]], *, device: str, n_threads: int, precision: str
) -> Engine:
    """The bare engine after the last texts."""
    torch.set_num_threads(n_threads)
    engine = load_engine(plan_service({HEAD: checkpoint}, {})[0], device=device, precision=precision)
    for ids in texts[-N_WARM_UP:]:
        run_ms(engine, ids)
    return engine


def run_ms(engine: Engine, ids: Sequence[int]) -> float:
    """How long the engine takes for one text."""
    batch = Packed(np.array(ids, np.int32), np.array([0, len(ids)]))
    started_s = time.perf_counter()
    engine(batch)
    return 1000 * (time.perf_counter() - started_s)

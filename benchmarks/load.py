"""A schedule of requests on standard input, when each was answered on standard output: a client of its own process.

The loop is open: a request leaves at its time, whatever has become of those before it, and its latency counts from
then, so that one which had to wait for the client itself is no faster for it. Without times the loop is closed: each
request leaves when the one before it has been answered.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import uvloop  # so that less of a latency is the client's own

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 30


class Reply(NamedTuple):
    """What became of a request.

    Attributes:
        ms: from its time to the last byte of its answer.
        status: of HTTP; 0 where there was no answer.
        body: JSON, or None where there was no answer.
    """

    ms: float
    status: int
    body: Any


def send(url: str, texts: Sequence[str], arrivals_s: Sequence[float] | None = None) -> list[Reply]:
    """Send texts in Hugging Face's inference form from another process.

    Args:
        arrivals_s: when each leaves, in seconds from the start; None sends one after the other.
    """
    schedule = {"url": url, "texts": list(texts), "arrivals_s": arrivals_s and list(arrivals_s)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=json.dumps(schedule).encode(),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=True,
    )
    return [Reply(*reply) for reply in json.loads(done.stdout)]


async def _send(url: str, texts: Sequence[str], arrivals_s: Sequence[float] | None) -> list[Reply]:
    connector = aiohttp.TCPConnector(limit=0)  # no number of open requests holds back the next
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        if arrivals_s is None:
            return [await _reply(session, url, text, time.perf_counter()) for text in texts]
        start_s = time.perf_counter()
        schedule = zip(texts, arrivals_s, strict=True)
        return await asyncio.gather(*(_reply(session, url, text, start_s + after_s) for text, after_s in schedule))


async def _reply(session: aiohttp.ClientSession, url: str, text: str, due_s: float) -> Reply:
    await asyncio.sleep(due_s - time.perf_counter())
    status, body = 0, None
    try:
        async with session.post(url, json={"inputs": text}) as response:
            body = await response.json(content_type=None)
            status = response.status
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
        pass
    return Reply(1000 * (time.perf_counter() - due_s), status, body)


if __name__ == "__main__":
    json.dump(uvloop.run(_send(**json.load(sys.stdin))), sys.stdout)

"""Requests to a store in, the store's answers out, some of them spoilt: an HTTP/1.1 proxy that injects faults."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

FAULTS = (
    "slow_down",  # 503 SlowDown, as S3 throttles; the store never sees the request
    "too_many",  # 429, as other stores throttle
    "error_500",  # 500 InternalError
    "bad_gateway",  # 502 from a balancer, with HTML instead of the store's XML
    "reset",  # the connection is reset before the store sees the request
    "reset_in_answer",  # the store has done it, but the connection is reset in the middle of its answer
    "truncated",  # the store has done it, but its answer ends too early
    "short",  # a shorter body that claims to be whole: its Content-Length fits
    "time_out",  # the store has done it, but its answer comes too late
    "refused",  # nobody listens for a while
)
"""Every kind of fault; each of them goes away by itself."""

_STATUS = {
    "denied": ("403 Forbidden", "AccessDenied", "Access Denied"),  # no fault that passes: only where a test asks for it
    "slow_down": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "too_many": ("429 Too Many Requests", "TooManyRequests", "Please reduce your request rate."),
    "error_500": ("500 Internal Server Error", "InternalError", "We encountered an internal error."),
}


class FaultProxy:
    """A proxy on a free port of this machine, which passes everything on until it is told otherwise.

    Args:
        upstream: host and port of the store.
        delay_s: how late an answer comes; more than the client's read time-out.
        refusal_s: how long nobody listens.

    Attributes:
        counts: injected faults by kind.
        requests: requests by method.
    """

    def __init__(self, upstream: tuple[str, int], *, delay_s: float = 1.0, refusal_s: float = 0.2):
        self.upstream = upstream
        self.delay_s = delay_s
        self.refusal_s = refusal_s
        self.counts: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._rng = random.Random()
        self._rate = 0.0
        self._kinds: tuple[str, ...] = FAULTS
        self._forced: deque[tuple[str, str]] = deque()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self._port = 0
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    @property
    def url(self) -> str:
        """Endpoint to give to clients."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @contextmanager
    def faults(self, rate: float, *kinds: str, seed: int = 0) -> Iterator[FaultProxy]:
        """Spoil this share of all requests, drawn from a seed, with these kinds of faults or all."""
        self._rng = random.Random(seed)
        self._kinds = kinds or FAULTS
        self.counts.clear()
        self.requests.clear()
        self._rate = rate
        try:
            yield self
        finally:
            self._rate = 0.0
            self._forced.clear()

    @contextmanager
    def next_faults(self, *kinds: str, method: str = "") -> Iterator[FaultProxy]:
        """Spoil the next requests, or the next of one method, one kind after the other; ``""`` spares one."""
        with self.faults(0.0):
            self._forced.extend((kind, method) for kind in kinds)
            yield self

    def _fault(self, method: str) -> str | None:
        """What spoils this request."""
        self.requests[method] += 1
        fault = None
        if self._forced:
            if self._forced[0][1] in ("", method):
                fault = self._forced.popleft()[0]
        elif self._rng.random() < self._rate:
            fault = self._rng.choice(self._kinds)
        if fault:
            self.counts[fault] += 1
        return fault

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._one_request(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the proxy is going
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method = head.split(b" ", 1)[0].decode()
        fault = self._fault(method)
        if fault in ("reset", "refused"):
            _reset(writer)
            if fault == "refused":
                await self._refuse()
            return
        if _value(head, b"expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(reader, head)
        if fault in _STATUS or fault == "bad_gateway":
            writer.write(_error(fault, with_body=method != "HEAD"))
            await writer.drain()
            return
        answer_head, answer = await self._ask(head, body)
        if fault == "time_out":
            await asyncio.sleep(self.delay_s)
            return
        if fault == "short":
            answer, whole = answer[: len(answer) // 2], answer
            answer_head = answer_head.replace(b"ength: %d\r\n" % len(whole), b"ength: %d\r\n" % len(answer))
        sent = answer_head + answer
        if fault in ("truncated", "reset_in_answer"):
            sent = sent[: len(answer_head) + len(answer) // 2] if answer else sent[: len(answer_head) // 2]
        writer.write(sent)
        await writer.drain()
        if fault == "reset_in_answer":
            _reset(writer)

    async def _ask(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """The store's answer: head and body; the connection is good for one request."""
        reader, writer = await asyncio.open_connection(*self.upstream)
        try:
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
            writer.write(b"\r\n".join([*lines[:-2], b"Connection: close", b"", b""]) + body)
            await writer.drain()
            received = await reader.read()
        finally:
            writer.close()
        answer_head, _, answer = received.partition(b"\r\n\r\n")
        lines = [line for line in answer_head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        return b"\r\n".join([*lines, b"Connection: close", b"", b""]), answer

    async def _refuse(self) -> None:
        """Stop listening for a while; requests under way go on."""
        self._server.close()
        await asyncio.sleep(self.refusal_s)
        if not self._server.is_serving():
            await self._listen()


def _value(head: bytes, name: bytes) -> bytes:
    """A header's value."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return b""


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """A request's body as it was sent, chunks and all."""
    if _value(head, b"transfer-encoding") != b"chunked":
        return await reader.readexactly(int(_value(head, b"content-length") or 0))
    body = b""
    while not body.endswith(b"0\r\n\r\n"):
        body += await reader.readuntil(b"\r\n")
    return body


def _error(fault: str, *, with_body: bool) -> bytes:
    if fault == "bad_gateway":
        status, kind, content = "502 Bad Gateway", "text/html", "<html><body>502 Bad Gateway</body></html>"
    else:
        status, code, message = _STATUS[fault]
        kind, content = "application/xml", f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    return (head + content if with_body else head).encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

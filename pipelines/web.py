"""HTTP requests in, checked and limited requests for the models out, and their answers as JSON: no Ray, no model."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import html
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.inference_form import check_answer, check_direction, check_words, records_of, settings_from, shaped
from pipelines.online import Answer, RefusedError, Request, settings_of
from pipelines.request_body import Inference, LabelRequest, described, read_body
from pipelines.serve_spec import ServeSpec

OPEN_PATHS = ("/", "/health", "/ready")  # without a token: the page asks for one itself
MOST_DRAINED_BYTES = 64 * 2**20  # of a known client's body that is too large, so that it reads the answer
KINDS = {
    400: "malformed",
    401: "unauthorized",
    404: "unknown_path",
    405: "unknown_path",
    408: "slow_body",
    413: "too_large",
    415: "malformed",
    421: "unknown_host",
    422: "refused",
    503: "busy",
    504: "timeout",
}
"""What each status is called in metrics."""


Handler: TypeAlias = Callable[[HTTPRequest], Awaitable[JSONResponse]]


class BusyError(Exception):
    """The models have no room for a request now."""


class Backend(Protocol):
    """Whoever runs the models."""

    async def answer(self, request: Request) -> Answer:
        """The request's answer.

        Raises:
            BusyError: try again later.
        """

    async def ready(self) -> bool:
        """Whether the models have been up."""


@dataclass(frozen=True)
class Page:
    """The document at ``/``, and the content-security policy under which browsers may show it."""

    html: str
    policy: str


def digests(tokens: str) -> tuple[bytes, ...]:
    """SHA-256 of each of the tokens that commas separate."""
    return tuple(hashlib.sha256(token.strip().encode()).digest() for token in tokens.split(",") if token.strip())


def create_app(
    spec: ServeSpec,
    backend: Backend,
    info: Mapping[str, Any],
    *,
    token_digests: Sequence[bytes] = (),
    page: Page | None = None,
    hosts: Collection[str] = (),
    observe: Callable[[str, int, float], None] = lambda path, status, seconds: None,
) -> ASGIApp:
    """The service's HTTP side.

    Args:
        info: what ``/info`` tells: ``heads`` (name, task, labels, …), ``versions`` and so on.
        token_digests: of the bearer tokens that may use it; none: anybody may.
        page: at ``/``.
        hosts: names that requests may call it by; none: any. A web page of any other name may be made to lead here.
        observe: told path, status and seconds of every request.
    """
    posts: dict[str, Handler] = {}
    app = FastAPI(title="ConvBERT service", version=str(info["versions"]["convbert"]), docs_url=None, redoc_url=None)
    heads = {head["name"]: head for head in info["heads"]}
    answers = _Answers(spec, backend, heads)

    def add_head(name: str, task: str) -> None:
        async def infer(http_request: HTTPRequest) -> JSONResponse:
            return await answers.of_head(name, http_request)

        posts[f"/{name}"] = app.post(
            f"/{name}",
            summary=f"{name}: {task}",
            operation_id=f"infer_{name}",
            tags=["heads"],
            openapi_extra=described(Inference),
        )(infer)

    for head in info["heads"]:
        add_head(head["name"], head["task"])

    @app.post(
        "/label", summary="Several heads for each of several texts, in one pass", openapi_extra=described(LabelRequest)
    )
    async def label(http_request: HTTPRequest) -> JSONResponse:
        return await answers.of_several(http_request)

    posts["/label"] = label

    @app.get("/health", summary="Whether the service lives")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/ready", summary="Whether the models answer")
    async def ready() -> JSONResponse:
        is_ready = await backend.ready()
        return JSONResponse({"status": "ready" if is_ready else "starting"}, 200 if is_ready else 503)

    @app.get("/info", summary="Heads, labels, fingerprints, versions and limits")
    async def describe() -> JSONResponse:
        return JSONResponse(dict(info))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        headers = {"Content-Security-Policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"}
        return HTMLResponse(_list_of_routes(app.openapi()), headers=headers)

    if page is not None:

        @app.get("/", include_in_schema=False)
        async def show() -> HTMLResponse:
            return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy})

    app.router.redirect_slashes = False  # Starlette's names scheme and host, of which a proxy's clients may have others
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    respond = partial(_error_response, heads=heads)

    async def failed(http_request: HTTPRequest, error: Exception) -> Response:
        is_lost = isinstance(error, HTTPException) and error.status_code == 404
        place = _moved(http_request.scope, paths) if is_lost else None
        return RedirectResponse(place) if place else respond(error)

    for kind in (RefusedError, UnicodeError, HTTPException, Exception):
        app.exception_handler(kind)(failed)
    return Gate(
        Shortcut(app, posts, respond),
        max_body_bytes=spec.max_body_bytes,
        timeout_s=spec.timeout_s,
        token_digests=token_digests,
        hosts=hosts,
        observe=observe,
    )


@dataclass(frozen=True)
class _Answers:
    """What the service does with the body of a request: check it, ask the models, and shape what they answer.

    Attributes:
        spec: the limits of a request.
        backend: runs the models.
        heads: what ``/info`` tells of each head, by name.
    """

    spec: ServeSpec
    backend: Backend
    heads: Mapping[str, Mapping[str, Any]]

    async def of_head(self, name: str, http_request: HTTPRequest) -> JSONResponse:
        """One head's answer to a request in Hugging Face's inference form."""
        body = await read_body(http_request, Inference)
        head = self.heads[name]
        task = head["task"]
        is_list = isinstance(body.inputs, list)
        _check_count(len(body.inputs) if is_list else 1, self.spec)  # before a record is made of each
        records = records_of(task, body.inputs)
        _check_size(records, self.spec)
        parameters = {**(body.parameters or {}), **(body.model_extra or {})}
        settings = settings_from(task, parameters, records)
        check_direction(parameters, head=head)
        check_answer(task, records, settings, head=head)
        answer = await self._ask(Request(tuple(records), ((name, settings_of(settings)),), ((name, task),)))
        for place, row in enumerate(answer.rows):
            if row.get("error"):
                raise RefusedError(f"inputs[{place}]: {row['error']}" if is_list else row["error"])
        rows = [row[name] for row in answer.rows]
        return JSONResponse(shaped(task, rows, records, head=head, parameters=parameters, is_list=is_list))

    async def of_several(self, http_request: HTTPRequest) -> JSONResponse:
        """The answers of several heads, all with their own settings, for each of several texts: ``/label``."""
        body = await read_body(http_request, LabelRequest)
        heads = self.heads
        readers = [name for name, head in heads.items() if list(head["columns"]) == ["text"]]
        wanted = body.heads or [name for name in readers if heads[name]["task"] != "fill-mask"]
        if not wanted:
            raise RefusedError(f"heads: none reads any text; ask one of {', '.join(f'/{name}' for name in heads)}")
        for name in wanted:
            if name not in readers:
                raise RefusedError(f"heads: {name[:40]!r} is not one of {', '.join(readers)}, which read texts")
        _check_count(len(body.texts), self.spec)
        records = [{"text": text} for text in body.texts]
        _check_size(records, self.spec)
        names = sorted(set(wanted))
        check_words(records, [heads[name] for name in names])
        tasks = tuple((name, heads[name]["task"]) for name in names)
        answer = await self._ask(Request(tuple(records), tuple((name, ()) for name in names), tasks))
        return JSONResponse({"results": list(answer.rows), "tokens": answer.n_tokens})

    async def _ask(self, request: Request) -> Answer:
        """What the models answer within the time that a request may take.

        Raises:
            HTTPException: they have no room for it, or take too long.
            RefusedError: no head can answer it.
        """
        try:
            answer = await asyncio.wait_for(self.backend.answer(request), self.spec.timeout_s)
        except asyncio.TimeoutError as error:  # not the built-in one before Python 3.11
            raise HTTPException(504, f"no answer within {self.spec.timeout_s:g} s (timeout_s)") from error
        except BusyError as error:
            raise HTTPException(503, str(error), headers={"Retry-After": "1"}) from error
        if answer.refusal is not None:
            raise RefusedError(answer.refusal)
        return answer


def _check_count(n_texts: int, spec: ServeSpec) -> None:
    if n_texts > spec.max_texts:
        raise HTTPException(413, f"{n_texts:,} texts are above the limit of {spec.max_texts:,} (max_texts)")


def _check_size(records: Sequence[Mapping[str, Any]], spec: ServeSpec) -> None:
    """Refuse what is above a limit, which the message names."""
    n_choices = [len(choices) if isinstance(choices := record.get("choices"), list) else 1 for record in records]
    _check_count(sum(max(n, 1) for n in n_choices), spec)
    for place, record in enumerate(records):
        for name, value in record.items():
            texts = value if isinstance(value, list) else [value] * n_choices[place]  # each choice has the whole prompt
            length = sum(len(text) for text in texts if isinstance(text, str))
            if length > spec.max_characters:
                raise RefusedError(
                    f"{name} of record {place} has {length:,} characters"
                    f"{', all choices together' if n_choices[place] > 1 else ''}, above the limit of "
                    f"{spec.max_characters:,} (max_characters)"
                )


def _error_response(error: Exception, heads: Collection[str]) -> JSONResponse:
    """Every error is ``{"error": …}`` and holds nothing of the request's texts."""
    if isinstance(error, HTTPException):
        message = error.detail
        if error.status_code == 404:
            message = f"no such path: the heads are {', '.join(f'/{name}' for name in heads)}; more at /docs"
        elif error.status_code == 405:
            message = f"this path takes {(error.headers or {}).get('Allow', 'another method')}"
        return JSONResponse({"error": message}, error.status_code, headers=error.headers)
    if isinstance(error, RefusedError):
        return JSONResponse({"error": str(error)}, 422)
    if isinstance(error, UnicodeError):  # pydantic's, of names in the body
        return JSONResponse({"error": "the body holds half of a surrogate pair, which is no character"}, 422)
    return JSONResponse({"error": "the service failed on this request"}, 500)


class Shortcut:
    """What most requests ask for, past the framework: its layers take more of their time than all that is done here.

    Args:
        app: the framework's, with the same routes and all others.
        posts: what answers a POST, by path.
        respond: an exception's answer.
    """

    def __init__(
        self, app: ASGIApp, posts: Mapping[str, Handler], respond: Callable[[Exception], JSONResponse]
    ) -> None:
        self._app = app
        self._posts = posts
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = self._posts.get(_path(scope)) if scope["type"] == "http" and scope["method"] == "POST" else None
        if handle is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await handle(HTTPRequest(scope, receive))
        except Exception as error:
            response = self._respond(error)
            if response.status_code == 500:
                await response(scope, receive, send)
                raise  # for the server's log
        await response(scope, receive, send)


class Gate:
    """What every request passes first: a token, and bounds on its body and on how long that may take."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        timeout_s: float,
        token_digests: Sequence[bytes],
        hosts: Collection[str],
        observe: Callable[[str, int, float], None],
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._token_digests = tuple(token_digests)
        self._hosts = frozenset(hosts)
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # of whose answer the server leaves the body out
        started_s = time.perf_counter()
        status = 499  # as long as nothing is sent: the client has gone

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        try:
            await self._pass(scope, receive, sending)
        finally:
            self._observe(_path(scope), status, time.perf_counter() - started_s)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._admitted(scope, receive)
        if isinstance(body, JSONResponse):
            await body(scope, receive, send)
            return
        is_given = False

        async def replay() -> Message:
            nonlocal is_given
            if is_given:
                return await receive()
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _admitted(self, scope: Scope, receive: Receive) -> bytes | JSONResponse:
        """The request's body, or the answer of one that goes no further."""
        headers = dict(scope["headers"])
        if self._hosts and _host(headers) not in self._hosts:
            return _refusal(
                421, f"call the service {' or '.join(sorted(self._hosts))}, or give it tokens", {"Connection": "close"}
            )
        is_stranger = bool(self._token_digests) and not self._is_known(headers)
        parts: list[bytes] = []  # as many as come in time; a stranger's are not kept
        reading = _drain(receive, self._max_body_bytes) if is_stranger else self._read(receive, parts)
        is_slow = False
        try:
            await asyncio.wait_for(reading, self._timeout_s)
        except asyncio.TimeoutError:  # not the built-in one before Python 3.11
            is_slow = True
        if is_stranger and _path(scope) not in OPEN_PATHS:
            return _refusal(401, "give a valid token: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
        rest = {"Connection": "close"} if is_slow else None
        if sum(map(len, parts)) > self._max_body_bytes:
            large = f"the body is above the limit of {self._max_body_bytes:,} bytes (max_body_bytes)"
            return _refusal(413, large, rest)
        if is_slow:
            return _refusal(408, f"the body did not come within {self._timeout_s:g} s (timeout_s)", rest)
        return b"".join(parts)  # none of a stranger's: what is open to him reads none

    def _is_known(self, headers: Mapping[bytes, bytes]) -> bool:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(token.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._token_digests]  # all, in constant time
        return scheme.lower() == b"bearer" and any(matches)

    async def _read(self, receive: Receive, parts: list[bytes]) -> None:
        """Put the body into ``parts``; of one that is too large no more than shows it."""
        size = 0
        while size <= self._max_body_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if not message.get("more_body"):
                return
        await _drain(receive, MOST_DRAINED_BYTES)


_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


def _refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers=headers)


def _host(headers: Mapping[bytes, bytes]) -> str:
    """The name that the client calls the service by, without its port."""
    name = headers.get(b"host", b"").decode("latin-1").lower()
    return name.partition("]")[0].lstrip("[") if name.startswith("[") else name.partition(":")[0]


def _path(scope: Scope) -> str:
    """The path without the application's ``route_prefix``."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def _moved(scope: Scope, paths: Collection[str]) -> str | None:
    """Where, seen from here, the path is that one with a slash too many means, or the bare ``route_prefix``."""
    path: str = scope["path"]
    if path == scope.get("root_path") and "/" in paths:
        return f"{path.rpartition('/')[2]}/"
    name = _path(scope).removesuffix("/")
    return f"..{name}" if path.endswith("/") and name in paths else None


async def _drain(receive: Receive, max_bytes: int) -> None:
    """Read on without keeping anything, so that the client gets to reading the answer."""
    size = 0
    while size < max_bytes:
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return


def _list_of_routes(schema: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<li><code>{method.upper()} {html.escape(path)}</code> {html.escape(operation.get('summary', ''))}</li>"
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Routes</title><h1>{html.escape(schema['info']['title'])}</h1><ul>{rows}</ul>"
        "<p>Whole description: <a href=openapi.json>openapi.json</a></html>"
    )

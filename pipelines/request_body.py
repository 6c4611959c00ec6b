"""A request's body in, what it asks for out, or why it is refused."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pipelines.inference_form import Closed
from pipelines.online import RefusedError

Body = TypeVar("Body", bound=BaseModel)


class Inference(BaseModel):
    """A request in Hugging Face's inference form."""

    model_config = ConfigDict(extra="allow")  # feature extraction has its parameters here

    inputs: Any = Field(description="what the head reads, or a list of it")
    parameters: dict[str, Any] | None = None
    options: dict[str, Any] | None = Field(None, description="ignored")


class LabelRequest(Closed):
    """Texts for several heads in one pass."""

    texts: list[str] = Field(min_length=1, fail_fast=True)
    heads: list[str] | None = Field(None, min_length=1, fail_fast=True, description="default: all that read any text")


async def read_body(request: Request, of: type[Body]) -> Body:
    """The body as this type.

    Raises:
        HTTPException: it is no JSON, or compressed.
        RefusedError: it is JSON of another form, or does not say that it is any, as a form of a foreign page.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise RefusedError("say what the body is: Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        headers = {"Accept-Encoding": "identity"}
        raise HTTPException(415, "send the body as it is, without Content-Encoding: none is read here", headers)
    try:
        values = json.loads(await request.body())
    except json.JSONDecodeError as error:
        raise HTTPException(400, "the body is not JSON") from error
    except (ValueError, RecursionError) as error:
        message = "the body is not JSON in UTF-8, or holds lists in lists, or digits, without end"
        raise HTTPException(400, message) from error
    if not isinstance(values, dict):
        raise RefusedError("the body is no JSON object: give {…}")
    try:
        return of.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(ascii(part)[:40].strip("'") for part in first["loc"])
        raise RefusedError(f"{place or 'the body'}: {first['msg']}") from None


def described(of: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a route with such a body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": of.model_json_schema()}}}}

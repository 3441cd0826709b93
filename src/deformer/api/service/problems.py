"""What can go wrong with a request, and the status and body that answer it."""

import asyncio
from collections.abc import Sequence
from types import NoneType
from typing import Any, get_args

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from deformer.api.service.batching import Busy
from deformer.api.service.engine import FieldError
from deformer.api.service.sessions import Conflict, NoRoom, NotThere, TooMany
from deformer.api.service.wire import AnyValue
from deformer.errors import InputError

CLOSE = {"Connection": "close"}  # so that the rest of a body is not waited for


class TooLarge(HTTPException):
    """A request is larger than allowed."""

    def __init__(self) -> None:
        super().__init__(413, "The request is larger than this service takes; ask for less at a time.", CLOSE)


class TooSlow(HTTPException):
    """A request did not arrive in time."""

    def __init__(self) -> None:
        super().__init__(408, "The request did not arrive in time.", CLOSE)


class Crowded(HTTPException):
    """The bodies of other requests take all the memory that they may."""

    def __init__(self) -> None:
        super().__init__(503, "Too much is being sent at the same time; try again.", CLOSE)


STATUS: dict[type[Exception], tuple[int, str, str]] = {
    NotThere: (404, "not_there", ""),
    Conflict: (409, "conflict", ""),
    TooMany: (429, "too_many", "No more sessions or snapshots are kept."),
    Busy: (503, "busy", "Too many requests wait; try again."),
    asyncio.TimeoutError: (504, "out_of_time", "There was no answer in time; ask for less."),
    NoRoom: (507, "no_room", "The disk takes no changes of snapshots; the log of the service says why."),
    ClientDisconnect: (400, "gone", "The body did not arrive whole."),
}
CODES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_there",
    405: "not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unknown_type",
    503: "busy",
}
KINDS = [kind.__name__ for kind in get_args(AnyValue) if kind is not NoneType]  # each says why a value was none
MENDABLE: tuple[type[Exception], ...] = (RequestValidationError, InputError, HTTPException, *STATUS)
OF_MESSAGES: tuple[type[Exception], ...] = (ValidationError, *MENDABLE)  # of a socket, which are validated in the route
LONGEST = 500  # characters of a message, which may repeat what was sent


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """Give the status and the body for an error that a client can mend."""
    field: Sequence[str | int] | None = error.field if isinstance(error, FieldError) else None
    if isinstance(error, RequestValidationError | ValidationError):
        errors = error.errors()[: len(KINDS)]
        first = errors[0]
        status, code, text, field = 422, "invalid", str(first["msg"]), first["loc"]
        if [e["loc"] for e in errors] == [(*field[:-1], kind) for kind in KINDS]:
            field, text = field[:-1], "A value is true or false, a finite number, a text or null."
        if isinstance(error, RequestValidationError):
            field = None if first["type"] == "json_invalid" else field[1:]  # without "body" or "query"
    elif type(error) in STATUS:
        status, code, text = STATUS[type(error)]
        text = text or str(error)
    elif isinstance(error, InputError):
        status, code, text = 400, "bad_value", str(error)
    elif isinstance(error, HTTPException):
        status, code, text = error.status_code, CODES.get(error.status_code, "http"), str(error.detail)
    else:
        status, code, text = 500, "internal", "The service failed; its log says why."
    where = None if field is None else [part if isinstance(part, int) else _readable(part) for part in field]
    return status, {"error": {"code": code, "message": _readable(text), "field": where}}


def _readable(text: str) -> str:
    """Cut what repeats a client's own words to what an answer can hold."""
    return text[:LONGEST].encode(errors="replace").decode()


async def answer(_: Request, error: Exception) -> Response:
    """Answer an error."""
    status, body = describe(error)
    headers = dict(getattr(error, "headers", None) or {})
    if status in (429, 503):
        headers["Retry-After"] = "1"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers)

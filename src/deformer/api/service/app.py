"""The HTTP application: routes, limits, errors, metrics and the token, around an engine and its sessions."""

import asyncio
import hmac
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from fastapi import APIRouter, Depends, FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deformer import __version__
from deformer.api.service import wire
from deformer.api.service.batching import Batcher, Busy
from deformer.api.service.engine import Engine, FieldError, plain
from deformer.api.service.sessions import NotThere, Sessions, TooMany
from deformer.errors import InputError

Sent = TypeVar("Sent", bound=BaseModel)
Table = tuple[bytes, str] | None  # an uploaded table and its kind
TABLES = {"text/csv": "csv", "application/vnd.apache.parquet": "parquet"}


@dataclass(frozen=True)
class Limits:
    """What the service takes on.

    Args:
        body: Bytes of a request.
        rows: Rows of a request, and rows that it may draw.
        sessions: Open sessions.
        idle_seconds: After which an unused session makes room for a new one.
        waiting: Requests that wait for the model; more are answered 503.
        seconds: Until a request is answered 504.
        memory: Bytes for the states of sessions.
    """

    body: int = 16 * 2**20
    rows: int = 10_000
    sessions: int = 100_000
    idle_seconds: float = 3600.0
    waiting: int = 256
    seconds: float = 30.0
    memory: int = 2**29


class TooLarge(HTTPException):
    """A request is larger than allowed."""

    def __init__(self) -> None:
        super().__init__(413, "The request is larger than this service takes.")


class _Guard:
    """ASGI middleware: bounds bodies, and counts and times requests by route."""

    def __init__(self, app: ASGIApp, limit: int, count: Counter, took: Histogram) -> None:
        self.app, self.limit, self.count, self.took = app, limit, count, took

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, start, read = 500, time.perf_counter(), 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.limit:
                raise TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, bounded, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.count.labels(route, str(status)).inc()
            self.took.labels(route).observe(time.perf_counter() - start)


class _Service:
    """One thread of computation, the batchers before it, and the sessions behind it."""

    def __init__(self, engine: Engine, limits: Limits, snapshots: Path | None) -> None:
        self.engine, self.limits = engine, limits
        self.sessions = Sessions(
            engine,
            most=limits.sessions,
            idle_seconds=limits.idle_seconds,
            memory=limits.memory,
            folder=snapshots,
        )
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "deformer_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.took = Histogram("deformer_request_seconds", "Seconds by route", ["route"], registry=self.registry)
        self.batch = Histogram(
            "deformer_batch_items",
            "Requests computed together",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        )
        Gauge("deformer_sessions", "Open sessions", registry=self.registry).set_function(lambda: len(self.sessions))
        self.scores = self._batcher(self._score, lambda item: len(item[0]))
        self.arrivals = self._batcher(self.sessions.observe)
        self.calls = self._batcher(self._call)
        self.ready = False

    def _batcher(
        self, work: Callable[[Sequence[Any]], Sequence[Any]], size: Callable[[Any], int] = lambda _: 1
    ) -> Batcher[Any]:
        return Batcher(work, most=1024, waiting=self.limits.waiting, size=size, seen=self.batch.observe)

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        batchers = (self.scores, self.arrivals, self.calls)
        with ThreadPoolExecutor(1, "deformer") as executor:
            for batcher in batchers:
                batcher.start(executor)
            self.ready = True
            yield
            self.ready = False
            for batcher in batchers:
                await batcher.stop()

    def _score(self, asked: Sequence[tuple[pd.DataFrame, int]]) -> list[Any]:
        """Score the rows of several requests that want the same number of orders together."""
        answers: list[Any] = [None] * len(asked)
        for n_orders in {n for _, n in asked}:
            members = [i for i, (_, n) in enumerate(asked) if n == n_orders]
            together = pd.concat([asked[i][0] for i in members], ignore_index=True)
            scores, parts = self.engine.score(together, n_orders)
            start = 0
            for i in members:
                end = start + len(asked[i][0])
                answers[i], start = (scores[start:end], parts[start:end]), end
        return answers

    @staticmethod
    def _call(tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        answers: list[Any] = []
        for task in tasks:
            try:
                answers.append(task())
            except Exception as error:
                answers.append(error)
        return answers

    async def call(self, task: Callable[..., Any], *args: Any) -> Any:
        """Compute something on the model's thread."""
        return await self.within(self.calls.ask(lambda: task(*args)))

    async def within(self, answer: Awaitable[Any]) -> Any:
        """Wait for an answer as long as allowed."""
        return await asyncio.wait_for(answer, self.limits.seconds)

    async def frame(self, sent: Any, table: Table) -> pd.DataFrame:
        """Lay out the rows that were sent, in JSON or as a table.

        Raises:
            TooLarge: There are more than allowed.
        """
        if table is None:
            return await asyncio.to_thread(self.engine.frame, self.few(sent.rows))
        frame: pd.DataFrame = self.few(await asyncio.to_thread(self.engine.upload, *table))
        return frame

    def few(self, rows: Any) -> Any:
        """Pass rows on, unless there are more than allowed."""
        if len(rows) > self.limits.rows:
            raise TooLarge
        return rows


async def _read(request: Request, kind: type[Sent]) -> tuple[Sent, Table]:
    """Read a request: JSON, or a table with its parameters in the query.

    Raises:
        RequestValidationError: It has not the shape of this kind.
        HTTPException: Its type is none of these.
    """
    sent_as = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    body = await request.body()
    try:
        if sent_as == "application/json":
            return kind.model_validate_json(body), None
        if sent_as in TABLES:
            return kind.model_validate({**request.query_params, "rows": [{}]}), (body, TABLES[sent_as])
    except ValidationError as error:
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()]) from error
    raise HTTPException(415, f"Send application/json, {' or '.join(TABLES)}, not {sent_as!r}.")


def _answer(table: Table, answer: BaseModel, lines: Callable[[], pd.DataFrame]) -> Response:
    """Answer JSON with JSON, and a table with a table of the same type."""
    if table is None:
        return Response(answer.model_dump_json(), media_type="application/json")
    if table[1] == "csv":
        return Response(lines().to_csv(index=False), media_type="text/csv")
    buffer = io.BytesIO()
    lines().to_parquet(buffer, index=False)
    return Response(buffer.getvalue(), media_type="application/vnd.apache.parquet")


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that is JSON or a table."""
    tables: dict[str, Any] = {sent_as: {"schema": {"type": "string", "format": "binary"}} for sent_as in TABLES}
    json_body = {"application/json": {"schema": kind.model_json_schema(ref_template="#/components/schemas/{model}")}}
    return {"requestBody": {"required": True, "content": {**json_body, **tables}}}


def _rows_routes(router: APIRouter, service: _Service) -> None:
    """Add what takes rows and gives rows."""
    engine = service.engine

    @router.post("/score", response_model=wire.ScoreAnswer, openapi_extra=_body(wire.ScoreRequest))
    async def score(request: Request) -> Response:
        """Give the log-likelihood of each row in nats; higher is more normal."""
        sent, table = await _read(request, wire.ScoreRequest)
        frame = await service.frame(sent, table)
        scores, parts = await service.within(service.scores.ask((frame, sent.n_orders)))
        terms = parts if sent.terms else [None] * len(scores)
        told = [wire.Score(**s, terms=t) for s, t in zip(scores, terms, strict=True)]
        return _answer(table, wire.ScoreAnswer(scores=told), lambda: pd.DataFrame(scores))

    @router.post("/impute", response_model=wire.ImputeAnswer, openapi_extra=_body(wire.ImputeRequest))
    async def impute(request: Request) -> Response:
        """Fill in missing values; what was there comes back as it was."""
        sent, table = await _read(request, wire.ImputeRequest)
        frame = await service.frame(sent, table)
        if sent.n_imputations * len(frame) > service.limits.rows:
            raise TooLarge
        if sent.n_imputations > 1 and sent.strategy != "draw":
            raise FieldError("only draws differ; n_imputations must be 1", ("n_imputations",))
        filled = await service.call(engine.impute, frame, sent.strategy, sent.n_imputations, sent.seed)
        answer = wire.ImputeAnswer(imputations=filled)
        return _answer(
            table, answer, lambda: pd.concat([pd.DataFrame(f).assign(imputation=i) for i, f in enumerate(filled)])
        )

    @router.post("/explain", response_model=wire.ExplainAnswer, openapi_extra=_body(wire.ExplainRequest))
    async def explain(request: Request) -> Response:
        """Say how much each value surprises, and what was expected in its place."""
        sent, table = await _read(request, wire.ExplainRequest)
        rows = await service.call(engine.explain, await service.frame(sent, table), sent.n_orders)
        lines = [{"row": i, **line} for i, row in enumerate(rows) for line in row]
        return _answer(table, wire.ExplainAnswer(rows=rows), lambda: pd.DataFrame(lines))

    @router.post("/sample", response_model=wire.SampleAnswer)
    async def sample(sent: wire.SampleRequest) -> Any:
        """Draw rows from the model, keeping what is given."""
        if sent.n > service.limits.rows:
            raise TooLarge
        return {"rows": await service.call(engine.sample, sent.n, sent.given, sent.seed)}

    @router.post("/conditional", response_model=wire.ConditionalAnswer, response_model_exclude_none=True)
    async def conditional(sent: wire.ConditionalRequest) -> Any:
        """Give the distribution of any features, given the row's other values."""
        return {"conditionals": await service.call(engine.conditional, sent.row, sent.targets)}


def _session_routes(router: APIRouter, service: _Service) -> None:
    """Add rows whose values arrive one by one."""
    sessions = service.sessions

    def describe(name: str) -> dict[str, Any]:
        reading = sessions.reading(name)
        told = {n: plain(v) for n, v in sessions.told(reading).items()}
        excess = reading.running_nats - reading.expected_nats
        return {"session": name, "observed": told, "running_nats": reading.running_nats, "excess_nats": excess}

    @router.post("/sessions", status_code=201, response_model=wire.SessionAnswer)
    async def create(sent: wire.SessionRequest) -> Any:
        """Begin a row whose values arrive one by one, or go on from a snapshot."""
        return await service.call(lambda: describe(sessions.open(sent.snapshot)))

    @router.get("/sessions/{session}", response_model=wire.SessionAnswer)
    async def look(session: str) -> Any:
        """Say what a session has been told."""
        return await service.call(describe, session)

    @router.post("/sessions/{session}/observe", response_model=wire.SurpriseAnswer)
    async def observe(session: str, sent: wire.Observation) -> Any:
        """Take in one value, and say how much it surprises."""
        return asdict(await service.within(service.arrivals.ask((session, sent.name, sent.value))))

    @router.post("/sessions/{session}/predict", response_model=wire.ConditionalAnswer, response_model_exclude_none=True)
    async def predict(session: str, sent: wire.PredictRequest) -> Any:
        """Give the distribution of features that may still arrive."""
        return {"conditionals": await service.call(sessions.predict, session, sent.names)}

    @router.post("/sessions/{session}/snapshots", status_code=201, response_model=wire.SnapshotAnswer)
    async def save(session: str) -> Any:
        """Keep what a session has been told, on disk if the service has a folder for it."""
        return {"snapshot": await service.call(sessions.save, session)}

    @router.delete("/sessions/{session}", status_code=204)
    async def close(session: str) -> None:
        """Forget a session."""
        await service.call(sessions.close, session)


def _stream_route(app: FastAPI, service: _Service, allowed: Callable[[str | None], bool]) -> None:
    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        """Open a session, take observations as {"name", "value"}, and answer each with its surprise or an error."""
        if not allowed(socket.headers.get("authorization")):
            await socket.close(1008, "A token is needed.")
            return
        await socket.accept()
        session = None
        try:
            session = await service.call(service.sessions.open, None)
            while True:
                try:
                    sent = wire.Observation.model_validate_json(await socket.receive_text())
                    surprise = await service.within(service.arrivals.ask((session, sent.name, sent.value)))
                    await socket.send_json(asdict(surprise))
                except (ValidationError, InputError, Busy, TimeoutError) as error:
                    await socket.send_json(_problem(error)[1])
        except WebSocketDisconnect:
            pass
        except TooMany:
            await socket.close(1013, "Too many sessions.")
        finally:
            if session is not None:
                await service.call(service.sessions.forget, session)


def _problem(error: Exception) -> tuple[int, dict[str, Any]]:
    """Give the status and the body for an error that a client can mend."""
    field: Sequence[str | int] | None = getattr(error, "field", None)
    if isinstance(error, RequestValidationError | ValidationError):
        first = error.errors()[0]
        status, code, text, field = 422, "invalid", str(first["msg"]), first["loc"]
    elif isinstance(error, FieldError) and "observed already" in str(error):
        status, code, text = 409, "conflict", str(error)
    elif isinstance(error, InputError):
        status, code, text = 400, "bad_value", str(error)
    elif isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        status, code, text = error.status_code, phrase.lower().replace(" ", "_"), str(error.detail)
    else:
        status, code, text = _STATUS[type(error)]
        text = str(error) or text
    return status, {"error": {"code": code, "message": text, "field": None if field is None else list(field)}}


_STATUS: dict[type[Exception], tuple[int, str, str]] = {
    NotThere: (404, "not_there", ""),
    TooMany: (429, "too_many", "Too many sessions are open."),
    Busy: (503, "busy", "Too many requests wait; try again."),
    TimeoutError: (504, "out_of_time", "There was no answer in time; ask for less."),
}
_MENDED = (RequestValidationError, InputError, HTTPException, *_STATUS)


async def _fail(_: Request, error: Exception) -> Response:
    status, body = _problem(error)
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    return JSONResponse(body, status, headers | ({"WWW-Authenticate": "Bearer"} if status == 401 else {}))


def make_app(
    engine: Engine, *, token: str | None = None, limits: Limits | None = None, snapshots: Path | None = None
) -> FastAPI:
    """Make the application.

    Args:
        token: What clients must send as `Authorization: Bearer ...`. None: nothing.
        snapshots: Folder where snapshots of sessions outlive the process. None: they end with it.
    """
    service = _Service(engine, limits or Limits(), snapshots)
    app = FastAPI(
        title="deformer", version=__version__, lifespan=service.running, description=__doc__.partition(":")[0]
    )
    app.state.service = service
    app.add_middleware(_Guard, limit=service.limits.body, count=service.requests, took=service.took)
    for kind in _MENDED:
        app.add_exception_handler(kind, _fail)

    def allowed(header: str | None) -> bool:
        return token is None or hmac.compare_digest((header or "").encode(), f"Bearer {token}".encode())

    def admit(request: Request) -> None:
        if not allowed(request.headers.get("authorization")):
            raise HTTPException(401, "Send the token as Authorization: Bearer ...")

    router = APIRouter(prefix="/v1", dependencies=[Depends(admit)], responses=wire.FAILURES)

    @router.get("/model", response_model=wire.ModelAnswer)
    async def model() -> Any:
        """Describe the model: its features, their kinds and values."""
        return engine.describe()

    _rows_routes(router, service)
    _session_routes(router, service)
    app.include_router(router)
    _stream_route(app, service, allowed)

    @app.get("/healthz", include_in_schema=False)
    async def health() -> dict[str, bool]:
        return {"alive": True}

    @app.get("/readyz", include_in_schema=False)
    async def readiness() -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    app.mount("/", StaticFiles(directory=str(resources.files("deformer") / "api/service/page"), html=True))
    return app

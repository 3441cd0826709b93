"""The HTTP application: routes around a model at work."""

import asyncio
import io
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from fastapi import APIRouter, Depends, FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from deformer import __version__
from deformer.api.service import problems, wire
from deformer.api.service.batching import Busy
from deformer.api.service.engine import Engine, FieldError
from deformer.api.service.guard import Admission, Guard
from deformer.api.service.sessions import TooMany
from deformer.api.service.work import DRAWN, PIECE, Limits, Service, Table
from deformer.api.table_commands import numbered
from deformer.api.tables import ORDERS
from deformer.data.seeds import derive_of_piece

Sent = TypeVar("Sent", bound=BaseModel)
TABLES = {"text/csv": "csv", "application/vnd.apache.parquet": "parquet"}
OF_TABLES = ("/v1/score", "/v1/impute", "/v1/explain")  # whose bodies may be large, and are read beside the event loop


async def _read(service: Service, request: Request, kind: type[Sent]) -> tuple[Sent, Table]:
    """Read a request: JSON, or a table with its parameters in the query.

    Raises:
        Busy: Too many requests wait to be read.
        RequestValidationError: It has not the shape of this kind.
        HTTPException: Its type is none of these.
    """
    sent_as = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body, where = await request.body(), "body"
    try:
        if sent_as == "application/json":
            async with service.reading():
                return await asyncio.to_thread(kind.model_validate_json, body), None
        if sent_as in TABLES:
            where = "query"
            return kind.model_validate({**request.query_params, "rows": [{}]}), (body, TABLES[sent_as])
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError([{**e, "loc": (where, *e["loc"])} for e in errors]) from error
    raise HTTPException(415, f"Send application/json, {' or '.join(TABLES)}, not {sent_as!r}.")


async def _answer(table: Table, answer: Callable[[], BaseModel], lines: Callable[[], pd.DataFrame]) -> Response:
    """Answer JSON with JSON, and a table with a table of the same type."""
    if table is None:
        text = await asyncio.to_thread(lambda: answer().model_dump_json())
        return Response(text, media_type="application/json")
    if table[1] == "csv":
        return Response(await asyncio.to_thread(lambda: lines().to_csv(index=False)), media_type="text/csv")
    return Response(await asyncio.to_thread(lambda: _parquet(lines())), media_type="application/vnd.apache.parquet")


def _parquet(frame: pd.DataFrame) -> bytes:
    """Write a table; a column of several types, which Parquet does not know, as text."""
    mixed = [n for n in frame if pd.api.types.infer_dtype(frame[n], skipna=True).startswith("mixed")]
    buffer = io.BytesIO()
    frame.astype(dict.fromkeys(mixed, "string")).to_parquet(buffer, index=False)
    return buffer.getvalue()


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that is JSON or a table."""
    tables: dict[str, Any] = {sent_as: {"schema": {"type": "string", "format": "binary"}} for sent_as in TABLES}
    json_body = {"application/json": {"schema": kind.model_json_schema(ref_template="#/components/schemas/{model}")}}
    return {"requestBody": {"required": True, "content": {**json_body, **tables}}}


def _rows_routes(router: APIRouter, service: Service) -> None:
    """Add what takes rows and gives rows."""
    engine = service.engine

    @router.post("/score", response_model=wire.ScoreAnswer, openapi_extra=_body(wire.ScoreRequest))
    async def score(request: Request) -> Response:
        """Give the log-likelihood of each row in nats; higher is more normal."""
        sent, table = await _read(service, request, wire.ScoreRequest)
        frame, per_row = await service.frame(sent.rows, table, sent.n_orders)
        [found] = await service.in_pieces(
            service.scores, lambda start, end, _: (frame[start:end], sent.n_orders), len(frame), per_row
        )
        scores, parts = ([pair[k] for pair in found] for k in (0, 1))
        terms = parts if sent.terms else [None] * len(scores)

        def answer() -> wire.ScoreAnswer:
            return wire.ScoreAnswer(scores=[wire.Score(**s, terms=t) for s, t in zip(scores, terms, strict=True)])

        def lines() -> pd.DataFrame:
            found = pd.DataFrame(scores)
            return found.join(pd.DataFrame(parts).add_prefix("term_")) if sent.terms else found

        return await _answer(table, answer, lines)

    @router.post("/impute", response_model=wire.ImputeAnswer, openapi_extra=_body(wire.ImputeRequest))
    async def impute(request: Request) -> Response:
        """Fill in missing values; what was there comes back as it was."""
        sent, table = await _read(service, request, wire.ImputeRequest)
        passes = DRAWN if sent.strategy == "draw" else 1 + ORDERS
        frame, per_row = await service.frame(sent.rows, table, passes, sent.n_imputations)
        if sent.n_imputations > 1 and sent.strategy != "draw":
            raise FieldError("only draws differ; n_imputations must be 1", ("n_imputations",))
        filled = await service.in_pieces(
            service.calls,
            lambda start, end, i: (
                lambda: engine.impute(frame[start:end], sent.strategy, derive_of_piece(sent.seed, start, i))
            ),
            len(frame),
            per_row,
            range(sent.n_imputations),
        )
        return await _answer(
            table,
            lambda: wire.ImputeAnswer(imputations=filled),
            lambda: numbered([pd.DataFrame(rows) for rows in filled]),
        )

    @router.post("/explain", response_model=wire.ExplainAnswer, openapi_extra=_body(wire.ExplainRequest))
    async def explain(request: Request) -> Response:
        """Say how much each value surprises, and what was expected in its place."""
        sent, table = await _read(service, request, wire.ExplainRequest)
        names = engine.table.codec.names
        frame, _ = await service.frame(sent.rows, table, sent.n_orders + len(names))
        [shares] = await service.in_pieces(
            service.scores,
            lambda start, end, _: (frame[start:end], sent.n_orders),
            len(frame),
            sent.n_orders * len(names),
        )
        size = min(len(names), max(1, PIECE // len(names)))
        parts = await service.in_pieces(
            service.calls,
            lambda start, end, some: lambda: engine.surprises(frame[start:end], some),
            len(frame),
            size * len(names),
            [names[i : i + size] for i in range(0, len(names), size)],
            admitted=True,
        )
        rows: list[list[dict[str, Any]]] = []
        for (_, share), *of_row in zip(shares, *parts, strict=True):
            row = [{**line, "share": share.get(line["feature"])} for part in of_row for line in part]
            rows.append(sorted(row, key=lambda line: math.inf if (s := line["excess"]) is None else -s))

        def lines() -> pd.DataFrame:
            long = pd.DataFrame([{"row": i, **line} for i, row in enumerate(rows) for line in row])
            return long.astype({"value": str, "expected": str})  # columns of a table are of one type

        return await _answer(table, lambda: wire.ExplainAnswer.model_validate({"rows": rows}), lines)

    @router.post("/sample", response_model=wire.SampleAnswer)
    async def sample(sent: wire.SampleRequest) -> Any:
        """Draw rows from the model, keeping what is given."""
        per_row = service.afford(sent.n, DRAWN)
        [rows] = await service.in_pieces(
            service.calls,
            lambda start, end, _: lambda: engine.sample(end - start, sent.given, derive_of_piece(sent.seed, start)),
            sent.n,
            per_row,
        )
        return {"rows": rows}

    @router.post("/conditional", response_model=wire.ConditionalAnswer, response_model_exclude_none=True)
    async def conditional(sent: wire.ConditionalRequest) -> Any:
        """Give the distribution of any features, given the row's other values."""
        together = engine.targets(sent.row, sent.targets)
        frame, per_part = await service.frame([sent.row], None, sent.n_orders, len(together), "row")
        found = await _ask_apart(
            service, lambda some: engine.conditional(frame, some, sent.n_orders), per_part, together
        )
        return {"conditionals": {name: found[name] for name in sent.targets or found}}


async def _ask_apart(
    service: Service, ask: Callable[[Sequence[str]], dict[str, Any]], per_part: int, together: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Ask about groups of features of one row, so that others have their turn between them."""
    answers = await service.in_pieces(service.calls, lambda _, __, some: lambda: [ask(some)], 1, per_part, together)
    return {name: told for [answer] in answers for name, told in answer.items()}


def _session_routes(router: APIRouter, service: Service) -> None:
    """Add rows whose values arrive one by one."""
    sessions = service.sessions

    def describe(name: str) -> dict[str, Any]:
        reading = sessions.reading(name)
        told, excess = sessions.told(name), reading.running_nats - reading.expected_nats
        return {"session": name, "observed": told, "running_nats": reading.running_nats, "excess_nats": excess}

    def begin(name: str, snapshot: str | None) -> dict[str, Any]:
        sessions.open(name, snapshot)
        return describe(name)

    @router.post("/sessions", status_code=201, response_model=wire.SessionAnswer)
    async def create(sent: wire.SessionRequest) -> Any:
        """Begin a row whose values arrive one by one, or go on from a snapshot."""
        name = secrets.token_urlsafe(18)
        try:
            return await service.enter(begin, name, sent.snapshot)
        except BaseException:  # given up, it may still open; nobody would know its name
            service.forget(name)
            raise

    @router.get("/sessions/{session}", response_model=wire.SessionAnswer)
    async def look(session: str) -> Any:
        """Say what a session has been told."""
        return await service.enter(describe, session)

    @router.post("/sessions/{session}/observe", response_model=wire.SurpriseAnswer)
    async def observe(session: str, sent: wire.Observation) -> Any:
        """Take in one value, and say how much it surprises."""
        return asdict(await service.within(service.arrivals.ask((session, sent.name, sent.value))))

    @router.post("/sessions/{session}/predict", response_model=wire.ConditionalAnswer, response_model_exclude_none=True)
    async def predict(session: str, sent: wire.PredictRequest) -> Any:
        """Give the distribution of features, given what has arrived beside each."""
        together = await service.enter(sessions.targets, session, sent.names)
        per_part = service.afford(1, 1, len(together))
        found = await _ask_apart(service, lambda some: sessions.predict(session, some), per_part, together)
        return {"conditionals": {name: found[name] for name in sent.names or found}}

    @router.post("/sessions/{session}/snapshots", status_code=201, response_model=wire.SnapshotAnswer)
    async def save(session: str) -> Any:
        """Keep what a session has been told, on disk if the service has a folder for it."""
        name = secrets.token_hex(16)
        try:
            await service.enter(sessions.save, session, name)
        except BaseException:  # given up, it may still be kept; nobody would know its name
            service.forget_snapshot(name)
            raise
        return {"snapshot": name}

    @router.delete("/snapshots/{snapshot}", status_code=204)
    async def drop(snapshot: str) -> None:
        """Forget a snapshot."""
        await service.enter(sessions.drop, snapshot)

    @router.delete("/sessions/{session}", status_code=204)
    async def close(session: str) -> None:
        """Forget a session."""
        await service.enter(sessions.close, session)


def _stream_route(app: FastAPI, service: Service) -> None:
    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        """Open a session, take observations as {"name", "value"}, and answer each with its surprise or an error."""
        await socket.accept()
        name = secrets.token_urlsafe(18)
        try:
            await service.enter(service.sessions.open, name, None)
            while True:
                try:
                    text = (await socket.receive_text()).encode()
                except KeyError:  # a binary message
                    await socket.close(1003, "Send text.")
                    break
                try:
                    sent = wire.Observation.model_validate_json(text)
                    surprise = await service.within(service.arrivals.ask((name, sent.name, sent.value)))
                    await socket.send_json(asdict(surprise))
                except problems.OF_MESSAGES as error:
                    await socket.send_json(problems.describe(error)[1])
        except WebSocketDisconnect:
            pass
        except (TooMany, Busy, TimeoutError):
            await socket.close(1013, "Busy; try again.")
        finally:
            service.forget(name)


def make_app(
    engine: Engine,
    *,
    admission: Admission | None = None,
    limits: Limits | None = None,
    snapshots: Path | None = None,
) -> FastAPI:
    """Make the application.

    Args:
        admission: Who may ask. None: anybody.
        snapshots: Folder where snapshots of sessions outlive the process. None: they end with it.
    """
    service = Service(engine, limits or Limits(), snapshots)
    # The pages that describe the service would load scripts from elsewhere; /openapi.json is all they show.
    app = FastAPI(title="deformer", version=__version__, lifespan=service.running, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(
        Guard,
        admission=admission or Admission(),
        limit=service.limits.body,
        small=min(service.limits.small, service.limits.body),
        large=OF_TABLES,
        held=service.limits.held,
        seconds=service.limits.seconds,
        count=service.requests,
        took=service.took,
    )
    for kind in (*problems.MENDABLE, Exception):
        app.add_exception_handler(kind, problems.answer)
    token = Depends(HTTPBearer(auto_error=False))  # what the guard has asked for already, for the description
    router = APIRouter(prefix="/v1", dependencies=[token], responses=wire.FAILURES)

    @router.get("/model", response_model=wire.ModelAnswer)
    async def model() -> Any:
        """Describe the model: its features, their kinds and values."""
        return {**engine.describe(), "rows": service.limits.rows}

    _rows_routes(router, service)
    _session_routes(router, service)
    app.include_router(router)
    _stream_route(app, service)

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

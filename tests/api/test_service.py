import asyncio
import io
import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect
from tests.models import mixed, small_model

from deformer.api import tables
from deformer.api.service.app import make_app
from deformer.api.service.batching import Batcher, Busy
from deformer.api.service.engine import Engine, FieldError
from deformer.api.service.guard import LOOPBACK, Admission
from deformer.api.service.run import open_engine
from deformer.api.service.work import Limits, Service
from deformer.api.tables import TableModel
from deformer.client import Client, ServiceError
from deformer.data.columns import Numbers
from deformer.data.frames import Codec, make_codec
from deformer.data.schema import Continuous, table_schema
from deformer.errors import InputError
from deformer.nn.model import new_model
from deformer.tasks.density import log_prob
from deformer.tasks.streaming import Alarms, Session

ROW = {"size": 0.3, "kind": "big", "price": 1.25, "rooms": None, "sold": "2024-03-01T00:00:00"}


@pytest.fixture(scope="module")
def table() -> TableModel:
    return tables.learn(mixed(200), steps=20, epochs=None, minutes=None)[0]


@pytest.fixture
def client(table: TableModel, tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(make_app(Engine(table, "houses"), snapshots=tmp_path)) as client:
        yield client


def post(client: TestClient, path: str, status: int = 200, **body: Any) -> Any:
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_the_model_is_described(client: TestClient) -> None:
    model = client.get("/v1/model").json()
    assert {f["name"]: f["kind"] for f in model["features"]} == {
        **{"size": "number", "kind": "label", "price": "number", "rooms": "level", "sold": "moment"}
    }
    assert model["image_shape"] is None
    assert model["rows"] == Limits().rows
    assert client.get("/openapi.json").status_code == 200


def test_scores_equal_the_library(client: TestClient, table: TableModel) -> None:
    frame = mixed(6, seed=5)
    rows = json.loads(frame.to_json(orient="records", date_format="iso"))
    answer = post(client, "score", rows=rows, n_orders=3, terms=True)["scores"]
    expected = tables.log_prob(table, frame, 3, "mean")
    for score, value in zip(answer, expected, strict=True):
        assert abs(score["mean_over_orders"] - value) < 1e-4
        assert abs(sum(score["terms"].values()) + score["mean_over_orders"]) < 1e-4
        assert score["ensemble_over_orders"] >= score["mean_over_orders"]


def test_imputation_samples_conditionals_and_explanations(client: TestClient) -> None:
    filled = post(client, "impute", rows=[ROW, {}], n_imputations=2, seed=3)["imputations"]
    assert len(filled) == 2
    assert all(v is not None for part in filled for row in part for v in row.values())
    assert filled[0][0]["kind"] == "big"
    assert post(client, "impute", rows=[ROW], strategy="mode")["imputations"][0][0]["rooms"] in (2, 3, 4)
    drawn = post(client, "sample", n=3, given={"kind": "small"})["rows"]
    assert [row["kind"] for row in drawn] == ["small"] * 3
    answers = post(client, "conditional", row=ROW)["conditionals"]
    assert list(answers) == ["rooms"]
    assert abs(sum(answers["rooms"]["probabilities"].values()) - 1) < 1e-4
    held = post(client, "conditional", row=ROW, targets=["size", "kind"])["conditionals"]
    without = post(client, "conditional", row={**ROW, "size": None}, targets=["size"])["conditionals"]
    assert held["size"] == without["size"]
    quantiles = list(held["size"]["quantiles"].values())
    assert quantiles == sorted(quantiles)
    sold = post(client, "conditional", row={}, targets=["sold", "rooms"])["conditionals"]
    assert set(sold["rooms"]["probabilities"]) == {"2", "3", "4"}
    assert sold["sold"]["quantiles"]["0.5"].startswith("2024-")
    lines = post(client, "explain", rows=[ROW])["rows"][0]
    assert {line["feature"] for line in lines} == set(ROW)
    assert next(line for line in lines if line["feature"] == "rooms")["surprise"] is None


def test_the_python_client(client: TestClient, table: TableModel) -> None:
    remote = Client(http=client)
    assert remote.model().features[1].values == ["big", "small", "(other)"]
    scores = remote.score([ROW], n_orders=2, terms=True)
    assert scores[0].terms is not None
    assert remote.impute([ROW], "mode")[0][0]["kind"] == "big"
    assert len(remote.sample(2, {"kind": "big"})) == 2
    assert set(remote.conditional(ROW)) == {"rooms"}
    records = mixed(5, seed=5).to_dict("records")  # with NaN and moments
    assert len(remote.score(records)) == 5
    assert remote.conditional(records[0], ["sold"])["sold"].kind == "moment"
    sold = [{"sold": np.datetime64("2024-03-01", unit)} for unit in ("ns", "D")]
    assert np.ptp([score.mean_over_orders for score in remote.score([*sold, {"sold": "2024-03-01"}])]) < 1e-4
    with pytest.raises(InputError, match="infinite"):
        remote.score([{"size": np.float32("-inf")}])
    with pytest.raises(ServiceError):
        remote.score([{"size": [1]}])
    assert remote.explain([ROW])[0][0].surprise is not None
    session = remote.session()
    assert session.observe("size", 0.5).n_observed == 1
    again = remote.session(session.save())
    assert again.predict(["kind"])["kind"].probabilities == session.predict(["kind"])["kind"].probabilities
    session.close()
    with pytest.raises(ServiceError) as refused:
        session.observe("kind", "big")
    assert (refused.value.status, refused.value.code) == (404, "not_there")


def test_numbers_with_a_point_mass_have_its_probability() -> None:
    table = TableModel.of(small_model("mixed"))
    engine = Engine(table, "mixed")
    told = engine.conditional(engine.frame([{"x0": 1}]), ["x1", "x3"], 1)
    assert told["x1"]["kind"] == "number"
    expected = tables.log_prob(table, np.array([[1.0, 1.5] + [np.nan] * 3]), targets=["x1"], given=["x0"])
    assert told["x1"]["probabilities"]["1.5"] == pytest.approx(math.exp(expected[0]))
    assert "probabilities" not in told["x3"]


def test_a_point_mass_may_lie_too_far_out_for_any_other_number() -> None:
    codec = Codec(("a",), (Numbers(point_mass=9.97e36),), (np.dtype(np.float64),))
    engine = Engine(TableModel(codec, new_model(codec.schema).eval()), "a")
    [score], _ = engine.score(engine.frame([{"a": 9.97e36}]), 1)
    assert score["mean_over_orders"] < 0
    engine.check_arrival("a", 9.97e36)
    with pytest.raises(FieldError, match="too far out"):
        engine.frame([{"a": 9.97e35}])
    with pytest.raises(FieldError, match="too far out"):
        engine.check_arrival("a", 9.97e35)


def test_conditionals_equal_the_library(client: TestClient, table: TableModel) -> None:
    frame = pd.DataFrame([ROW])
    kinds = tables.conditional(table, frame, "kind", [0.5]).iloc[0]
    told = post(client, "conditional", row=ROW, targets=["kind", "size"])["conditionals"]
    np.testing.assert_allclose(list(told["kind"]["probabilities"].values()), kinds, atol=1e-6)
    size = tables.conditional(table, frame, "size", [0.5]).iloc[0]
    assert told["size"]["mean"] == pytest.approx(size["mean"], abs=1e-5)
    assert told["size"]["quantiles"]["0.5"] == pytest.approx(size["0.5"], abs=1e-5)
    one = post(client, "conditional", row=ROW, targets=["size"], n_orders=1)["conditionals"]
    assert one["size"] != told["size"]


def test_tables_are_taken_and_given(client: TestClient) -> None:
    frame = mixed(5, seed=5)
    expected = post(client, "score", rows=json.loads(frame.to_json(orient="records", date_format="iso")))["scores"]
    csv = client.post("/v1/score?n_orders=4", content=frame.to_csv(index=False), headers={"content-type": "text/csv"})
    assert csv.status_code == 200, csv.text
    found = pd.read_csv(io.StringIO(csv.text))["mean_over_orders"]
    assert max(abs(a["mean_over_orders"] - b) for a, b in zip(expected, found, strict=True)) < 1e-4
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    kind = "application/vnd.apache.parquet"
    answer = client.post("/v1/impute?strategy=mode", content=buffer.getvalue(), headers={"content-type": kind})
    assert answer.headers["content-type"] == kind
    assert pd.read_parquet(io.BytesIO(answer.content)).notna().all(axis=None)


@pytest.mark.parametrize("kind", ["text/csv", "application/vnd.apache.parquet"])
@pytest.mark.parametrize("route", ["score?terms=true", "impute", "explain"])
def test_every_route_of_tables_takes_both_kinds(client: TestClient, kind: str, route: str) -> None:
    frame, buffer = mixed(5, seed=5), io.BytesIO()
    frame.to_csv(buffer, index=False) if kind == "text/csv" else frame.to_parquet(buffer)
    answer = client.post(f"/v1/{route}", content=buffer.getvalue(), headers={"content-type": kind})
    assert answer.status_code == 200, answer.text
    read = pd.read_csv if kind == "text/csv" else pd.read_parquet
    assert len(read(io.BytesIO(answer.content))) == (25 if route == "explain" else 5)


def test_uploads_of_many_row_groups_are_read_whole(client: TestClient) -> None:
    frame, headers = mixed(5, seed=5).astype({"kind": object}), {"content-type": "application/vnd.apache.parquet"}
    for size in (2, 5):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(frame), buffer, row_group_size=size)
        answer = client.post("/v1/score", content=buffer.getvalue(), headers=headers)
        assert len(pd.read_parquet(io.BytesIO(answer.content))) == 5


def test_uploads_are_read_as_files_are(tmp_path: Path) -> None:
    frame = pd.DataFrame({"code": ["007", "12"] * 30, "x": range(60)})
    table, _ = tables.learn(frame, steps=5, epochs=None, minutes=None)
    text = "code; x\n007; 1\n?; 2\n"
    (tmp_path / "t.csv").write_text(text)
    with TestClient(make_app(Engine(table, "codes"))) as client:
        answer = client.post("/v1/score?n_orders=2", content=text, headers={"content-type": "text/csv"})
        assert answer.status_code == 200, answer.text
    expected = tables.log_prob(table, pd.DataFrame({"code": ["007", None], "x": [1, 2]}), 2, "mean")
    found = pd.read_csv(io.StringIO(answer.text))["mean_over_orders"]
    assert max(abs(expected - found)) < 1e-4


def test_large_requests_are_answered_in_pieces(
    client: TestClient, table: TableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"size": 0.1 * i, "kind": "big"} for i in range(9)]
    whole = {path: post(client, path, rows=rows) for path in ("score", "explain")}
    monkeypatch.setattr("deformer.api.service.work.PIECE", 30)
    pieces = {path: post(client, path, rows=rows) for path in ("score", "explain")}
    for a, b in zip(whole["score"]["scores"], pieces["score"]["scores"], strict=True):
        assert abs(a["mean_over_orders"] - b["mean_over_orders"]) < 1e-4
    assert [[line["feature"] for line in row] for row in pieces["explain"]["rows"]] == [
        [line["feature"] for line in row] for row in whole["explain"]["rows"]
    ]
    filled = post(client, "impute", rows=rows, n_imputations=2)["imputations"]
    assert [[row["kind"] for row in part] for part in filled] == [["big"] * 9] * 2
    assert len(post(client, "sample", n=11)["rows"]) == 11


def test_targets_are_asked_about_once_and_bounded(client: TestClient) -> None:
    answer = post(client, "conditional", row=ROW, targets=["rooms", "rooms", "size", "size"])
    assert list(answer["conditionals"]) == ["rooms", "size"]


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("score", {"rows": [{"size": 1.0}, {"colour": 3}]}, 400, ["rows", 1, "colour"]),
        ("score", {"rows": [{"size": "wide"}]}, 400, ["rows", 0, "size"]),
        ("score", {"rows": [{"sold": "yesterday"}]}, 400, ["rows", 0, "sold"]),
        ("score", {"rows": []}, 422, ["rows"]),
        ("score", {"rows": [{}], "n_orders": 0}, 422, ["n_orders"]),
        ("score", {"rows": [{}], "colour": 0}, 422, ["colour"]),
        ("score", {"rows": [{"size": 1}] * 101}, 413, None),
        ("sample", {"n": 101}, 413, None),
        ("impute", {"rows": [{}], "strategy": "mean", "n_imputations": 2}, 400, ["n_imputations"]),
        ("conditional", {"row": {}, "targets": ["colour"]}, 400, ["targets", 0]),
        ("conditional", {"row": {"kind": [1]}}, 422, ["row", "kind"]),
        ("conditional", {"row": {"size": "wide"}}, 400, ["row", "size"]),
        ("conditional", {"row": {"colour": 1}}, 400, ["row", "colour"]),
        ("sample", {"given": {"size": "wide"}}, 400, ["given", "size"]),
        ("sessions", {"snapshot": "../outside"}, 404, None),
        ("score", {"rows": [{"size": 10**400}]}, 400, ["rows", 0, "size"]),
        ("score", {"rows": [{"size": 1e300}]}, 400, ["rows", 0, "size"]),
        ("score", {"rows": [{"rooms": "inf"}]}, 400, ["rows", 0, "rooms"]),
        ("score", {"rows": [{"sold": "10000-01-01"}]}, 400, ["rows", 0, "sold"]),
        ("explain", {"rows": [{"size": 1}] * 100, "n_orders": 256}, 413, None),
        ("sessions/nobody/observe", {"name": "size", "value": 1}, 404, None),
    ],
)
def test_errors_name_the_field(
    table: TableModel, tmp_path: Path, path: str, body: dict[str, Any], status: int, field: list[Any] | None
) -> None:
    (tmp_path / "outside.json").write_text("{}")
    limits, folder = Limits(rows=100, values=20_000), tmp_path / "snapshots"
    with TestClient(make_app(Engine(table, "houses"), limits=limits, snapshots=folder)) as client:
        error = post(client, path, status, **body)["error"]
    assert error["field"] == field
    assert error["message"]


def test_bodies_are_bounded_and_types_are_known(table: TableModel) -> None:
    with TestClient(make_app(Engine(table, "houses"), limits=Limits(body=1000))) as client:
        long = {"rows": [{"kind": "x" * 2000}]}
        assert post(client, "score", 413, **long)["error"]["code"] == "too_large"
        assert post(client, "sample", 413, given={"kind": "x" * 2000})
        answer = client.post("/v1/score", content=b"x", headers={"content-type": "image/png"})
        assert answer.status_code == 415
        assert client.post("/v1/score", content=b"{", headers={"content-type": "application/json"}).status_code == 422
        broken = client.post("/v1/score", content=b"PAR1", headers={"content-type": "application/vnd.apache.parquet"})
        assert broken.status_code == 400


def test_a_body_that_does_not_arrive_is_given_up(table: TableModel) -> None:
    async def trickle() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    answers: list[Message] = []

    async def keep(message: Message) -> None:
        answers.append(message)

    app = make_app(Engine(table, "houses"), limits=Limits(seconds=0.1))
    for path in ("/v1/score", "/v1/sample"):
        where = {"method": "POST", "path": path, "query_string": b"", "server": ("testserver", 80)}
        asyncio.run(app({"type": "http", "headers": [(b"content-type", b"application/json")], **where}, trickle, keep))
    assert [answer["status"] for answer in answers if "status" in answer] == [408, 408]
    assert all((b"connection", b"close") in answer["headers"] for answer in answers if "status" in answer)


def test_a_session_follows_its_row(client: TestClient, table: TableModel) -> None:
    name = post(client, "sessions", 201)["session"]
    alone = Session(table.model, table.codec)
    for feature, value in [("kind", "big"), ("size", 0.25), ("rooms", 3)]:
        surprise = post(client, f"sessions/{name}/observe", name=feature, value=value)
        expected = alone.observe(feature, value)
        assert abs(surprise["running_nats"] - expected.running_nats) < 1e-4
        assert surprise["n_observed"] == expected.n_observed
    predicted = post(client, f"sessions/{name}/predict")["conditionals"]
    assert set(predicted) == {"price", "sold"}
    assert abs(predicted["price"]["mean"] - float(alone.predict("price").mean()[0])) < 1e-3
    snapshot = post(client, f"sessions/{name}/snapshots", 201)["snapshot"]
    assert post(client, f"sessions/{name}/observe", 409, name="size", value=1)["error"]["field"] == ["name"]
    assert post(client, f"sessions/{name}/observe", 400, name="colour", value=1)["error"]["field"] == ["name"]
    assert post(client, f"sessions/{name}/observe", 400, name="price", value="dear")["error"]["field"] == ["value"]
    moved = post(client, f"sessions/{name}/observe", name="sold", value="2024-02-01")
    again = post(client, "sessions", 201, snapshot=snapshot)
    assert again["observed"] == {"kind": "big", "size": 0.25, "rooms": 3}
    assert client.delete(f"/v1/snapshots/{snapshot}").status_code == 204
    assert client.delete(f"/v1/snapshots/{snapshot}").status_code == 404
    restored = post(client, f"sessions/{again['session']}/observe", name="sold", value="2024-02-01")
    assert abs(restored["running_nats"] - moved["running_nats"]) < 1e-4
    assert client.delete(f"/v1/sessions/{name}").status_code == 204
    assert client.get(f"/v1/sessions/{name}").status_code == 404


def test_snapshots_outlive_the_process(table: TableModel, tmp_path: Path) -> None:
    with TestClient(make_app(Engine(table, "houses"), snapshots=tmp_path)) as client:
        name = post(client, "sessions", 201)["session"]
        post(client, f"sessions/{name}/observe", name="size", value=0.5)
        snapshot = post(client, f"sessions/{name}/snapshots", 201)["snapshot"]
    with TestClient(make_app(Engine(table, "houses"), snapshots=tmp_path)) as client:
        assert post(client, "sessions", 201, snapshot=snapshot)["observed"] == {"size": 0.5}


def test_snapshots_belong_to_one_model(table: TableModel, tmp_path: Path) -> None:
    with TestClient(make_app(Engine(table, "houses"), snapshots=tmp_path)) as client:
        name = post(client, "sessions", 201)["session"]
        snapshot = post(client, f"sessions/{name}/snapshots", 201)["snapshot"]
    other = tables.learn(mixed(200), steps=3, epochs=None, minutes=None)[0]
    with TestClient(make_app(Engine(other, "houses"), snapshots=tmp_path)) as client:
        assert "another model" in post(client, "sessions", 400, snapshot=snapshot)["error"]["message"]


def test_sessions_say_what_they_were_told(client: TestClient) -> None:
    name = post(client, "sessions", 201)["session"]
    for feature, value in (("kind", "never seen"), ("rooms", 2.4)):
        post(client, f"sessions/{name}/observe", name=feature, value=value)
    assert client.get(f"/v1/sessions/{name}").json()["observed"] == {"kind": "never seen", "rooms": 2.4}


def test_a_column_may_be_called_self_or_nothing_and_a_label_other() -> None:
    labels = ["(other)", "a", "a"] * 20
    frame = pd.DataFrame({"self": labels, "": range(60), "one": pd.Series([1, "1", 1] * 20, dtype=object)})
    with TestClient(make_app(Engine(tables.learn(frame, steps=2)[0], "table"))) as client:
        told = post(client, "conditional", row={"self": "a"}, targets=["self", "one"])["conditionals"]
        assert list(told["self"]["probabilities"]) == ["(other)", "a", "((other))"]
        for told_of_one in told.values():
            assert sum(told_of_one["probabilities"].values()) == pytest.approx(1)
        [row] = post(client, "sample")["rows"]
        post(client, "score", rows=[row])


def test_a_disk_that_takes_no_changes_is_said_and_logged(
    table: TableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("read-only")

    with TestClient(make_app(Engine(table, "houses"), snapshots=tmp_path)) as client:
        name = post(client, "sessions", 201)["session"]
        snapshot = post(client, f"sessions/{name}/snapshots", 201)["snapshot"]
        monkeypatch.setattr(Path, "unlink", refuse)
        assert client.delete(f"/v1/snapshots/{snapshot}").status_code == 507
        assert "read-only" in caplog.text
        monkeypatch.undo()
        assert client.delete(f"/v1/snapshots/{snapshot}").status_code == 204


def test_failures_are_answered_in_kind(table: TableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "surprises", lambda *_: 1 / 0)
    with TestClient(make_app(Engine(table, "houses")), raise_server_exceptions=False) as client:
        assert post(client, "explain", 500, rows=[ROW])["error"]["code"] == "internal"


def test_sessions_are_counted_and_idle_ones_make_room(table: TableModel) -> None:
    with TestClient(make_app(Engine(table, "houses"), limits=Limits(sessions=1))) as client:
        post(client, "sessions", 201)
        full = client.post("/v1/sessions", json={})
        assert full.status_code == 429
        assert full.headers["retry-after"] == "1"
        assert "deformer_sessions 1.0" in client.get("/metrics").text
    with TestClient(make_app(Engine(table, "houses"), limits=Limits(sessions=1, idle_seconds=0))) as client:
        first = post(client, "sessions", 201)["session"]
        post(client, "sessions", 201)
        assert client.get(f"/v1/sessions/{first}").status_code == 404


def test_many_at_once_are_neither_lost_nor_mixed_up(client: TestClient, table: TableModel) -> None:
    rows = json.loads(mixed(24, seed=9).to_json(orient="records", date_format="iso"))

    def run(row: dict[str, Any]) -> tuple[float, float]:
        name = post(client, "sessions", 201)["session"]
        alone, found, expected = Session(table.model, table.codec), 0.0, 0.0
        for feature in ("size", "kind", "rooms"):
            if row[feature] is not None:
                found = post(client, f"sessions/{name}/observe", name=feature, value=row[feature])["running_nats"]
                expected = alone.observe(feature, row[feature]).running_nats
        score = post(client, "score", rows=[row], n_orders=2)["scores"][0]
        assert math.isfinite(score["mean_over_orders"])
        return found, expected

    with ThreadPoolExecutor(8) as threads:
        for found, expected in threads.map(run, rows):
            assert abs(found - expected) < 1e-4
    assert "deformer_batch_items_count" in client.get("/metrics").text


def test_a_socket_takes_observations(client: TestClient, table: TableModel) -> None:
    alone = Session(table.model, table.codec)
    with client.websocket_connect("/v1/stream") as socket:
        socket.send_json({"name": "size", "value": 0.5})
        assert abs(socket.receive_json()["nats"] - alone.observe("size", 0.5).nats) < 1e-4
        socket.send_json({"name": "colour", "value": 0.5})
        assert socket.receive_json()["error"]["code"] == "bad_value"
        socket.send_text("{")
        assert socket.receive_json()["error"]["code"] == "invalid"
        socket.send_json({"name": "kind", "value": "big"})
        assert socket.receive_json()["n_observed"] == 2
        socket.send_bytes(b"binary")
        assert socket.receive()["code"] == 1003


def test_the_token_is_asked_for(table: TableModel) -> None:
    with TestClient(make_app(Engine(table, "houses"), admission=Admission("secret"))) as client:
        assert client.get("/v1/model").status_code == 401
        assert client.get("/v1/model", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/v1/model", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/healthz").json() == {"alive": True}
        assert client.get("/readyz").json() == {"ready": True}
        assert client.post("/v1/sample", content=b"{").status_code == 401
        with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/v1/stream"):
            pass
        assert closed.value.code == 1008


def test_any_network_can_be_served() -> None:
    model = small_model("image", "neighbours", torch.float32)
    with TestClient(make_app(Engine(TableModel.of(model), "pixels"))) as client:
        assert client.get("/v1/model").json()["image_shape"] == [2, 3]
        names = model.schema.names
        answer = post(client, "conditional", row={names[0]: 1, names[4]: 0}, n_orders=1)["conditionals"]
        one = tables.sequences(TableModel.of(model), 1)[0]
        first, second = (f for f in one.tolist() if f in (0, 4))
        state = model.start().observe(
            torch.tensor([[first, second]]), torch.tensor([[float(first == 0), float(second == 0)]])
        )
        for name, mean in zip(answer, state.predict(torch.tensor([[1, 2, 3, 5]])).mean()[0].tolist(), strict=True):
            assert abs(answer[name]["probabilities"]["1"] - mean) < 1e-5
        row = dict.fromkeys(names, 0)
        scored = post(client, "score", rows=[row], n_orders=1)["scores"][0]["mean_over_orders"]
        assert abs(scored - log_prob(model, torch.zeros(1, 6), sequence=one).item()) < 1e-4


def test_pages_of_other_sites_are_kept_out(table: TableModel) -> None:
    app = make_app(Engine(table, "houses"), admission=Admission(hosts=LOOPBACK))
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/v1/model").status_code == 200
        for host in ("example.org", "testserver"):
            assert client.get("/v1/model", headers={"host": host}).status_code == 403
        assert client.get("/v1/model", headers={"host": "["}).status_code == 403
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("/v1/stream", headers={"origin": "http://a.b"}),
        ):
            pass
        assert client.post("/v1/score", content=b"{}").status_code == 415


def test_what_one_client_sends_does_not_fail_anothers(client: TestClient) -> None:
    days = ["2024-03-01T00:00:00+01:00", "2024-03-01T00:00:00Z", "2024-03-01", "never"]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda day: client.post("/v1/score", json={"rows": [{"sold": day}]}), days * 4))
    assert [a.status_code for a in answers] == [200, 200, 200, 400] * 4
    filled = post(client, "impute", rows=[{"sold": days[1], "rooms": 2.5}])["imputations"][0][0]
    assert filled["rooms"] == 2.5
    assert filled["sold"].startswith("2024-03-01")
    service = client.app.state.service  # type: ignore[attr-defined]
    sessions = [post(client, "sessions", 201)["session"] for _ in range(2)]
    pair = [(sessions[0], "size", 0.5), (sessions[1], "size", 10**400), ("nobody", "size", 1.0)]
    good, bad, missing = service.sessions.observe(pair)
    assert good.n_observed == 1
    assert isinstance(bad, Exception)
    assert isinstance(missing, Exception)


def test_what_waits_is_computed_together_and_no_more_than_allowed() -> None:
    batches: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def work(items: Sequence[int]) -> list[Any]:
        batches.append(len(items))
        begun.set()
        go.wait(10)
        return [ValueError(str(i)) if i == 3 else 10 * i for i in items]

    async def ask() -> None:
        batcher = Batcher(work, most=3, waiting=4)
        with ThreadPoolExecutor(1) as executor:
            batcher.start(executor)
            first = asyncio.create_task(batcher.ask(0))
            await asyncio.to_thread(begun.wait)
            others = [asyncio.create_task(batcher.ask(i)) for i in range(1, 6)]
            await asyncio.sleep(0.01)
            others[0].cancel()  # given up, so never computed
            go.set()
            found = await asyncio.gather(first, *others, return_exceptions=True)
            assert found[0] == 0
            assert isinstance(found[1], asyncio.CancelledError)
            assert found[2] == 20
            assert isinstance(found[3], ValueError)
            assert found[4] == 40
            assert isinstance(found[5], Busy)
            assert batches == [1, 2, 1]
            await batcher.stop()
            assert not batcher.alive

    asyncio.run(ask())


def test_a_large_request_is_cut_within_its_rows(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"rows": [ROW, {"size": 1.0}], "n_orders": 2}
    whole = post(client, "explain", **asked)["rows"]
    held = post(client, "conditional", row=ROW, targets=["size", "rooms", "kind"])["conditionals"]
    seen: list[Sequence[str]] = []
    surprises = Engine.surprises
    monkeypatch.setattr(Engine, "surprises", lambda self, f, names: seen.append(names) or surprises(self, f, names))
    monkeypatch.setattr("deformer.api.service.app.PIECE", 10)
    for a, b in zip(post(client, "explain", **asked)["rows"], whole, strict=True):
        assert [line["feature"] for line in a] == [line["feature"] for line in b]
        for mine, theirs in zip(a, b, strict=True):
            for what in ("surprise", "share"):
                assert mine[what] == theirs[what] or abs(mine[what] - theirs[what]) < 1e-4
    assert sorted(map(len, seen)) == [1, 2, 2]
    assert post(client, "conditional", row=ROW, targets=["size", "rooms", "kind"])["conditionals"] == held


@pytest.mark.parametrize(
    "body",
    [
        b'{"rows":[' + b",".join([b'{"a":[]}'] * 10_000) + b"]}",
        b'{"rows":[{' + b",".join(b'"%d":[]' % i for i in range(20_000)) + b"}]}",
        json.dumps({"rows": [{"kind": "x" * 5000}]}).encode(),
        b'{"rows":[{"kind":"\\ud800"}]}',
    ],
    ids=["errors in rows", "errors in a row", "a long text", "no text"],
)
def test_bodies_that_would_cost_more_than_they_weigh(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/score", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert len(answer.content) < 2000


def test_text_that_is_no_text_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/sample", content=b'{"given":{"\\ud800":1}}', headers={"content-type": "application/json"})
    assert answer.status_code == 422
    name = post(client, "sessions", 201)["session"]
    sent = b'{"name":"kind","value":"\\ud800"}'
    path, headers = f"/v1/sessions/{name}/observe", {"content-type": "application/json"}
    assert client.post(path, content=sent, headers=headers).status_code == 422
    assert client.get(f"/v1/sessions/{name}").json()["observed"] == {}


def test_parquet_that_unpacks_to_more_than_its_rows(client: TestClient) -> None:
    def send(table: pa.Table, path: str = "score") -> Any:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        headers = {"content-type": "application/vnd.apache.parquet"}
        return client.post(f"/v1/{path}", content=buffer.getvalue(), headers=headers)

    assert "a text of more than 4096 characters" in send(pa.table({"kind": ["x" * 2**20] * 100})).text
    assert send(pa.table({"kind": ["x" * 4000] * 100})).status_code == 200
    assert "was not there in fit" in send(pa.table({f"c{i}": [0] * 100 for i in range(100)})).text
    assert "which is no value" in send(pa.table({"kind": [["a", "b"]]})).text
    filled = send(pa.table({"kind": pa.array([7, None], pa.int64())}), "impute?strategy=mode")
    assert pd.read_parquet(io.BytesIO(filled.content))["kind"].tolist() == ["7", "big"]


def test_a_column_that_was_empty_in_fit_has_no_figures() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0] * 30, "empty": [math.nan] * 60, "flag": [True, False] * 30})
    frame["length"] = pd.to_timedelta([1, 2, 3] * 20, unit="D")
    with TestClient(make_app(Engine(tables.learn(frame, steps=2)[0], "table"))) as client:
        told = post(client, "conditional", row={"x": 1})["conditionals"]
        assert told["empty"]["quantiles"]["0.5"] is None
        assert "std" not in told["empty"]
        assert set(told["flag"]["probabilities"]) == {"true", "false"}
        [row] = post(client, "sample", n=1)["rows"]
        assert row["flag"] in client.get("/v1/model").json()["features"][2]["values"]
        assert row["length"] in client.get("/v1/model").json()["features"][3]["values"]
        assert (
            post(client, "score", rows=[row])["scores"] == post(client, "score", rows=[{**row, "empty": 5}])["scores"]
        )


def test_snapshots_make_room_and_know_their_own(table: TableModel, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text("[]")
    limits = Limits(sessions=2, idle_seconds=0.0, snapshot_seconds=0.0)
    with TestClient(make_app(Engine(table, "houses"), snapshots=tmp_path, limits=limits)) as client:
        assert client.delete("/v1/snapshots/package").status_code == 404
        assert post(client, "sessions", 404, snapshot="package")
        name = post(client, "sessions", 201)["session"]
        saved = [post(client, f"sessions/{name}/snapshots", 201)["snapshot"] for _ in range(3)]
        for snapshot, status in zip(saved, (404, 201, 201), strict=True):
            post(client, "sessions", status, snapshot=snapshot)
        (tmp_path / f"{saved[2]}.json").unlink()
        assert post(client, "sessions", 404, snapshot=saved[2])
        name = post(client, "sessions", 201)["session"]
        client.app.state.service.sessions.folder = tmp_path / "package.json"  # type: ignore[attr-defined]
        error = post(client, f"sessions/{name}/snapshots", 507)["error"]
        assert error["message"] == "The disk takes no changes of snapshots; the log of the service says why."


def test_the_value_at_fault_is_found_among_many(table: TableModel) -> None:
    rows = [{"size": 0.1, "price": 1.0, "rooms": 3}] * 5000
    rows[4321] = {"size": 0.1, "price": 1e300, "rooms": 3}
    with pytest.raises(FieldError) as caught:
        Engine(table, "houses").frame(rows)
    assert caught.value.field == ("rows", 4321, "price")


def test_alarms_read_labels_as_fit_did(tmp_path: Path) -> None:
    frame = pd.DataFrame({"code": ["007", "013"] * 50, "x": [0.1, 0.9] * 50})
    table, _ = tables.learn(frame, steps=20)
    tables.save_table(tmp_path / "m.deformer", table)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    engine = open_engine(str(tmp_path / "m.deformer"), "cpu", tmp_path / "rows.csv", 0.1)
    assert engine.alarms == tables.alarms(table, frame, 0.1)


def test_the_client_needs_no_torch() -> None:
    program = "import sys, deformer.client; assert not {'torch', 'sklearn'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_session_predicts_what_has_arrived_without_it(client: TestClient) -> None:
    names = list(ROW)
    session = post(client, "sessions", 201)["session"]
    alone = post(client, f"sessions/{session}/predict", names=["kind"])["conditionals"]["kind"]
    post(client, f"sessions/{session}/observe", name="kind", value="big")
    told = post(client, f"sessions/{session}/predict", names=["kind", "size"])["conditionals"]
    assert list(told) == ["kind", "size"]
    assert told["kind"] == alone
    assert set(post(client, f"sessions/{session}/predict")["conditionals"]) == set(names) - {"kind"}


def test_predictions_of_much_that_has_arrived_cost_as_much(table: TableModel) -> None:
    with TestClient(make_app(Engine(table, "houses"), limits=Limits(values=12))) as client:
        session = post(client, "sessions", 201)["session"]
        for name, value in (("kind", "big"), ("size", 0.5), ("price", 1.0)):
            post(client, f"sessions/{session}/observe", name=name, value=value)
        post(client, f"sessions/{session}/predict", names=["kind", "rooms"])
        post(client, f"sessions/{session}/predict", 413, names=["kind", "size", "price"])


def test_sessions_and_sockets_raise_alarms(table: TableModel) -> None:
    with TestClient(make_app(Engine(table, "houses", Alarms((-100.0, 100.0), 0.1)))) as client:
        name = post(client, "sessions", 201)["session"]
        assert post(client, f"sessions/{name}/observe", name="size", value=0.5)["alarm"] is True
        assert post(client, f"sessions/{name}/observe", name="kind", value="big")["alarm"] is False
        with client.websocket_connect("/v1/stream") as socket:
            socket.send_json({"name": "size", "value": 0.5})
            assert socket.receive_json()["alarm"] is True


def test_explanations_and_sessions_expect_rare_labels_alike() -> None:
    frame = pd.DataFrame({"id": [f"n{i}" for i in range(1000)]})
    codec = make_codec(frame)
    model = new_model(codec.schema).eval()
    rows, _ = codec.encode(frame)
    model.fit_marginals(rows.values, rows.observed)
    engine = Engine(TableModel(codec, model), "ids")
    lines = [line["excess"] for [line] in engine.surprises(frame, ["id"])]
    assert abs(np.mean(lines)) < 0.1
    for i in (0, 999):
        assert abs(Session(model, codec).observe("id", f"n{i}").excess_nats - lines[i]) < 1e-4


def test_numbers_in_units_of_their_own_are_near() -> None:
    model = new_model(table_schema([Continuous(1.7e18, 1e13)])).eval()
    with TestClient(make_app(Engine(TableModel.of(model), "times"))) as client:
        [score] = post(client, "score", rows=[{"x0": 1.7e18}])["scores"]
        name = post(client, "sessions", 201)["session"]
        observed = post(client, f"sessions/{name}/observe", name="x0", value=1.7e18)
        assert observed["nats"] == pytest.approx(-score["mean_over_orders"], abs=1e-4)
        post(client, "score", 400, rows=[{"x0": 1e30}])


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b'{"told": 1}', b"\xff", None])
def test_a_damaged_snapshot_is_not_there(
    table: TableModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: bytes | None
) -> None:
    with TestClient(make_app(Engine(table, "houses"), snapshots=tmp_path)) as client:
        name = post(client, "sessions", 201)["session"]
        snapshot = post(client, f"sessions/{name}/snapshots", 201)["snapshot"]
        path = tmp_path / f"{snapshot}.json"
        path.unlink()
        path.mkdir() if text is None else path.write_bytes(text)
        assert post(client, "sessions", 404, snapshot=snapshot)["error"]["code"] == "not_there"
        assert snapshot in caplog.text
        assert "deformer_sessions 1.0" in client.get("/metrics").text


def test_what_takes_too_long_is_given_up_and_leaves_nothing_nameless(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    name, save = post(client, "sessions", 201)["session"], service.sessions.save
    begun, go = threading.Event(), threading.Event()

    def late(*args: Any) -> None:
        begun.set()
        go.wait(60)
        save(*args)

    with monkeypatch.context() as slow:
        slow.setattr(service.sessions, "save", late)
        slow.setattr(service, "limits", Limits(seconds=0.5))
        assert post(client, f"sessions/{name}/snapshots", 504)["error"]["code"] == "out_of_time"
    assert begun.is_set()
    go.set()
    post(client, f"sessions/{name}/observe", name="size", value=0.5)  # after whatever was under way
    assert list(tmp_path.iterdir()) == []
    assert post(client, f"sessions/{name}/snapshots", 201)


def test_a_socket_for_which_there_is_no_room_is_closed(table: TableModel) -> None:
    with (
        TestClient(make_app(Engine(table, "houses"), limits=Limits(sessions=0))) as client,
        client.websocket_connect("/v1/stream") as socket,
    ):
        assert socket.receive()["code"] == 1013


def test_a_request_that_was_let_in_is_not_turned_away_later(table: TableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deformer.api.service.work.PIECE", 10)
    service = Service(Engine(table, "houses"), Limits(), None)

    def fill_up(start: int) -> list[int]:
        service.calls.waiting = 0
        return [start]

    async def ask() -> None:
        async with service.running(None):
            asked = service.in_pieces(service.calls, lambda start, _, __: lambda: fill_up(start), 2, 10, "ab")
            assert await asked == [[0, 1], [0, 1]]
            with pytest.raises(Busy):
                await service.in_pieces(service.calls, lambda start, _, __: lambda: fill_up(start), 2, 10)

    asyncio.run(ask())


def test_requests_about_one_row_are_small_and_bodies_held_at_once_are_bounded(table: TableModel) -> None:
    long = {"kind": "x" * 2000}
    with TestClient(make_app(Engine(table, "houses"), limits=Limits(small=1000))) as client:
        for path, body in (
            ("sample", {"given": long}),
            ("conditional", {"row": long}),
            ("sessions", {"snapshot": long}),
        ):
            assert post(client, path, 413, **body)["error"]["code"] == "too_large"
        post(client, "score", rows=[long])
    with TestClient(make_app(Engine(table, "houses"), limits=Limits(held=1500))) as client:
        for path, body in (("score", {"rows": [long]}), ("sample", {"given": long})):
            answer = client.post(f"/v1/{path}", json=body)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"]["code"] == "busy"
        for _ in range(3):  # what was refused, or answered, is held no longer
            post(client, "score", rows=[{"kind": "x" * 1000}])

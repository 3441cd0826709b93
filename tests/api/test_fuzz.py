"""Random requests by the service's own description, and random sequences of what a session can do."""

import random
from typing import Any

import pytest
import torch
from hypothesis import settings
from tests.models import mixed, random_rows, small_model

from deformer.api import tables
from deformer.api.service.app import make_app
from deformer.api.service.engine import Engine
from deformer.api.service.work import Limits
from deformer.errors import InputError
from deformer.nn.model import DEformer
from deformer.tasks.density import log_prob
from deformer.tasks.pool import SessionPool
from deformer.tasks.streaming import Session

schemathesis = pytest.importorskip(
    "schemathesis", reason="the description of the service is fuzzed where schemathesis is"
)


def app() -> Any:
    table = tables.learn(mixed(60), steps=2, epochs=None, minutes=None)[0]
    return make_app(Engine(table, "houses"), limits=Limits(rows=50))


schema = schemathesis.openapi.from_asgi("/openapi.json", app())


@schema.parametrize()
@settings(max_examples=15, deadline=None)
def test_no_request_breaks_the_service(case: Any) -> None:
    answer = case.call()
    assert answer.status_code < 500, answer.text
    assert answer.status_code in (200, 201, 204) or "error" in answer.json()


class Plain:
    """What a session is meant to do, by a pass over everything at each step."""

    def __init__(self, model: DEformer, told: tuple[tuple[int, float], ...] = ()) -> None:
        self.model, self.told = model, told

    def running_nats(self) -> float:
        row = torch.full((1, len(self.model.schema)), torch.nan, dtype=torch.float64)
        for feature, value in self.told:
            row[0, feature] = value
        return -log_prob(self.model, row, orders=torch.tensor([f for f, _ in self.told])).item() if self.told else 0.0


def run_sequences(n: int, seed: int = 0) -> int:
    """Do n random things to sessions and their plain doubles; give the number of comparisons."""
    draws = random.Random(seed)
    model = small_model("placed", "neighbours")
    names, pool = model.schema.names, SessionPool(model, memory=20_000)
    sessions: list[tuple[Session, Any, Plain]] = []
    compared = 0
    for _ in range(n):
        what = draws.choice(["open", "observe", "observe", "observe", "predict", "fork", "restore", "delete"])
        if what == "open" or not sessions:
            if len(sessions) < 12:
                sessions.append((Session(model), pool.open(), Plain(model)))
            continue
        i = draws.randrange(len(sessions))
        session, name, plain = sessions[i]
        feature = draws.randrange(len(names))
        if what == "observe":
            value = random_rows(model.schema, 1, draws.randrange(10**6))[0, feature].item()
            if feature in [f for f, _ in plain.told]:
                with pytest.raises(InputError):
                    session.observe(names[feature], value)
                with pytest.raises(InputError):
                    pool.observe([(name, names[feature], value)])
                continue
            sessions[i] = (session, name, Plain(model, (*plain.told, (feature, value))))
            expected = sessions[i][2].running_nats()
            assert abs(session.observe(names[feature], value).running_nats - expected) < 1e-10
            assert abs(pool.observe([(name, names[feature], value)])[0].running_nats - expected) < 1e-10
            compared += 1
        elif what == "predict":
            one, other = session.predict(names[feature]), pool.predict([(name, names[feature])])[0]
            torch.testing.assert_close(one.conditionals.mean(), other.conditionals.mean(), rtol=0, atol=1e-11)
            compared += 1
        elif what == "fork" and len(sessions) < 12:
            sessions.append((session.fork(), pool.open(snapshot=session.snapshot()), plain))
        elif what == "restore":
            fresh = Session(model)
            fresh.restore(session.snapshot())
            sessions[i] = (fresh, name, plain)
        elif what == "delete":
            session.close()
            pool.close(name)
            del sessions[i]
    return compared


def test_random_sequences_equal_plain_passes() -> None:
    assert run_sequences(400) > 100

"""Random requests by the service's own description, and random sequences of what a session can do."""

from typing import Any

import pytest
from benchmarks import fuzz
from hypothesis import settings
from tests.models import mixed

from deformer.api import tables
from deformer.api.service.app import make_app
from deformer.api.service.engine import Engine
from deformer.api.service.work import Limits

schemathesis = pytest.importorskip(
    "schemathesis", reason="the description of the service is fuzzed where schemathesis is"
)


def app() -> Any:
    table = tables.learn(mixed(60), steps=2, epochs=None, minutes=None)[0]
    return make_app(Engine(table, "houses"), limits=Limits(rows=50, seconds=300.0))


schema = schemathesis.openapi.from_asgi("/openapi.json", app())


@schema.parametrize()
@settings(max_examples=15, deadline=None)
def test_no_request_breaks_the_service(case: Any) -> None:
    answer = case.call(timeout=300)  # a busy machine is no failure
    assert answer.status_code < 500, answer.text
    assert answer.status_code in (200, 201, 204) or "error" in answer.json()


def test_random_sequences_equal_plain_passes() -> None:
    assert fuzz.run(40)["comparisons"] > 100

import math
import random
from decimal import Decimal

import numpy as np
import pytest
from tests.models import mixed

from deformer.api.online import DEformerStream
from deformer.errors import InputError

QUICK = {"steps": 60, "epochs": None, "minutes": None}


def rows(n: int, seed: int = 0) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if v == v} for row in mixed(n, seed).to_dict("records")]


@pytest.fixture(scope="module")
def stream() -> DEformerStream:
    stream = DEformerStream(warm_up=100, update_every=50, steps_per_update=5, training=QUICK)
    for row in rows(160):
        stream.learn_one(row)
    return stream


def test_scores_begin_after_the_warm_up() -> None:
    stream = DEformerStream(warm_up=3, training={**QUICK, "steps": 2})
    with pytest.raises(InputError, match="no model yet"):
        stream.session()
    for row in rows(2):
        assert stream.learn_one(row).score_one(row) == 0.0
    assert stream.learn_one(rows(3)[2]).score_one(rows(1)[0]) != 0.0


def test_keys_may_lack_come_in_any_sequence_or_be_unknown(stream: DEformerStream) -> None:
    row = {"size": 0.2, "kind": "big", "price": 1.2, "rooms": 2}
    score = stream.score_one(row)
    names = list(row)
    for seed in range(3):
        random.Random(seed).shuffle(names)
        assert abs(stream.score_one({n: row[n] for n in names}) - score) < 1e-5
    assert abs(stream.score_one({**row, "sold": None, "colour": "red"}) - score) < 1e-5
    assert stream.score_one({}) == stream.score_one({"colour": "red"}) == 0.0
    assert math.isfinite(stream.score_one({"kind": "gigantic"}))


def test_scoring_changes_nothing_and_learning_does(stream: DEformerStream) -> None:
    row = rows(1, seed=7)[0]
    before = stream.score_one(row)
    assert [stream.score_one(row) for _ in range(3)] == [before] * 3
    session = stream.session()
    told = session.observe("size", 0.5).nats
    for new in rows(50, seed=3):
        stream.learn_one(new)
    assert stream.score_one(row) != before
    session.restore({"features": [], "codes": [], "running_nats": 0.0, "expected_nats": 0.0})
    assert abs(session.observe("size", 0.5).nats - told) < 1e-5  # an open session keeps its model


def test_what_is_odd_scores_higher(stream: DEformerStream) -> None:
    assert stream.score_one({"size": 2.0, "kind": "small"}) > stream.score_one({"size": 2.0, "kind": "big"})


def test_impossible_choices_are_refused() -> None:
    with pytest.raises(InputError, match="warm_up"):
        DEformerStream(warm_up=1)
    with pytest.raises(InputError, match="steps_per_update"):
        DEformerStream(steps_per_update=0)
    for choice in ("network", "training"):
        with pytest.raises(InputError, match="has no 'colour'"):
            DEformerStream(**{choice: {"colour": 1}})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.float32("inf"), -math.inf, 1e200, 10**400, [1], {"a": 1}])
def test_what_no_column_could_hold_is_not_kept_for_the_warm_up(value: object) -> None:
    stream = DEformerStream(warm_up=3, training={"steps": 2})
    with pytest.raises(InputError, match="no value that a column could hold"):
        stream.learn_one({"a": value})
    for i in range(4):
        stream.learn_one({"a": i})
    assert stream.table is not None


def test_unknown_keys_may_hold_anything(stream: DEformerStream) -> None:
    before = stream.n_seen
    stream.learn_one({**rows(1)[0], "tags": ["a", "b"]})
    assert stream.n_seen == before + 1


def test_what_no_column_could_hold_is_refused_before_there_are_columns() -> None:
    stream = DEformerStream(warm_up=3, training=QUICK)
    for value in (math.inf, Decimal("Infinity"), Decimal("sNaN"), [1]):
        with pytest.raises(InputError, match="no value that a column could hold"):
            stream.learn_one({"x": value})
    assert stream.n_seen == 0


def test_lengths_of_time_of_numpy_may_come_in_the_warm_up() -> None:
    stream = DEformerStream(warm_up=3, training={"steps": 2})
    for i in range(4):
        stream.learn_one({"a": np.timedelta64(i, "s"), "b": np.datetime64("2024-01-01") + i})
    assert math.isfinite(stream.score_one({"a": np.timedelta64(1, "s")}))

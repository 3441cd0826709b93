import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from tests.models import CONFIGS, order_of, random_rows, small_model

from deformer.config import ModelConfig
from deformer.data.columns import Column, Labels, Levels, Nothing, Numbers
from deformer.data.frames import Codec, make_codec
from deformer.data.schema import Binary, Continuous, table_schema
from deformer.data.seeds import generator
from deformer.errors import InputError
from deformer.nn.model import DEformer, new_model
from deformer.tasks import calibration
from deformer.tasks.calibration import calibrate, excess_of_prefixes, row_thresholds, thresholds
from deformer.tasks.density import log_prob
from deformer.tasks.pool import SessionPool
from deformer.tasks.streaming import Alarms, Session

EVERY = pytest.mark.parametrize("config", CONFIGS)


def arrivals(model: DEformer, seed: int) -> list[tuple[str, float]]:
    """A random row of the model's schema in a random order."""
    row, order = random_rows(model.schema, 1, seed)[0], order_of(len(model.schema), seed)
    return [(model.schema.names[i], row[i].item()) for i in order.tolist()]


def offline(model: DEformer, told: list[tuple[str, float]]) -> float:
    """Score what was told at once, in its order."""
    columns = model.schema.index([name for name, _ in told])
    row = torch.full((1, len(model.schema)), math.nan, dtype=torch.float64)
    row[0, columns] = torch.tensor([value for _, value in told], dtype=torch.float64)
    return -log_prob(model, row, orders=torch.tensor(columns)).item()


@EVERY
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("asking", [True, False])
def test_the_running_score_equals_the_offline_one(config: str, dtype: torch.dtype, within: float, asking: bool) -> None:
    model = small_model("mixed", config, dtype)
    session = Session(model)
    told = arrivals(model, 0)
    total = 0.0
    for n, (name, value) in enumerate(told, 1):
        if asking:
            assert session.predict(name).conditionals.shape == (1, 1)
        surprise = session.observe(name, value)
        total += surprise.nats
        assert surprise.n_observed == n
        assert abs(surprise.running_nats - offline(model, told[:n])) < within
        assert abs(surprise.running_nats - total) < 1e-9
        assert 0 <= surprise.tail <= 1
    assert session.observed == tuple(name for name, _ in told)


def test_a_failure_leaves_no_value_behind_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("mixed")
    session, told = Session(model), arrivals(model, 3)
    session.observe(*told[0])
    with monkeypatch.context() as broken:
        broken.setattr("deformer.tasks.streaming.weigh", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.observe(*told[1])
    for n in (2, 3):
        surprise = session.observe(*told[n - 1])
        assert abs(surprise.running_nats - offline(model, told[:n])) < 1e-5


def test_a_failure_of_a_pool_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("mixed")
    pool, told = SessionPool(model), arrivals(model, 3)
    name = pool.open()
    pool.observe([(name, *told[0])])
    with monkeypatch.context() as broken:
        broken.setattr("deformer.tasks.pool.weigh", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pool.observe([(name, *told[1])])
    for n in (2, 3):
        [surprise] = pool.observe([(name, *told[n - 1])])
        assert abs(surprise.running_nats - offline(model, told[:n])) < 1e-5


def test_forks_snapshots_and_closing() -> None:
    model = small_model("mixed")
    session, told = Session(model), arrivals(model, 1)
    for name, value in told[:2]:
        session.observe(name, value)
    branch, saved = session.fork(), json.loads(json.dumps(session.snapshot()))
    name, value = told[2]
    after = session.observe(name, value)
    assert branch.observed == session.observed[:2]
    assert abs(branch.observe(name, value).running_nats - after.running_nats) < 1e-12
    other = Session(model)
    other.restore(saved)
    assert abs(other.observe(name, value).running_nats - after.running_nats) < 1e-12
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.observe(*told[3])
    with pytest.raises(InputError, match="not a snapshot"):
        other.restore({"features": [0]})
    with pytest.raises(InputError, match="not a snapshot"):
        other.restore({**saved, "features": [math.inf]})
    with pytest.raises(InputError, match="does not belong"):
        other.restore({**saved, "features": [0, 99]})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("nobody", 1, "No feature is called 'nobody'"),
        ("x0", 7, "'x0': .*7.0.* is no value of Binary"),
        ("x0", math.nan, "missing value is not an observation"),
        ("x0", None, "missing value is not an observation"),
        ("x0", np.float32("nan"), "missing value is not an observation"),
        ("x1", math.inf, "inf"),
        ("x1", "warm", "'x1': could not convert"),
        ("x1", 1e60, "'x1': 1e\\+60 lies too far out"),
        (["x1"], 1, "No feature is called"),
        ("x2", 1, "observed already"),
    ],
)
def test_impossible_observations_change_nothing(name: object, value: object, message: str) -> None:
    session = Session(small_model("mixed"))
    session.observe("x2", 3)
    before = session.reading
    with pytest.raises(InputError, match=message):
        session.observe(name, value)
    assert session.reading == before


def test_ranks() -> None:
    model = small_model("labels")
    session, told = Session(model), arrivals(model, 2)
    for name, value in told[:4]:
        session.observe(name, value)
    unseen = session.rank_unseen()
    assert set(unseen) == {name for name, _ in told[4:]}
    assert list(unseen.values()) == sorted(unseen.values(), reverse=True)
    for name, entropy in unseen.items():
        p = session.predict(name).probabilities()[0]
        assert abs(entropy + (p * torch.from_numpy(p).log().numpy()).sum()) < 1e-9
    seen = session.rank_seen()
    assert list(seen.values()) == sorted(seen.values(), reverse=True)
    last = told[3][0]
    assert abs(seen[last] - (offline(model, told[:4]) - offline(model, told[:3]))) < 1e-12
    assert Session(model).rank_seen() == {}


def test_features_without_a_value_in_fit_are_neither_asked_for_nor_taken() -> None:
    codec = codec_of([Numbers(), Nothing(), Labels(())])
    session = Session(DEformer(codec.schema, ModelConfig(d_model=8, n_layers=1)), codec)
    assert list(session.rank_unseen()) == [codec.names[0]]
    for name in codec.names[1:]:
        with pytest.raises(InputError, match="fit saw no value of it"):
            session.observe(name, 5)


COLUMNS: list[Column] = [Levels((1.0, 5.0), 99), Labels(("no", "yes"), (("perhaps", 2),)), Numbers(10.0, 2.0)]


def codec_of(columns: list[Column]) -> Codec:
    dtypes = (np.dtype(np.float64), np.dtype(object), np.dtype(np.float64))
    return Codec(tuple(f"x{i}" for i in range(len(columns))), tuple(columns), dtypes)


def coded_model() -> DEformer:
    model = new_model(table_schema([c.domain for c in COLUMNS])).double().eval()
    for p in model.parameters():
        p.data.add_(0.2 * torch.randn(p.shape, generator=generator(0), dtype=torch.float64))
    return model


def test_values_of_tables_are_coded() -> None:
    session = Session(coded_model(), codec_of(COLUMNS))
    before = session.predict("x1")
    assert before.mode().tolist()[0] in ("no", "yes", "perhaps")
    assert session.observe("x1", "perhaps").nats > 0
    unit = session.observe("x2", 11.0)
    tenfold = Session(coded_model(), codec_of([*COLUMNS[:2], Numbers(100.0, 20.0)]))
    tenfold.observe("x1", "perhaps")
    scaled = tenfold.observe("x2", 110.0)
    assert abs(scaled.nats - unit.nats - math.log(10)) < 1e-12
    assert abs(scaled.excess_nats - unit.excess_nats) < 1e-12
    known = session.observe("x0", 5.0)
    assert known.nats < tenfold.observe("x0", 3.7).nats  # between the levels, which surprises
    assert session.predict("x2").mean().shape == (1,)


@pytest.mark.parametrize("config", ["two_stream", "interleaved", "neighbours", "single_stream"])
@pytest.mark.parametrize("memory", [0, 2**15, 2**28])
def test_a_pool_equals_its_sessions(config: str, memory: int) -> None:
    model = small_model("placed", config)
    pool, alone = SessionPool(model, memory=memory), {n: Session(model) for n in range(7)}
    draws = torch.Generator().manual_seed(3)
    waiting = {n: arrivals(model, n) for n in alone}
    for n in alone:
        pool.open(n)
    while any(waiting.values()):
        n_new = int(torch.randint(1, 6, (), generator=draws))
        batch = []
        for n in torch.randperm(7, generator=draws)[:n_new].tolist():
            batch += [(n, *pair) for pair in waiting[n][:2]]
            waiting[n] = waiting[n][2:]
        answers = pool.observe(batch)
        for (n, name, value), answer in zip(batch, answers, strict=True):
            expected = alone[n].observe(name, value)
            for f in ("nats", "running_nats", "excess_nats", "tail"):
                assert abs(getattr(answer, f) - getattr(expected, f)) < 1e-11, f
            assert (answer.n_observed, answer.name) == (expected.n_observed, name)
        assert pool.n_cached <= pool.capacity
        asked = [(n, "b") for n in alone]
        for predicted, (n, name) in zip(pool.predict(asked), asked, strict=True):
            own = alone[n].predict(name).probabilities()
            torch.testing.assert_close(torch.from_numpy(predicted.probabilities()), torch.from_numpy(own))


def test_a_pool_refuses_what_a_session_refuses() -> None:
    pool = SessionPool(small_model("mixed"))
    name = pool.open()
    assert pool.open() != name
    pool.observe([(name, "x0", 1)])
    before = pool.reading(name)
    for bad, message in [
        ([(name, "x2", 1), (name, "x0", 0)], "observed already"),
        ([(name, "x2", 1), (name, "x2", 1)], "arrives twice"),
        ([(name, "x2", 1), ("other", "x2", 1)], "no session 'other'"),
    ]:
        with pytest.raises(InputError, match=message):
            pool.observe(bad)
    assert pool.reading(name) == before
    copy = pool.open("copy", snapshot={"features": [0], "codes": [1.0], "running_nats": 0.5, "expected_nats": 0.4})
    assert pool.reading(copy).running_nats == 0.5
    pool.close(name)
    assert name not in pool
    assert len(pool) == 2
    with pytest.raises(InputError, match="already"):
        pool.open("copy")
    assert pool.observe([]) == []


def test_alarms_keep_their_rate_at_every_length() -> None:
    model = small_model("mixed", "two_stream", torch.float32)
    rows = random_rows(model.schema, 2000).float()
    alarms = calibrate(model, rows[:1000], 0.05, per="length", generator=generator(0))
    assert len(alarms.thresholds) == 5
    fresh = excess_of_prefixes(model, rows[1000:], 2, generator(1))
    above = (fresh > torch.tensor(alarms.thresholds)).double().mean(0)
    assert (above < 0.09).all()
    assert (above[1:] > 0.02).all()  # one label alone has too few surprises to tell five per cent of them apart
    of_rows = calibrate(model, rows[:1000], 0.05, generator=generator(0))
    ever = (fresh > torch.tensor(of_rows.thresholds)).any(1).double().mean()
    assert 0.02 < ever < 0.09 < (fresh > torch.tensor(alarms.thresholds)).any(1).double().mean()
    session = Session(model, alarms=Alarms((-100.0, 100.0), 0.05))
    told = arrivals(model, 0)
    assert [session.observe(*pair).alarm for pair in told[:3]] == [True, False, False]
    with pytest.raises(InputError, match="rate"):
        calibrate(model, rows, 1.5, generator=generator(0))


def test_thresholds_of_few_rows_keep_the_rate_on_average() -> None:
    draws = torch.randn(2000, 60, 2, generator=generator(0))
    above = torch.stack([(t[39:] > thresholds(t[:39], 0.05, 1)).double().mean(0) for t in draws])
    torch.testing.assert_close(above.mean(0), torch.full((2,), 0.05, dtype=torch.float64), rtol=0, atol=0.005)
    ever = torch.stack([(t[39:] > row_thresholds(t[:39], 0.05, 1)).any(1).double().mean() for t in draws]).mean()
    assert 0.045 < ever < 0.065
    some = torch.tensor([[1.0, math.nan], [2.0, 7.0], [3.0, math.nan]])
    assert thresholds(some, 0.05, 1).tolist() == [3.0, 7.0]
    assert thresholds(some.repeat_interleave(2, 0), 0.5, 2).tolist() == [2.0, 7.0]


def test_prefixes_skip_what_is_missing() -> None:
    model = small_model("mixed", "two_stream", torch.float32)
    rows = random_rows(model.schema, 10).float()
    rows[:, 1] = math.nan
    excess = excess_of_prefixes(model, rows, 1, generator(0))
    assert excess[:, :4].isfinite().all() and excess[:, 4].isnan().all()  # noqa: PT018
    assert len(calibrate(model, rows, 0.1, generator=generator(0)).thresholds) == 4
    assert isinstance(model.schema.features[1].domain, Continuous)


def test_thresholds_rest_on_some_of_very_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MANY_ROWS", 10)
    model = small_model()
    values = random_rows(model.schema, 300)
    base = torch.arange(300.0)[:, None].expand(-1, 8) / 100
    found = calibrate(model, values, 0.5, n_orders=1, generator=generator(0), log_base=base)
    draws = generator(0)
    some = torch.randperm(300, generator=draws)[:200]
    assert found == calibrate(model, values[some], 0.5, n_orders=1, generator=draws, log_base=base[some])


@pytest.mark.parametrize("config", ["two_stream", "neighbours"])
def test_what_has_arrived_tells_nothing_of_itself(config: str) -> None:
    model = small_model("placed", config)
    told = arrivals(model, 0)
    whole, without, pool = Session(model), Session(model), SessionPool(model)
    pool.open(0)
    pool.observe([(0, *pair) for pair in told])
    for name, value in told:
        whole.observe(name, value)
    name = told[1][0]
    for pair in told:
        if pair[0] != name:
            without.observe(*pair)
    expected = without.predict(name).conditionals.entropy()
    torch.testing.assert_close(whole.predict(name).conditionals.entropy(), expected)
    torch.testing.assert_close(pool.predict([(0, name)])[0].conditionals.entropy(), expected)
    alone = Session(model)
    alone.observe(*told[0])
    first = told[0][0]
    torch.testing.assert_close(
        alone.predict(first).conditionals.entropy(), Session(model).predict(first).conditionals.entropy()
    )


def test_the_shares_of_rare_labels_are_expected() -> None:
    frame = pd.DataFrame({"id": [f"n{i}" for i in range(1000)]})  # of which 745 have one code in common
    codec = make_codec(frame)
    rows, log_base = codec.encode(frame)
    model = new_model(codec.schema).double().eval()
    model.fit_marginals(rows.values, rows.observed)
    excess = excess_of_prefixes(model, rows, 1, generator(0), log_base, codec)[:, 0]
    assert abs(excess.mean()) < 0.1
    pool, told = SessionPool(model, codec), [f"n{i}" for i in (0, 250, 999)]
    for name in told:
        session = Session(model, codec)
        expected = session.predict("id").entropy()[0]
        surprise = session.observe("id", name)
        assert abs(surprise.excess_nats - (surprise.nats - expected)) < 1e-12
        assert abs(surprise.excess_nats - excess[frame["id"].tolist().index(name)]) < 1e-9
        pool.open(name)
        assert abs(pool.observe([(name, "id", name)])[0].excess_nats - surprise.excess_nats) < 1e-9
    alarms = calibrate(model, rows, 0.1, generator=generator(0), log_base=log_base, codec=codec)
    assert alarms.thresholds[0] < 1


def test_a_number_too_far_out_to_be_scored_sets_no_threshold() -> None:
    model = small_model("mixed", "two_stream", torch.float32)
    rows = random_rows(model.schema, 50)
    rows[7, 3] = 1e60
    with pytest.raises(InputError, match="'x3' holds a number in row 7 too far out"):
        calibrate(model, rows, 0.1, generator=generator(0))
    rows[7, 3] = math.nan
    assert np.isfinite(calibrate(model, rows, 0.1, generator=generator(0)).thresholds).all()


def test_what_is_far_out_is_told_by_the_spread_of_a_column() -> None:
    model = new_model(table_schema([Continuous(1.7e18, 1e13)])).eval()
    assert math.isfinite(Session(model).observe("x0", 1.7e18 + 2e13).nats)
    for value in (1e30, -1e30):
        with pytest.raises(InputError, match="too far out"):
            Session(model).observe("x0", value)


def test_an_ordinary_value_at_the_threshold_raises_no_alarm() -> None:
    model = new_model(table_schema([Binary()])).eval()
    excess = Session(model).observe("x0", 1).excess_nats
    for threshold, alarm in ((math.nextafter(excess, -math.inf), False), (excess - 1e-6, False), (excess - 0.01, True)):
        session, pool = (kind(model, alarms=Alarms((threshold,), 0.1)) for kind in (Session, SessionPool))
        pool.open(0)
        assert session.observe("x0", 1).alarm is alarm
        assert pool.observe([(0, "x0", 1)])[0].alarm is alarm


def test_columns_may_go_by_numbers() -> None:
    codec = Codec(("0",), (Numbers(),), (np.dtype(np.float64),))
    model = new_model(codec.schema).eval()
    session, pool = Session(model, codec), SessionPool(model, codec)
    name = pool.open()
    assert session.observe(0, 1.0).name == pool.observe([(name, 0, 1.0)])[0].name == "0"
    assert session.predict(0).mean() == pool.predict([(name, 0)])[0].mean()

import dataclasses
import math
import pickle
import warnings
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks
from tests.models import mixed

from deformer.api import tables
from deformer.api.detectors import DEformerDetector, DEformerPyOD
from deformer.api.estimators import DEformerDensity, DEformerImputer
from deformer.api.explanations import Explanation
from deformer.config import TrainConfig
from deformer.errors import CheckpointError, InputError
from deformer.train.history import History

TINY = {"steps": 3, "minutes": None, "random_state": 0, "network": {"d_model": 16, "n_layers": 1}, "device": "cpu"}
# What scikit-learn expects and we do otherwise, and why.
OTHERWISE = {
    "check_dtype_object": "what cannot be a label is refused with an InputError, which is a ValueError",
}


class Density(DEformerDensity):
    """A density without `predict_proba`, which scikit-learn calls without the column that is to be predicted."""

    @property
    def predict_proba(self):  # type: ignore[no-untyped-def,override]
        raise AttributeError("predict_proba")


ROUNDED = {"check_methods_subset_invariance": "scores near 0 are sums in float32: equal within 1e-6, not 1e-7"}


@parametrize_with_checks(
    [Density(**TINY), DEformerImputer(**TINY), DEformerDetector(**TINY)],
    expected_failed_checks=lambda e: OTHERWISE | (ROUNDED if isinstance(e, DEformerDetector) else {}),
)
def test_the_manners_of_scikit_learn(estimator, check) -> None:  # type: ignore[no-untyped-def]
    check(estimator)


@pytest.fixture(scope="module")
def density() -> DEformerDensity:
    learned = DEformerDensity(steps=250, minutes=None, random_state=0, network={"d_model": 32, "n_layers": 2})
    return learned.fit(mixed(600))


def test_scores_follow_what_was_learned(density: DEformerDensity) -> None:
    table = mixed(200, seed=1)
    strange = table.assign(kind=table["kind"].cat.rename_categories({"small": "big", "big": "small"}))
    assert density.score(table) > density.score(strange) + 0.3
    assert density.score_samples(table, 4, "ensemble").mean() > density.score_samples(table, 4, "mean").mean()


def test_marginals_and_conditionals_add_up(density: DEformerDensity) -> None:
    table = mixed(20, seed=2)
    names = list(table.columns)
    joint = density.log_prob(table, ["size", "kind"], n_orders=1)
    assert np.isfinite(joint).all()
    nothing = table.assign(**{name: None for name in names if name != "kind"})[["kind"]]
    np.testing.assert_allclose(
        density.log_prob(nothing, ["kind"]), density.log_prob(table, ["kind"]), rtol=0, atol=1e-5
    )
    p = density.conditional(table, "kind")
    given = [n for n in names if n != "kind"]
    own = density.log_prob(table, ["kind"], given)
    for i, label in enumerate(table["kind"]):
        assert label != label or math.isclose(math.log(p[label].iloc[i]), own[i], abs_tol=1e-4)


def test_conditionals_of_every_kind(density: DEformerDensity) -> None:
    table = mixed(30, seed=3)
    answers = density.conditional(table, ["kind", "rooms", "price"])
    assert list(answers["kind"].columns) == ["big", "small", "(other)"]
    assert list(answers["rooms"].columns) == [2.0, 3.0, 4.0]
    assert list(answers["price"].columns) == ["mean", "std", "0.05", "0.5", "0.95"]
    np.testing.assert_allclose(answers["rooms"].sum(axis=1), 1.0, atol=1e-5)
    assert (answers["price"]["0.05"] < answers["price"]["0.95"]).all()
    assert density.predict_proba(table, "kind").shape == (30, 3)
    large, small = (pd.DataFrame({"size": [s]}) for s in (1.5, -1.5))
    assert density.conditional(large, "kind")["big"][0] > 0.8 > 0.2 > density.conditional(small, "kind")["big"][0]


def test_samples_keep_types_and_evidence(density: DEformerDensity) -> None:
    table = mixed(8, seed=4)
    rows = density.sample(8)
    assert rows.dtypes.astype(str).tolist() == table.dtypes.astype(str).tolist()
    assert rows.notna().all(axis=None)
    known = table[["kind", "size"]]
    drawn = density.sample_remaining_columns(known)
    assert list(drawn.index) == list(table.index)
    for name in known:
        assert (drawn[name].astype(object)[known[name].notna()] == known[name].dropna().astype(object)).all()
    assert density.sample(3, given=pd.DataFrame({"kind": ["big"]}))["kind"].tolist() == ["big"] * 3
    pd.testing.assert_frame_equal(density.sample(5, random_state=1), density.sample(5, random_state=1))


def test_explanations_add_up(density: DEformerDensity) -> None:
    table = mixed(12, seed=5)
    explained = density.explain(table, n_orders=4)
    np.testing.assert_allclose(-explained.share.sum(axis=1), density.score_samples(table, 4, "mean"), rtol=0, atol=1e-4)
    assert (explained.surprise.isna() == table.isna()).all(axis=None)
    assert explained.expected["kind"].isin(["big", "small"]).all()
    odd = pd.DataFrame({"size": [1.5], "kind": ["small"], "price": [4.4], "rooms": [4]})
    assert density.explain(odd).row(0).index[0] == "kind"
    labels = [t.get_text() for t in density.explain(odd).plot(0).get_yticklabels()]
    assert "kind = small (expected big)" in labels


def test_explanations_do_not_depend_on_units() -> None:
    draws = np.random.default_rng(0)
    table = pd.DataFrame({"a": draws.normal(size=60), "b": draws.normal(size=60)})
    large = table.assign(a=1e6 * table["a"])
    one, other = (DEformerDensity(**TINY).fit(t).explain(t) for t in (table, large))
    np.testing.assert_allclose(one.excess, other.excess, atol=1e-3)
    assert (other.surprise["a"] > one.surprise["a"] + 10).all()
    assert one.excess.abs().mean(axis=None) < 1.5
    assert set(one.excess.idxmax(axis=1)) == {"a", "b"}


def test_dollars_are_no_formula_in_a_picture() -> None:
    table = pd.DataFrame(
        {"label $": ["$\\foo$", "b" * 99] * 20, "when": pd.date_range("2024-01-01 00:00:00.1", periods=40)}
    )
    labels = [t.get_text() for t in DEformerDensity(**TINY).fit(table).explain(table).plot(0).get_yticklabels()]
    assert any(r"label \$ = \$\foo\$" in label for label in labels)
    assert max(map(len, labels)) < 90


def test_booleans_may_be_spelled_and_are_named_as_such() -> None:
    table = pd.DataFrame({"flag": [True, False] * 20, "x": np.arange(40.0)})
    density = DEformerDensity(**TINY).fit(table)
    spelled = table.assign(flag=table["flag"].map({True: "True", False: " false"}))
    np.testing.assert_array_equal(density.score_samples(spelled), density.score_samples(table))
    assert list(density.conditional(table[:1], "flag").columns) == [False, True]
    assert density.explain(table).expected["flag"].dtype == bool
    assert density.session().observe("flag", "true").nats == density.session().observe("flag", True).nats
    with pytest.raises(InputError, match="it holds 'maybe'"):
        density.score_samples(spelled.assign(flag=["true", "maybe"] * 20))
    with pytest.raises(InputError, match="it holds 'n.a.'"):
        density.score_samples(table.assign(x=["1.5", "n.a."] * 20))


def test_columns_that_may_be_something_else_are_warned_of() -> None:
    frame = pd.DataFrame({"when": [f"{1 + i % 28}/{1 + i % 12}/2024" for i in range(80)], "x": np.arange(80.0)})
    with pytest.warns(UserWarning, match="'when' is taken for labels, but looks like dates"):
        DEformerDensity(**TINY).fit(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DEformerDensity(**TINY, kinds={"when": "label"}).fit(frame)


def test_decimals_and_sparse_columns_are_numbers() -> None:
    money = [None if i % 5 == 0 else Decimal(i) / 4 for i in range(40)]
    sparse = pd.arrays.SparseArray([0, 0, 0, 1] * 10)
    filled = DEformerImputer(**TINY).fit_transform(pd.DataFrame({"money": money, "sparse": sparse}))
    assert filled["money"].dtype == np.float64
    assert filled["sparse"].tolist() == [0, 0, 0, 1] * 10


def test_days_are_filled_by_days() -> None:
    days = pd.Series(pd.date_range("2024-01-01", periods=80)).mask(lambda s: s.dt.day == 7)
    table = pd.DataFrame({"day": days, "x": np.arange(80.0)})
    filled = DEformerImputer("mean", **TINY).fit_transform(table)["day"]
    assert (filled == filled.dt.normalize()).all()


def test_draws_repeat_only_if_there_is_a_seed(tmp_path: Path) -> None:
    for seed in (None, 0):
        density = DEformerDensity(**{**TINY, "random_state": seed}).fit(mixed(40))
        density.save(tmp_path / "m.deformer")
        again = DEformerDensity.load(tmp_path / "m.deformer")
        for one in (density, again):
            assert one.sample(9)["size"].equals(one.sample(9)["size"]) == (seed == 0)


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_impossible_numbers_of_draws_are_refused(density: DEformerDensity, n: float) -> None:
    with pytest.raises(InputError, match="number of rows to draw"):
        density.sample(n)  # type: ignore[arg-type]


def test_files_hold_everything(density: DEformerDensity, tmp_path) -> None:  # type: ignore[no-untyped-def]
    table = mixed(20, seed=6)
    density.save(tmp_path / "m.deformer")
    again = DEformerDensity.load(tmp_path / "m.deformer")
    for other in (again, pickle.loads(pickle.dumps(density))):
        np.testing.assert_array_equal(other.score_samples(table), density.score_samples(table))
        pd.testing.assert_frame_equal(other.sample(4), density.sample(4))
    assert not hasattr(clone(density), "table_")
    (tmp_path / "bad.deformer").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a readable"):
        DEformerDensity.load(tmp_path / "bad.deformer")


@pytest.mark.parametrize("strategy", ["mean", "mode", "sample"])
def test_imputation_fills_all_holes_and_changes_nothing_else(strategy: str) -> None:
    table = mixed(150)
    imputer = DEformerImputer(strategy, **TINY).fit(table)
    filled = imputer.transform(table)
    assert filled.notna().all(axis=None)
    assert list(filled.index) == list(table.index)
    assert filled["kind"].dtype == table["kind"].dtype
    assert (
        (filled.astype(object).where(table.notna()) == table.astype(object)).where(table.notna(), True).all(axis=None)
    )
    array = imputer.set_output(transform="default").transform(table)
    assert isinstance(array, pd.DataFrame)


def test_imputation_learns_what_columns_say_of_each_other() -> None:
    table = mixed(600)
    imputer = DEformerImputer(steps=250, minutes=None, random_state=0, network={"d_model": 32, "n_layers": 2})
    whole = mixed(200, seed=7).dropna()
    guessed = imputer.fit(table).transform(whole.assign(kind=None, price=np.nan))
    assert (guessed["kind"].astype(object) == whole["kind"].astype(object)).mean() > 0.8
    error = guessed["price"].astype(float) - whole["price"].astype(float)
    assert error.std() < 0.8 * whole["price"].astype(float).std()
    spread = imputer.spread(whole.assign(price=np.nan))
    assert (spread["price"] > 0).all()
    assert spread["size"].isna().all()


def test_several_imputations_differ() -> None:
    table = mixed(80)
    imputer = DEformerImputer("sample", n_imputations=2, **TINY).fit(table)
    first, second = imputer.impute(table)
    assert (first.astype(object) != second.astype(object)).any(axis=None)
    imputer.table_ = dataclasses.replace(imputer.table_, seed=imputer.table_.seed + 1)
    for drawn in imputer.impute(table):  # the draws of one seed are not those of the next
        assert (drawn.astype(object) != second.astype(object)).any(axis=None)


def test_the_signs_of_the_detector() -> None:
    table = mixed(300)
    detector = DEformerDetector(0.05, **TINY).fit(table)
    scores = detector.score_samples(table)
    assert (detector.predict(table) == -1).mean() == pytest.approx(0.05, abs=0.01)
    assert (detector.decision_function(table) == scores - detector.offset_).all()
    assert ((detector.decision_function(table) < 0) == (detector.predict(table) == -1)).all()
    parts = detector.explain(table)
    pd.testing.assert_frame_equal(parts.isna(), table.isna())
    np.testing.assert_allclose(-parts.sum(axis=1), scores)


def test_a_detector_finds_what_does_not_fit_together_holes_or_not() -> None:
    draws = np.random.default_rng(0)
    x = draws.normal(size=(400, 1))
    table = np.concatenate([x, x, -x], 1) + 0.1 * draws.normal(size=(400, 3))
    table[:8] *= [1, -1, 1]  # each value is ordinary, together they are not
    table[:8] += np.sign(table[:8])
    strange = np.arange(400) < 8
    for holes in (0.0, 0.1):
        seen = np.where(draws.random(table.shape) < holes, np.nan, table)
        scores = DEformerDetector(**{**TINY, "steps": 300}).fit(seen).score_samples(seen)
        assert scores[strange].mean() < np.quantile(scores[~strange], 0.1)
        assert abs(scores.mean()) < 0.1


def test_a_rare_label_does_not_drown_a_number_far_out() -> None:
    draws = np.random.default_rng(0)
    table = pd.DataFrame(draws.normal(size=(500, 3)), columns=["a", "b", "c"])
    table["kind"] = np.where(draws.random(500) < 0.02, "rare", "common")
    table.loc[:4, ["a", "b"]] = 8.0
    scores = DEformerDetector(**{**TINY, "steps": 100}).fit(table).score_samples(table)
    rare = (table["kind"] == "rare") & (table["a"] < 8)
    assert scores[:5].max() < scores[rare].mean()


def test_holes_alone_are_nothing_strange() -> None:
    draws = np.random.default_rng(0)
    table = draws.normal(size=(400, 20))
    table[:20] *= 4
    table[200:300, :10] = np.nan
    detector = DEformerDetector(0.1, **{**TINY, "steps": 50}).fit(table)
    flagged = detector.predict(table) == -1
    assert flagged[:20].mean() > 0.9
    assert abs(flagged[200:300].mean() - flagged[20:200].mean()) < 0.1


def test_a_detector_takes_constant_empty_and_whole_columns() -> None:
    table = pd.DataFrame({"constant": [0.1] * 50, "empty": [np.nan] * 50, "whole": [0, 1, 2, 3, 4] * 10})
    table["flag"] = table["whole"] > 2
    detector = DEformerDetector(**TINY).fit(table)
    assert detector.table_.codec.describe()["coded as"].tolist() == ["numbers", "nothing", "numbers", "levels"]
    scores = detector.score_samples(table)
    assert np.isfinite(scores).all()
    rounded = table.assign(constant=table["constant"].astype(np.float32))
    np.testing.assert_allclose(detector.score_samples(rounded), scores, atol=1e-3)
    other_units = table.assign(constant=100.0)
    again = DEformerDetector(**TINY).fit(other_units).score_samples(other_units.assign(constant=140.0))
    np.testing.assert_allclose(detector.score_samples(table.assign(constant=0.14)), again, atol=1e-3)


def test_the_signs_of_the_pyod_manner() -> None:
    table = mixed(300)
    with pytest.raises(NotFittedError):
        DEformerPyOD().predict_proba(table)
    outliers = DEformerPyOD(0.05, detector=DEformerDetector(**TINY)).fit(table)
    scores = outliers.decision_function(table)
    np.testing.assert_allclose(scores, -outliers.detector_.score_samples(table))
    np.testing.assert_array_equal(scores, outliers.decision_scores_)
    assert outliers.labels_.tolist() == (scores > outliers.threshold_).astype(int).tolist()
    assert outliers.predict(table).tolist() == outliers.labels_.tolist()
    assert outliers.labels_.mean() == pytest.approx(0.05, abs=0.01)
    p = outliers.predict_proba(table)
    np.testing.assert_allclose(p.sum(1), 1)
    assert p[scores.argmax(), 1] == 1
    assert clone(outliers).get_params()["contamination"] == 0.05
    signs = DEformerDetector(0.05, **TINY).fit_predict(table)
    assert signs.tolist() == np.where(outliers.labels_, -1, 1).tolist()


def test_fit_may_be_told_other_than_the_constructor() -> None:
    table = mixed(60)
    density = DEformerDensity(**TINY).fit(table, steps=2, minutes=None, kinds={"size": "label"})
    assert density.history_.points[-1].step == 2
    assert density.table_.codec.describe().loc["size", "coded as"] == "labels"
    assert density.get_params() == DEformerDensity(**TINY).get_params()
    assert DEformerImputer(**TINY).fit(table, steps=2).history_.points[-1].step == 2
    assert DEformerDetector(**TINY).fit(table, steps=2).history_.points[-1].step == 2
    with pytest.raises(TypeError, match="hours"):
        density.fit(table, hours=2)


def test_a_pool_codes_values_as_a_session_does() -> None:
    density = DEformerDensity(**TINY).fit(mixed(60))
    alarms = density.alarms(mixed(30, seed=1), rate=0.2)
    pool, session = density.pool(alarms, memory=0), density.session(alarms)
    name = pool.open()
    for feature, value in [("kind", "big"), ("sold", date(2024, 2, 1)), ("rooms", 3)]:
        [pooled] = pool.observe([(name, feature, value)])
        alone = session.observe(feature, value)
        assert abs(pooled.running_nats - alone.running_nats) < 1e-4
        assert pooled.alarm == alone.alarm


def test_dates_of_polars_are_filled_as_dates() -> None:
    days = [date(2024, 1, 1) + timedelta(days=i) for i in range(60)]
    table = pl.DataFrame({"day": [None, *days[1:]], "n": pl.Series([*range(59), None], dtype=pl.Int64)})
    filled = DEformerImputer(**TINY).fit(table).transform(table)
    assert filled.schema == table.schema
    assert not any(filled.null_count().row(0))
    assert filled[1:59].equals(table[1:59])
    density = DEformerDensity(**TINY).fit(table)
    assert density.conditional(table, "day")["0.5"].dtype.kind == "M"
    assert density.sample(3)["day"].map(type).unique().tolist() == [date]


def test_arrays_polars_and_columns_in_any_order() -> None:
    table = mixed(60)[["size", "price"]]
    density = DEformerDensity(**TINY).fit(table)
    scores = density.score_samples(table)
    np.testing.assert_array_equal(density.score_samples(table[["price", "size"]]), scores)
    np.testing.assert_array_equal(density.score_samples(pl.from_pandas(table.reset_index(drop=True))), scores)
    with pytest.raises(InputError, match="'weight' was not there in fit"):
        density.score_samples(table.rename(columns={"size": "weight"}))
    by_position = DEformerDensity(**TINY).fit(table.to_numpy())
    np.testing.assert_array_equal(by_position.score_samples(table.to_numpy()), scores)


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"a": ["x", "y"] * 20, "b": ["p", None] * 20}),
        pd.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0) ** 2}),
        pd.DataFrame({"a": [1.0] * 40, "b": ["only"] * 40}),
        pd.DataFrame({"a": np.r_[np.nan, np.arange(39.0)], "b": np.arange(40.0)}),
        pd.DataFrame({"a": np.full(40, np.nan), "b": np.arange(40.0)}),
        pd.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0)}),
    ],
    ids=["labels only", "numbers only", "constant", "one missing cell", "nothing in a column", "twins"],
)
def test_odd_tables(table: pd.DataFrame) -> None:
    density = DEformerDensity(**TINY).fit(table)
    assert np.isfinite(density.score_samples(table)).all()
    filled = DEformerImputer(**TINY).fit(table).transform(table)
    assert filled.dtypes.astype(str).tolist() == table.dtypes.astype(str).tolist()
    assert filled["b"].notna().all()


def test_new_rows_may_hold_what_was_never_seen() -> None:
    table = pd.DataFrame({"job": ["nurse", "clerk"] * 30, "level": [1, 2] * 30})
    density = DEformerDensity(**TINY).fit(table)
    usual, unknown, far = density.score_samples(pd.DataFrame({"job": ["nurse", "king", "nurse"], "level": [1, 1, 90]}))
    assert unknown < usual
    assert far < usual


def test_a_constant_that_is_not_constant_in_use_is_unlikely_but_no_catastrophe() -> None:
    density = DEformerDensity(**TINY).fit(pd.DataFrame({"zero": [0] * 60, "seven": [7.0] * 60, "x": np.arange(60.0)}))
    usual, other = density.score_samples(pd.DataFrame({"zero": [0, 1], "seven": [7.0, 8.0], "x": [3.0, 3.0]}))
    assert usual - 40 < other < usual - 4


def test_labels_and_types_of_every_kind_survive() -> None:
    n = 60
    frame = pd.DataFrame(
        {
            "flag": pd.array([True, False, None] * (n // 3), dtype="boolean"),
            "plain": [True, False] * (n // 2),
            "band": pd.cut(np.arange(n), 4),
            "small": np.arange(n, dtype=np.uint8),
            "day": [pd.Timestamp("2024-01-01").date()] * (n // 2) + [None] * (n // 2),
            "kind": pd.Categorical(["a", "b", None] * (n // 3)),
        }
    )
    for strategy in ("mean", "sample"):
        filled = DEformerImputer(strategy, **TINY).fit(frame).transform(frame)
        assert filled.drop(columns="day").dtypes.tolist() == frame.drop(columns="day").dtypes.tolist()
        assert filled.notna().all(axis=None)
    imputer = DEformerImputer(**TINY).fit(frame)
    fewer = frame[frame["kind"] == "a"].assign(kind=lambda t: t["kind"].cat.remove_unused_categories())
    assert imputer.transform(fewer)["kind"].tolist() == ["a"] * len(fewer)
    holes = pd.DataFrame({"plain": [True, None]}).reindex(columns=list(frame.columns))
    assert imputer.transform(holes)["plain"].isin([True, False]).all()


def test_evidence_stays_as_it_was_given() -> None:
    table = pd.DataFrame({"job": [f"job {i // 2}" for i in range(700)], "level": [1, 2] * 350})
    density = DEformerDensity(**TINY).fit(table)
    drawn = density.sample(4, given=pd.DataFrame({"job": ["job 349"]}))
    assert drawn["job"].tolist() == ["job 349"] * 4
    likeliest = density.table_.codec.columns[0].decode(np.array([255.0]))[0]
    guessed = DEformerImputer("mode", **TINY).fit(table).transform(pd.DataFrame({"job": [None], "level": [1]}))
    assert guessed["job"][0] != likeliest


def test_dates_are_explained_as_dates() -> None:
    when = pd.date_range("2024-01-01", periods=80)
    table = pd.DataFrame({"when": when, "x": np.arange(80.0)}, index=[f"r{i}" for i in range(80)])
    density = DEformerDensity(**TINY).fit(table)
    answer = density.conditional(table[:3], "when")
    assert list(answer.index) == ["r0", "r1", "r2"]
    assert answer["mean"].dtype.kind == answer["0.5"].dtype.kind == "M"
    assert answer["std"].dtype.kind == "m"
    assert density.explain(table[:3]).expected["when"].dtype.kind == "M"


def test_a_number_that_is_frequent_among_others_stays_exact() -> None:
    draws = np.random.default_rng(0)
    wet = draws.random(600) < 0.5
    rain = np.where(wet, draws.gamma(2.0, 3.0, 600), 0.0)
    sensor = np.where(draws.random(600) < 0.2, -(2.0**31), 20 + draws.normal(size=600))
    table = pd.DataFrame({"sky": np.where(wet, "grey", "blue"), "rain": rain, "sensor": sensor})
    with pytest.warns(UserWarning, match="far from its other numbers"):
        density = DEformerDensity(**{**TINY, "steps": 150, "network": {"d_model": 32, "n_layers": 2}}).fit(table)
    assert "often exactly -2147483648" in density.table_.codec.describe()["values"]["sensor"]
    drawn = density.sample(2000)
    assert abs((drawn["rain"] == 0).mean() - 0.5) < 0.1
    assert abs((drawn["sensor"] == -(2.0**31)).mean() - 0.2) < 0.1
    others = drawn["sensor"][drawn["sensor"] > 0]
    assert abs(others.mean() - 20) < 0.5
    assert 0.6 < others.std() < 1.5
    asked = density.conditional(pd.DataFrame({"sky": ["blue", "grey"]}), "rain")
    assert list(asked.columns) == ["mean", "std", "0.05", "0.5", "0.95", "P(= 0)"]
    assert asked["P(= 0)"][0] > 0.8 > 0.2 > asked["P(= 0)"][1]
    assert asked["0.5"][0] == 0 < asked["0.5"][1]
    dry = pd.DataFrame({"sky": ["blue"], "rain": [0.0]})
    assert density.log_prob(dry, ["rain"], given=["sky"])[0] < 0  # a probability
    odd = pd.DataFrame({"sky": ["grey"], "rain": [0.0], "sensor": [20.0]})
    assert density.explain(odd).row(0).index[0] in ("rain", "sky")
    imputer = DEformerImputer.from_table(density.table_).set_params(strategy="mode")
    assert imputer.transform(dry.assign(rain=np.nan))["rain"][0] == 0


def test_a_detector_does_not_care_for_units() -> None:
    table = mixed(200)[["size", "price"]]
    scores = [
        DEformerDetector(**TINY).fit(t).score_samples(t.assign(price=t["price"].where(np.arange(len(t)) % 3 > 0)))
        for t in (table, table.assign(price=1000 * table["price"]))
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


@pytest.mark.parametrize("kind", [DEformerImputer, DEformerDetector])
def test_imputers_and_detectors_travel_in_files(kind, tmp_path) -> None:  # type: ignore[no-untyped-def]
    table = mixed(100)
    fitted = kind(**TINY).fit(table)
    fitted.save(tmp_path / "m.deformer")
    again = kind.load(tmp_path / "m.deformer")
    if kind is DEformerDetector:
        np.testing.assert_allclose(again.decision_function(table), fitted.decision_function(table))
    else:
        pd.testing.assert_frame_equal(again.transform(table), fitted.transform(table))
        filled, spread = again.transform(table, return_std=True)
        assert (spread["price"].notna() == table["price"].isna()).all()
        assert filled.shape == table.shape
    density = DEformerDensity.load(tmp_path / "m.deformer")
    density.save(tmp_path / "d.deformer")
    if kind is DEformerDetector:
        with pytest.raises(InputError, match="holds no DEformerDetector.*it lacks offset_"):
            kind.load(tmp_path / "d.deformer")
    else:  # a density is all that filling in needs
        for other in (kind.load(tmp_path / "d.deformer"), kind.from_table(density.table_)):
            pd.testing.assert_frame_equal(other.transform(table), fitted.transform(table))


def test_two_thousand_columns() -> None:
    table = np.random.default_rng(0).normal(size=(12, 2000)).round(2)
    density = DEformerDensity(**{**TINY, "steps": 1}).fit(table)
    assert np.isfinite(density.score_samples(table[:2], 1)).all()


def test_bad_choices() -> None:
    table = mixed(30)
    with pytest.raises(InputError, match="strategy must be"):
        DEformerImputer("guess", **TINY).fit(table)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="contamination"):
        DEformerDetector(0.9, **TINY).fit(table)
    with pytest.raises(InputError, match="ModelConfig has no 'width'; it has wiring"):
        DEformerDensity(**{**TINY, "network": {"width": 3}}).fit(table)
    with pytest.raises(InputError, match="TrainConfig has no 'rate'"):
        DEformerDensity(**TINY, training={"rate": 0.1}).fit(table)
    with pytest.raises(InputError, match="combine must be"):
        DEformerDensity(**TINY).fit(table).score_samples(table, combine="sum")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="No column is called 'bogus'"):
        DEformerDensity(**{**TINY, "kinds": {"bogus": "label"}}).fit(table)
    with pytest.raises(InputError, match="'a' holds {}, which cannot be a label"):
        DEformerDensity(**TINY).fit(pd.DataFrame({"a": [{}, "x"]}))
    with pytest.raises(ValueError, match="no rows"):
        DEformerDensity(**TINY).fit(table).score_samples(table[:0])


def test_columns_without_values_do_not_come_before_others_in_draws() -> None:
    table = pd.DataFrame({"empty": [np.nan] * 60, "gone": pd.array([None] * 60, dtype="str"), "x": [0, 1, 2] * 20})
    density = DEformerDensity(**TINY).fit(table)
    orders = tables._orders(density.table_, torch.zeros(50, 3, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert (orders[:, 0] == 2).all()
    assert density.sample(20)["x"].isin([0, 1, 2]).all()


def test_whole_numbers_as_labels_are_imputed() -> None:
    table = mixed(60)[["size", "price"]].assign(n=[1, 2, 3] * 20)
    imputer = DEformerImputer(**TINY, kinds={"n": "label"}).fit(table)
    assert imputer.transform(table)["n"].tolist() == table["n"].tolist()
    holes = table.assign(n=table["n"].astype("Int64").mask(table.index == table.index[3]))
    assert imputer.transform(holes)["n"].notna().all()


def test_expectations_of_rows_with_holes_alone_are_those_of_all() -> None:
    table = mixed(60)
    imputer = DEformerImputer(**TINY).fit(table)
    holes = table.mask(np.random.default_rng(0).random(table.shape) < 0.03)
    filled = imputer.transform(holes)
    rows = holes.isna().any(axis=1).to_numpy()
    assert 0 < rows.sum() < 60
    pd.testing.assert_frame_equal(filled[rows], imputer.transform(holes[rows]), check_dtype=False)
    pd.testing.assert_frame_equal(imputer.transform(filled), filled)


@pytest.mark.parametrize(
    ("limits", "network", "shape"),
    [
        ({"minutes": 1e-4}, None, (64, 1)),
        ({"minutes": 1e-4}, {"d_model": 32, "n_layers": 2}, (32, 2)),
        ({"steps": 1}, None, (128, 3)),
        ({"epochs": 1e-3}, None, (128, 3)),
    ],
)
def test_what_time_allows_decides_on_the_network(limits, network, shape) -> None:  # type: ignore[no-untyped-def]
    X = np.random.default_rng(0).random((400, 60)) < 0.5
    density = DEformerDensity(**limits, network=network, device="cpu", random_state=0).fit(X)
    assert (density.table_.model.config.d_model, density.table_.model.config.n_layers) == shape


def test_columns_may_be_called_by_numbers() -> None:
    frame = pd.DataFrame({0: [1.5, 2.5] * 30, 7: ["x", "y"] * 30})
    density = DEformerDensity(**TINY).fit(frame)
    assert list(density.conditional(frame, 0).columns) == [1.5, 2.5]
    assert list(density.conditional(frame, [0, 7])) == [0, 7]
    np.testing.assert_allclose(density.log_prob(frame, 0, 7), density.log_prob(frame, ["0"], ["7"]))
    np.testing.assert_allclose(density.predict_proba(frame, 7), density.conditional(frame, 7))
    assert list(density.sample(2).columns) == [0, 7]
    assert list(density.sample_remaining_columns(frame[[0]]).columns) == [0, 7]
    explanation = density.explain(frame)
    assert list(explanation.share.columns) == list(explanation.values.columns) == [0, 7]
    imputer = DEformerImputer(**TINY).fit(frame)
    _, spread = imputer.transform(frame, return_std=True)
    assert list(spread.columns) == [0]
    assert list(imputer.transform(frame[[0]]).columns) == [0, 7]


def test_columns_may_have_names_of_two_levels() -> None:
    frame = pd.DataFrame({("a", 1): [1.5, 2.5] * 30, ("a", 2): ["x", "y"] * 30})
    frame.columns.names = ["letter", "number"]
    density = DEformerDensity(**TINY).fit(frame)
    assert list(density.conditional(frame, ("a", 1)).columns) == [1.5, 2.5]
    np.testing.assert_allclose(density.predict_proba(frame, ("a", 2)), density.conditional(frame, ("a", 2)))
    np.testing.assert_allclose(density.log_prob(frame, ("a", 2)), density.log_prob(frame, [("a", 2)]))
    explained = density.explain(frame)
    imputer = DEformerImputer(**TINY).fit(frame)
    for table in (density.sample(2), imputer.transform(frame), explained.share, explained.values):
        pd.testing.assert_index_equal(table.columns, frame.columns)


@pytest.mark.parametrize("names", [[0, 7], [("a", 1), ("a", 2)]])
def test_names_stay_as_they_are_given_after_loading(names: list[object]) -> None:
    frame = pd.DataFrame([[1.5, "x"], [2.5, "y"]] * 30, columns=pd.Index(names)).convert_dtypes(dtype_backend="pyarrow")
    imputer = DEformerImputer(**TINY).fit(frame)
    pd.testing.assert_frame_equal(DEformerImputer.from_table(imputer.table_).transform(frame), frame)
    as_text = frame.set_axis([str(name) for name in names], axis=1)
    pd.testing.assert_frame_equal(imputer.transform(as_text), as_text)
    pd.testing.assert_index_equal(imputer.transform(frame.iloc[:, :1]).columns, frame.columns)


def test_an_index_in_arrow_comes_back() -> None:
    table = pa.Table.from_pandas(mixed(60).set_index(pd.Index([f"row {i}" for i in range(60)], name="id")))
    imputer = DEformerImputer(**TINY).fit(table)
    assert list(imputer.feature_names_in_) == list(imputer.get_feature_names_out())
    filled = imputer.transform(table)
    assert filled.column_names == table.column_names
    assert filled["id"].equals(table["id"])


def test_dates_far_apart_have_a_deviation() -> None:
    days = [date(2024, 1, 1) + timedelta(days=i) for i in range(80)]
    frame = pd.DataFrame({"until": days + [date(9999, 12, 31)] * 40})
    told = DEformerDensity(**TINY).fit(frame).conditional(frame.head(2), "until")
    assert (told["std"] > timedelta(days=100_000)).all()


def test_nanoseconds_have_a_deviation() -> None:
    table = pd.DataFrame({"took": pd.to_timedelta(np.arange(80) % 70, unit="ns").astype("timedelta64[ns]")})
    answer = DEformerDensity(**TINY).fit(table).conditional(table[:2], "took")
    assert (answer[["std", "0.95"]] > pd.Timedelta(0)).all(axis=None)


def test_columns_without_values_have_no_spread() -> None:
    frame = pd.DataFrame({"a": np.random.default_rng(0).normal(size=60), "empty": np.full(60, np.nan)})
    imputer = DEformerImputer(**TINY).fit(frame)
    assert imputer.spread(frame)["empty"].isna().all()
    assert DEformerDensity.from_table(imputer.table_).conditional(frame, "empty").isna().all(axis=None)


def test_draws_repeat_where_there_is_a_seed(density: DEformerDensity) -> None:
    pd.testing.assert_frame_equal(density.sample(3), density.sample(3))
    drawn = [density.sample(3, random_state=np.random.RandomState(0)) for _ in range(2)]
    pd.testing.assert_frame_equal(*drawn)
    loose = DEformerDensity.from_table(density.table_)
    loose.random_state = None
    assert not loose.sample(3).equals(loose.sample(3))


def test_interrupted_it_keeps_what_it_learned_and_passes_the_signal_on(monkeypatch: pytest.MonkeyPatch) -> None:
    learn = tables.learn
    monkeypatch.setattr(tables, "learn", lambda *a, **k: (learn(*a, **k)[0], History((), "interrupted")))
    table = mixed(60)
    for estimator in (DEformerDensity(**TINY), DEformerDetector(**TINY)):
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(table)
        assert np.isfinite(estimator.score_samples(table)).all()


def test_text_in_an_array() -> None:
    labels = np.array([["red", "1"], ["blue", "2"]] * 20)
    assert DEformerDensity(**TINY).fit(labels).table_.codec.describe()["coded as"].tolist() == ["labels", "labels"]
    numbers = np.array([["1.5", "1"], ["2.25", "2"]] * 20)
    assert DEformerDensity(**TINY).fit(numbers).table_.codec.describe()["coded as"].tolist() == ["levels", "levels"]
    holes = np.array([["red", np.nan], ["blue", "2"]] * 20)  # NumPy spells the hole "nan"
    filled = DEformerImputer(**TINY).fit(holes).transform(holes)
    assert (filled[:, 1] == "2").all()
    density = DEformerDensity(**TINY).fit(holes)
    assert (density.sample(3, given=holes[:1])["x1"] == "2").all()
    assert (density.sample_remaining_columns(holes[:3])["x1"] == "2").all()


def test_times_in_an_array() -> None:
    days = np.array([["2024-01-01", "2024-02-01"], ["NaT", "2024-03-01"]] * 20, dtype="datetime64[D]")
    filled = DEformerImputer(**TINY).fit(days).transform(days)
    assert filled.dtype.kind == "M"
    assert (filled[:, 0] == np.datetime64("2024-01-01")).all()


def test_three_minutes_are_the_limit_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pretend(model: object, rows: object, config: TrainConfig, **_: object) -> History:
        asked.append(config.minutes)
        return History((), "done")

    monkeypatch.setattr(tables, "fit", pretend)
    for limits in ({}, {"steps": 5}, {"epochs": 2}, {"minutes": 1, "steps": 5}):
        DEformerDensity(**limits).fit(mixed(40))
    assert asked == [3.0, None, None, 1]


def test_whatever_arrives_in_a_column_that_was_empty_in_fit_is_missing() -> None:
    table = mixed(60).assign(text=pd.Series([None] * 60, dtype="str"), numbers=np.nan)
    density = DEformerDensity(**TINY).fit(table)
    filled = table.assign(text="new", numbers="also text")
    np.testing.assert_array_equal(density.score_samples(filled), density.score_samples(table))
    for column in ("text", "numbers"):
        with pytest.raises(InputError, match="fit saw no value"):
            density.session().observe(column, "new")


def test_labels_that_were_numbers_may_be_read_as_text() -> None:
    table = pd.DataFrame({"zip": [10115, 80331, 20095] * 20, "x": np.arange(60.0)})
    density = DEformerDensity(**TINY, kinds={"zip": "label"}).fit(table)
    as_text = table.assign(zip=table["zip"].astype(str))
    np.testing.assert_array_equal(density.score_samples(as_text), density.score_samples(table))


def test_categories_that_are_numbers_are_filled_in_by_the_nearest() -> None:
    stars = pd.Series(np.arange(100) % 5 + 1).where(np.arange(100) % 7 > 0)
    table = pd.DataFrame({"stars": pd.Categorical(stars), "x": np.arange(100.0)})
    filled = DEformerImputer(**TINY, kinds={"stars": "number"}).fit_transform(table)
    assert filled["stars"].dtype == table["stars"].dtype
    assert filled["stars"].notna().all()
    assert (filled["stars"] == table["stars"])[table["stars"].notna()].all()


def test_a_column_of_intervals_is_drawn_as_text() -> None:
    intervals = pd.arrays.IntervalArray.from_tuples([(0, 1), (1, 2)] * 20)
    density = DEformerDensity(**TINY).fit(pd.DataFrame({"range": intervals, "x": np.arange(40.0)}))
    assert set(density.sample(5)["range"]) <= {"(0, 1]", "(1, 2]"}


def test_numbers_without_a_square_are_refused() -> None:
    with pytest.raises(InputError, match="infinite"):
        DEformerDensity(**TINY).fit(mixed(40).assign(far=-1.797e308))


def test_limits_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    detector = DEformerDetector(**{**TINY, "steps": np.int64(2)}, n_orders=np.int64(2)).fit(mixed(40))
    detector.save(tmp_path / "m.deformer")
    assert DEformerDetector.load(tmp_path / "m.deformer").n_orders == 2


def test_an_estimator_that_failed_to_fit_is_not_fitted() -> None:
    detector = DEformerDetector(**TINY)
    with pytest.raises(InputError, match="infinite|finite"):
        detector.fit(mixed(40).assign(far=np.inf))
    with pytest.raises(NotFittedError):
        detector.predict(mixed(40))


def test_of_means_there_is_one_imputation() -> None:
    holes = mixed(60).mask(np.random.default_rng(0).random((60, 5)) < 0.2)
    with pytest.raises(InputError, match="only samples differ"):
        DEformerImputer(n_imputations=2, **TINY).fit(holes)
    fitted = DEformerImputer(**TINY).fit(holes)
    with pytest.raises(InputError, match="only samples differ"):
        fitted.set_params(n_imputations=2).impute(holes)
    with pytest.raises(InputError, match="strategy must be"):
        fitted.set_params(strategy="draw", n_imputations=1).transform(holes)
    X = np.where(np.random.default_rng(0).random((60, 2)) < 0.2, np.nan, np.random.default_rng(1).random((60, 2)))
    first, second = DEformerImputer("sample", n_imputations=2, **TINY).fit(X).impute(X)
    assert isinstance(first, np.ndarray)
    assert not np.array_equal(first, second)


def test_a_share_is_no_word() -> None:
    with pytest.raises(InputError, match="'auto'"):
        DEformerDetector("auto", **TINY).fit(mixed(60))  # type: ignore[arg-type]


def test_an_array_stays_an_array_after_loading(tmp_path, recwarn: pytest.WarningsRecorder) -> None:  # type: ignore[no-untyped-def]
    X = np.random.default_rng(0).random((60, 3))
    DEformerDensity(**TINY).fit(X).save(tmp_path / "m.deformer")
    recwarn.clear()
    DEformerDensity.load(tmp_path / "m.deformer", device="cpu").score_samples(X)
    assert not [w for w in recwarn if "feature names" in str(w.message)]


def test_lists_of_text_and_numbers_keep_their_numbers() -> None:
    rows = [["red", 1.5 + i] if i % 2 else ["blue", float("nan")] for i in range(40)]
    density = DEformerDensity(**TINY).fit(rows)
    assert density.table_.codec.describe()["coded as"].tolist() == ["labels", "numbers"]
    assert density.conditional([["red", 2.5]], "x1").notna().all(axis=None)
    np.testing.assert_allclose(density.score_samples(rows)[1:2], density.score_samples(rows[1:2]), rtol=0, atol=1e-4)


def test_masked_values_are_missing() -> None:
    values, hidden = np.random.default_rng(0).random((40, 2)), np.arange(80).reshape(40, 2) % 7 == 0
    masked = np.ma.MaskedArray(values, hidden)
    density = DEformerDensity(**TINY).fit(masked)
    np.testing.assert_array_equal(
        density.score_samples(masked), density.score_samples(np.where(hidden, np.nan, values))
    )
    assert not np.isin(values[hidden], DEformerImputer(**TINY).fit_transform(masked)).any()
    labels = np.where(hidden, "hidden", np.array([["red", "low"], ["blue", "high"]] * 20))
    days = np.where(hidden, np.datetime64("2030-01-01"), np.datetime64("2024-01-01"))
    for table in (labels, labels.astype(object), days):
        filled = DEformerImputer(**TINY).fit_transform(np.ma.MaskedArray(table, hidden))
        assert not np.isin(filled, table[hidden]).any()
        assert (filled == table)[~hidden].all()


def test_how_text_in_an_array_is_read_does_not_depend_on_the_rows_beside_it() -> None:
    rows = np.array([["01", "2"], ["red", "4"]] * 20)
    density = DEformerDensity(**TINY).fit(rows)
    np.testing.assert_allclose(density.score_samples(rows[:1]), density.score_samples(rows)[:1], rtol=0, atol=1e-4)
    numbers = np.array([["1.5", "1"], ["2.25", "nan"]] * 20)
    imputer = DEformerImputer(**TINY).fit(numbers)
    assert imputer.transform(numbers).dtype == np.float64
    np.testing.assert_array_equal(imputer.transform(numbers[:2])[:, 0], [1.5, 2.25])
    with pytest.raises(InputError, match="it holds 'red'"):
        imputer.transform(rows)


def test_names_of_an_array_are_those_it_is_given() -> None:
    X = np.random.default_rng(0).random((40, 4))
    parts = [("a", DEformerImputer(**TINY), [0, 1]), ("b", DEformerImputer(**TINY), [2, 3])]
    both = ColumnTransformer(parts, verbose_feature_names_out=False).fit(X)
    assert both.get_feature_names_out().tolist() == ["x0", "x1", "x2", "x3"]
    imputer = DEformerImputer(**TINY).fit(pd.DataFrame(X, columns=list("abcd")))
    assert imputer.get_feature_names_out().tolist() == list("abcd")
    with pytest.raises(ValueError, match="not equal to feature_names_in_"):
        imputer.get_feature_names_out(list("abdc"))


def test_a_row_of_an_explanation_holds_its_values() -> None:
    values = pd.DataFrame({"id": np.array([2**53 + 1], dtype=np.int64), "x": [0.5]})
    nats = pd.DataFrame({"id": [1.0], "x": [0.0]})
    row = Explanation(values, values, nats, nats, nats).row(0)
    assert row["value"].tolist() == [2**53 + 1, 0.5]
    assert row["excess"].dtype == np.float64


def test_tokens_per_step_count_where_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pretend(model: object, rows: object, config: TrainConfig, **_: object) -> History:
        asked.append((config.rows_per_step, config.tokens_per_step))
        return History((), "done")

    monkeypatch.setattr(tables, "fit", pretend)
    for training in ({"tokens_per_step": 99}, {"tokens_per_step": 99, "rows_per_step": 8}):
        DEformerDensity(**TINY, training=training).fit(mixed(40))
    assert asked == [(None, 99), (8, 99)]

import json
import math

import numpy as np
import pytest

from deformer.data.columns import (
    Column,
    Labels,
    Levels,
    Nothing,
    Numbers,
    Plain,
    from_dict,
    label_column,
    numeric_column,
    to_dict,
    values_of,
)
from deformer.data.schema import Binary, Categorical, Continuous, Ordinal

RANDOM = np.random.default_rng(0)
NUMERIC = {
    "normal": (RANDOM.normal(3, 2, 4000), Numbers),
    "heavy tails": (RANDOM.standard_t(1.2, 4000), Numbers),
    "few levels": (RANDOM.choice([0.5, 2.0, 7.0], 4000), Levels),
    "integers with gaps": (RANDOM.choice([1.0, 2.0, 5.0, 1000.0], 4000), Levels),
    "many integers": (RANDOM.integers(0, 10**6, 4000).astype(float), Numbers),
    "zero inflated": (np.where(RANDOM.random(4000) < 0.9, 0.0, RANDOM.lognormal(8, 1, 4000)), Numbers),
    "constant": (np.full(4000, 4.5), Levels),
    "missing here and there": (np.where(RANDOM.random(4000) < 0.3, np.nan, RANDOM.normal(size=4000)), Numbers),
    "all missing": (np.full(10, np.nan), Nothing),
    "five rows": (np.array([1.0, 2.5, 2.5, 8.0, np.nan]), Numbers),
}
LABELS = label_column(["b", "a", None, "b", "c"])


@pytest.mark.parametrize("name", NUMERIC)
def test_numbers_come_back(name: str) -> None:
    values, kind = NUMERIC[name]
    column = numeric_column(values)
    assert isinstance(column, kind)
    codes, log_base = column.encode(values)
    assert (np.isnan(codes) == np.isnan(values)).all()
    assert np.isfinite(log_base).all()
    np.testing.assert_allclose(column.decode(codes), values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("column", [Numbers(3.0, 2.0), Numbers(3.0, 2.0, bend=True)])
def test_the_base_of_numbers_is_the_log_jacobian(column: Numbers) -> None:
    x, step = np.array([-40.0, 2.0, 3.0, 77.0]), 1e-5
    slope = (column.encode(x + step)[0] - column.encode(x - step)[0]) / (2 * step)
    np.testing.assert_allclose(column.encode(x)[1], np.log(slope), atol=1e-7)


def test_numbers_off_the_levels_are_unlikely_and_more_so_far_off() -> None:
    column = Levels((0.0, 1.0, 2.0), 999)
    codes, log_base = column.encode(np.array([1.0, 1.2, 50.0]))
    assert codes.tolist() == [1.0, 1.0, 2.0]
    assert log_base[0] == pytest.approx(math.log(0.999))
    assert log_base[0] > log_base[1] > log_base[2]


def test_levels_give_away_one_cell_of_a_table() -> None:
    column = numeric_column(np.array([0.0, 1.0] * 50), n_columns=20)
    assert column.encode(np.array([1.0]))[1][0] == pytest.approx(-1 / 2000, rel=0.01)
    lonely = numeric_column(np.zeros(100))
    assert -12 < lonely.encode(np.array([1.0]))[1][0] < -4


def test_nothing_stays_nothing() -> None:
    column = numeric_column(np.full(5, np.nan))
    assert np.isnan(column.encode(np.array([3.0, np.nan]))[0]).all()
    assert np.isnan(column.decode(np.array([0.0, 1.0]))).all()
    assert from_dict(json.loads(json.dumps(to_dict(column)))) == column


def test_domains() -> None:
    assert numeric_column(np.array([0.0, 1.0] * 20)).domain == Binary()
    assert numeric_column(np.array([0.0, 2.0, 5.0] * 20)).domain == Ordinal(3)
    assert numeric_column(RANDOM.normal(size=100)).domain == Continuous()
    assert LABELS.domain == Categorical(4)


def test_labels_come_back_and_what_is_new_has_a_code() -> None:
    values = np.array(["c", None, "a", "never seen", np.nan], dtype=object)
    codes, log_base = LABELS.encode(values)
    np.testing.assert_array_equal(codes, [2, np.nan, 0, 3, np.nan])
    assert log_base.tolist() == [0.0] * 5
    assert LABELS.decode(codes[:3]).tolist() == ["c", None, "a"]


def test_fifty_thousand_labels_share_codes_and_their_shares_sum_to_one() -> None:
    values = [f"label {i}" for i in range(50_000)] + ["often"] * 100
    column = label_column(values)
    assert column.domain == Categorical(256)
    everything = np.array([label for label, _ in column.others] + ["never seen"], dtype=object)
    codes, log_base = column.encode(everything)
    assert (codes == 255).all()
    assert np.exp(log_base).sum() == pytest.approx(1.0)
    assert column.encode(np.array(["often"], dtype=object))[0][0] < 255
    drawn = column.decode(np.full(1000, 255.0), np.random.default_rng(0).random)
    assert len(set(drawn)) > 900
    assert len(set(column.decode(np.full(3, 255.0)))) == 1


def test_a_frequent_number_among_others_is_a_point_mass() -> None:
    rain = np.where(RANDOM.random(400) < 0.4, 0.0, RANDOM.gamma(2.0, 3.0, 400))
    sentinel = np.where(RANDOM.random(400) < 0.2, -999.0, RANDOM.normal(20.0, 1.0, 400))
    for values, mass in ((rain, 0.0), (sentinel, -999.0)):
        column = numeric_column(values)
        assert isinstance(column, Numbers)
        assert column.point_mass == mass
        assert column.scale == pytest.approx(values[values != mass].std())
        codes, log_base = column.encode(values)
        assert column.domain == Continuous(point_mass=codes[values == mass][0])
        assert (log_base[values == mass] == 0).all()
        assert (column.decode(codes)[values == mass] == mass).all()
        assert (column.encode(np.array([mass + 1e-4]))[0] != codes[values == mass][0]).all()
        assert numeric_column(values, levels=False).domain == Continuous()


def test_a_point_mass_is_told_from_what_lies_beside_it() -> None:
    far = np.append(1e8 + RANDOM.normal(size=900), [1e8] * 100)
    column = numeric_column(far)
    assert isinstance(column, Numbers)
    assert column.point_mass == 1e8
    codes, log_base = column.encode(far)
    assert (codes == column.code_of_mass).sum() == (log_base == 0).sum() == 100
    tenth = Numbers(5.0, 2.0, point_mass=0.1)
    codes, log_base = tenth.encode(np.array([np.float32(0.1), 0.1, 0.1 + 1e-6]))
    assert (codes == tenth.code_of_mass).tolist() == (log_base == 0).tolist() == [True, True, False]
    assert (tenth.decode(codes)[:2] == 0.1).all()
    codes, log_base = Numbers(point_mass=99_999_999.0).encode(np.array([1e8, 99_999_999.0]))  # one float32
    assert (log_base == 0).tolist() == [True, True]
    assert codes.tolist() == [1e8, 99_999_999.0]
    assert Plain(Continuous(point_mass=0.1)).encode(np.array([np.float32(0.1), 0.2]))[0].tolist() == [0.1, 0.2]
    bent = Numbers(50.0, 3.0, bend=True, point_mass=-1.0)
    assert bent.decode(bent.encode(np.array([-1.0, 7.0]))[0]) == pytest.approx([-1.0, 7.0])


def test_draws_of_whole_numbers_do_not_become_the_point_mass() -> None:
    counts = Numbers(50.0, 30.0, whole=True, least=1.0, most=200.0, point_mass=0.0)
    drawn = np.array([(x - 50) / 30 for x in (0.3, -0.4, -2.0, 300.0, 0.0)])
    assert counts.decode(drawn, RANDOM.random).tolist() == [1.0, 1.0, 1.0, 200.0, 0.0]


def test_rounded_numbers_and_tables_of_few_rows_have_no_point_mass() -> None:
    assert numeric_column(np.round(RANDOM.normal(0, 10, 500))).domain == Continuous()
    assert numeric_column(np.append(RANDOM.normal(size=50), [0.0] * 5)).domain == Continuous()


@pytest.mark.parametrize(
    "column", [LABELS, Levels((0.0, 2.0), 9), Numbers(1.0, 2.0, True, True), Numbers(1.0, 2.0, point_mass=0.3)]
)
def test_columns_travel_as_json(column: Column) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(column)))) == column


def test_what_is_rare_has_a_name_of_its_own() -> None:
    assert values_of(Labels(("(other)", "a"), (("((other))", 1),))) == ("(other)", "a", "(((other)))")


def test_draws_stay_within_the_range() -> None:
    column = numeric_column(np.linspace(0, 7.5, 300), levels=False)
    assert column.decode(np.array([-9.0, 0.0, 9.0]), draw=RANDOM.random).tolist() == [0.0, 3.75, 7.5]
    assert column.decode(np.array([9.0]))[0] > 7.5


def test_draws_of_whole_numbers_are_whole() -> None:
    column = Numbers(100.0, 50.0, whole=True)
    assert column.decode(np.array([0.123]), RANDOM.random)[0] == 106.0
    assert column.decode(np.array([0.123]))[0] == pytest.approx(106.15)


def test_labels_keep_their_types() -> None:
    column = label_column([1, "1", True, None, 2.5])
    assert isinstance(column, Labels)
    values = np.array([1, "1", 2.5], dtype=object)
    assert column.decode(column.encode(values)[0]).tolist() == [1, "1", 2.5]


def test_a_level_in_float32_is_the_level() -> None:
    column = numeric_column(np.array([0.1, 0.2, 0.7] * 50), 1)
    exact, rounded = (
        column.encode(np.array([0.1, 0.7], dtype=t).astype(np.float64))[1] for t in (np.float64, np.float32)
    )
    np.testing.assert_array_equal(exact, rounded)
    assert column.encode(np.array([0.1001]))[1] < exact[0] - 1


@pytest.mark.parametrize("unit", [1 / 86_400, 1e9])
def test_numbers_off_the_levels_are_as_unlikely_in_any_unit(unit: float) -> None:
    column, same = (numeric_column(np.array([1.0, 2.0, 3.0] * 50) * u) for u in (unit, 1.0))
    seen, beside, far = column.encode(np.array([2.0, 2.1, 9.0]) * unit)[1]
    assert [seen, beside, far] == pytest.approx(same.encode(np.array([2.0, 2.1, 9.0]))[1])
    assert seen > math.log(1 / 151) > beside > far


def test_a_constant_is_left_as_unlikely_in_any_unit() -> None:
    small, large = (numeric_column(np.full(50, u)).encode(np.array([1.4 * u]))[1][0] for u in (1e-6, 1e6))
    assert small == pytest.approx(large)


def test_levels_at_the_last_digit_of_a_float() -> None:
    column = numeric_column(np.array([0.3, 0.1 + 0.2] * 50))
    codes, log_base = column.encode(np.array([0.3, 0.1 + 0.2]))
    assert codes.tolist() == [0.0, 1.0]
    assert log_base.tolist() == [math.log(100 / 101)] * 2
    tenths = numeric_column(np.array([0.1, 0.2, 0.3, 3.0] * 50))
    codes, log_base = tenths.encode(np.array([0.1 * 3, 0.1 * 3 * 10, 0.3 + 1e-6]))
    assert codes.tolist() == [2.0, 3.0, 2.0]
    assert (log_base == math.log(200 / 201)).tolist() == [True, True, False]


def test_another_whole_number_is_no_level() -> None:
    column = numeric_column(np.array([20240101.0, 20240103.0] * 50))
    assert (column.encode(np.array([20240101.0, 20240103.0]))[1] == math.log(100 / 101)).all()
    assert (column.encode(np.array([20240104.0, 20240100.0]))[1] < math.log(1 / 101)).all()
    large = numeric_column(np.array([1e15, 1e15 + 2] * 50))
    assert large.encode(np.array([1e15 + 3]))[1][0] < math.log(1 / 101)


@pytest.mark.parametrize("unit", [1e-170, 1e-300])
def test_tiny_numbers_have_a_scale(unit: float) -> None:
    values = RANDOM.normal(size=300)
    column, same = numeric_column(values * unit), numeric_column(values)
    np.testing.assert_allclose(column.encode(values * unit)[0], same.encode(values)[0])
    np.testing.assert_allclose(column.encode(values * unit)[1], same.encode(values)[1] - math.log(unit))


def test_the_base_of_bent_numbers_far_out_is_finite() -> None:
    codes, log_base = Numbers(0.0, 1e-100, bend=True).encode(np.array([1e100, -1e140]))
    assert np.isfinite(codes).all()
    assert log_base == pytest.approx(-np.log([1e100, 1e140]))

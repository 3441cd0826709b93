import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from tests.models import CONFIGS

from deformer.data.columns import Column, Labels, Levels, Nothing, Numbers, Plain, values_of
from deformer.data.schema import Categorical, Feature, Schema
from deformer.data.seeds import generator
from deformer.errors import InputError
from deformer.nn.model import new_model
from deformer.tasks.predictive import Predictive, ask_together

COLUMNS: dict[str, Column] = {
    "levels": Levels((-1.0, 0.0, 4.0), 999),
    "flag": Levels((0.0, 1.0), 999),
    "labels": Labels(("a", "b"), (("c", 2), ("d", 1))),
    "numbers": Numbers(10.0, 2.0),
    "bent": Numbers(10.0, 2.0, bend=True),
    "mass": Numbers(10.0, 2.0, point_mass=9.0),
    "bent with a mass": Numbers(10.0, 2.0, bend=True, point_mass=9.0),
    "bent with a far mass": Numbers(10.0, 2.0, bend=True, point_mass=-99999.0),
}
N = 4
MANY = 20_000


def predictive(name: str, copies: int = 1) -> Predictive:
    """Give what a network with random weights predicts for four rows, each several times over."""
    column = COLUMNS[name]
    schema = Schema((Feature("evidence", Numbers().domain), Feature(name, column.domain)))
    model = new_model(schema, CONFIGS["two_stream"]).double().eval()
    noise = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data.add_(0.2 * torch.randn(p.shape, generator=noise, dtype=torch.float64))
    evidence = torch.linspace(-1, 1, N).double().repeat_interleave(copies)[:, None]
    state = model.start(N * copies).observe(torch.zeros_like(evidence).long(), evidence)
    return Predictive(column, state.predict(torch.ones_like(evidence).long()))


def drawn(name: str) -> np.ndarray:
    many = predictive(name, MANY)
    codes = many.conditionals.sample(generator(0))[:, 0].numpy()
    return many.column.decode(codes).reshape(N, MANY)


@pytest.mark.parametrize("name", ["levels", "flag", "numbers", "mass"])
def test_moments_are_those_of_draws(name: str) -> None:
    values, p = drawn(name).astype(float), predictive(name)
    error = values.std(1) / math.sqrt(MANY)
    assert (np.abs(p.mean() - values.mean(1)) < 5 * error + 0.01).all()
    np.testing.assert_allclose(p.std(), values.std(1), rtol=0.08)


# Slices take a few per cent from the deviation of heavier tails, and that of as many draws is known no better.
@pytest.mark.parametrize(("name", "rtol"), [("bent", 0.03), ("bent with a mass", 0.15), ("bent with a far mass", 0.03)])
def test_moments_of_heavy_tails_are_those_of_draws_within_the_range(name: str, rtol: float) -> None:
    p = predictive(name, MANY)
    within = dataclasses.replace(COLUMNS[name], least=-500.0, most=900.0)
    assert isinstance(within, Numbers)
    codes = p.conditionals.sample(generator(0))[:, 0].numpy()
    values = within.decode(codes, draw=np.random.default_rng(0).random).reshape(N, MANY)
    others = values[values != within.point_mass]
    assert (others.min(), others.max()) == (-500.0, 900.0)
    few = Predictive(within, predictive(name).conditionals)
    assert (np.abs(few.mean() - values.mean(1)) < 5 * values.std(1) / math.sqrt(MANY)).all()
    np.testing.assert_allclose(few.std(), values.std(1), rtol=rtol)


def test_the_spread_of_levels_does_not_depend_on_where_they_lie() -> None:
    p = predictive("levels")
    far = Predictive(Levels((1e9 - 1, 1e9, 1e9 + 4), 999), p.conditionals)
    np.testing.assert_allclose(far.std(), p.std(), rtol=1e-5)
    np.testing.assert_allclose(far.mean() - 1e9, p.mean(), atol=1e-5)


@pytest.mark.parametrize("name", ["numbers", "bent", "mass", "bent with a mass"])
def test_no_value_is_likelier_than_the_mode_of_numbers(name: str) -> None:
    p = predictive(name)
    mass, mode = p.point_mass() or (math.nan, np.zeros(N)), p.mode()
    likeliest = p.log_prob(mode)
    for q in np.linspace(0.01, 0.99, 50):
        x = p.quantile(np.array([q]))[:, 0]
        assert ((p.log_prob(x) <= likeliest + 0.01) | (mode == mass[0]) | (x == mass[0])).all()
    assert ((mode == mass[0]) == (mass[1] >= 0.5)).all()
    assert ((mode == mass[0]) | (np.abs(mode - mass[0]) > 1e-3) | np.isnan(mass[0])).all()


@pytest.mark.parametrize("name", ["levels", "flag", "numbers", "bent", "mass", "bent with a mass"])
def test_quantiles_and_cdf_are_those_of_draws(name: str) -> None:
    values, p, q = drawn(name).astype(float), predictive(name), np.array([0.05, 0.5, 0.9])
    quantiles = p.quantile(q)
    for i, probability in enumerate(q):
        at = quantiles[:, i]
        below, upto = (values < at[:, None]).mean(1), (values <= at[:, None]).mean(1)
        assert ((below < probability + 0.02) & (upto > probability - 0.02)).all()
        np.testing.assert_allclose(p.cdf(at), upto, atol=0.02)


@pytest.mark.parametrize("name", ["mass", "bent with a mass", "bent with a far mass"])
def test_a_point_mass_is_drawn_asked_and_scored_exactly(name: str) -> None:
    values, p, mass = drawn(name), predictive(name), COLUMNS[name].point_mass  # type: ignore[union-attr]
    told = p.point_mass()
    assert told is not None
    assert told[0] == mass
    np.testing.assert_allclose((values == mass).mean(1), told[1], atol=0.02)
    np.testing.assert_allclose(p.log_prob(np.full(N, mass)), np.log(told[1]))
    assert (np.abs(p.log_prob(np.full(N, mass + 1e-5)) - np.log(told[1])) > 1e-3).all()
    jump = p.cdf(np.full(N, mass)) - told[1] / 2
    assert (np.diagonal(p.quantile(jump)) == mass).all()
    assert predictive("numbers").point_mass() is None


@pytest.mark.parametrize("name", ["levels", "flag", "labels"])
def test_probabilities_sum_to_one_and_are_those_of_draws(name: str) -> None:
    p = predictive(name)
    probabilities = p.probabilities()
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-12)
    values = drawn(name)
    for code in range(probabilities.shape[1]):
        share = (values == p.column.decode(np.array([float(code)]))[0]).mean(1)
        np.testing.assert_allclose(share, probabilities[:, code], atol=0.02)
    values_of_one_code = p.column.largest_shares() if isinstance(p.column, Labels) else 1.0
    likeliest = (probabilities * values_of_one_code).argmax(1).astype(float)
    assert (p.mode() == p.column.decode(likeliest)).all()


@pytest.mark.parametrize("name", ["numbers", "bent"])
def test_densities_integrate_to_one_in_units_of_the_data(name: str) -> None:
    p, codes = predictive(name), np.linspace(-300, 300, 6001)
    points, slopes = (
        (10 + 2 * np.sinh(codes), 2 * np.cosh(codes)) if name == "bent" else (10 + 2 * codes, 2 + 0 * codes)
    )
    density = np.stack([np.exp(p.log_prob(np.full(N, x))) * s for x, s in zip(points, slopes, strict=True)], 1)
    np.testing.assert_allclose(np.trapezoid(density, codes, axis=1), 1.0, atol=2e-3)


def test_the_likeliest_label_is_not_a_crowd_of_rare_ones() -> None:
    p = predictive("labels")
    crowd = Labels(("a", "b"), tuple((f"rare {i}", 1) for i in range(1000)))
    assert set(Predictive(crowd, p.conditionals).mode()) <= {"a", "b"}
    assert set(Predictive(Labels(("a", "b")), p.conditionals).mode()) <= {"a", "b"}


def test_labels_share_the_probability_of_their_code() -> None:
    p = predictive("labels")
    each = [np.exp(p.log_prob(np.array([label] * N, dtype=object))) for label in ("a", "b", "c", "d", "new")]
    np.testing.assert_allclose(np.sum(each, 0), 1.0, atol=1e-9)
    assert np.isnan(p.log_prob(np.array([None] * N, dtype=object))).all()


def test_labels_have_no_order_and_numbers_no_probabilities() -> None:
    for ask in ("mean", "std"):
        with pytest.raises(InputError, match="Labels have no order"):
            getattr(predictive("labels"), ask)()
    with pytest.raises(InputError, match="ask for quantiles"):
        predictive("numbers").probabilities()


def test_alike_columns_of_different_heads_are_asked_one_by_one() -> None:
    placed, own = Feature("placed", Categorical(3), (0.0, 0.0)), Feature("own", Categorical(3))
    model = new_model(Schema((placed, own))).eval()
    answers = ask_together([model.start()], [Plain(Categorical(3))] * 2, [0, 1], lambda p: p.probabilities())
    np.testing.assert_allclose(np.stack(answers), 1 / 3)


def test_columns_that_are_equal_but_spelled_apart() -> None:
    model = new_model(Schema((Feature("a", Categorical(3)), Feature("b", Categorical(3))))).eval()
    columns = [Labels((False, True)), Labels((0, 1))]
    answers = ask_together([model.start()], columns, [0, 1], lambda p: [values_of(p.column)] * len(p.probabilities()))
    assert [[str(v) for v in values] for values in answers] == [["False", "True", "(other)"], ["0", "1", "(other)"]]


def test_the_cdf_of_a_level_in_float32_and_of_nothing() -> None:
    p = dataclasses.replace(predictive("levels"), column=Levels((-1.0, 0.7, 4.0), 99))
    up_to = p.cdf(np.full(N, 0.7))
    np.testing.assert_array_equal(p.cdf(np.full(N, 0.7, np.float32)), up_to)
    assert (p.cdf(np.full(N, 0.69)) < up_to).all()
    assert np.isnan(p.cdf(np.full(N, np.nan))).all()
    days = dataclasses.replace(p, column=Levels((20240103.0, 20240104.0, 20240105.0), 99))  # two are one float32
    np.testing.assert_allclose(days.cdf(np.full(N, 20240103.0)), days.probabilities()[:, 0])


def test_of_what_was_never_seen_there_is_no_spread() -> None:
    p = dataclasses.replace(predictive("numbers"), column=Nothing())
    assert np.isnan([p.mean(), p.std()]).all()


def test_the_spread_of_a_bent_column_does_not_depend_on_where_it_lies() -> None:
    p = predictive("bent")
    far = Predictive(Numbers(1e12, 2.0, bend=True), p.conditionals)
    np.testing.assert_allclose(far.std(), p.std(), rtol=1e-3)
    np.testing.assert_allclose(far.mean() - 1e12, p.mean() - 10, atol=1e-2)


def test_several_orders_are_asked_together() -> None:
    column = COLUMNS["numbers"]
    schema = Schema(tuple(Feature(n, column.domain) for n in "abc"))
    model = new_model(schema, CONFIGS["two_stream"]).double().eval()
    for p in model.parameters():
        p.data.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    values = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    states = [model.start().observe(torch.tensor([[i, 1 - i]]), values[:, [i, 1 - i]]) for i in (0, 1)]
    [both] = ask_together(states, [column] * 3, [2], lambda p: p.mean())
    each = [ask_together([state], [column] * 3, [2], lambda p: p.mean())[0] for state in states]
    assert each[0] != each[1]
    assert both == pytest.approx(sum(each) / 2)


def test_moments_may_be_asked_about_as_such() -> None:
    p = dataclasses.replace(predictive("numbers"), column=Numbers(19_800.0, 2.0))  # days since 1970
    moments, days = np.full(N, np.datetime64("2024-03-19T12")), np.full(N, 19_801.5)
    for ask in (p.cdf, p.log_prob):
        expected = ask(days)
        for unit in ("s", "ns"):
            np.testing.assert_allclose(ask(moments.astype(f"datetime64[{unit}]")), expected)
        np.testing.assert_allclose(ask([pd.Timestamp("2024-03-19T12", tz="UTC")] * N), expected)
        np.testing.assert_allclose(ask(days.astype(int) * np.timedelta64(1, "D") + np.timedelta64(12, "h")), expected)
    assert np.isnan(p.cdf(np.datetime64("NaT", "s"))).all()


@pytest.mark.parametrize("name", ["numbers", "levels"])
def test_one_value_or_a_list_is_asked_about_as_an_array(name: str) -> None:
    p = predictive(name)
    for ask in (p.cdf, p.log_prob):
        np.testing.assert_array_equal(ask(4.0), ask(np.full(N, 4.0)))
        np.testing.assert_array_equal(ask([4.0] * N), ask(np.full(N, 4.0)))
    np.testing.assert_array_equal(p.quantile([0.05, 0.95]), p.quantile(np.array([0.05, 0.95])))
    np.testing.assert_array_equal(p.quantile(0.5), p.quantile(np.array([0.5])))
    labels = predictive("labels")
    np.testing.assert_array_equal(labels.log_prob("a"), labels.log_prob(np.array(["a"] * N, dtype=object)))

import math
from typing import Any

import pytest
import torch
from tests.models import CONFIGS, order_of, random_rows, small_model, worlds

from deformer.data.schema import Continuous
from deformer.data.seeds import generator
from deformer.data.table import as_rows
from deformer.errors import InputError
from deformer.tasks.density import log_prob, log_prob_terms, nll


def test_terms_stand_in_column_order() -> None:
    model = small_model("mixed")
    rows, order = random_rows(model.schema, 4), torch.tensor([3, 0, 4, 1, 2])
    terms = log_prob_terms(model, rows, orders=order)
    inside = model(order.expand(4, -1), rows[:, order]).log_prob(rows[:, order])
    torch.testing.assert_close(terms[:, order], inside, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_prob(model, rows, orders=order), inside.sum(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_conditional_sums_to_one_over_its_targets(config: str) -> None:
    model = small_model("labels", config)
    rows = worlds(model.schema)
    fixed = rows[(rows[:, 0] == 1) & (rows[:, 3:] == 0).all(1)]
    choices: dict[str, Any] = {"given": ["x0"], "targets": ["x1"], "generator": generator(0)}
    p = log_prob(model, fixed[fixed[:, 2] == 2], **choices).exp()
    assert p.shape == (3,)
    assert abs(p.sum().item() - 1) < 1e-12


def test_the_chain_rule_joins_marginal_and_conditional() -> None:
    model = small_model("mixed")
    rows = random_rows(model.schema, 6)
    joint = log_prob(model, rows, orders=torch.tensor([1, 4]))
    marginal = log_prob(model, rows, targets=["x1"], generator=generator(0))
    conditional = log_prob(model, rows, given=["x1"], targets=["x4"], generator=generator(0))
    torch.testing.assert_close(marginal + conditional, joint, rtol=0, atol=1e-12)


def test_a_missing_value_is_an_absent_token() -> None:
    model = small_model("mixed")
    rows = random_rows(model.schema, 3)
    rows[0, 1], rows[1, 2:4] = math.nan, math.nan
    terms = log_prob_terms(model, rows, generator=generator(0))
    assert terms[0, 1] == 0
    assert (terms[1, 2:4] == 0).all()
    assert torch.isfinite(terms).all()
    alone = log_prob(model, rows[:1], orders=torch.tensor([0, 2, 3, 4]))
    assert torch.isfinite(alone).all()
    stored = rows.nan_to_num(7.0)
    hidden = log_prob_terms(model, as_rows(stored, model.schema, observed=~rows.isnan()), generator=generator(0))
    assert torch.equal(hidden, terms)


def test_the_unit_of_a_value_enters_its_density() -> None:
    model = small_model("mixed")
    domain = model.schema.features[1].domain
    assert isinstance(domain, Continuous)
    assert domain.point_mass is not None
    x = torch.linspace(-400, 400, 8001, dtype=torch.float64)
    conditionals = model.start(len(x)).predict(torch.ones(len(x), 1, dtype=torch.long))
    log_p = conditionals.log_prob(x[:, None])[:, 0]
    mass = conditionals.log_prob(torch.full((len(x), 1), domain.point_mass, dtype=torch.float64))[0, 0]
    assert (log_p.exp().sum() * (x[1] - x[0]) + mass.exp()).item() == pytest.approx(1, abs=0.01)
    entropy = -(log_p * log_p.exp()).sum() * (x[1] - x[0]) - mass * mass.exp()
    assert conditionals.entropy()[0, 0].item() == pytest.approx(entropy.item(), abs=0.05)


def test_means_and_ensembles_over_orders() -> None:
    model = small_model("labels")
    scores = nll(model, random_rows(model.schema, 40), n_orders=5, generator=generator(0))
    assert scores.per_order.shape == (5, 40)
    assert scores.ensemble <= scores.mean
    assert scores.mean == pytest.approx(scores.per_order.mean().item())
    p = (-scores.per_order).exp().mean(0)
    torch.testing.assert_close(scores.ensemble_per_row, -p.log())
    assert scores.mean_error == pytest.approx(scores.per_order.mean(0).std().item() / math.sqrt(40))
    assert scores.order_spread > 0
    one = nll(model, random_rows(model.schema, 40), n_orders=1, generator=generator(0))
    assert one.order_spread == 0
    assert one.ensemble == pytest.approx(one.mean)


def test_the_ensemble_over_orders_is_a_density() -> None:
    model = small_model("labels")
    rows = worlds(model.schema)
    per_order = torch.stack([log_prob(model, rows, orders=order_of(8, s)) for s in range(4)])
    assert abs((torch.logsumexp(per_order, 0) - math.log(4)).exp().sum().item() - 1) < 1e-12


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({}, "need a generator"),
        ({"given": ["no"], "generator": generator(0)}, "No feature is called 'no'"),
        ({"given": ["x0"], "targets": ["x0"], "generator": generator(0)}, "both given and a target"),
        ({"given": ["x0"], "orders": torch.arange(5)}, "either orders, or given"),
        ({"orders": torch.tensor([0, 0])}, "more than once"),
        ({"orders": torch.tensor([0, 9])}, "from 0 to 4"),
        ({"orders": torch.tensor([0.5, 1.0])}, "column numbers"),
        ({"orders": torch.zeros(2, 1, dtype=torch.long)}, "shape"),
    ],
)
def test_bad_questions(choices: dict[str, Any], text: str) -> None:
    model = small_model("mixed")
    with pytest.raises(InputError, match=text):
        log_prob(model, random_rows(model.schema, 3), **choices)


def test_an_order_may_not_name_a_missing_value() -> None:
    model = small_model("mixed")
    rows = random_rows(model.schema, 3)
    rows[1, 1] = math.nan
    with pytest.raises(InputError, match="names a missing value"):
        log_prob(model, rows, orders=torch.arange(5))

import math
from typing import Any

import pytest
import torch
from tests.models import CONFIGS, random_rows, small_model, worlds

from deformer.data.orders import permute, random_orders
from deformer.data.schema import Continuous, table_schema
from deformer.data.seeds import generator
from deformer.errors import InputError
from deformer.nn.model import DEformer, new_model
from deformer.tasks.density import log_prob
from deformer.tasks.imputation import impute
from deformer.tasks.sampling import sample


def sample_plainly(model: DEformer, n: int, draws: torch.Generator) -> torch.Tensor:
    """Draw by a full pass over the whole prefix for every feature."""
    orders = random_orders(torch.zeros(n, len(model.schema), dtype=torch.bool), draws)
    values = torch.zeros(n, len(model.schema), dtype=torch.float64)
    for k in range(len(model.schema)):
        prefix = orders[:, : k + 1]
        with torch.no_grad():
            drawn = model(prefix, permute(values, prefix), slice(-1, None)).sample(draws)
        values = values.scatter(1, prefix[:, -1:], drawn)
    return values


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("schema", ["labels", "mixed", "placed"])
def test_the_cache_changes_no_draw(schema: str, config: str) -> None:
    model = small_model(schema, config)
    cached = sample(model, 20, generator=generator(0))
    plain = sample_plainly(model, 20, generator(0))
    torch.testing.assert_close(cached.double(), plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS)
def test_drawn_frequencies_equal_probabilities(config: str) -> None:
    model = small_model("labels", config)
    order = torch.tensor([2, 0, 1, 3, 4, 5, 6, 7])
    drawn = sample(model, 4000, generator=generator(0), orders=order)
    rows = worlds(model.schema)
    p = log_prob(model, rows, orders=order).exp()
    for column in range(8):
        for label in range(2):
            expected = p[rows[:, column] == label].sum().item()
            found = (drawn[:, column] == label).double().mean().item()
            assert abs(found - expected) < 4 * math.sqrt(0.25 / 4000)


def test_evidence_is_kept() -> None:
    model = small_model("mixed")
    evidence = random_rows(model.schema, 1)
    evidence[0, [1, 3]] = math.nan
    drawn = sample(model, 7, given=evidence, generator=generator(0))
    kept = ~evidence[0].isnan()
    assert torch.equal(drawn[:, kept].double(), evidence[:, kept].expand(7, -1))
    assert len(drawn[:, 3].unique()) == 7
    assert 0 < (drawn[:, 1] == model.schema.features[1].domain.point_mass).sum() < 7  # type: ignore[union-attr]


def test_a_low_temperature_draws_the_likeliest_label() -> None:
    model = small_model("labels")
    drawn = sample(model, 30, generator=generator(0), orders=torch.arange(8), temperature=1e-6)
    assert (drawn == drawn[0]).all()


@pytest.mark.parametrize("strategy", ["draw", "mean", "mode"])
def test_imputation_fills_every_hole_and_nothing_else(strategy: Any) -> None:
    model = small_model("mixed")
    rows = random_rows(model.schema, 6)
    holes = torch.rand(rows.shape, generator=generator(1)) < 0.4
    holes[0], holes[1] = False, True
    table = rows.masked_fill(holes, math.nan)
    filled = impute(model, table, strategy=strategy, generator=generator(0))[0]
    assert torch.equal(filled[~holes].double(), rows[~holes])
    assert torch.isfinite(filled).all()
    if strategy == "mode":
        alone = model.start().predict(torch.arange(5)[None]).mode()
        torch.testing.assert_close(filled[1:2], alone, rtol=0, atol=1e-9)


def test_several_imputations_differ() -> None:
    model = small_model("mixed")
    table = random_rows(model.schema, 3)
    table[:, 3] = math.nan
    filled = impute(model, table, n_imputations=4, generator=generator(0))
    assert filled.shape == (4, 3, 5)
    assert len(filled[:, 0, 3].unique()) == 4


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m, r: sample(m, 0, generator=generator(0)), "at least 1"),
        (lambda m, r: sample(m, 2, generator=generator(0), temperature=0.0), "temperature must be positive"),
        (lambda m, r: sample(m, 2, generator=generator(0), given=r), "one row or 2 rows"),
        (lambda m, r: sample(m, 2, generator=generator(0), orders=torch.tensor([0, 1])), "names 2 of 5"),
        (lambda m, r: impute(m, r, generator=generator(0), strategy="mean", n_imputations=2), "n_imputations"),
        (lambda m, r: impute(m, r[:, :3], generator=generator(0)), "rows of 5 columns"),
    ],
)
def test_bad_questions(call: Any, text: str) -> None:
    model = small_model("mixed")
    with pytest.raises((InputError, TypeError), match=text) as error:
        call(model, random_rows(model.schema, 3))
    assert "\n" not in str(error.value) or error.type is not InputError


def test_numbers_far_from_zero_keep_their_digits() -> None:
    model = new_model(table_schema([Continuous(1e9, 1.0), Continuous()])).eval()
    drawn = sample(model, 20, generator=generator(0))
    assert len(drawn[:, 0].unique()) == 20
    row = torch.tensor([[1e9 + 1.25, math.nan]], dtype=torch.float64)
    for strategy in ("draw", "mean", "mode"):
        assert impute(model, row, strategy=strategy, generator=generator(0))[0, 0, 0] == row[0, 0]


def test_conditionals_of_nothing_are_empty() -> None:
    model = small_model()
    nothing = torch.empty(1, 0, dtype=torch.long)
    state = model.start().observe(nothing, nothing.double())
    assert state.predict(nothing).mean().shape == (1, 0)
    assert log_prob(model, worlds(model.schema)[:2], orders=nothing[0]).tolist() == [0.0, 0.0]

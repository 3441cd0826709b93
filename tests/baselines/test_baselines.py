import pytest
import torch
from tests.models import SCHEMAS, worlds

from deformer.baselines.baseline import Baseline, fit_baseline
from deformer.baselines.made import MADE
from deformer.baselines.nade import DeepNADE
from deformer.data.schema import Binary, Continuous, table_schema
from deformer.data.seeds import generator
from deformer.data.table import as_rows
from deformer.errors import InputError

SCHEMA = SCHEMAS["labels"]  # 8 features of 2 to 4 labels
MODELS = {
    "deep_nade": lambda: DeepNADE(SCHEMA, (16, 16)),
    "nade_fixed": lambda: DeepNADE(SCHEMA, (16,), fixed=True),
    "made": lambda: MADE(SCHEMA, (24, 16), n_masks=3),
}
EVERY = pytest.mark.parametrize("name", MODELS)


def random_model(name: str) -> Baseline:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    for p in model.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator(1), dtype=torch.float64))
    return model


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_all_worlds_sum_to_one(name: str, seed: int) -> None:
    model, rows = random_model(name), worlds(SCHEMA)
    order = model.orders(1, generator(seed))[0]
    assert abs(model.log_prob(rows, order).exp().sum().item() - 1) < 1e-12


@EVERY
def test_gradients_flow_from_earlier_features_alone(name: str) -> None:
    model = random_model(name)
    x = worlds(SCHEMA)[555:556]
    order = model.orders(1, generator(0))
    for k in range(len(SCHEMA)):
        later = order[0, k:]
        changed = x.clone()
        changed[0, later] = 1 - x[0, later].clamp(max=1)
        at = int(order[0, k])
        same = changed.clone()
        same[0, at] = x[0, at]
        terms = [model.terms(v, order)[0, at] for v in (x, same)]
        assert torch.equal(*terms)


@EVERY
def test_drawn_frequencies_equal_probabilities(name: str) -> None:
    model, rows = random_model(name), worlds(SCHEMA)
    drawn = model.sample(4000, generator(0))
    orders = model.orders(200, generator(5))
    p = torch.stack([model.log_prob(rows, o).exp() for o in orders.unique(dim=0)]).mean(0)
    for column in range(8):
        expected = p[rows[:, column] == 1].sum().item()
        assert abs((drawn[:, column] == 1).double().mean().item() - expected) < 0.04


@EVERY
def test_training_lowers_the_nll(name: str) -> None:
    columns = torch.randint(0, 2, (500, 1), generator=generator(0))
    rows = as_rows(columns.expand(500, 8), SCHEMA)
    torch.manual_seed(0)
    model = MODELS[name]()
    curve = fit_baseline(model, rows[:400], rows[400:], steps=400, batch=50, lr=3e-3)
    assert curve.nll[-1] < 0.5 * curve.nll[0]
    assert curve.rows_seen == 20_000


def test_what_a_model_cannot_do_it_refuses() -> None:
    made, fixed, nade = (random_model(name) for name in ("made", "nade_fixed", "deep_nade"))
    row = torch.zeros(1, 8)
    holes = torch.tensor([[0.0, torch.nan] + [0.0] * 6])
    other = torch.arange(8).flip(0)
    with pytest.raises(InputError, match="knows 3 orders"):
        made.log_prob(row, other)
    with pytest.raises(InputError, match="one order"):
        fixed.log_prob(row, other)
    for model in (made, fixed):
        with pytest.raises(InputError, match="cannot condition"):
            model.impute(holes, generator(0))
    with pytest.raises(InputError, match="complete rows"):
        nade.log_prob(holes)
    filled = nade.impute(holes, generator(0))
    assert filled[0, 1] in (0, 1, 2)
    with pytest.raises(InputError, match="continuous"):
        DeepNADE(table_schema([Binary(), Continuous()]))
    with pytest.raises(InputError, match="how long"):
        fit_baseline(nade, as_rows(row, SCHEMA), as_rows(row, SCHEMA))

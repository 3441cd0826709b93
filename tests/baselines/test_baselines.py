from functools import partial

import pytest
import torch
from tests.models import SCHEMAS, worlds

from deformer.baselines.baseline import Baseline, fit_baseline
from deformer.baselines.made import MADE
from deformer.baselines.nade import DeepNADE
from deformer.baselines.pixels import PixelRNN, skew, unskew
from deformer.baselines.trade import TraDE
from deformer.data.schema import Binary, Continuous, Ordinal, image_schema, table_schema
from deformer.data.seeds import generator
from deformer.data.table import as_rows
from deformer.errors import InputError

SCHEMA = SCHEMAS["labels"]  # 8 features of 2 to 4 labels
IMAGE = image_schema(2, 4, Binary())
MODELS = {
    "deep_nade": lambda: DeepNADE(SCHEMA, (16, 16)),
    "nade_fixed": lambda: DeepNADE(SCHEMA, (16,), fixed=True),
    "made": lambda: MADE(SCHEMA, (24, 16), n_masks=3),
    "trade": lambda: TraDE(SCHEMA, 16, 2, 2, 32, dropout=0.0),
    **{kind: partial(PixelRNN, IMAGE, kind, 4, 2) for kind in ("row", "diagonal", "cnn")},
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
    model = random_model(name)
    rows = worlds(model.schema)
    order = model.orders(1, generator(seed))[0]
    assert abs(model.log_prob(rows, order).exp().sum().item() - 1) < 1e-12


@EVERY
def test_gradients_flow_from_earlier_features_alone(name: str) -> None:
    model = random_model(name).eval()
    x = worlds(model.schema)[155:156]
    order = model.orders(1, generator(0))
    for k in range(len(model.schema)):
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
    model = random_model(name)
    rows = worlds(model.schema)
    drawn = model.sample(4000, generator(0))
    orders = model.orders(200, generator(5))
    p = torch.stack([model.log_prob(rows, o).exp() for o in orders.unique(dim=0)]).mean(0)
    for column in range(8):
        expected = p[rows[:, column] == 1].sum().item()
        assert abs((drawn[:, column] == 1).double().mean().item() - expected) < 0.04


@EVERY
def test_training_lowers_the_nll(name: str) -> None:
    columns = torch.randint(0, 2, (500, 1), generator=generator(0))
    torch.manual_seed(0)
    model = MODELS[name]()
    rows = as_rows(columns.expand(500, 8), model.schema)
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


def test_images_are_slanted_and_set_upright_again() -> None:
    x = torch.arange(24.0).view(1, 2, 3, 4)
    slanted = skew(x)
    assert slanted.shape == (1, 2, 3, 6)
    assert slanted[0, 0, 1].tolist() == [0, 4, 5, 6, 7, 0]
    assert torch.equal(unskew(slanted, 4), x)


def test_models_of_images_need_images() -> None:
    with pytest.raises(InputError, match="pixels of one image"):
        PixelRNN(SCHEMA)
    grey = PixelRNN(image_schema(2, 2, Ordinal(3)), "cnn", 4, 1)
    assert abs(grey.log_prob(worlds(grey.schema).float()).exp().sum().item() - 1) < 1e-5


def test_trade_takes_numbers() -> None:
    model = TraDE(SCHEMAS["mixed"], 16, 1, 2, 32)
    assert model.sample(3, generator(0)).shape == (3, 5)
    assert model.log_prob(model.sample(3, generator(0))).isfinite().all()

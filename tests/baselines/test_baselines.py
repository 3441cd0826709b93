import itertools
import math
from functools import partial

import pytest
import torch
from tests.models import SCHEMAS, worlds

from deformer.baselines import baseline
from deformer.baselines.any_order import known_sets
from deformer.baselines.baseline import Baseline, fit_baseline
from deformer.baselines.made import MADE
from deformer.baselines.masked import MaskedTransformer
from deformer.baselines.nade import NADE, DeepNADE
from deformer.baselines.pixels import DiagonalBiLSTM, MaskedConv, PixelRNN, RowLSTM, skew, unskew
from deformer.baselines.raster import RasterBaseline
from deformer.baselines.trade import TraDE
from deformer.config import ModelConfig
from deformer.data.schema import (
    Binary,
    Categorical,
    Continuous,
    Domain,
    Feature,
    Ordinal,
    Schema,
    image_schema,
    table_schema,
)
from deformer.data.seeds import generator
from deformer.data.table import as_rows
from deformer.errors import InputError

SCHEMA = SCHEMAS["labels"]  # 8 features of 2 to 4 labels
IMAGE = image_schema(2, 4, Binary())
MODELS = {
    "deep_nade": lambda: DeepNADE(SCHEMA, (16, 16)),
    "deep_nade_binary": lambda: DeepNADE(IMAGE, (16, 16)),
    "nade": lambda: NADE(SCHEMA, 16),
    "masked": lambda: MaskedTransformer(SCHEMA, ModelConfig(d_model=16, n_layers=2)),
    "masked_image": lambda: MaskedTransformer(IMAGE, ModelConfig(d_model=16, n_layers=1)),  # with neighbours
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


def test_a_label_that_is_alone_costs_nothing_beside_binary_features() -> None:
    model = DeepNADE(table_schema([Binary(), Categorical(1)]), (8,))
    terms = model.terms(torch.zeros(1, 2), torch.tensor([[0, 1]]))
    assert terms[0, 1].item() == 0


def test_sets_of_known_features_have_every_size_alike_and_no_favourites() -> None:
    n, d = 40_000, 4
    sets = known_sets(n, d, generator(0))
    of_size = torch.bincount(sets.sum(1), minlength=d + 1)
    by_chance = 5 * math.sqrt(n / d)
    assert of_size[d] == 0
    assert (of_size[:d] - n / d).abs().max() < by_chance
    pairs = sets[sets.sum(1) == 2].long() @ 2 ** torch.arange(d)
    counts = pairs.bincount()
    assert (counts > 0).sum() == 6
    assert (counts[counts > 0] - n / d / 6).abs().max() < 5 * math.sqrt(n / d / 6)


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_all_worlds_sum_to_one(name: str, seed: int) -> None:
    model = random_model(name)
    rows = worlds(model.schema)
    order = model.orders(1, generator(seed))[0]
    assert abs(model.log_prob(rows, order).exp().sum().item() - 1) < 1e-12


@EVERY
def test_what_lies_behind_a_feature_does_not_touch_it(name: str) -> None:
    model = random_model(name).eval()
    x = worlds(model.schema)[155:156]
    order = model.orders(1, generator(0))
    for k in range(len(model.schema)):
        at, behind, before = int(order[0, k]), order[0, k + 1 :], order[0, :k]
        own = model.terms(x, order)[0, at]
        changed, other = x.clone(), x.clone()
        changed[0, behind] = 1 - x[0, behind].clamp(max=1)
        assert torch.equal(model.terms(changed, order)[0, at], own)
        other[0, before] = 1 - x[0, before].clamp(max=1)
        blind = name in ("row", "cnn") or k == 0
        assert blind or not torch.equal(model.terms(other, order)[0, at], own)


@pytest.mark.parametrize("name", ["deep_nade", "nade", "made", "diagonal"])
def test_gradients_flow_from_every_earlier_feature_and_no_other(name: str) -> None:
    schema = IMAGE  # binary features, whose inputs are their values
    torch.manual_seed(0)
    model = {
        **{"deep_nade": lambda: DeepNADE(schema, (16, 16)), "nade": lambda: NADE(schema, 16)},
        **{"made": lambda: MADE(schema, (64, 64), n_masks=2), "diagonal": lambda: PixelRNN(schema, "diagonal", 4, 2)},
    }[name]().double()
    for p in model.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator(1), dtype=torch.float64))
    order, x = model.orders(1, generator(0)), worlds(schema)[155:156].double()
    chosen = x.clone()  # the labels whose probabilities are asked for, which carry no gradient

    def terms(told: torch.Tensor) -> torch.Tensor:
        return torch.stack([_terms_given(model, told, chosen, order)[0, i] for i in range(8)])

    jacobian = torch.autograd.functional.jacobian(terms, x)[:, 0]  # feature asked, feature told
    place = order[0].argsort()
    earlier = place[None, :] < place[:, None]
    assert (jacobian[~earlier] == 0).all()
    assert (jacobian[earlier] != 0).all()


@pytest.mark.parametrize("name", ["convolution", "convolution and itself", "row", "diagonal"])
def test_a_layer_of_pixels_reaches_all_that_it_may_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    layer = {
        "convolution": lambda: MaskedConv(4, 2, (5, 3), itself=False),
        "convolution and itself": lambda: MaskedConv(4, 2, (5, 3), itself=True),
        "row": lambda: RowLSTM(2),
        "diagonal": lambda: DiagonalBiLSTM(2),
    }[name]().double()
    height, width = 4, 9
    x = torch.randn(1, 4, height, width, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda told: layer(told).sum(1)[0], x)[:, :, 0]
    reached = (jacobian != 0).any(2)  # the pixel asked, then the pixel told
    row, column = torch.arange(height), torch.arange(width)
    up = row[:, None, None, None] - row[:, None]  # how many rows above the pixel, and columns to its left
    left = column[:, None, None] - column
    allowed = {
        "convolution": ((up == 0) & (left == 1)) | ((up > 0) & (up <= 2) & (left.abs() <= 1)),
        "convolution and itself": ((up == 0) & (left >= 0) & (left <= 1)) | ((up > 0) & (up <= 2) & (left.abs() <= 1)),
        "row": (up >= 0) & (left <= up + 1) & (left >= -up),  # a state more of each side with every row
        "diagonal": (up > 0) | ((up == 0) & (left >= 0)),
    }[name]
    assert torch.equal(reached, allowed)


def _terms_given(model: Baseline, told: torch.Tensor, chosen: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    if isinstance(model, MADE):
        return model.conditionals(told, model.weights(int(model._which(order)))).log_prob(chosen)
    if isinstance(model, RasterBaseline):
        return model.conditionals(told).log_prob(chosen)
    assert isinstance(model, DeepNADE)
    place, out = order.argsort(-1), torch.zeros_like(chosen)
    for i in range(8):
        known = (place < place[:, i : i + 1]).double()
        out = out + model.conditionals(told, known).log_prob(chosen) * torch.eye(8)[i]
    return out


@EVERY
def test_drawn_frequencies_equal_probabilities(name: str) -> None:
    model = random_model(name)
    rows = worlds(model.schema)
    drawn = model.sample(4000, generator(0))
    orders = model.orders(200, generator(5))
    p = torch.stack([model.log_prob(rows, o).exp() for o in orders.unique(dim=0)]).mean(0)
    expected, found = (rows == 1).double(), (drawn == 1).double()
    together = expected.T @ (p[:, None] * expected)  # of every two columns, that both are 1
    torch.testing.assert_close(found.T @ found / 4000, together, rtol=0, atol=0.04)


@EVERY
def test_training_lowers_the_nll(name: str) -> None:
    columns = torch.randint(0, 2, (500, 1), generator=generator(0))
    torch.manual_seed(0)
    model = MODELS[name]()
    rows = as_rows(columns.expand(500, 8), model.schema)
    before = model.eval().look(model.complete(rows[400:]), generator(0))
    curve = fit_baseline(model, rows[:400], rows[400:], steps=400, batch=50, lr=3e-3)
    assert min(curve.nll) < 0.5 * before
    assert curve.rows_seen <= 20_000


def test_muon_trains_a_masked_transformer_with_dropout() -> None:
    columns = torch.randint(0, 2, (500, 1), generator=generator(0))
    torch.manual_seed(0)
    model = MaskedTransformer(IMAGE, ModelConfig(d_model=16, n_layers=1), dropout=0.1)
    rows = as_rows(columns.expand(500, 8), IMAGE)
    matrices = [p.detach().clone() for p in model.hidden_matrices()]
    before = model.eval().look(model.complete(rows[400:]), generator(0))
    curve = fit_baseline(model, rows[:400], rows[400:], steps=300, batch=50, lr=3e-3, muon_lr=0.02, weight_decay=0.1)
    assert min(curve.nll) < 0.5 * before
    assert not any(torch.equal(p, old) for p, old in zip(model.hidden_matrices(), matrices, strict=True))
    x = model.complete(rows[:5])
    assert torch.equal(*(model.log_prob(x, torch.arange(8)) for _ in range(2)))  # nothing is dropped in use


def test_the_loss_of_random_sets_is_the_nll_of_random_orders() -> None:
    torch.manual_seed(0)
    model = DeepNADE(table_schema([Binary()] * 3), (8,)).double()
    x = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    exact = -sum(model.log_prob(x, torch.tensor(order)).item() for order in itertools.permutations(range(3))) / 6
    draws = generator(0)
    drawn = torch.stack([model.loss(x.expand(500, 3), draws) for _ in range(40)])
    assert abs(drawn.mean().item() - exact) < 4 * drawn.std().item() / 40**0.5
    assert drawn.std().item() / 40**0.5 < 0.01 * exact
    held_out = x.expand(4000, 3)
    assert abs(model.look(held_out, generator(1)) - exact) < 0.03 * exact
    assert model.look(held_out, generator(1)) == model.look(held_out, generator(1))


def test_an_ensemble_chooses_the_weights_of_a_made_that_is_asked_as_one() -> None:
    torch.manual_seed(0)
    model = MADE(IMAGE, (16,), n_masks=5, looks=5).double()
    x = worlds(IMAGE)[:50].double()
    each = torch.stack([model.log_prob(x, model.own_orders[k]) for k in range(5)])
    expected = -(each.logsumexp(0) - math.log(5)).mean().item()
    assert abs(model.look(x, generator(0)) - expected) < 1e-9


@pytest.mark.parametrize("name", ["deep_nade", "nade", "made"])
def test_training_begins_at_the_marginals(name: str) -> None:
    rows = as_rows((torch.rand(400, 8, generator=generator(0)) < torch.linspace(0.1, 0.9, 8)).float(), IMAGE)
    torch.manual_seed(0)
    model = {
        **{"deep_nade": lambda: DeepNADE(IMAGE, (16,)), "nade": lambda: NADE(IMAGE, 16)},
        **{"made": lambda: MADE(IMAGE, (16,), 2)},
    }[name]()
    model.start(rows)
    p = rows.values.mean(0).clamp(0.01, 0.99)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum().item()
    assert abs(-model.log_prob(rows, generator=generator(0)).mean().item() - entropy) < 0.02


@pytest.mark.parametrize("domain", [Binary(), Ordinal(3)])
def test_images_begin_at_the_frequencies_of_their_values(domain: Domain) -> None:
    schema = image_schema(2, 4, domain)
    rows = as_rows((torch.rand(400, 8, generator=generator(0)) < 0.1).float() * (domain.n_labels - 1), schema)
    model = PixelRNN(schema, "cnn", 4, 1)
    model.start(rows)
    p = (rows.values > 0).double().mean().item()
    entropy = -8 * (p * math.log(p) + (1 - p) * math.log(1 - p))
    assert abs(-model.log_prob(rows).mean().item() - entropy) < 0.02


def test_where_nothing_gets_better_rates_fall_and_the_best_weights_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0, *[5.0] * 99])
    model = DeepNADE(IMAGE, (8,))
    [adam] = baseline._optimisers(model, 1e-3, None, 0.0)
    take, looks, begun = adam.step, [], []

    def state() -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def look(x: torch.Tensor, draws: torch.Generator) -> float:
        looks.append((state(), adam.param_groups[0]["lr"]))
        return next(told)

    def step() -> None:
        if not adam.state:  # nothing is known of earlier gradients
            begun.append(state())
        take()

    monkeypatch.setattr(model, "look", look)
    monkeypatch.setattr(adam, "step", step)
    monkeypatch.setattr(baseline, "_optimisers", lambda *_: [adam])
    rows = as_rows(torch.randint(0, 2, (40, 8), generator=generator(0)), IMAGE)
    curve = fit_baseline(model, rows[:20], rows[20:], steps=1_000_000, batch=20, patience=2)
    assert curve.nll == [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 5.0, 5.0, 5.0, 5.0]
    assert [round(1e-3 / rate) for _, rate in looks] == [1, 1, 1, 1, 3, 3, 9, 9, 27, 27]
    best = looks[1][0]
    assert len(begun) == 4
    assert all(torch.equal(weights, best) for weights in (*begun[1:], state()))


@pytest.mark.parametrize("muon_lr", [None, 0.02])
def test_decay_shrinks_no_biases(muon_lr: float | None) -> None:
    model = MaskedTransformer(IMAGE, ModelConfig(d_model=8, n_heads=1, n_layers=1))
    names = {id(p): name for name, p in model.named_parameters()}
    decays = {
        names[id(p)]: (group["weight_decay"] > 0, isinstance(optimiser, torch.optim.Muon))
        for optimiser in baseline._optimisers(model, 1e-3, muon_lr, 0.3)
        for group in optimiser.param_groups
        for p in group["params"]
    }
    assert decays.keys() == set(names.values())
    assert not any(decayed for name, (decayed, _) in decays.items() if name.endswith("bias") or "norm" in name)
    assert decays["blocks.0.up.weight"] == (True, muon_lr is not None)
    assert decays["tokens.identity"] == (muon_lr is None, False)


def test_a_model_that_gets_no_better_stops() -> None:
    rows = as_rows(torch.randint(0, 2, (40, 8), generator=generator(0)), IMAGE)
    curve = fit_baseline(DeepNADE(IMAGE, (64, 64)), rows[:20], rows[20:], steps=100_000, batch=20, lr=1e-2, patience=3)
    assert curve.rows_seen < 20 * 10_000


def test_missing_values_are_refused_in_training() -> None:
    rows = as_rows([[0.0] * 7 + [torch.nan]] * 4, IMAGE)
    with pytest.raises(InputError, match="complete rows"):
        fit_baseline(DeepNADE(IMAGE, (4,)), rows, rows, steps=1)


@pytest.mark.parametrize("name", ["deep_nade", "masked"])
def test_imputations_follow_the_evidence(name: str) -> None:
    model = random_model(name)
    row = torch.tensor([[1.0, torch.nan, 3.0, 0.0, 1.0, 1.0, 0.0, 1.0]]).double()
    filled = model.impute(row.expand(2000, -1), generator(0))
    known = ~row[0].isnan()
    assert (filled[:, known] == row[0, known]).all()
    each = row.repeat(3, 1)
    each[:, 1] = torch.arange(3)
    p = model.log_prob(each, torch.tensor([0, 2, 3, 4, 5, 6, 7, 1])).softmax(0)
    frequencies = torch.bincount(filled[:, 1].long(), minlength=3) / 2000
    torch.testing.assert_close(frequencies.double(), p, rtol=0, atol=0.04)


@pytest.mark.parametrize("name", ["deep_nade", "masked"])
def test_rows_with_more_and_fewer_holes_are_filled_in_together(name: str) -> None:
    model = random_model(name)
    row = torch.tensor([1.0, 2.0, 3.0, 0.0, 1.0, 1.0, 0.0, 1.0]).double()
    rows = row.repeat(900, 1)
    rows[300:600, 1] = torch.nan
    rows[600:, :5] = torch.nan
    filled = model.impute(rows, generator(0))
    assert torch.equal(filled[~rows.isnan()], rows[~rows.isnan()])
    assert (filled[300:600, 1] != 2).any()
    assert len(filled[600:].unique(dim=0)) > 1


def test_the_ensemble_of_made_takes_each_of_its_orders() -> None:
    made = random_model("made")
    assert isinstance(made, MADE)
    taken = [made.order_of(number, 2, generator(0)) for number in range(4)]
    assert [torch.equal(orders, made.own_orders[[k, k]]) for k, orders in zip((0, 1, 2, 0), taken, strict=True)] == [
        True
    ] * 4
    assert len(made.own_orders.unique(dim=0)) == 3


def test_what_a_model_cannot_do_it_refuses() -> None:
    made, fixed, nade = (random_model(name) for name in ("made", "nade", "deep_nade"))
    row = torch.zeros(1, 8)
    holes = torch.tensor([[0.0, torch.nan] + [0.0] * 6])
    other = torch.arange(8).flip(0)
    with pytest.raises(InputError, match="knows 3 orders"):
        made.log_prob(row, other)
    with pytest.raises(InputError, match="knows one order"):
        fixed.log_prob(row, other)
    for model in (made, fixed):
        with pytest.raises(InputError, match="cannot condition"):
            model.impute(holes, generator(0))
    with pytest.raises(InputError, match="complete rows"):
        nade.log_prob(holes)
    with pytest.raises(InputError, match="need a generator"):
        nade.log_prob(row)
    with pytest.raises(InputError, match="continuous"):
        DeepNADE(table_schema([Binary(), Continuous()]))
    for minutes in (None, -1.0):
        with pytest.raises(InputError, match="how long"):
            fit_baseline(nade, as_rows(row, SCHEMA), as_rows(row, SCHEMA), minutes=minutes)
    with pytest.raises(InputError, match="at least 1"):
        nade.sample(0, generator(0))


def test_numbers_far_from_zero_keep_their_digits() -> None:
    near, far = (table_schema([Binary(), Continuous(loc, 10.0)]) for loc in (0.0, 1.7e9))
    rows = torch.tensor([[1.0, 20.0], [0.0, -5.0]], dtype=torch.float64)
    shifted = rows + torch.tensor([0.0, 1.7e9], dtype=torch.float64)
    for make in (lambda s: TraDE(s, 16, 2, 2, 32), lambda s: MaskedTransformer(s, ModelConfig(d_model=16, n_heads=1))):
        scores = []
        for schema, x in ((near, rows), (far, shifted)):
            torch.manual_seed(0)
            model = make(schema)
            scores.append(model.log_prob(x, generator=generator(0)))
            drawn = model.sample(3, generator(0))
        torch.testing.assert_close(*scores)
        assert (drawn[:, 1] != drawn[:, 1].round()).any()


def test_layers_of_trade_begin_unlike() -> None:
    first, second = TraDE(SCHEMA, 16, 2, 2, 32).blocks
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_a_kept_mask_is_the_one_that_is_made_anew() -> None:
    kept, again = (MADE(IMAGE, (16,), n_masks=n) for n in (32, 33))
    again.own_orders[:32], again.degrees[:32] = kept.own_orders, kept.degrees
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(kept.masks(3), again.masks(3), strict=True))
    assert kept.double().masks(3)[0].dtype == torch.float64


def test_each_order_of_made_is_another() -> None:
    model = MADE(table_schema([Binary()] * 3), (16,), n_masks=32)
    assert model.n_masks == len(model.own_orders.unique(dim=0)) == 6
    assert MADE(table_schema([Binary()]), (4,), n_masks=2).log_prob(torch.zeros(1, 1)).shape == (1,)


def test_masks_that_are_kept_follow_the_state_that_is_loaded() -> None:
    first, second = (MADE(IMAGE, (16,), n_masks=2, seed=seed) for seed in (0, 1))
    second.masks(0)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first.masks(0), second.masks(0), strict=True))


def test_images_are_slanted_and_set_upright_again() -> None:
    x = torch.arange(24.0).view(1, 2, 3, 4)
    slanted = skew(x)
    assert slanted.shape == (1, 2, 3, 6)
    assert slanted[0, 0, 1].tolist() == [0, 4, 5, 6, 7, 0]
    assert torch.equal(unskew(slanted, 4), x)


def test_models_of_images_need_images() -> None:
    with pytest.raises(InputError, match="pixels of one image"):
        PixelRNN(SCHEMA)
    with pytest.raises(InputError, match="pixels of one image"):
        PixelRNN(Schema(tuple(Feature(f"t{t}", Binary(), (float(t),)) for t in range(3))))
    grey = PixelRNN(image_schema(2, 2, Ordinal(3)), "cnn", 4, 1)
    assert abs(grey.log_prob(worlds(grey.schema).float()).exp().sum().item() - 1) < 1e-5


def test_trade_takes_numbers() -> None:
    model = TraDE(SCHEMAS["mixed"], 16, 1, 2, 32)
    assert model.sample(3, generator(0)).shape == (3, 5)
    assert model.log_prob(model.sample(3, generator(0))).isfinite().all()

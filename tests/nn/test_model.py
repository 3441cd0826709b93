import pytest
import torch
from tests.models import CONFIGS, SCHEMAS, order_of, random_rows, small_model, worlds

from deformer.config import ModelConfig, paper_config
from deformer.data.orders import permute
from deformer.data.schema import Binary, Categorical, Continuous, Feature, Schema, image_schema
from deformer.errors import InputError
from deformer.nn.backbone import Dropout
from deformer.nn.model import DEformer, new_model

EVERY = pytest.mark.parametrize("config", CONFIGS)
EVERYWHERE = pytest.mark.parametrize("schema", SCHEMAS)


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_all_worlds_sum_to_one(config: str, seed: int) -> None:
    model = small_model("labels", config)
    rows, order = worlds(model.schema), order_of(8, seed)
    terms = model(order.expand(len(rows), -1), rows[:, order]).log_prob(rows[:, order])
    assert abs(terms.sum(1).exp().sum().item() - 1) < 1e-12


@EVERY
@EVERYWHERE
def test_the_future_does_not_touch_the_past(schema: str, config: str) -> None:
    model = small_model(schema, config)
    rows, others = random_rows(model.schema, 5), random_rows(model.schema, 5, seed=1)
    order = order_of(len(model.schema), 0).expand(5, -1)
    terms = model(order, permute(rows, order)).log_prob(permute(rows, order))
    for k in range(1, len(model.schema)):
        changed = permute(rows, order)
        changed[:, k:] = permute(others, order)[:, k:]
        assert torch.equal(model(order, changed).log_prob(changed)[:, :k], terms[:, :k])


@EVERY
@EVERYWHERE
def test_a_prefix_equals_the_marginal(schema: str, config: str) -> None:
    model = small_model(schema, config)
    rows, order = random_rows(model.schema, 5), order_of(len(model.schema), 0).expand(5, -1)
    x = permute(rows, order)
    terms = model(order, x).log_prob(x)
    torch.testing.assert_close(model(order[:, :3], x[:, :3]).log_prob(x[:, :3]), terms[:, :3], rtol=0, atol=1e-12)


@EVERY
@EVERYWHERE
def test_one_by_one_equals_all_at_once(schema: str, config: str) -> None:
    model = small_model(schema, config)
    rows, order = random_rows(model.schema, 5), order_of(len(model.schema), 2).expand(5, -1)
    x = permute(rows, order)
    terms, state = model(order, x).log_prob(x), model.start(5)
    for k in range(len(model.schema)):
        ahead = state.predict(order[:, k:]).log_prob(x[:, k:])
        torch.testing.assert_close(ahead[:, 0], terms[:, k], rtol=0, atol=1e-12)
        alone = state.predict(order[:, -1:]).log_prob(x[:, -1:])
        torch.testing.assert_close(ahead[:, -1:], alone, rtol=0, atol=1e-12)
        state = state.observe(order[:, k : k + 1], x[:, k : k + 1])


@EVERY
@pytest.mark.parametrize("told", [True, False])
def test_observing_nothing_changes_nothing(config: str, told: bool) -> None:
    model = small_model("placed", config)
    nothing = torch.zeros(2, 0, dtype=torch.long)
    present = torch.zeros(2, 0, dtype=torch.bool) if told else None
    state = model.start(2).observe(torch.tensor([[3], [1]]), torch.tensor([[0.5], [1.0]]))
    same = state.observe(nothing, nothing.double(), present)
    asked = torch.tensor([[0, 2, 4], [0, 2, 4]])
    values = torch.ones(2, 3, dtype=torch.float64)
    torch.testing.assert_close(same.predict(asked).log_prob(values), state.predict(asked).log_prob(values))


def test_keys_of_a_single_stream_lie_where_their_value_was_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, places = small_model("placed", "single_stream"), []
    ask, extend = model.backbone.ask, model.backbone.extend
    monkeypatch.setattr(
        model.backbone,
        "extend",
        lambda *a, key_turns, **k: places.append(key_turns) or extend(*a, key_turns=key_turns, **k),
    )
    monkeypatch.setattr(
        model.backbone, "ask", lambda *a, key_turns, **k: places.append(key_turns) or ask(*a, key_turns=key_turns, **k)
    )
    order, values = torch.tensor([[3, 0, 1]]), torch.zeros(1, 3, dtype=torch.float64)
    model(order, values)
    state = model.start(1).observe(order, values, torch.tensor([[True, False, True]]))
    state.observe(order[:, :2], values[:, :2], torch.tensor([[True, False]])).predict(torch.tensor([[2, 4]]))
    nowhere = len(model.schema)
    expected = [[nowhere, 3, 0], [nowhere, 3, 3], [1, 3], [3, 3]]
    assert len(places) == len(expected)
    for turns, features in zip(places, expected, strict=True):
        assert torch.equal(turns, model._turns(torch.tensor([features])))


@EVERY
@EVERYWHERE
def test_observing_and_predicting_at_once_changes_nothing(schema: str, config: str) -> None:
    model = small_model(schema, config)
    rows, order = random_rows(model.schema, 5), order_of(len(model.schema), 3).expand(5, -1)
    x, present = permute(rows, order), torch.tensor([True, True, False, True, False])[:, None]
    state = apart = model.start(5, room=3).observe(order[:, :1], x[:, :1])
    for k, told in ((1, None), (2, present)):
        one, following = slice(k, k + 1), slice(k + 1, k + 2)
        before = apart.predict(order[:, one]).log_prob(x[:, one])
        asked = order[:, one], x[:, one], order[:, one], told
        after, conditionals = state.observe_and_predict(*asked, beforehand=True)
        torch.testing.assert_close(conditionals.log_prob(x[:, one]), before, rtol=0, atol=1e-12)
        apart = apart.observe(order[:, one], x[:, one], told)
        state, conditionals = state.observe_and_predict(order[:, one], x[:, one], order[:, following], told)
        expected = apart.predict(order[:, following]).log_prob(x[:, following])
        for seen in (conditionals, after.predict(order[:, following])):
            torch.testing.assert_close(seen.log_prob(x[:, following]), expected, rtol=0, atol=1e-12)
    last = slice(4, 5)
    expected = apart.predict(order[:, last]).log_prob(x[:, last])
    torch.testing.assert_close(state.predict(order[:, last]).log_prob(x[:, last]), expected, rtol=0, atol=1e-12)


@EVERY
def test_forks_leave_each_other_alone(config: str) -> None:
    model = small_model("labels", config)
    asked = torch.tensor([[5, 6]])
    root = model.start().observe(torch.tensor([[0, 1]]), torch.tensor([[1.0, 2.0]]))
    before = root.predict(asked).mean()
    forks = [root.observe(torch.tensor([[3]]), torch.tensor([[v]])) for v in (0.0, 1.0)]
    answers = [fork.predict(asked).mean() for fork in forks]
    assert not torch.equal(*answers)
    for value, answer in zip((0.0, 1.0), answers, strict=True):
        fresh = model.start().observe(torch.tensor([[0, 1, 3]]), torch.tensor([[1.0, 2.0, value]]))
        torch.testing.assert_close(fresh.predict(asked).mean(), answer, rtol=0, atol=1e-12)
    assert torch.equal(root.predict(asked).mean(), before)
    doubled = root.select(torch.tensor([0, 0])).predict(asked.expand(2, -1)).mean()
    torch.testing.assert_close(doubled, before.expand(2, -1), rtol=0, atol=1e-12)


@EVERY
def test_rows_with_different_numbers_of_observed_features(config: str) -> None:
    model = small_model("mixed", config)
    rows = random_rows(model.schema, 2)
    features, present = torch.tensor([[0, 1, 2], [3, 0, 1]]), torch.tensor([[True, True, True], [True, False, False]])
    asked = torch.tensor([[4, 3], [4, 2]])
    state = model.start(2).observe(features, permute(rows, features), present)
    state = state.observe(asked[:, :1], permute(rows, asked[:, :1]))
    together = state.predict(asked[:, 1:]).log_prob(permute(rows, asked[:, 1:]))
    for i, n in enumerate((3, 1)):
        row = rows[i : i + 1]
        alone = model.start().observe(features[i : i + 1, :n], row[:, features[i, :n]])
        alone = alone.observe(asked[i : i + 1, :1], row[:, asked[i, :1]])
        expected = alone.predict(asked[i : i + 1, 1:]).log_prob(row[:, asked[i, 1:]])
        torch.testing.assert_close(together[i : i + 1], expected, rtol=0, atol=1e-12)


@EVERY
@EVERYWHERE
def test_every_parameter_gets_a_gradient(schema: str, config: str) -> None:
    model = small_model(schema, config)
    rows = random_rows(model.schema, 64)
    order = torch.stack([order_of(len(model.schema), i) for i in range(64)])
    model(order, permute(rows, order)).log_prob(permute(rows, order)).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_the_papers_network_has_its_size() -> None:
    model = DEformer(image_schema(28, 28, Binary()), paper_config())
    assert sum(p.numel() for p in model.parameters()) == 19_244_929


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_close(dtype: torch.dtype) -> None:
    exact, model = small_model("mixed"), small_model("mixed", dtype=torch.float32)
    rows, order = random_rows(model.schema, 8), order_of(5, 0).expand(8, -1)
    x = permute(rows, order)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        terms = model(order, x).log_prob(x)
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    torch.testing.assert_close(terms.double(), exact(order, x).log_prob(x), rtol=0.05, atol=tolerance)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(3)
    a = new_model(SCHEMAS["mixed"], CONFIGS["two_stream"], seed=1).state_dict()
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    b = new_model(SCHEMAS["mixed"], CONFIGS["two_stream"], seed=1).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_marginals_are_where_a_model_starts() -> None:
    schema = image_schema(1, 2, Categorical(3))
    model = DEformer(schema, ModelConfig(d_model=8, n_layers=1, n_heads=1))
    values = torch.tensor([[0.0, 1.0]] * 300 + [[2.0, 2.0]] * 100)
    model.fit_marginals(values, torch.ones_like(values).bool())
    asked = model.start().predict(torch.tensor([[0, 0, 0]]))
    p = asked.log_prob(torch.tensor([[0.0, 1.0, 2.0]])).exp()
    torch.testing.assert_close(p, torch.tensor([[0.375, 0.375, 0.25]]), atol=2e-3, rtol=0)


def test_dropout_leaves_the_expectation_and_follows_its_generator() -> None:
    x = torch.ones(200, 100, dtype=torch.float64)
    dropped = Dropout(0.3, torch.Generator().manual_seed(0))(x)
    assert torch.equal(dropped, Dropout(0.3, torch.Generator().manual_seed(0))(x))
    assert abs((dropped == 0).double().mean().item() - 0.3) < 0.02
    assert abs(dropped.mean().item() - 1) < 0.02


@EVERY
def test_dropout_changes_a_pass_and_still_lets_nothing_flow_back(config: str) -> None:
    model = small_model("labels", config)
    rows, order = random_rows(model.schema, 5), order_of(8, 0).expand(5, -1)
    x, changed = permute(rows, order), permute(rows, order).clone()
    changed[:, -1] = 1 - changed[:, -1].clamp(max=1)

    def scores(values: torch.Tensor, drop: bool = True) -> torch.Tensor:
        noise = Dropout(0.5, torch.Generator().manual_seed(0)) if drop else None
        return model(order, values, drop=noise).log_prob(values)

    assert not torch.equal(scores(x), scores(x, drop=False))
    assert torch.equal(scores(x)[:, :-1], scores(changed)[:, :-1])


def test_heads_too_narrow_for_their_axes_are_refused() -> None:
    with pytest.raises(InputError, match="Heads of width 2 cannot turn by 2 coordinates"):
        DEformer(SCHEMAS["image"], ModelConfig(d_model=16, n_heads=8))
    DEformer(SCHEMAS["image"], ModelConfig(d_model=16, n_heads=8, rotary_base=None))


def test_places_far_from_zero_are_told_apart() -> None:
    at = [1.7e9 + 60 * i for i in range(4)]
    schema = Schema(tuple(Feature(f"f{i}", Binary(), (t,)) for i, t in enumerate(at)))
    rotary = new_model(schema).rotary
    assert rotary is not None
    assert (rotary.turns[1:4] - rotary.turns[:3]).abs().amax((1, 2)).min() > 1e-3


def test_the_papers_tokens_see_numbers_in_units_of_their_spread() -> None:
    place = ((0.0, 0.0), (0.0, 1.0))
    schemas = [Schema(tuple(Feature(f"f{i}", Continuous(loc, 1.0), place[i]) for i in range(2))) for loc in (0.0, 1e6)]
    config = ModelConfig(d_model=16, n_layers=1, n_heads=2, tokens="mlp", rotary_base=None, mlp_widths=(8,))
    near, far = (new_model(schema, config).tokens for schema in schemas)
    at = torch.tensor([[0]])
    torch.testing.assert_close(far.u(at, torch.tensor([[1e6 + 2.0]]).double()), near.u(at, torch.tensor([[2.0]])))


def test_numbers_keep_their_digits_in_a_model_of_fewer() -> None:
    far = 1_234_567_891.0  # which float32 rounds
    schema = Schema(tuple(Feature(name, Continuous(far, 0.01)) for name in "ab"))
    model = new_model(schema, ModelConfig(d_model=16, n_layers=1, n_heads=1)).double().float()
    order, rows = torch.tensor([[0, 1]]), torch.tensor([[far + 0.01, far]], dtype=torch.float64)
    assert (model(order, rows).log_prob(rows) > 2).all()  # in units of a hundredth, near the centre

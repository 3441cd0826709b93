import pytest
import torch
from tests.models import CONFIGS, random_rows, small_model

from deformer.data.schema import Binary, Continuous, table_schema
from deformer.data.seeds import generator
from deformer.data.table import Rows, as_rows
from deformer.nn.units import Units
from deformer.train.batches import Batch, draw_batch, marginal_entropies, with_absent_near, with_noise
from deformer.train.loss import Kept, Loss


def rows_of(n: int = 400) -> Rows:
    """Two fair coins, a number, a rare flag and a constant, with holes in the first column."""
    draws = generator(0)
    table = torch.rand(n, 5, generator=draws)
    flags = (table < torch.tensor([0.5, 0.5, 2.0, 0.02, 0.0])).double()
    flags[:, 2] = table[:, 2]
    observed = torch.ones(n, 5, dtype=torch.bool)
    observed[::4, 0] = False
    schema = table_schema([Binary(), Binary(), Continuous(), Binary(), Binary()])
    return as_rows(flags, schema, observed=observed)


def test_entropies_of_coins_numbers_and_constants() -> None:
    coin, other, number, rare, constant = marginal_entropies(rows_of()).tolist()
    assert max(abs(coin - 0.693), abs(other - 0.693)) < 0.01
    assert number == 1.0
    assert 0.02 < rare < 0.3
    assert abs(constant - 1e-3) < 1e-9


def test_informative_subsets_prefer_what_varies_and_are_laid_out_at_random() -> None:
    rows = rows_of()
    batch = draw_batch(rows, 0, 0, 0, 400, 3, "random", marginal_entropies(rows))
    assert batch.features.shape == (400, 3)
    share = torch.zeros(5).index_add_(0, batch.features[batch.scored], torch.ones(int(batch.scored.sum()))) / 400
    assert share[1:3].min() > 0.9
    assert share[4] < 0.1
    firsts = (batch.features[:, 0] == 1).float().mean()
    assert 0.2 < firsts < 0.45  # the other coin stands first in about a third of the rows


def test_missing_features_are_never_scored() -> None:
    rows = rows_of()
    batch = draw_batch(rows, 0, 0, 0, 400, 5, "random", marginal_entropies(rows))
    assert batch.scored.sum() == rows.observed.sum()
    assert torch.equal(batch.features.sort(-1).values, torch.arange(5).expand(400, -1))


def test_noise_spares_labels_and_point_masses() -> None:
    schema = table_schema([Binary(), Continuous(5.0, 100.0, 0.1), Continuous()])
    table = torch.tensor([[1.0, 0.1, 3.0], [0.0, 4.0, 3.0]]).repeat(500, 1)
    batch = draw_batch(as_rows(table, schema), 0, 0, 0, 1000, 3, "raster")
    noisy = with_noise(batch, Units(schema, lambda n: (0.0, 0.0)), 0.5, generator(0))
    moved = noisy.values - batch.values
    assert (moved[:, 0] == 0).all()
    at_mass = batch.values[:, 1] != 4.0
    assert (moved[at_mass, 1] == 0).all()
    assert 40 < moved[~at_mass, 1].std() < 60
    assert 0.4 < moved[:, 2].std() < 0.6


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("dtype", "bfloat16"), [(torch.float32, False), (torch.float32, True), (torch.float64, False)])
def test_what_is_stored_for_absent_values_changes_no_bit(config: str, dtype: torch.dtype, bfloat16: bool) -> None:
    model = small_model("mixed", config, dtype)
    rows = random_rows(model.schema, 40)
    seen = torch.rand(rows.shape, generator=generator(1)) < 0.6
    batch = draw_batch(as_rows(rows, model.schema, observed=seen), 0, 0, 0, 40, 5, "random")

    def gradients(batch: Batch) -> list[torch.Tensor]:
        loss = Loss(model, bfloat16)(Kept(batch.features, batch.values, batch.scored), 40.0)
        return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)]

    near = with_absent_near(batch, Units(model.schema, lambda n: (0.0, 0.0)))
    assert not torch.equal(near.values, batch.values)
    for a, b in zip(gradients(batch), gradients(near), strict=True):
        assert torch.equal(a, b)

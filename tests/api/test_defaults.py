import dataclasses

import pytest
import torch

from deformer.api.defaults import suited
from deformer.config import ModelConfig, TrainConfig
from deformer.data.schema import Binary, Schema, image_schema, table_schema
from deformer.data.table import Rows

TIMED = TrainConfig(minutes=2.0, threads=1)


def zeros(n_rows: int, n_features: int) -> Rows:
    return zeros_of(table_schema([Binary()] * n_features), n_rows)


def zeros_of(schema: Schema, n_rows: int) -> Rows:
    values = torch.zeros(n_rows, len(schema), dtype=torch.float64)
    return Rows(schema, values, torch.ones_like(values, dtype=torch.bool))


def limits(minutes: float, **changes: object) -> TrainConfig:
    return dataclasses.replace(TIMED, minutes=minutes, **changes)


def test_networks_grow_with_the_time() -> None:
    rows = zeros(5_000, 80)
    networks = [suited(rows, limits(m), "cpu")[0] for m in (2, 3, 11, 13, 33, 35)]
    assert [n.n_layers for n in networks] == [1, 2, 2, 2, 2, 3]
    assert [n.d_model for n in networks] == [64, 64, 64, 128, 128, 128]
    twice = (limits(3, threads=2), "cpu"), (limits(3), "cpu", 2), (limits(6), "cpu")
    assert len({suited(rows, *where)[0] for where in twice}) == 1


@pytest.mark.parametrize("unlimited", [TrainConfig(steps=1), TrainConfig(epochs=0.1), TrainConfig(minutes=1, steps=1)])
def test_what_steps_or_epochs_end_is_large(unlimited: TrainConfig) -> None:
    large = suited(zeros(5_000, 80), TIMED, "cpu", large=True)[0]
    assert (large.d_model, large.n_layers) == (128, 3)
    assert suited(zeros(5_000, 80), unlimited, "cpu")[0] == large


def test_small_tables_have_one_size() -> None:
    network, training = suited(zeros(200, 80), limits(0.01), "cpu")
    assert (network.d_model, network.n_layers, training.cycles) == (64, 3, 3)


@pytest.mark.parametrize(("shape", "neighbourhood"), [((8, 8), 2), ((16, 24), 4), ((3, 30), 1)])
def test_images_see_a_quarter_of_their_side(shape: tuple[int, int], neighbourhood: int) -> None:
    network, _ = suited(zeros_of(image_schema(*shape, Binary()), 1_400), TIMED, "cpu")
    assert network.neighbourhood == neighbourhood
    assert network.n_layers >= 2


def test_of_many_images_nothing_is_chosen() -> None:
    assert suited(zeros_of(image_schema(2, 2, Binary()), 60_000), TIMED, "cpu") == (ModelConfig(), TIMED)


def test_rates_of_the_papers_adam_do_not_cycle() -> None:
    rows = zeros(200, 80)
    assert suited(rows, TIMED, "cpu")[1].cycles == 3
    training = suited(rows, dataclasses.replace(TIMED, recipe="adam"), "cpu")[1]
    assert (training.recipe, training.cycles, training.lr) == ("adam", 1, TrainConfig.lr)

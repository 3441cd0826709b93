import itertools

import pytest
import torch

from deformer.config import ModelConfig
from deformer.data.schema import Binary, Continuous, Feature, Ordinal, Schema, image_schema, table_schema
from deformer.errors import InputError
from deformer.nn.model import new_model
from deformer.nn.neighbours import columns_around

ODD = Schema(
    (
        Feature("a", Binary(), (0.0, 1.0)),
        Feature("b", Binary()),
        Feature("c", Binary(), (1.0, 1.0)),
        Feature("d", Binary(), (-2.0, 0.5)),
        Feature("e", Continuous(), (-1.0, 1.5)),
        Feature("f", Binary(), (100.0, 1.0)),
    )
)


def one_by_one(schema: Schema, radius: int) -> torch.Tensor:
    at = {f.coordinates: i for i, f in enumerate(schema.features) if f.coordinates is not None}
    columns = []
    for offset in itertools.product(range(-radius, radius + 1), repeat=len(next(iter(at)))):
        near = [
            at.get(tuple(c + d for c, d in zip(f.coordinates, offset, strict=True)), len(schema))
            if f.coordinates is not None
            else len(schema)
            for f in schema.features
        ]
        if any(offset) and min(near) < len(schema):
            columns.append(near)
    return torch.tensor(columns).T


@pytest.mark.parametrize(
    ("schema", "radius"),
    [(image_schema(6, 5, Binary()), 2), (image_schema(3, 4, Ordinal(9), channels=3), 5), (ODD, 1), (ODD, 3)],
)
def test_who_lies_around_whom(schema: Schema, radius: int) -> None:
    assert torch.equal(columns_around(schema, radius), one_by_one(schema, radius))


@pytest.mark.parametrize(("schema", "radius"), [(table_schema([Binary()] * 3), 5), (image_schema(2, 2, Binary()), 0)])
def test_no_network_where_nobody_has_neighbours(schema: Schema, radius: int) -> None:
    assert new_model(schema, ModelConfig(d_model=8, n_layers=1, neighbourhood=radius)).neighbours is None


def test_only_neighbours_that_were_observed_are_told() -> None:
    network = new_model(image_schema(3, 3, Ordinal(5)), ModelConfig(d_model=8, n_layers=1, neighbourhood=1)).neighbours
    assert network is not None
    middle, now = torch.tensor([[4]]), torch.tensor([2])
    told = []
    for corner, far_value in ((0.0, 4.0), (3.0, 4.0), (3.0, 1.0)):  # the middle is asked about at time 2
        evidence = network.add(network.start(1), torch.tensor([[0, 5, 8]]), torch.tensor([[corner, 2.0, far_value]]))
        told.append(network(middle, evidence, now))
    assert not torch.equal(told[0], told[1])
    assert torch.equal(told[1], told[2])
    absent = network.add(
        network.start(1), torch.tensor([[0, 5]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[False, False]])
    )
    assert torch.equal(network(middle, absent, now), network(middle, network.start(1), torch.tensor([0])))


def test_places_between_those_of_others_have_no_neighbours() -> None:
    places = [(0.0, 0.5), (11.0, 0.0), (10.0, 0.0)]
    schema = Schema(tuple(Feature(f"f{i}", Binary(), place) for i, place in enumerate(places)))
    assert columns_around(schema, 5).tolist() == [[3, 3], [2, 3], [3, 1]]


def test_places_far_apart_are_told_apart() -> None:
    places = [(0.0, 0.0, 0.0), (4e5, 4e5, 4e5), (4e5, 4e5, 4e5 + 1), (4e5, 4e5 + 6, 4e5)]
    schema = Schema(tuple(Feature(f"f{i}", Binary(), place) for i, place in enumerate(places)))
    around = columns_around(schema, 5)
    assert torch.equal(around, one_by_one(schema, 5))
    assert around.tolist() == [[4, 4], [4, 2], [1, 4], [4, 4]]


def test_a_neighbourhood_of_too_many_places_is_refused() -> None:
    schema = Schema(tuple(Feature(str(i), Binary(), (float(i), *[0.0] * 6)) for i in range(4)))
    with pytest.raises(InputError, match="too wide for 7 coordinates"):
        columns_around(schema, 5)

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import SCHEMAS

from deformer.data.files import Table
from deformer.data.infer import infer_schema
from deformer.data.orders import (
    check_orders,
    fixed_orders,
    move_to_front,
    permute,
    random_orders,
    raster_orders,
    unpermute,
)
from deformer.data.schema import (
    Binary,
    Categorical,
    Continuous,
    Feature,
    Ordinal,
    Schema,
    _count,
    image_schema,
    table_schema,
)
from deformer.data.seeds import generator
from deformer.data.table import as_rows, split, subset
from deformer.errors import InputError

LABELLED = table_schema([Categorical(2, ("no", "yes")), Continuous(1.0, 2.0)], ["answer", "weight"])


@pytest.mark.parametrize("schema", [*SCHEMAS.values(), LABELLED, image_schema(2, 2, Ordinal(256), channels=3)])
def test_schemas_travel_as_json(schema: Schema) -> None:
    assert Schema.from_json(schema.to_json()) == schema


def test_numpys_counts_become_pythons() -> None:
    assert type(_count("n", np.int64(3))) is int
    with pytest.raises(InputError, match="whole number"):
        _count("n", np.float64(2.5))


def test_only_pixels_row_by_row_are_an_image() -> None:
    image = image_schema(2, 3, Binary())
    assert image.image_shape == (2, 3)
    far = Schema(tuple(Feature(f"f{i}", Binary(), (1e9 + i, 1e9)) for i in range(4)))
    for other in (Schema(image.features[::-1]), image_schema(2, 3, Binary(), 3), table_schema([Binary()] * 6), far):
        assert other.image_shape is None


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Schema(()), "at least one feature"),
        (lambda: table_schema([Binary(), Binary()], ["a", "a"]), "more than once: a"),
        (lambda: Categorical(0), "at least 1"),
        (lambda: Categorical(3, ("a",)), "names 1 labels"),
        (lambda: Ordinal(-2), "at least 1"),
        (lambda: Categorical(True), "whole number"),
        (lambda: Continuous(0.0, 0.0), "positive finite scale"),
        (lambda: Continuous(math.nan), "finite loc"),
        (lambda: Feature("a", Binary(), learned=False), "no identity"),
        (lambda: Feature("a", Binary(), (0.0, math.nan)), "finite coordinates"),
        (lambda: Feature("a", Binary(), ()), "finite coordinates"),
        (lambda: Schema((Feature("a", Binary(), (0.0,)), Feature("b", Binary(), (0.0, 1.0)))), "same number"),
        (lambda: Schema.from_json("[{}]"), "not a schema"),
        (lambda: Schema.from_json("nonsense"), "not a schema"),
        (lambda: image_schema(0, 3, Binary()), "height must be"),
        (lambda: LABELLED.index(["colour"]), "'colour'; the schema has 2: answer, weight"),
    ],
)
def test_impossible_schemas_are_refused(make: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        make()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([[0.0, math.inf]], "'weight' holds inf in row 0; expected a finite number"),
        ([[0.0, 1.0], [2.0, 1.0]], "'answer' holds 2 in row 1; expected a whole number from 0 to 1"),
        ([[0.5, 1.0]], "'answer' holds 0.5"),
        ([[-1.0, 1.0]], "'answer' holds -1"),
        ([[0.0]], "2 columns; the table has shape"),
        ([0.0, 1.0], "2 columns"),
        (torch.zeros(0, 2), "no rows"),
        ([["a", "b"]], "table of numbers"),
        ([[0.0, 1.0], [0.0]], "table of numbers"),
        ([[1j, 0]], "real numbers"),
    ],
)
def test_bad_rows_are_refused(values: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        as_rows(values, LABELLED)


def test_nan_is_missing_and_stored_as_zero() -> None:
    rows = as_rows([[math.nan, 3.0], [1.0, math.nan]], LABELLED)
    assert rows.values.tolist() == [[0.0, 3.0], [1.0, 0.0]]
    assert rows.observed.tolist() == [[False, True], [True, False]]
    assert rows.keep([1]).observed.tolist() == [[False, True], [False, False]]
    with pytest.raises(InputError, match="boolean"):
        as_rows([[0.0, 3.0]], LABELLED, observed=[[1, 0]])


def test_splits_are_disjoint_and_whole() -> None:
    rows = as_rows(torch.arange(10)[:, None].double().expand(10, 2) % 2, LABELLED)
    a, b = split(rows, 0.3, generator(0))
    assert (len(a), len(b)) == (7, 3)
    assert len(subset(rows, 4, generator(0))) == 4
    assert subset(rows, 40, generator(0)) is rows
    for bad in (lambda: split(rows[:1], 0.5, generator(0)), lambda: split(rows, 1.0, generator(0))):
        with pytest.raises(InputError):
            bad()


def test_random_orders_are_permutations_in_stages() -> None:
    first, then = (torch.rand(50, 9, generator=generator(i)) < 0.4 for i in range(2))
    orders = random_orders(first, generator(2), then)
    assert torch.equal(orders.sort(-1).values, torch.arange(9).expand(50, -1))
    stage = (~first).int() + (~(first | then)).int()
    assert (permute(stage, orders).diff(dim=-1) >= 0).all()
    assert torch.equal(orders, random_orders(first, generator(2), then))


def test_random_orders_are_uniform() -> None:
    orders = random_orders(torch.zeros(24_000, 4, dtype=torch.bool), generator(0))
    counts = torch.bincount(orders @ torch.tensor([64, 16, 4, 1]))
    assert len(counts[counts > 0]) == 24
    assert (counts[counts > 0] - 1000).abs().max() < 150


def test_fixed_and_raster_orders() -> None:
    first = torch.tensor([[False, False, True, False], [False] * 4])
    assert raster_orders(first).tolist() == [[2, 0, 1, 3], [0, 1, 2, 3]]
    assert fixed_orders([3, 1, 0, 2], first).tolist() == [[2, 3, 1, 0], [3, 1, 0, 2]]
    assert move_to_front(torch.tensor([[3, 2, 1, 0]]), first[:1]).tolist() == [[2, 3, 1, 0]]


def test_point_masses_of_rounded_rows_are_as_they_are() -> None:
    schema = table_schema([Continuous(point_mass=0.1), Continuous(point_mass=2.0), Binary()])
    rows = as_rows(torch.tensor([[0.1, 2.0, 1.0], [math.nan, 0.5, 0.0]]), schema)
    assert rows.values.tolist() == [[0.1, 2.0, 1.0], [0.0, 0.5, 0.0]]
    assert as_rows(torch.ones(1, 3), table_schema([Continuous(point_mass=0.5)] * 3)).values.dtype == torch.float32


def test_unpermute_undoes_permute() -> None:
    x, orders = torch.rand(5, 7, generator=generator(0)), random_orders(torch.zeros(5, 7).bool(), generator(1))
    assert torch.equal(unpermute(permute(x, orders), orders, 7), x)
    partial = unpermute(permute(x, orders[:, :3]), orders[:, :3], 7)
    assert (partial == 0).sum() == 5 * 4


def test_incomplete_orders_are_refused_where_all_features_are_needed() -> None:
    assert check_orders(torch.tensor([1, 0]), 3, 2, complete=True).shape == (3, 2)
    with pytest.raises(InputError, match="names 1 of 2"):
        check_orders(torch.tensor([1]), 3, 2, complete=True)


def test_rows_can_be_hidden_once_more_and_take_any_whole_numbers() -> None:
    schema = table_schema([Ordinal(70_000)] * 2)
    rows = as_rows(np.array([[1, 69_999]], dtype=np.uint32), schema)
    assert as_rows(np.array([[1, 69_999]], dtype=np.uint64), schema).values.equal(rows.values)
    assert as_rows(rows, schema, observed=[[True, False]]).observed.tolist() == [[True, False]]
    assert as_rows(np.array([[1, 65_535]], dtype=np.uint16), schema).values.tolist() == [[1, 65_535]]


def test_the_row_at_fault_is_named_in_a_long_table() -> None:
    values = np.zeros((40_000, 1))
    values[39_999] = 2
    with pytest.raises(InputError, match="holds 2 in row 39999"):
        as_rows(values, table_schema([Binary()]))


def test_tiny_and_huge_numbers_of_a_file() -> None:
    tiny = infer_schema(Table(("a",), (np.array([1e-170, 3e-170]),))).features[0].domain
    assert isinstance(tiny, Continuous)
    assert tiny.scale == pytest.approx(1e-170)
    with pytest.raises(InputError, match="Column 'far': Continuous needs a finite loc"):
        infer_schema(Table(("near", "far"), (np.array([0.5, 1.5]), np.array([1.7e308, 1.7e308, 1.0]))))

import math

import torch

from deformer.data.schema import Categorical, Ordinal, table_schema
from deformer.data.seeds import generator
from deformer.data.table import as_rows
from deformer.nn.model import new_model
from deformer.tasks.imputation import impute


def test_the_mean_of_labels_is_the_likeliest() -> None:
    schema = table_schema([Categorical(3, ("no", "perhaps", "yes")), Ordinal(3)])
    model = new_model(schema).eval()
    seen = as_rows(torch.tensor([[0.0, 0.0]] * 45 + [[2.0, 2.0]] * 55), schema)
    model.fit_marginals(seen.values, seen.observed)
    table = torch.tensor([[math.nan, math.nan], [0.0, math.nan], [math.nan, 1.0]])
    filled = impute(model, table, strategy="mean", generator=generator(0))[0]
    assert filled[:, 0].tolist() == [2.0, 0.0, 2.0]
    torch.testing.assert_close(filled[:, 1].double(), torch.tensor([1.1, 1.1, 1.0]).double(), rtol=0, atol=0.05)
    modes = impute(model, table, strategy="mode", generator=generator(0))[0]
    assert modes[:, 0].tolist() == [2.0, 0.0, 2.0]

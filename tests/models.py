"""Small models, rows and tables that the tests share."""

import itertools

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from deformer.config import ModelConfig
from deformer.data.schema import Binary, Categorical, Continuous, Feature, Ordinal, Schema, image_schema, table_schema
from deformer.nn.model import DEformer, new_model

SCHEMAS = {
    "image": image_schema(2, 3, Binary()),
    "labels": table_schema(
        [Binary(), Categorical(3), Ordinal(4), Binary(), Categorical(2), Binary(), Binary(), Binary()]
    ),
    "mixed": table_schema([Binary(), Continuous(3.0, 2.0, 1.5), Categorical(5), Continuous(), Ordinal(3)]),
    "placed": Schema(
        (
            Feature("a", Binary(), (0.0, 1.0)),
            Feature("b", Ordinal(3), (1.0, 1.0)),
            Feature("c", Categorical(3), (2.0, 0.0), learned=True),
            Feature("d", Continuous(), (2.0, 5.0)),
            Feature("e", Categorical(3)),
        )
    ),
}
CONFIGS = {
    "two_stream": ModelConfig(d_model=16, n_layers=2, n_heads=2, neighbourhood=0, qk_norm=False),
    "interleaved": ModelConfig(d_model=16, n_layers=2, n_heads=2, wiring="interleaved", neighbourhood=1),
    "neighbours": ModelConfig(d_model=16, n_layers=2, n_heads=2, neighbourhood=1),
    "shallow_content": ModelConfig(d_model=16, n_layers=3, n_heads=2, content_layers=1),
    "single_stream": ModelConfig(d_model=16, n_layers=2, n_heads=2, wiring="single_stream", neighbourhood=1),
    "post_norm": ModelConfig(d_model=16, n_layers=2, n_heads=2, norm="post", activation="relu", mixture="gaussian"),
}


def small_model(schema: str = "labels", config: str = "two_stream", dtype: torch.dtype = torch.float64) -> DEformer:
    """A model with random weights everywhere, so that every feature depends on every other."""
    model = new_model(SCHEMAS[schema], CONFIGS[config]).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype))
    return model


def random_rows(schema: Schema, n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = []
    for f in schema.features:
        if isinstance(f.domain, Continuous):
            columns.append(torch.randn(n, generator=generator, dtype=torch.float64) * f.domain.scale + f.domain.loc)
            if f.domain.point_mass is not None:
                columns[-1][::3] = f.domain.point_mass
        else:
            columns.append(torch.randint(0, f.domain.n_labels, (n,), generator=generator).double())
    return torch.stack(columns, 1)


def worlds(schema: Schema) -> Tensor:
    """Every row that a schema of labels allows."""
    values = itertools.product(*(range(getattr(f.domain, "n_labels")) for f in schema.features))  # noqa: B009
    return torch.tensor(list(values), dtype=torch.float64)


def order_of(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def mixed(n: int, seed: int = 0) -> pd.DataFrame:
    """Numbers that follow a label, a flag that follows a number, a date, and holes everywhere."""
    draws = np.random.default_rng(seed)
    size = draws.normal(size=n)
    kind = np.where(size + 0.3 * draws.normal(size=n) > 0, "big", "small")
    frame = pd.DataFrame(
        {
            "size": size,
            "kind": pd.Categorical(kind, ["small", "big"]),
            "price": np.round(np.exp(size + 0.1 * draws.normal(size=n)), 2),
            "rooms": (2 + (size > 0.5) + (size > 1)).astype("int64"),
            "sold": pd.to_datetime("2024-01-01") + pd.to_timedelta(draws.integers(0, 300, n), unit="D"),
        },
        index=[f"house {i}" for i in range(n)],
    )
    return frame.mask(draws.random(frame.shape) < 0.1)

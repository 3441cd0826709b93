"""Rows: values with a mask of what was observed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from deformer.data.schema import Continuous, Schema
from deformer.errors import InputError

# What PyTorch computes with instead.
WORKABLE = {
    **{torch.bool: torch.uint8, torch.uint16: torch.int32},
    **{torch.uint32: torch.int64, torch.uint64: torch.int64},
}


@dataclass(frozen=True)
class Rows:
    """A batch of rows of one schema. Missing values are stored as 0 and never seen by a model.

    Args:
        schema: The features, in column order.
        values: (batch, features), any dtype; labels as 0, ..., n_labels - 1.
        observed: Which values are known.
    """

    schema: Schema
    values: Tensor
    observed: Bool[Tensor, "batch features"]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Tensor) -> "Rows":
        return Rows(self.schema, self.values[rows], self.observed[rows])

    def to(self, device: torch.device | str) -> "Rows":
        return Rows(self.schema, self.values.to(device), self.observed.to(device))

    def keep(self, columns: Sequence[int]) -> "Rows":
        """Hide all features but these columns."""
        shown = torch.zeros(len(self.schema), dtype=torch.bool, device=self.values.device)
        shown[list(columns)] = True
        return Rows(self.schema, self.values.masked_fill(~shown, 0), self.observed & shown)


def as_rows(values: Any, schema: Schema, *, observed: Any = None) -> Rows:
    """Check a table of numbers and turn it into rows.

    Args:
        values: Array or tensor (batch, features); NaN is a missing value.
        schema: The features in the columns.
        observed: Boolean array of the same shape. None: all that is not NaN.

    Raises:
        InputError: Wrong shape, no rows, not numbers, or a value outside its feature's domain.

    Examples:
        >>> from deformer.data.schema import Binary, table_schema
        >>> as_rows([[1.0, float("nan")]], table_schema([Binary(), Binary()])).observed
        tensor([[ True, False]])
    """
    if isinstance(values, Rows):
        if values.schema != schema:
            raise InputError("These rows follow another schema than the model's.")
        if not len(values):
            raise InputError("The table holds no rows.")
        if observed is None:
            return values
        seen = values.observed & _as_mask(observed, values.values)
        return Rows(schema, values.values.masked_fill(~seen, 0), seen)
    tensor = _as_tensor(values)
    if tensor.ndim != 2 or tensor.shape[1] != len(schema):
        raise InputError(f"Expected rows of {len(schema)} columns; the table has shape {tuple(tensor.shape)}.")
    if len(tensor) == 0:
        raise InputError("The table holds no rows.")
    known = ~torch.isnan(tensor) if tensor.is_floating_point() else torch.ones_like(tensor, dtype=torch.bool)
    if observed is not None:
        known = known & _as_mask(observed, tensor)
    tensor = tensor.masked_fill(~known, 0)
    schema.check(tensor, known)
    return Rows(schema, _with_exact_masses(tensor, schema), known)


def _as_tensor(values: Any) -> Tensor:
    try:
        tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise InputError(f"Expected a table of numbers: {error}") from error
    if tensor.is_complex():
        raise InputError("Expected real numbers; the table holds complex ones.")
    return tensor.to(WORKABLE.get(tensor.dtype, tensor.dtype))


def _with_exact_masses(tensor: Tensor, schema: Schema) -> Tensor:
    """Give point masses as they are, in float64, where the table's type rounds them."""
    masses = [f.domain.point_mass if isinstance(f.domain, Continuous) else None for f in schema.features]
    exact = torch.tensor([math.nan if m is None else m for m in masses], dtype=torch.float64, device=tensor.device)
    rounded = exact.to(tensor.dtype) if tensor.is_floating_point() else exact
    if ((rounded == exact) | exact.isnan()).all():
        return tensor
    return torch.where(tensor == rounded, exact, tensor.double())


def _as_mask(observed: Any, tensor: Tensor) -> Tensor:
    mask = torch.as_tensor(observed, device=tensor.device)
    if mask.dtype != torch.bool or mask.shape != tensor.shape:
        raise InputError(f"observed must be a boolean table of shape {tuple(tensor.shape)}.")
    return mask


def split(rows: Rows, fraction: float, generator: torch.Generator) -> tuple[Rows, Rows]:
    """Split rows at random into (1 - fraction) and fraction of them, at least one row each.

    Raises:
        InputError: Fewer than two rows, or a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise InputError(f"The held-out fraction must lie between 0 and 1, not {fraction}.")
    if len(rows) < 2:
        raise InputError("One row cannot be split into training and validation rows; give at least two.")
    held_out = min(max(1, round(fraction * len(rows))), len(rows) - 1)
    shuffled = torch.randperm(len(rows), generator=generator)
    return rows[shuffled[held_out:]], rows[shuffled[:held_out]]


def subset(rows: Rows, n: int | None, generator: torch.Generator) -> Rows:
    """Draw n rows at random without replacement; all of them, in order, if n is None or too large."""
    if n is None or n >= len(rows):
        return rows
    if n < 1:
        raise InputError(f"The number of rows must be at least 1, not {n}.")
    return rows[torch.randperm(len(rows), generator=generator)[:n]]

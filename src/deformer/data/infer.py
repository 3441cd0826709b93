"""From a table of numbers and text to a schema, and from a table and a schema to rows."""

import numpy as np
import torch

from deformer.data.columns import deviation, spell_label
from deformer.data.files import Column, Table
from deformer.data.libraries import names_of_array
from deformer.data.schema import Binary, Categorical, Continuous, Domain, Feature, Ordinal, Schema
from deformer.data.table import Rows, as_rows
from deformer.errors import InputError

MOST_LEVELS = 64


def infer_schema(table: Table) -> Schema:
    """Guess each column's domain: text is categorical, 0/1 binary, few small whole numbers ordinal, else continuous.

    Raises:
        InputError: A column's numbers are too large to have a mean or a deviation.
    """
    return Schema(tuple(Feature(n, _named_domain(n, c)) for n, c in zip(table.names, table.columns, strict=True)))


def _named_domain(name: str, column: Column) -> Domain:
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return _domain(column)
    except InputError as error:
        raise InputError(f"Column {name!r}: {error}") from error


def _domain(column: Column) -> Domain:
    if column.dtype == object and any(value is not None for value in column):
        labels = tuple(sorted({value for value in column if value is not None}))
        return Categorical(len(labels), labels)
    numbers = column.astype(np.float64)  # None, of which a column may consist, becomes NaN
    known = numbers[np.isfinite(numbers)]
    if len(known) and (known == np.floor(known)).all() and known.min() >= 0 and known.max() < MOST_LEVELS:
        return Binary() if known.max() <= 1 else Ordinal(int(known.max()) + 1)
    if not len(known):
        return Continuous()
    constant = known.min() == known.max()  # whose computed deviation may not be 0
    return Continuous(float(known.mean()), 1.0 if constant else deviation(known))


def to_rows(table: Table, schema: Schema) -> Rows:
    """Bring a table under a schema: columns by name where the names are the schema's, else by position.

    Raises:
        InputError: Other columns than the schema's, unknown labels, or values out of domain.
    """
    if len(table.names) != len(schema):
        raise InputError(f"The table has {len(table.names)} columns; the model has {len(schema)} features.")
    columns = table.columns
    if set(table.names) == set(schema.names):
        columns = tuple(columns[table.names.index(name)] for name in schema.names)
    elif table.names != names_of_array(len(schema)):
        unknown = next(n for n in table.names if n not in schema.names)
        raise InputError(f"The model has no feature {unknown!r}; it has {', '.join(schema.names[:8])}.")
    coded = [_codes(column, feature) for column, feature in zip(columns, schema.features, strict=True)]
    return as_rows(torch.from_numpy(np.stack(coded, 1)), schema)


def _codes(column: Column, feature: Feature) -> Column:
    """Give numbers for labels."""
    labels = feature.domain.labels if isinstance(feature.domain, Categorical) else None
    if labels is None:
        if column.dtype == object:
            text = next((value for value in column if value is not None), None)
            if text is not None:
                raise InputError(f"Feature {feature.name!r} holds the text {text!r}; expected numbers.")
        return column.astype(np.float64)
    code = {label: float(i) for i, label in enumerate(labels)}
    spelled = [None if value is None or value != value else spell_label(value, code) for value in column]
    unknown = next((s for s in spelled if s is not None and s not in code), None)
    if unknown is not None:
        raise InputError(f"Feature {feature.name!r} knows no label {unknown!r}; it has {', '.join(labels[:8])}.")
    return np.array([np.nan if s is None else code[s] for s in spelled])

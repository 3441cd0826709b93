"""Doubts: columns that look like something else than what they are taken for."""

import re
import shlex
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import pandas as pd

from deformer.data.chunks import CODE

MOSTLY = 0.9  # of a column's cells
MANY = 20  # rows or distinct texts, below which they may well be labels
LOOKED_AT = 10_000  # cells
OFTEN, TIMES = 0.01, 5  # share and count of one number among a column's
ROOM = 4  # ranges of the middle four fifths of the others
DATE = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}([ T].*)?|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{2,4}")
AMOUNT = re.compile(r"[$€£¥]?\s?[+-]?\d[\d.,]*\s?(%|[$€£¥]|[A-Za-z]{1,3})?")


def doubts(frame: pd.DataFrame, sure: Collection[str] = ()) -> Iterator[str]:
    """Say which columns may not be what they are taken for, in a sentence each.

    Args:
        sure: Columns of which somebody said what they are.
    """
    for name in (name for name in frame if name not in sure):
        if what := _seems(frame[name]):
            yield f"{name!r} is taken for labels, but {what}."
        elif _names_rows(frame[name]):
            hint = f"--id {shlex.quote(str(name))} on the command line"
            yield f"Every value of {name!r} differs; if it names rows, leave it out ({hint})."
        elif (number := _far_off(frame[name])) is not None:
            yield f"{name!r} is often {number:.15g}, far from its other numbers; if that means missing, leave it empty."


def _seems(series: "pd.Series[Any]") -> str | None:
    """Say what text looks like, if not like labels."""
    text = series.dropna()
    if not len(text) or not pd.api.types.is_string_dtype(text):
        return None
    cells = text.astype(str).str.strip()
    odd = cells[pd.to_numeric(cells, errors="coerce").isna()]
    if len(odd) and pd.to_numeric(cells.str.replace(",", ".", n=1), errors="coerce").notna().mean() >= MOSTLY:
        return f"most of it would be numbers, though not {odd.iloc[0]!r}"
    some = cells.iloc[:LOOKED_AT]
    if some.nunique() > MANY:
        for what, looks_so in LOOKS.items():
            if some.map(looks_so).mean() >= MOSTLY:
                return f"looks like {what} ({some.iloc[0]!r}); convert it first"
    return None


LOOKS: dict[str, Callable[[str], bool]] = {
    "dates": lambda cell: DATE.fullmatch(cell) is not None,
    "numbers": lambda cell: AMOUNT.fullmatch(cell) is not None and CODE.fullmatch(cell) is None,
}


def _names_rows(series: "pd.Series[Any]") -> bool:
    """Say whether a column looks like one that numbers rows or names each by a text of its own."""
    if len(series) <= MANY:
        return False
    if pd.api.types.is_integer_dtype(series):
        return bool((series.diff().iloc[1:] == 1).all())
    return bool(pd.api.types.is_string_dtype(series) and series.is_unique)


def _far_off(series: "pd.Series[Any]") -> float | None:
    """Give the most frequent number if it is far from most others, as -999 is that stands for missing."""
    known = series.dropna()
    if len(known) <= MANY or not pd.api.types.is_numeric_dtype(known) or pd.api.types.is_bool_dtype(known):
        return None
    numbers = known.to_numpy(dtype=np.float64)
    distinct, counts = np.unique(numbers, return_counts=True)
    number, others = float(distinct[counts.argmax()]), numbers[numbers != distinct[counts.argmax()]]
    if counts.max() < max(TIMES, OFTEN * len(numbers)) or len(distinct) <= MANY:
        return None
    low, high = np.quantile(others, [0.1, 0.9])
    return number if not low - ROOM * (high - low) <= number <= high + ROOM * (high - low) else None

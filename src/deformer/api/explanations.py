"""Explanations: which values of a row surprise, by how many nats, and what was expected in their place."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from deformer.api import tables
from deformer.api.tables import TableModel
from deformer.data.table import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Explanation:
    """What surprises about each row of a table, in nats; frames of (rows, columns), NaN where a value is missing.

    Args:
        values: What was observed.
        surprise: -ln p(value | all other values of the row).
        share: The value's part of the row's score: -ln p(value | what came before), averaged over orders. The parts of
            a row add up to its -`score_samples(combine="mean")`.
        expected: The mean of numbers and the likeliest label, given all other values of the row.
    """

    values: pd.DataFrame
    surprise: pd.DataFrame
    share: pd.DataFrame
    expected: pd.DataFrame

    def renamed(self, names: Mapping[str, Hashable]) -> "Explanation":
        """Call columns as the user does, who may have numbers for names."""
        return Explanation(*(getattr(self, f.name).rename(columns=names) for f in fields(self)))

    def row(self, at: int) -> pd.DataFrame:
        """Give one row's columns, the most surprising first."""
        parts = {"value": self.values, "expected": self.expected, "surprise": self.surprise, "share": self.share}
        table = pd.DataFrame({name: frame.iloc[at].astype(object) for name, frame in parts.items()})
        return table.astype({"surprise": float, "share": float}).sort_values("surprise", ascending=False)

    def plot(self, at: int, n_columns: int = 12, axes: "Axes | None" = None) -> "Axes":
        """Draw one row's most surprising columns as bars, with what was there and what was expected."""
        from matplotlib.figure import Figure  # costs half a second to import

        axes = Figure(figsize=(7, 0.4 * n_columns + 1), layout="constrained").subplots() if axes is None else axes
        top = self.row(at).head(n_columns).iloc[::-1]
        axes.barh(range(len(top)), top["surprise"].fillna(0.0), color="tab:red", alpha=0.8)
        labels = [
            f"{n} = {_short(v)} (expected {_short(e)})"
            for n, v, e in zip(top.index, top.value, top.expected, strict=True)
        ]
        axes.set_yticks(range(len(top)), labels)
        axes.set_xlabel("surprise given all other values (nats)")
        return axes


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def explain(table: TableModel, values: Any, n_orders: int) -> Explanation:
    """Explain every row of a table."""
    rows, log_base = table.codec.encode(values)
    frame, expected, surprise = surprises(table, values, (rows, log_base), table.codec.names)
    share = pd.DataFrame(-tables.mean_terms(table, rows, log_base, n_orders), frame.index, frame.columns)
    return Explanation(frame, surprise, share.mask(~rows.observed.numpy()), expected)


def surprises(
    table: TableModel, values: Any, encoded: tuple[Rows, Tensor], names: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Give values, expectations and surprises given all other values, of some columns of a table and its codes."""
    codec, names = table.codec, list(names)
    frame, at = codec.frame_of(values).reindex(columns=names), table.model.schema.index(names)
    rows, log_base = encoded
    missing, questions = ~rows.observed.numpy()[:, at], tables.expectations(table)
    nats, expected = np.zeros(missing.shape), {}
    for i, (column, name) in enumerate(zip(at, names, strict=True)):
        answers = []
        for b, predictive in tables.given_others(table, rows, name, n_orders=1):
            codes, base = rows.values[b, column].double().numpy(), log_base[b, column].numpy()
            nats[b, i] = -predictive.log_prob_of_codes(codes) - base
            answers.append(questions[name](predictive))
        expected[name] = codec.from_days(name, np.concatenate(answers)).set_axis(frame.index)
    return frame, pd.DataFrame(expected), pd.DataFrame(nats, frame.index, names).mask(missing)

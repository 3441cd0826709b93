"""Explanations: which values of a row surprise, by how many nats, and what was expected in their place."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from deformer.api import tables
from deformer.api.tables import TableModel
from deformer.data.columns import values_of
from deformer.data.libraries import relabelled
from deformer.data.table import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NATS = ("surprise", "excess", "share")
LONGEST = 32  # letters of a value in a picture


@dataclass(frozen=True)
class Explanation:
    """What surprises about each row of a table, in nats; frames of (rows, columns), NaN where a value is missing.

    Args:
        values: What was observed.
        expected: The mean of numbers and the likeliest label, given all other values of the row.
        surprise: -ln p(value | all other values of the row).
        excess: How far this lies above what was expected: about 0 for an ordinary value, whatever its column's units.
        share: The value's part of the row's score: -ln p(value | what came before), averaged over orders. The parts of
            a row add up to its -`score_samples(combine="mean")`.
    """

    values: pd.DataFrame
    expected: pd.DataFrame
    surprise: pd.DataFrame
    excess: pd.DataFrame
    share: pd.DataFrame

    def renamed(self, own: "pd.Index[Any]") -> "Explanation":
        """Call columns as the user does."""
        return Explanation(*(relabelled(getattr(self, f.name), own) for f in fields(self)))

    def row(self, at: int) -> pd.DataFrame:
        """Give one row's columns, those of the largest excess first."""
        # A row of one type would turn whole numbers beside others into floats.
        table = pd.DataFrame({name: frame.iloc[[at]].astype(object).iloc[0] for name, frame in self.parts().items()})
        return table.astype(dict.fromkeys(NATS, float)).sort_values("excess", ascending=False)

    def parts(self) -> dict[str, pd.DataFrame]:
        """Name what there is of every value, in nats but for the first two."""
        own = {name: getattr(self, name) for name in NATS}
        return {"value": self.values, "expected": self.expected, **own}

    def plot(self, at: int, n_columns: int = 12, axes: "Axes | None" = None) -> "Axes":
        """Draw the excess of one row's most surprising columns, with what was there and what was expected."""
        from matplotlib.figure import Figure  # costs half a second to import

        axes = Figure(figsize=(7, 0.4 * n_columns + 1), layout="constrained").subplots() if axes is None else axes
        top = self.row(at).head(n_columns).iloc[::-1]
        axes.barh(range(len(top)), top["excess"].fillna(0.0), color="tab:red", alpha=0.8)
        labels = [
            f"{n} = {_short(v)} (expected {_short(e)})".replace("$", r"\$")  # which begins a formula
            for n, v, e in zip(top.index, top.value, top.expected, strict=True)
        ]
        axes.set_yticks(range(len(top)), labels)
        axes.set_xlabel("excess surprise (nats)")
        return axes


def _short(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.4g}"
    text = str(value.floor("s") if isinstance(value, pd.Timestamp | pd.Timedelta) else value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def explain(table: TableModel, values: Any, n_orders: int) -> Explanation:
    """Explain every row of a table."""
    rows, log_base = table.codec.encode(values)
    frame, expected, surprise, excess = surprises(table, values, (rows, log_base), table.codec.names)
    share = pd.DataFrame(-tables.mean_terms(table, rows, log_base, n_orders), frame.index, frame.columns)
    return Explanation(frame, expected, surprise, excess, share.mask(~rows.observed.numpy()))


def surprises(
    table: TableModel, values: Any, encoded: tuple[Rows, Tensor], names: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Give values and, given all others, expectations, surprises and excesses of some columns of a table."""
    codec, names = table.codec, list(names)
    frame, at = codec.frame_of(values).reindex(columns=names), table.model.schema.index(names)
    rows, log_base = encoded
    missing, questions = ~rows.observed.numpy()[:, at], tables.expectations(table)
    nats, excess, expected = np.zeros(missing.shape), np.zeros(missing.shape), {}
    for i, (column, name) in enumerate(zip(at, names, strict=True)):
        answers = []
        for b, predictive in tables.given_others(table, rows, name, n_orders=1):
            codes, base = rows.values[b, column].double().numpy(), log_base[b, column].numpy()
            of_code = -predictive.log_prob_of_codes(codes)
            nats[b, i] = of_code - base
            # The base of numbers is a matter of units; that of labels tells how rare they are among those of one code.
            told = of_code if values_of(predictive.column) is None else nats[b, i]
            excess[b, i] = told - predictive.entropy()
            answers.append(questions[name](predictive))
        expected[name] = codec.in_units(name, np.concatenate(answers)).set_axis(frame.index)
    in_nats = (pd.DataFrame(found, frame.index, names).mask(missing) for found in (nats, excess))
    return frame, pd.DataFrame(expected), *in_nats

"""What the command line does with table models: a chunk of a file at a time, from frame to frame."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from deformer.api import tables
from deformer.api.explanations import explain
from deformer.api.files import check_output, is_table, model_path
from deformer.api.tables import TableModel, load_table, save_table
from deformer.data.chunks import ChunkWriter, Layout, read_all, read_chunks
from deformer.data.doubts import doubts
from deformer.data.frames import make_codec
from deformer.data.libraries import names_of_array
from deformer.data.seeds import derive_of_piece
from deformer.errors import InputError
from deformer.tasks.density import NLL
from deformer.train.process import keep_memory

ROWS_PER_CHUNK = 20_000
WRITTEN = (".csv", ".parquet")


def fit(
    path: Path,
    output: Path,
    minutes: float | None,
    epochs: float | None,
    steps: int | None,
    validation: Path | None,
    layout: Layout,
    numbers: Sequence[str],
    seed: int,
    device: str,
) -> str:
    """Learn a density from a file and write it; say why the training ended."""
    keep_memory()
    check_output(output, [".deformer", ".safetensors"])
    if both := sorted({*layout.labels} & {*numbers}):
        raise InputError(f"Column {both[0]!r} cannot hold both labels and numbers; name it once.")
    frame = read_all(path, layout)
    if layout.index not in (None, frame.index.name):
        raise InputError(f"No column is called {layout.index!r}; there are {', '.join(list(frame.columns)[:8])}.")
    if path.suffix != ".parquet" and not layout.header and tuple(frame) == names_of_array(frame.shape[1]):
        print(
            f"Columns are called x0, x1, ...; if the first line of {path} holds names, say --header.", file=sys.stderr
        )
    kinds = {**dict.fromkeys(layout.labels, "label"), **dict.fromkeys(numbers, "number")}
    for doubt in doubts(frame, kinds):
        print(doubt, file=sys.stderr)
    held_out = None
    if validation is not None:  # dates that one bad cell made labels here are labels there too
        held_out = read_all(validation, replace(make_codec(frame, kinds).layout, header=layout.header))
    shown = sys.stderr.isatty()
    limits: dict[str, Any] = {"minutes": minutes, "epochs": epochs, "steps": steps}
    table, history = tables.learn(frame, held_out, kinds=kinds, **limits, seed=seed, device=device, progress=shown)
    best = history.best
    notes = {} if best is None else asdict(best)
    save_table(output, table, {"source": path.name, "stopped": history.stopped, **notes})
    if history.stopped == "interrupted":
        print(f"interrupted; the best weights so far are in {output}", file=sys.stderr)
    print(table.codec.describe().to_string())
    if best is not None and best.validation_nll is not None:
        print(f"validation NLL of codes {best.validation_nll:.3f} nats a row, after {best.minutes:.1f} minutes")
    return history.stopped


def open_table(model: str, device: str) -> TableModel:
    """Load a table model onto a device, ready to answer."""
    keep_memory()
    return load_table(model_path(model), device)


def open_if_table(model: str, device: str) -> TableModel | None:
    """Load a table model; None where another kind of model is named."""
    return open_table(model, device) if is_table(model) else None


def score(table: TableModel, path: Path, output: Path | None, n_orders: int) -> None:
    """Write the log-likelihood of every row of a file in nats; higher is more normal."""

    def scores(chunk: pd.DataFrame, _: int) -> pd.DataFrame:
        return tables.summary(tables.per_order(table, chunk, n_orders)).set_axis(chunk.index).round(6)

    through(table, path, output, scores)


def evaluate(table: TableModel, path: Path, n_orders: int, n_rows: int | None, seed: int) -> NLL:
    """Score a file, or some rows of it that are drawn at random."""
    frame = read_all(path, table.codec.layout)
    if n_rows is not None and n_rows < len(frame):
        frame = frame.sample(n_rows, random_state=seed % 2**32)
    return NLL(-torch.from_numpy(tables.per_order(table, frame, n_orders)))


def impute(table: TableModel, path: Path, output: Path | None, strategy: str, n_imputations: int, seed: int) -> None:
    """Write a file without missing values, or several draws of it with their numbers in a column `imputation`."""
    check_draws(strategy, n_imputations)

    def filled(chunk: pd.DataFrame, start: int) -> pd.DataFrame:
        if strategy != "draw":
            return tables.complete_expected(table, chunk, strategy)
        seeds = [derive_of_piece(seed, start, i) for i in range(n_imputations)]
        return numbered([tables.complete(table, chunk, s) for s in seeds])

    through(table, path, output, filled)


def check_draws(strategy: str, n_imputations: int) -> None:
    """Refuse several imputations that would all be alike.

    Raises:
        InputError: They would.
    """
    if n_imputations > 1 and strategy != "draw":
        raise InputError(f"n_imputations must be 1 for {strategy!r}; only draws differ.")


def numbered(imputations: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put several imputations of a table below one another, with their numbers in a column `imputation`.

    Raises:
        InputError: The table has such a column.
    """
    if len(imputations) == 1:
        return imputations[0]
    if "imputation" in imputations[0]:
        raise InputError("The table has a column 'imputation' itself; draw one imputation at a time.")
    return pd.concat([filled.assign(imputation=i) for i, filled in enumerate(imputations)])


def sample(table: TableModel, n: int, given: Path | None, output: Path | None, seed: int, temperature: float) -> None:
    """Write rows that the model draws."""
    check_output(output, WRITTEN)
    evidence = None if given is None else read_all(given, table.codec.layout)
    with ChunkWriter(output) as writer:
        writer.write(tables.draw_rows(table, n, evidence, seed, temperature))


def explanations(table: TableModel, path: Path, output: Path | None, n_orders: int) -> None:
    """Write one line per row and column: value, expectation; surprise, excess and share in nats."""

    def lines(chunk: pd.DataFrame, start: int) -> pd.DataFrame:
        e = explain(table, chunk.reset_index(drop=True), n_orders)
        parts = {name: part.astype(object).stack(future_stack=True) for name, part in e.parts().items()}
        long = pd.concat(parts, axis=1)
        long = long.rename_axis(["row", "column"]).reset_index()
        named = long if chunk.index.name is None else long.set_index(chunk.index[long["row"]])
        return named.assign(row=long["row"].to_numpy() + start).astype({"value": str, "expected": str})

    through(table, path, output, lines)


def conditional(table: TableModel, path: Path, output: Path | None, target: str, quantiles: Sequence[float]) -> None:
    """Write p(column | the row's other values): probabilities of labels or levels, or mean, std and quantiles."""
    through(table, path, output, lambda chunk, _: tables.conditional(table, chunk, target, quantiles))


def through(
    table: TableModel, path: Path, output: Path | None, work: Callable[[pd.DataFrame, int], pd.DataFrame]
) -> None:
    """Read a file a chunk at a time, and write what becomes of each; the result appears when all of it is there.

    Args:
        work: Takes a chunk and the number of rows before it.
    """
    check_output(output, WRITTEN)
    if output is not None and output.resolve() == path.resolve():
        raise InputError(f"{output} is what is read; name another file for the result.")
    start = 0
    with ChunkWriter(output) as writer:
        for chunk in read_chunks(path, ROWS_PER_CHUNK, table.codec.layout):
            writer.write(work(chunk, start))
            start += len(chunk)

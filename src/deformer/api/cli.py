"""The command `deformer`. Nothing heavy is imported before a command runs."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from deformer.api.options import (
    By,
    Config,
    DataDir,
    Device,
    Engine,
    Input,
    Model,
    On,
    Orders,
    Output,
    Part,
    Rows,
    Seed,
    Strategy,
    Workers,
)
from deformer.errors import DeformerError, InputError

app = typer.Typer(
    help="Order-agnostic density estimation: p(any feature | any others, observed in any order).",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(asked: bool) -> None:
    if asked:
        from deformer import __version__

        print(f"deformer {__version__}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for pictures and results.")] = Path(
        "quickstart"
    ),
    minutes: Annotated[float, typer.Option(help="Minutes of training, for both models together.", min=0.01)] = 2.5,
    source: Annotated[str, typer.Option(help="digits or digits-binary.")] = "digits",
    seed: Seed = 0,
    device: On = Device.auto,
    config: Config = None,
) -> None:
    """Train on small images of digits, report scores and draw pictures, in about three minutes."""
    from deformer.api.quickstart import run

    run(output, minutes, source, seed, device.value)


@app.command()
def train(
    source: Annotated[str, typer.Option(help="digits, digits-binary, mnist-binarized, notmnist, or a table.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model to write.")] = Path("model.safetensors"),
    directory: Annotated[Path | None, typer.Option(help="Folder for checkpoints and logs.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in --directory.")] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after this many minutes, or when validation stops improving.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Stop after at most this many steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Stop after at most this many passes over the rows.")] = None,
    preset: Annotated[
        str, typer.Option(help="default (suited to the data and the time) or paper (the paper's own).")
    ] = "default",
    wiring: Annotated[str | None, typer.Option(help="two_stream, interleaved or single_stream.")] = None,
    d_model: Annotated[int | None, typer.Option(help="Width of a token.", min=1, max=16_384)] = None,
    n_layers: Annotated[int | None, typer.Option(help="Number of blocks.", min=1, max=1_000)] = None,
    n_heads: Annotated[int | None, typer.Option(help="Attention heads.", min=1, max=1_024)] = None,
    recipe: Annotated[str | None, typer.Option(help="muon or adam.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of Adam.")] = None,
    muon_lr: Annotated[float | None, typer.Option(help="Learning rate of Muon.")] = None,
    tokens_per_step: Annotated[int | None, typer.Option(help="Observed features in a batch.")] = None,
    rows_per_step: Annotated[int | None, typer.Option(help="Rows in a batch.")] = None,
    averaging: Annotated[float | None, typer.Option(help="Decay of an average of the weights.")] = None,
    patience: Annotated[int | None, typer.Option(help="Validations without improvement before stopping.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float64.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    rows: Annotated[int, typer.Option(help="Random test rows to report on.", min=2)] = 500,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: On = Device.auto,
    devices: Annotated[int, typer.Option(help="Processes on this machine, which share every batch.", min=1)] = 1,
    nodes: Annotated[int, typer.Option(help="Machines that run this command together.", min=1)] = 1,
    config: Config = None,
) -> None:
    """Train a model on a data set or a table."""
    from deformer.api.training import train as run

    network = {"wiring": wiring, "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
    training = {
        **{"minutes": minutes, "steps": steps, "epochs": epochs, "recipe": recipe, "lr": lr, "muon_lr": muon_lr},
        **{"tokens_per_step": tokens_per_step, "rows_per_step": rows_per_step, "averaging": averaging},
        **{"patience": patience, "precision": precision, "threads": threads, "seed": seed},
    }
    where = (device.value, devices, nodes)
    stopped = run(source, output, directory, resume, preset, network, training, rows, data_dir, *where)
    if stopped == "interrupted":
        raise typer.Exit(130)


@app.command()
def score(
    model: Model,
    rows: Input,
    orders: Orders = 4,
    part: Part = "test",
    output: Output = None,
    engine: By = Engine.local,
    workers: Workers = 2,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: On = Device.auto,
    config: Config = None,
) -> None:
    """Write ln p of each row in nats (higher is more normal): mean and ensemble over orders, and their spread.

    A table model uses orders of its own seed and scores whole files.
    """
    from deformer.api import files, table_commands, tables
    from deformer.data.seeds import generator
    from deformer.tasks.density import nll

    if _is_folder(rows, engine):
        return _in_parts(engine, workers, rows, output, model=model, device=device.value, kind="score", n_orders=orders)
    if opened := table_commands.open_if_table(model, device.value):
        return table_commands.score(opened, Path(rows), output, orders)
    files.check_output(output, [".csv"])
    network = files.open_model(model, device.value)
    table = files.read_rows(network, rows, data_dir, part)
    scores = nll(network, table, n_orders=orders, generator=generator(seed, "orders"))
    columns = tables.summary(-scores.per_order.numpy())
    files.write_csv(list(columns), [[f"{v:.6f}" for v in line] for line in columns.to_numpy().tolist()], output)


@app.command()
def sample(
    model: Model,
    n: Annotated[int, typer.Option("--n", "-n", help="Rows to draw.", min=1, max=1_000_000)] = 10,
    given: Annotated[str | None, typer.Option(help="Table with evidence to keep: one row, or n rows.")] = None,
    temperature: Annotated[float, typer.Option(help="Below 1, likely values become likelier.")] = 1.0,
    output: Output = None,
    seed: Seed = 0,
    device: On = Device.auto,
    config: Config = None,
) -> None:
    """Draw new rows; images as a sheet if the output ends in .png."""
    from deformer.api import files, table_commands
    from deformer.data.seeds import generator
    from deformer.tasks.sampling import sample as draw

    if opened := table_commands.open_if_table(model, device.value):
        return table_commands.sample(opened, n, None if given is None else Path(given), output, seed, temperature)
    files.check_output(output, [".csv", ".npz", ".png"])
    network = files.open_model(model, device.value)
    evidence = None if given is None else files.read_rows(network, given, None)
    rows = draw(network, n, given=evidence, temperature=temperature, generator=generator(seed, "sample"))
    _write(rows, network.schema, output)


@app.command()
def impute(
    model: Model,
    rows: Input,
    strategy: Annotated[Strategy, typer.Option(help="draw: jointly; mean, mode: each separately.")] = Strategy.draw,
    n_imputations: Annotated[int, typer.Option(help="Independent draws, one below the other.", min=1, max=10_000)] = 1,
    part: Part = "test",
    output: Output = None,
    engine: By = Engine.local,
    workers: Workers = 2,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: On = Device.auto,
    config: Config = None,
) -> None:
    """Fill in missing values; observed values stay unchanged."""
    from deformer.api import files, table_commands
    from deformer.data.seeds import generator
    from deformer.tasks.imputation import impute as fill

    if _is_folder(rows, engine):
        options = {"strategy": strategy.value, "n_imputations": n_imputations, "seed": seed}
        return _in_parts(engine, workers, rows, output, model=model, device=device.value, kind="impute", **options)
    if opened := table_commands.open_if_table(model, device.value):
        return table_commands.impute(opened, Path(rows), output, strategy.value, n_imputations, seed)
    files.check_output(output, [".csv", ".npz", ".png"])
    network = files.open_model(model, device.value)
    table = files.read_rows(network, rows, data_dir, part)
    draws = generator(seed, "impute")
    filled = fill(network, table, strategy=strategy.value, n_imputations=n_imputations, generator=draws)
    _write(filled.flatten(0, 1), network.schema, output)


def _is_folder(rows: str, engine: Engine) -> bool:
    folder = Path(rows).is_dir()
    if not folder and engine != Engine.local:
        raise InputError(f"--engine {engine.value} works on a folder of Parquet files, and {rows} is none.")
    return folder


def _in_parts(engine: str, workers: int, rows: str, output: Path | None, **job: Any) -> None:
    from deformer.api import parts

    parts.run(parts.Job(**job), Path(rows), output, engine, workers)


def _write(rows: Any, schema: Any, output: Path | None) -> None:
    from deformer.api import files

    if output is None or output.suffix != ".png":
        files.write_rows(rows, schema, output)
        return
    if schema.image_shape is None:
        raise InputError("Only images can be drawn; this model's rows are none. Write .csv or .npz.")
    from deformer.api.plots import sheet
    from deformer.train.checkpoint import write_bytes

    write_bytes(output, sheet(rows, schema.image_shape))


@app.command()
def evaluate(
    model: Model,
    source: Input,
    orders: Orders = 10,
    rows: Rows = None,
    part: Part = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: On = Device.auto,
    config: Config = None,
) -> None:
    """Report the negative log-likelihood of a whole data set, and how closely orders agree."""
    from deformer.api import files, table_commands
    from deformer.api.report import report, spell
    from deformer.data.seeds import generator
    from deformer.data.table import subset
    from deformer.tasks.density import nll

    if opened := table_commands.open_if_table(model, device.value):
        scores, schema = table_commands.evaluate(opened, Path(source), orders, rows, seed), opened.model.schema
    else:
        network = files.open_model(model, device.value)
        table = subset(files.read_rows(network, source, data_dir, part), rows, generator(seed, "rows"))
        scores, schema = nll(network, table, n_orders=orders, generator=generator(seed, "orders")), network.schema
    figures = report(scores, len(schema))
    print(json.dumps(_as_json(figures), allow_nan=False) if as_json else spell(figures))


def _as_json(value: Any) -> Any:
    """Put null in the place of numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _as_json(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


Table = Annotated[Path, typer.Argument(help="A .csv, .csv.gz, .tsv or .parquet file.", show_default=False)]


@app.command()
def fit(
    table: Table,
    output: Annotated[Path, typer.Option("--output", "-o", help="The model to write.")] = Path("model.deformer"),
    minutes: Annotated[float | None, typer.Option(help="Maximum training minutes; 3 if no limit.", min=0.001)] = None,
    epochs: Annotated[float | None, typer.Option(help="Maximum passes over the rows; default 300.", min=0.001)] = None,
    steps: Annotated[int | None, typer.Option(help="Maximum optimiser steps.", min=1)] = None,
    validation: Annotated[Path | None, typer.Option(help="Table of rows to choose the best weights on.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Treat this column as labels, whatever its values.")] = None,
    number: Annotated[list[str] | None, typer.Option(help="Treat this column as numbers, whatever its values.")] = None,
    index: Annotated[str | None, typer.Option("--id", help="A column of row names, repeated in results.")] = None,
    header: Annotated[bool, typer.Option("--header", help="Line 1 holds names, even if it contains numbers.")] = False,
    seed: Seed = 0,
    device: On = Device.auto,
    config: Config = None,
) -> None:
    """Learn the density of a table with mixed columns and missing values, without preparation."""
    from deformer.api import table_commands
    from deformer.data.chunks import Layout

    chosen = (Layout(label or (), header=header, index=index), number or [])
    stopped = table_commands.fit(table, output, minutes, epochs, steps, validation, *chosen, seed, device.value)
    if stopped == "interrupted":
        raise typer.Exit(130)


@app.command()
def explain(
    model: Model,
    table: Table,
    orders: Orders = 8,
    output: Output = None,
    device: On = Device.auto,
    config: Config = None,
) -> None:
    """Report how surprising each value of each row is, in nats, and what was expected in its place."""
    from deformer.api import table_commands

    table_commands.explanations(table_commands.open_table(model, device.value), table, output, orders)


@app.command()
def conditional(
    model: Model,
    table: Table,
    target: Annotated[str, typer.Option(help="The column to predict.")],
    quantile: Annotated[list[float], typer.Option(help="Quantiles of numbers.")] = [0.05, 0.5, 0.95],  # noqa: B006
    output: Output = None,
    device: On = Device.auto,
    config: Config = None,
) -> None:
    """Write the distribution of a column in each row, given the row's other values."""
    from deformer.api import table_commands

    table_commands.conditional(table_commands.open_table(model, device.value), table, output, target, quantile)


@app.command()
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65_535)] = 8000,
    snapshots: Annotated[Path | None, typer.Option(help="Folder to keep session snapshots in across restarts.")] = None,
    ordinary: Annotated[Path | None, typer.Option(help="Table of ordinary rows, to calibrate alarms on.")] = None,
    alarm_rate: Annotated[float, typer.Option(help="Maximum share of ordinary rows that raise an alarm.")] = 0.01,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Accept all requests, without DEFORMER_TOKEN.")] = False,
    rows: Annotated[int, typer.Option(help="Maximum rows per request.", min=1)] = 10_000,
    sessions: Annotated[int, typer.Option(help="Maximum open sessions, and maximum snapshots.", min=1)] = 100_000,
    waiting: Annotated[int, typer.Option(help="Maximum waiting requests of each kind.", min=1)] = 256,
    seconds: Annotated[float, typer.Option(help="Seconds until a request is given up.", min=0.1)] = 30.0,
    device: On = Device.auto,
    config: Config = None,
) -> None:
    """Serve a model over HTTP, with a page to try it; clients send the token in DEFORMER_TOKEN."""
    try:
        from deformer.api.service import run
        from deformer.api.service.work import Limits
    except ImportError as error:
        raise InputError(f"The service needs more packages: pip install 'deformer[serve]' ({error.name}).") from error

    if not math.isfinite(seconds):
        raise InputError("--seconds must be finite.")
    admission = run.choose_admission(host, no_auth)
    run.check_port(host, port)
    engine = run.open_engine(model, device.value, ordinary, alarm_rate)
    limits = Limits(rows=rows, sessions=sessions, waiting=waiting, seconds=seconds)
    run.serve(engine, host, port, admission, limits, snapshots)


@app.command()
def info(model: Model, config: Config = None, device: On = Device.cpu) -> None:
    """Describe a model: its features or a table's columns, its network and the notes saved with it."""
    from dataclasses import asdict

    from deformer.api import files, tables
    from deformer.train.checkpoint import read_notes

    network, path = files.open_model(model, device.value), files.model_path(model)
    described: dict[str, Any] = {
        "parameters": network.n_parameters,
        "config": asdict(network.config),
        "notes": read_notes(path),
        "n_features": len(network.schema),
    }
    if files.is_table(model):
        described["columns"] = tables.load_table(path).codec.describe().reset_index().to_dict("records")
    else:
        described["features"] = [
            {"name": f.name, **asdict(f.domain), "domain": type(f.domain).__name__} for f in network.schema.features[:8]
        ]
    print(json.dumps(_as_json(described), indent=2, allow_nan=False))


# The parent of all mistakes in usage, to which typer gives no public name.
_UsageError: Any = typer.BadParameter.__base__
_NO_MEMORY = re.compile("MemoryError|allocate memory|out of memory|size calculation overflowed")


def main() -> NoReturn:
    """Run the command; one line and exit code 2 for whatever the caller can put right."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="deformer", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except _UsageError as error:
        _fail(f"{error.format_message().rstrip('.')}. Try --help.")
    except DeformerError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno is None:  # it did not come from the system
            raise
        _fail(f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror}.")
    except (MemoryError, RuntimeError) as error:
        if not _NO_MEMORY.search(repr(error)):
            raise
        _fail("There is not enough memory for this; ask for less at a time, or for a smaller network.")


def _fail(text: str) -> NoReturn:
    print(f"deformer: error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

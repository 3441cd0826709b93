"""Table models: a network and the codes of its columns, learned from a frame, asked and answering in frames."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from deformer.api.defaults import by_tokens, suited
from deformer.config import ModelConfig, TrainConfig, check_names
from deformer.data.columns import Column, Labels, has_order, point_mass, values_of
from deformer.data.frames import Codec, make_codec
from deformer.data.orders import fixed_orders, random_orders
from deformer.data.seeds import generator
from deformer.data.table import Rows, split
from deformer.data.times import from_days
from deformer.errors import CheckpointError, InputError
from deformer.nn.heads import Conditionals
from deformer.nn.model import DEformer, State, new_model
from deformer.nn.tokens import EmbeddingTokens
from deformer.tasks.calibration import Per, calibrate
from deformer.tasks.density import batches, log_prob_terms
from deformer.tasks.predictive import Predictive, ask_together
from deformer.tasks.sampling import complete as draw_missing
from deformer.tasks.sampling import observe_known, sample
from deformer.tasks.streaming import Alarms
from deformer.train.checkpoint import describe, load, read_header, write_tensors
from deformer.train.fit import fit
from deformer.train.history import History
from deformer.train.process import choose_device

Combine = Literal["ensemble", "mean"]
Names = Sequence[str]
Floats = npt.NDArray[np.float64]
Answer = npt.NDArray[Any]

MOST_EPOCHS = 300
MINUTES = 3.0  # of training, where no limit is given
ORDERS = 4  # of the evidence, over which conditionals are averaged


@dataclass(frozen=True)
class TableModel:
    """A network, how its columns are coded, and the seed of whatever is drawn in asking it."""

    codec: Codec
    model: DEformer
    seed: int = 0

    @classmethod
    def of(cls, model: DEformer, seed: int = 0) -> "TableModel":
        """Take a model for one of tables whose columns hold its own values."""
        return cls(Codec.of_schema(model.schema), model, seed)


def learn(
    table: Any,
    validation: Any = None,
    *,
    kinds: Mapping[Any, str | Column] | None = None,
    levels: bool = True,
    minutes: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    network: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    large: bool = False,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> tuple[TableModel, History]:
    """Learn a density from a table.

    Args:
        validation: Rows that choose the best weights. None: a tenth of the table.
        kinds, levels: What columns are, as `make_codec` takes it.
        minutes, epochs, steps: Limits of the training, whichever comes first. None at all: three minutes.
        network, training: Changes to what the size of the table and, without steps or epochs, the time would choose.
        large: Whether the network is as large however little the time.

    Raises:
        InputError: No table, fewer than two rows, or impossible choices.
    """
    check_names(ModelConfig, network or ())
    check_names(TrainConfig, training or ())
    codec = make_codec(table, kinds, levels)
    rows, _ = codec.encode(table)
    if validation is not None:
        held_out, _ = codec.encode(validation)
    else:
        rows, held_out = split(rows, 0.1, generator(seed, "held out"))
    own = by_tokens(training or {})
    changes = {"minutes": minutes, "epochs": epochs, "steps": steps, "seed": seed, **own}
    if all(changes[limit] is None for limit in ("minutes", "epochs", "steps")):
        changes["minutes"] = MINUTES
    shape, config = suited(rows, TrainConfig(**changes), device, large=large)
    passes = MOST_EPOCHS if config.epochs is None else config.epochs
    config = TrainConfig(**{**asdict(config), "epochs": passes, **own})
    model = new_model(codec.schema, ModelConfig(**{**asdict(shape), **(network or {})}), seed)
    history = fit(model, rows, config, validation=held_out, device=device, progress=progress)
    for i, column in enumerate(codec.columns):
        if isinstance(column, Labels) and not column.others and column.labels:
            assert isinstance(model.tokens, EmbeddingTokens)
            model.tokens.settle_last_label(i, len(column.labels) + 1)
    return TableModel(codec, model.eval(), seed), history


def save_table(path: str | Path, table: TableModel, notes: Mapping[str, Any] | None = None) -> None:
    """Write weights, schema, config, codes and seed to one file."""
    header = {**describe(table.model), "codec": table.codec.to_dict(), "seed": table.seed, "notes": dict(notes or {})}
    write_tensors(Path(path), table.model.state_dict(), header)


def load_table(path: str | Path, device: str = "cpu") -> TableModel:
    """Read what `save_table` wrote, for use on a device.

    Raises:
        CheckpointError: The file is unreadable or holds no table model.
    """
    header = read_header(Path(path))
    if "codec" not in header:
        raise CheckpointError(f"{path} holds a model, but not how the columns of a table are coded.")
    model = load(path).to(choose_device(device)).eval()
    return TableModel(Codec.from_dict(header["codec"]), model, header["seed"])


def sequences(table: TableModel, n_orders: int) -> list[Tensor]:
    """Draw orders of all features, the same at every call, under which every row is scored."""
    if n_orders < 1:
        raise InputError(f"n_orders must be at least 1, not {n_orders}.")
    draws = generator(table.seed, "sequences")
    nothing = torch.zeros(1, len(table.codec.names), dtype=torch.bool)
    return [random_orders(nothing, draws)[0] for _ in range(n_orders)]


def terms(table: TableModel, values: Any, n_orders: int = 1) -> tuple[Floats, Rows]:
    """Give the log-probability of every value under every order: (orders, rows, features) in nats, 0 where missing."""
    rows, log_base = table.codec.encode(values)
    return torch.stack(list(_by_order(table, rows, log_base, n_orders))).numpy(), rows


def mean_terms(table: TableModel, rows: Rows, log_base: Tensor, n_orders: int) -> Floats:
    """Give the log-probability of every value, averaged over orders: (rows, features) in nats, 0 where missing."""
    total = sum(_by_order(table, rows, log_base, n_orders), torch.zeros(()))
    return (total / n_orders).numpy()


def _by_order(
    table: TableModel, rows: Rows, log_base: Tensor, n_orders: int, targets: Names | None = None, given: Names = ()
) -> Iterator[Tensor]:
    """Give what `terms` gives, an order at a time: (rows, features)."""
    scored = log_base.new_zeros(log_base.shape[1]).bool()
    scored[rows.schema.index(rows.schema.names if targets is None else targets)] = True
    scored[rows.schema.index(given)] = False
    for sequence in sequences(table, n_orders):
        terms = log_prob_terms(table.model, rows, sequence=sequence, targets=targets, given=given)
        yield terms.double() + log_base * scored


def per_order(
    table: TableModel, values: Any, n_orders: int = 1, targets: Names | None = None, given: Names = ()
) -> Floats:
    """Give ln p(row), or of some columns, or of some given others, under every order: (orders, rows) in nats."""
    rows, log_base = table.codec.encode(values)
    sums = [terms.sum(-1) for terms in _by_order(table, rows, log_base, n_orders, targets, given)]
    return torch.stack(sums).numpy()


def log_prob(
    table: TableModel,
    values: Any,
    n_orders: int = 1,
    combine: Combine = "ensemble",
    targets: Names | None = None,
    given: Names = (),
) -> Floats:
    """Give ln p(row), or of some columns, or of some given others, in nats; higher is more normal."""
    return combined(per_order(table, values, n_orders, targets, given), combine)


def combined(scores: Floats, combine: Combine) -> Floats:
    """Combine what several orders say, (orders, rows) in nats: by the mean of probabilities, or of their logarithms."""
    if combine not in ("ensemble", "mean"):
        raise InputError(f"combine must be 'ensemble' or 'mean', not {combine!r}.")
    averaged: Floats = scores.mean(0)
    together: Floats = np.logaddexp.reduce(scores, 0) - np.log(len(scores))
    return averaged if combine == "mean" else together


def summary(scores: Floats) -> pd.DataFrame:
    """Name what several orders say of each row, (orders, rows) in nats: both combinations, and their spread."""
    mean, ensemble = (combined(scores, how) for how in ("mean", "ensemble"))
    return pd.DataFrame({"mean_over_orders": mean, "ensemble_over_orders": ensemble, "order_spread": scores.std(0)})


def draw_rows(
    table: TableModel, n: int, given: Any = None, seed: int | None = None, temperature: float = 1.0
) -> pd.DataFrame:
    """Draw rows, keeping the evidence of one given row, or of n rows."""
    if not isinstance(n, int | np.integer) or n < 1:
        raise InputError(f"The number of rows to draw must be a whole number of at least 1, not {n!r}.")
    seed = table.seed if seed is None else seed
    evidence = None if given is None else table.codec.encode(given)[0]
    draws = generator(seed, "sample")
    orders = _orders(table, torch.zeros(n, len(table.codec.names), dtype=torch.bool), draws)
    choices: dict[str, Any] = {"given": evidence, "orders": orders, "temperature": temperature}
    codes = sample(table.model, n, generator=draws, **choices).double().numpy()
    drawn = table.codec.decode(codes, draw=np.random.default_rng(seed).random)
    if given is None:
        return drawn
    frame = table.codec.frame_of(given)
    return table.codec.fill(frame.iloc[np.arange(n) % len(frame)].reset_index(drop=True), drawn)


def complete(table: TableModel, values: Any, seed: int | None = None) -> pd.DataFrame:
    """Draw every missing value of a table jointly, given what its row has; what is there comes back as it was."""
    seed = table.seed if seed is None else seed
    rows, _ = table.codec.encode(values)
    draws = generator(seed, "impute")
    codes = draw_missing(table.model, rows, _orders(table, rows.observed, draws), draws).double().numpy()
    drawn = table.codec.decode(codes, draw=np.random.default_rng(seed).random)
    return table.codec.fill(values, drawn)


def _orders(table: TableModel, observed: Tensor, draws: torch.Generator) -> Tensor:
    """Draw orders in which columns without a value in fit come last: nobody learned what their values tell."""
    learned = [not table.codec.is_empty(at) for at in range(len(table.codec.columns))]
    return random_orders(observed, draws, torch.tensor(learned).expand_as(observed))


def complete_expected(table: TableModel, values: Any, strategy: str) -> pd.DataFrame:
    """Fill each missing value on its own: with its likeliest value, or numbers with their mean if so asked."""
    return table.codec.fill(values, table.codec.restore(expect(table, values, expectations(table, strategy))))


def expectations(table: TableModel, strategy: str = "mean") -> dict[str, Callable[[Predictive], Answer]]:
    """Say what is expected of each column: its likeliest value ("mode"), or its mean where it holds numbers."""
    codec = table.codec
    questions: dict[str, Callable[[Predictive], Answer]] = {}
    for name, column, dtype in zip(codec.names, codec.columns, codec.dtypes, strict=True):
        numbers = has_order(column) and not pd.api.types.is_bool_dtype(dtype)
        questions[name] = Predictive.mean if numbers and strategy == "mean" else Predictive.mode
    return questions


def conditional(table: TableModel, values: Any, target: str, quantiles: Sequence[float]) -> pd.DataFrame:
    """Describe p(column | the row's other values): probabilities of labels or levels, or mean, std and quantiles.

    Where numbers have a point mass, its probability comes last.
    """
    column = table.codec.columns[table.model.schema.index([target])[0]]
    names, index = values_of(column), table.codec.frame_of(values).index
    if names is not None:
        heads = table.codec.in_units(target, np.asarray(names)) if has_order(column) else names
        return pd.DataFrame(ask(table, values, target, Predictive.probabilities), index, list(heads))
    q, mass = np.atleast_1d(np.asarray(quantiles, dtype=np.float64)), point_mass(column)

    def described(p: Predictive) -> Floats:
        share = [] if (told := p.point_mass()) is None else [told[1]]
        return np.column_stack([p.mean(), p.std(), p.quantile(q), *share])

    heads = ["mean", "std", *map(str, q)]
    answers = ask(table, values, target, described)
    numbers = pd.DataFrame(answers[:, : len(heads)], columns=heads)
    moments = numbers.apply(lambda x: table.codec.in_units(target, x.to_numpy()))
    if (kind := moments.dtypes.iloc[0]) != np.float64:  # of moments the deviation is a length of time
        unit = kind if kind == np.dtype("timedelta64[ns]") else np.dtype("timedelta64[us]")
        moments["std"] = from_days(numbers["std"].to_numpy(), unit)
    if mass is not None:
        at = table.codec.in_units(target, np.array([mass[1]]))[0]
        moments[f"P(= {at:.15g})" if isinstance(at, float) else f"P(= {at})"] = answers[:, -1]
    return moments.set_axis(index)


def ask(table: TableModel, values: Any, name: str, question: Callable[[Predictive], Answer]) -> Answer:
    """Ask about p(column | what each row has observed beside it), a batch of rows at a time."""
    rows, _ = table.codec.encode(values)
    return np.concatenate([question(predictive) for _, predictive in given_others(table, rows, name)])


def given_others(
    table: TableModel, rows: Rows, name: str, n_orders: int = ORDERS
) -> Iterator[tuple[slice, Predictive]]:
    """Give p(column | what each row has observed beside it), a batch of rows at a time."""
    at = rows.schema.index([name])[0]
    evidence = rows.keep([i for i in range(len(rows.schema)) if i != at])
    asked = torch.tensor([[at]], device=table.model.device)
    for b, states in _states(table, evidence, n_orders):
        everybody = torch.arange(states[0].cache.batch)
        answers = [s.predict(asked.expand(s.cache.batch, 1)).only(0, everybody) for s in states]
        yield b, Predictive(table.codec.columns[at], Conditionals.joined(answers), len(states))


def expect(
    table: TableModel, values: Any, questions: Mapping[str, Callable[[Predictive], Answer]]
) -> dict[str, Answer]:
    """Answer a question about each column wherever it is missing, given what the row has; elsewhere there is None.

    Args:
        questions: By column; a column without one is left out.
    """
    rows, _ = table.codec.encode(values)
    answers = {name: np.full(len(rows), None, dtype=object) for name in questions}
    holed = (~rows.observed).any(1).nonzero()[:, 0]
    rows = rows[holed]
    for b, states in _states(table, rows, ORDERS):
        missing = ~rows.observed[b]
        named = [(n, at) for n, at in zip(questions, rows.schema.index(questions), strict=True) if missing[:, at].any()]
        if not named:
            continue
        asked = torch.tensor([at for _, at in named], device=table.model.device)
        conditionals = [state.predict(asked.expand(state.cache.batch, -1)) for state in states]
        for i, (name, at) in enumerate(named):
            holes = missing[:, at].nonzero()[:, 0]
            joined = Conditionals.joined([c.only(i, holes) for c in conditionals])
            predictive = Predictive(table.codec.columns[at], joined, len(states))
            answers[name][holed[b][holes].numpy()] = questions[name](predictive)
    return answers


def alarms(table: TableModel, ordinary: Any, rate: float, per: Per = "row") -> Alarms:
    """Calibrate alarms on ordinary rows that the model was not trained on; see `calibrate`."""
    rows, base = codes_and_base(table, ordinary)
    draws = generator(table.seed, "alarms")
    return calibrate(table.model, rows, rate, per=per, generator=draws, log_base=base, codec=table.codec)


def codes_and_base(table: TableModel, values: Any) -> tuple[Rows, Tensor]:
    """Give codes, and ln p(value | code) of labels and levels, which may surprise; of numbers 0."""
    rows, log_base = table.codec.encode(values)
    return rows, log_base * torch.tensor([values_of(column) is not None for column in table.codec.columns])


def ask_row(
    table: TableModel,
    values: Any,
    names: Names,
    question: Callable[[Predictive], Sequence[Any]],
    n_orders: int = ORDERS,
) -> dict[str, Any]:
    """Ask about several columns of one row, given what it has."""
    rows, _ = table.codec.encode(values)
    [(_, states)] = _states(table, rows, n_orders)
    answers = ask_together(states, table.codec.columns, rows.schema.index(names), question)
    return dict(zip(names, answers, strict=True))


def _states(table: TableModel, rows: Rows, n_orders: int) -> Iterator[tuple[slice, list[State]]]:
    """Let the model observe what each row has, in several sequences, each the same for all rows."""
    chosen = sequences(table, n_orders)
    for b in batches(len(rows), len(rows.schema)):
        part = rows[b].to(table.model.device)
        yield b, [observe_known(table.model, part, fixed_orders(s, part.observed)) for s in chosen]

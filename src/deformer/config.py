"""How a model is built and how it is trained, as plain values that travel as JSON."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from deformer.errors import InputError

Config = TypeVar("Config", "ModelConfig", "TrainConfig")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a network.

    Args:
        wiring: "two_stream" (content and query streams, half as many keys), "interleaved" (the paper's z u z u ...)
            or "single_stream" (each token holds the last observation and the feature to predict next).
        d_model: Width of a token.
        n_layers: Number of blocks.
        content_layers: Blocks that process content in "two_stream"; queries pass through all blocks, and later ones
            read the output of these. None: all but the last, whose content nothing would read.
        n_heads: Attention heads, a divisor of d_model.
        d_ff: Hidden width of the feed-forward part. None: 4 * d_model.
        norm: "pre" (before each sublayer, and once at the end) or "post" (after each residual sum, as in the paper).
        activation: Activation of the feed-forward part.
        tokens: "embedding" (tables for identities and values) or "mlp" (the paper's g_z and g_u on raw coordinates).
        mlp_widths: Hidden widths of g_z and g_u.
        qk_norm: Whether heads normalise queries and keys, which bounds attention logits however large weights grow.
        rotary_base: Scale of the longest rotary wavelength. None: no rotation.
        neighbourhood: How far along each coordinate axis a feature's tokens see observed values directly, besides
            attention. 0: not at all.
        mixture: Kind of mixture components in continuous conditionals.
        n_components: Number of mixture components.
    """

    wiring: Literal["two_stream", "interleaved", "single_stream"] = "two_stream"
    d_model: int = 128
    n_layers: int = 4
    content_layers: int | None = None
    n_heads: int = 2
    d_ff: int | None = None
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "relu"] = "gelu"
    tokens: Literal["embedding", "mlp"] = "embedding"
    mlp_widths: tuple[int, ...] = (128, 256)
    qk_norm: bool = True
    rotary_base: float | None = 100.0
    neighbourhood: int = 5
    mixture: Literal["gaussian", "logistic"] = "logistic"
    n_components: int = 8

    def __post_init__(self) -> None:
        check_fields(self)
        _require(self, positive=("d_model", "n_layers", "n_heads", "d_ff", "rotary_base", "n_components"))
        _require(self, not_negative=("neighbourhood", "content_layers"))
        if self.d_model % self.n_heads:
            raise InputError(f"n_heads must divide d_model; {self.n_heads} does not divide {self.d_model}.")
        if self.rotary_base is not None and self.d_model // self.n_heads % 2:
            raise InputError(f"Rotary coordinates need heads of even width, not {self.d_model // self.n_heads}.")

    @property
    def depth_of_content(self) -> int:
        return min(self.n_layers - 1, self.n_layers if self.content_layers is None else self.content_layers)

    @property
    def width_ff(self) -> int:
        return 4 * self.d_model if self.d_ff is None else self.d_ff


def paper_config() -> ModelConfig:
    """Return the paper's network: 19,244,929 parameters on 28 x 28 binary images."""
    return ModelConfig(
        wiring="interleaved",
        d_model=512,
        n_layers=6,
        n_heads=8,
        d_ff=2048,
        norm="post",
        activation="relu",
        tokens="mlp",
        qk_norm=False,
        rotary_base=None,
        neighbourhood=0,
    )


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained.

    The run ends when the first of `steps`, `epochs` and `minutes` is reached; at least one must be given. With steps
    or epochs alone, the run is a function of this config; minutes tie its schedule to the clock.

    Args:
        steps: Optimiser steps.
        epochs: Passes over the training rows.
        minutes: Wall-clock minutes, over all parts of an interrupted run.
        seed: Seed of batches, orders, noise, dropout and validation; initial weights are `new_model`'s.
        recipe: "muon" (Muon for the matrices of blocks and neighbourhoods, Adam for all else; warm-up, constant rate,
            linear decay) or "adam" (the paper's Adam; constant rate until a plateau of the validation loss).
        tokens_per_step: Observed features per batch, which determine its number of rows.
        rows_per_step: Rows per batch. None: from tokens_per_step.
        curriculum: Stages as pairs (end as a fraction of the run, fraction of the features used). A random subset
            of features is a valid sample of a marginal and costs less than a whole row.
        subsets: How these subsets are drawn: "informative", where features of low marginal entropy are drawn less
            often, since features that hardly vary are learned quickly; or "uniform".
        orders: "random" (a new one per row and step) or "raster" (column order, for a fixed-order model).
        lr: Learning rate of Adam.
        muon_lr: Learning rate of Muon.
        betas: Betas of Adam.
        eps: Epsilon of Adam.
        weight_decay: Decoupled weight decay of the matrices that Muon trains.
        dropout: Share of what each block adds that is zeroed at random, against overfitting.
        noise: Deviation of Gaussian noise on continuous values, in units of their spread, against narrow components
            that fit single rows or the grid to which values were rounded.
        warmup_steps: Steps of linear warm-up.
        constant: Fraction of each cycle with full learning rates, after which they fall linearly.
        cycles: Learning-rate cycles, each twice as long as the one before. A cycle without a better
            validation loss is the last, so rows that are soon overfitted cost little time.
        final_lr: Last learning rate, as a fraction of the first.
        plateau_factor: Factor on the learning rate of the "adam" recipe at each plateau.
        plateau_patience: Validations without a better loss that make a plateau.
        clip: Largest gradient norm.
        averaging: Decay per step of an exponential average of the weights, which is validated and kept in their place.
            None: no averaging.
        precision: "float32", "bfloat16" (autocast), "float64", or "auto": bfloat16 if it is native to
            the GPU, or measurably faster on the CPU.
        validate_every: Steps between validations. None: a twentieth of the run, plus early ones unless steps end it;
            under the clock fewer, where they would take more than a tenth of the time.
        validation_rows: Maximum rows to validate on, drawn once.
        validation_orders: Random orders per validation row, the same at each validation.
        patience: Validations without a better loss after which the run stops. None: never.
        checkpoint_minutes: Minutes between checkpoints.
        checkpoint_steps: Steps between additional checkpoints.
        keep_last: Number of checkpoints to keep.
        threads: CPU threads. None: unchanged.
    """

    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    seed: int = 0
    recipe: Literal["muon", "adam"] = "muon"
    tokens_per_step: int = 4704
    rows_per_step: int | None = None
    curriculum: tuple[tuple[float, float], ...] = ((0.233, 0.1), (0.467, 0.2), (0.7, 0.4), (0.95, 0.65), (1.0, 1.0))
    subsets: Literal["uniform", "informative"] = "informative"
    orders: Literal["random", "raster"] = "random"
    lr: float = 2e-3
    muon_lr: float = 2e-2
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-9
    weight_decay: float = 0.05
    dropout: float = 0.0
    noise: float = 0.0
    warmup_steps: int = 100
    constant: float = 0.4
    cycles: int = 1
    final_lr: float = 0.02
    plateau_factor: float = 0.1
    plateau_patience: int = 5
    clip: float = 1.0
    averaging: float | None = None
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    validate_every: int | None = None
    validation_rows: int = 500
    validation_orders: int = 4
    patience: int | None = None
    checkpoint_minutes: float = 3.0
    checkpoint_steps: int | None = None
    keep_last: int = 2
    threads: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps is None and self.epochs is None and self.minutes is None:
            raise InputError("Say how long to train: give steps, epochs or minutes.")
        _require(
            self,
            positive=(
                *("steps", "epochs", "minutes", "tokens_per_step", "rows_per_step", "lr", "muon_lr", "eps", "clip"),
                *("plateau_factor", "plateau_patience", "validate_every", "validation_rows", "validation_orders"),
                *("patience", "checkpoint_minutes", "checkpoint_steps", "keep_last", "threads", "cycles"),
            ),
            not_negative=("seed", "weight_decay", "warmup_steps", "final_lr", "constant", "noise"),
        )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must lie in [0, 1), not {self.dropout}.")
        if self.averaging is not None and not 0 < self.averaging < 1:
            raise InputError(f"averaging must lie between 0 and 1, not {self.averaging}.")
        until = [u for u, _ in self.curriculum]
        if not until or until != sorted(until) or until[-1] < 1 or any(not 0 < f <= 1 for _, f in self.curriculum):
            raise InputError(
                "curriculum must be (until, fraction) pairs that rise to (1, fraction), fractions in (0, 1]."
            )


def paper_training(epochs: float | None = 50, **changes: Any) -> TrainConfig:
    """Return the paper's training: Adam, one row at a time, a tenth of the learning rate after a plateau.

    A plateau is two of a run's twenty validations without a better loss: of fifty epochs, the paper's five.
    """
    paper: dict[str, Any] = {
        **{"epochs": epochs, "recipe": "adam", "lr": 1e-6, "betas": (0.9, 0.999), "rows_per_step": 1},
        **{"curriculum": ((1.0, 1.0),), "warmup_steps": 0, "clip": float("inf")},
        **{"precision": "float32", "plateau_patience": 2},
    }
    return TrainConfig(**{**paper, **changes})


def _require(config: Any, positive: tuple[str, ...] = (), not_negative: tuple[str, ...] = ()) -> None:
    for name in (*positive, *not_negative):
        number = getattr(config, name)
        if number is not None and not (number > 0 if name in positive else number >= 0):
            bound = "positive" if name in positive else "at least 0"
            raise InputError(f"{name} must be {bound}, not {number}.")


def check_fields(config: Any) -> None:
    """Check every field of a config against its annotation.

    Raises:
        InputError: The first field of another type, with what it may be.
    """
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if not _matches(value, hints[f.name]):
            raise InputError(f"{f.name} must be {_spell(hints[f.name])}, not {value!r}.")


def check_names(kind: type[Any], changes: Iterable[str]) -> None:
    """Check that a config has settings of these names.

    Raises:
        InputError: It lacks one.
    """
    known = [f.name for f in dataclasses.fields(kind)]
    for name in changes:
        if name not in known:
            raise InputError(f"{kind.__name__} has no {name!r}; it has {', '.join(known)}.")


def tuples(value: Any) -> Any:
    """Turn the lists of JSON back into tuples, at any depth."""
    return tuple(tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def _matches(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (types.UnionType, typing.Union):
        return any(_matches(value, a) for a in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        members = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(members) == len(value) and all(_matches(v, a) for v, a in zip(value, members, strict=True))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _spell(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(a) for a in typing.get_args(hint))
    return str(getattr(hint, "__name__", hint)) if not typing.get_args(hint) else str(hint)


def to_json(config: ModelConfig | TrainConfig) -> str:
    """Write a config as JSON."""
    return json.dumps(dataclasses.asdict(config))


def from_json(kind: type[Config], text: str) -> Config:
    """Read a config that `to_json` wrote.

    Raises:
        InputError: Unknown fields, or values out of range.

    Examples:
        >>> from_json(ModelConfig, to_json(ModelConfig(d_model=64))).d_model
        64
    """
    try:
        return kind(**{name: tuples(value) for name, value in json.loads(text).items()})
    except (TypeError, json.JSONDecodeError) as error:
        raise InputError(f"This is not a {kind.__name__}: {error}") from error

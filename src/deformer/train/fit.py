"""Fit: one loop from a model and rows to its best weights."""

import dataclasses
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from deformer.config import ModelConfig, TrainConfig, from_json
from deformer.data.seeds import generator
from deformer.data.table import Rows, subset
from deformer.errors import CheckpointError, InputError, TrainingError
from deformer.nn.backbone import Dropout
from deformer.nn.model import DEformer
from deformer.nn.units import Units
from deformer.tasks.density import log_prob, nll
from deformer.train.batches import draw_batch, marginal_entropies, with_absent_near, with_noise
from deformer.train.checkpoint import describe, load_weights, read_tensors, save, write_tensors
from deformer.train.history import History, Point
from deformer.train.launch import launch, wants_bfloat16
from deformer.train.logs import Log, Progress
from deformer.train.loss import Kept, Loss
from deformer.train.optim import make_optimisers, optimiser_tensors, restore_optimisers, set_rates
from deformer.train.process import signals
from deformer.train.schedule import cycle_ends, fraction_done, n_features_now, n_rows_now, rate

LIMITS = ("patience", "cycles", "minutes", "steps", "epochs")  # of which a run that has ended may be given more


@dataclass
class Run:
    """Everything of a run that changes from step to step, beside the weights and the optimisers' state."""

    step: int = 0
    rows_seen: int = 0
    minutes: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    best_nll: float = math.inf
    cycle_best: float = math.inf
    since_best: int = 0
    plateaus: int = 0
    validated_at: float = 0.0
    validation_took: float = 0.0
    out_of_patience: bool = False
    points: list[Point] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)

    def counters(self) -> dict[str, Any]:
        tensors = ("best", "average", "points")
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in tensors}
        return {**own, "points": [dataclasses.asdict(p) for p in self.points]}


def fit(
    model: DEformer,
    rows: Rows,
    config: TrainConfig,
    *,
    validation: Rows | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    progress: bool = False,
    fresh: bool = True,
) -> History:
    """Train a model in place; it keeps its best weights or, without validation rows, its last ones.

    On several devices, every process takes its share of each batch, and the run is that of one process with the whole
    batch, up to rounding and dropout noise. The script is started once for every device of a machine; all processes
    but the first exit at the end of this function.

    Args:
        validation: Rows to choose the best weights on, under the same random orders each time.
        directory: Folder for checkpoints (`last-*.safetensors`, `best.safetensors`), `metrics.csv` and TensorBoard
            events. None: nothing is written.
        resume: Continue from the newest checkpoint in `directory`, if there is one.
        device: "auto", "cpu" or "cuda".
        devices: Number of processes on each machine, on GPUs or CPUs.
        nodes: Number of machines; run the same command on each, with MASTER_ADDR, MASTER_PORT and NODE_RANK set.
        progress: Show a progress bar on standard error.
        fresh: Whether the model starts at the rows' marginals; False if it has already learned something.

    Raises:
        InputError: No rows, rows of another schema, an unavailable device, resuming without a directory, or a
            directory with checkpoints of a run that is not resumed or that takes no files.
        CheckpointError: The checkpoint does not fit, or is of a run on other rows.
        TrainingError: The loss is not finite; the message names the last good checkpoint.
    """
    for part in (rows, validation):
        if part is not None and part.schema != model.schema:
            raise InputError("The rows follow another schema than the model's.")
        if part is not None and not len(part):
            raise InputError("There are no rows to train on, or none to validate on.")
    directory = None if directory is None else Path(directory)
    if resume and directory is None:
        raise InputError("Resuming needs the directory of the interrupted run.")
    if not resume and newest(directory) is not None:
        raise InputError(f"{directory} holds the checkpoints of a run: resume it, or choose another directory.")
    fabric, threads = launch(config, device, devices, nodes), torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        history = _Fitting(model, rows, config, validation, directory, fabric).run(resume, progress, fresh)
    finally:
        torch.set_num_threads(threads)
    if not fabric.is_global_zero:
        sys.exit(0)
    return history


class _Fitting:
    """The parts of one call of `fit`, and the run they advance."""

    def __init__(
        self,
        model: DEformer,
        rows: Rows,
        config: TrainConfig,
        validation: Rows | None,
        directory: Path | None,
        fabric: Fabric,
    ) -> None:
        rows = rows.to("cpu")  # where batches are drawn
        self.model, self.rows, self.config, self.directory, self.fabric = model, rows, config, directory, fabric
        picked = generator(config.seed, "validation rows")
        self.validation = None if validation is None else subset(validation, config.validation_rows, picked)
        self.units = Units(rows.schema, lambda n: (0.0, 0.0))
        self.n_observed = float(rows.observed.sum(-1, dtype=torch.float64).mean())
        self.weights = marginal_entropies(rows) if config.subsets == "informative" else None
        known = {} if directory is None else {"training": rows, "validation": validation}  # only files hold it
        self.data = {name: None if part is None else _traits(part) for name, part in known.items()}
        self.state = Run()

    def run(self, resume: bool, progress: bool, fresh: bool) -> History:
        bfloat16 = wants_bfloat16(self.config, self.fabric.device.type)
        path = newest(self.directory) if resume and self.fabric.is_global_zero else None
        # The first process decides, from what it measures and finds.
        bfloat16, checkpoint = self._first((bfloat16, None if path is None else (path, *read_tensors(path))))
        if checkpoint is not None:
            self._require_same(checkpoint[0], checkpoint[2])
        if checkpoint is None and fresh:
            self.model.fit_marginals(self.rows.values, self.rows.observed)
        self.loss = Loss(self.model, bfloat16)
        loss, *optimisers = self.fabric.setup(self.loss, *make_optimisers(self.model, self.config))
        self.optimisers: list[Optimizer] = optimisers
        if checkpoint is not None:
            self._restore(*checkpoint)
        first = self.fabric.is_global_zero
        with signals() as asked, Log(self.directory if first else None) as log, Progress(progress and first) as bar:
            stopped = self._loop(loss, asked, log, bar)
        if self.directory is not None:
            self._checkpoint()
        if self.validation is None and stopped == "interrupted":
            with self._averaged():
                self._keep_if_best(None)  # the last weights, which an interrupted run has not looked at
        self.fabric.barrier()
        if self.state.best:
            load_weights(self.model, self.state.best, "best weights")
        self.model.eval()
        return History(tuple(self.state.points), stopped)

    def _loop(self, loss_of: Any, asked: threading.Event, log: Log, bar: Progress) -> str:
        state, config = self.state, self.config
        before, saved = time.monotonic() - 60 * state.minutes, time.monotonic()
        stopping = 0.0
        if state.out_of_patience:
            return "patience"
        while (done := self._done()) < 1:
            if stopping:
                return "interrupted"
            loss = self._step(loss_of, done)
            state.minutes, stopping = self._agree((time.monotonic() - before) / 60, float(asked.is_set()))
            bar.show(self._done(), loss, state.step, state.rows_seen)
            ended = self._ends_cycle(done)
            if ended or self._is_due(done):
                point = self._validate()
                state.validation_took = self._agree((time.monotonic() - before) / 60 - state.minutes)[0]
                state.validated_at = state.minutes + state.validation_took
                log.write(point, state.points)
                bar.validated(point.validation_nll)
                if self._is_futile(ended):
                    state.out_of_patience = True
                    return "patience"
                if ended and self._done() < 1:
                    self._go_on_from_best()
            every = config.checkpoint_steps
            due = time.monotonic() - saved > 60 * config.checkpoint_minutes
            if self.directory is not None and (due or (every and state.step % every == 0)):
                self._checkpoint()
                saved = time.monotonic()
        if not state.points or state.points[-1].step != state.step or not state.best:
            log.write(self._validate(), state.points)
        return "interrupted" if asked.is_set() else "done"

    def _first(self, value: Any) -> Any:
        """Give what the first process has."""
        return value if self.fabric.world_size == 1 else self.fabric.broadcast(value)

    def _agree(self, *numbers: float) -> list[float]:
        """Give the largest of each number over all processes, so that all of them decide alike."""
        if self.fabric.world_size == 1:
            return list(numbers)
        together: Tensor = self.fabric.all_reduce(torch.tensor(numbers, dtype=torch.float64), reduce_op="max")  # type: ignore[assignment]
        return [float(n) for n in together]

    def _done(self) -> float:
        s = self.state
        return fraction_done(self.config, s.step, s.rows_seen, len(self.rows), s.minutes)

    def _step(self, loss_of: Any, done: float) -> float:
        state, config, n_features = self.state, self.config, len(self.model.schema)
        n = n_features_now(config, done, n_features)
        size = max(n_rows_now(config, n, len(self.rows)), self.fabric.world_size)
        seen = (state.step, state.rows_seen)
        batch = draw_batch(self.rows, config.seed, *seen, size, n, config.orders, self.weights)
        if config.noise:
            batch = with_noise(batch, self.units, config.noise, generator(config.seed, "noise", state.step))
        batch = with_absent_near(batch, self.units)
        rank, n_parts = self.fabric.global_rank, self.fabric.world_size
        count = max(int(batch.scored.sum()), 1) / n_parts  # processes average their gradients
        own = (t[rank::n_parts] for t in (batch.features, batch.values, batch.scored))
        kept = Kept(*(t.to(self.model.device) for t in own))
        set_rates(self.optimisers, rate(config, done, state.step) * config.plateau_factor**state.plateaus)
        self.model.train()
        noise = generator(config.seed, "dropout", n_parts * state.step + rank)
        drop = Dropout(config.dropout, noise) if config.dropout else None
        loss: Tensor = loss_of(kept, count, drop)
        nats = loss.item() if n_parts == 1 else float(self.fabric.all_reduce(loss.detach().double()))  # type: ignore[arg-type]
        if not math.isfinite(nats):
            last = newest(self.directory)
            raise TrainingError(f"The loss at step {state.step} is {nats}; the last good checkpoint is {last}.")
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        self.fabric.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        for optimiser in self.optimisers:
            optimiser.step()
        state.step, state.rows_seen = state.step + 1, state.rows_seen + size
        nats_per_row = nats * self.n_observed
        state.loss_sum, state.loss_count = state.loss_sum + nats_per_row, state.loss_count + 1
        self._average()
        return nats_per_row

    @torch.no_grad()
    def _average(self) -> None:
        decay = self.config.averaging
        if decay is None:
            return
        decay = min(decay, self.state.step / (10 + self.state.step))  # an early average must forget the start
        for name, p in self.model.named_parameters():
            if name in self.state.average:
                self.state.average[name].lerp_(p, 1 - decay)
            else:
                self.state.average[name] = p.clone()

    def _is_due(self, done: float) -> bool:
        """Validate every so many steps or, where the clock or passes decide, at every twentieth of a run.

        There the first twentieth is halved again and again, since few rows may be overfitted before it is over. Under
        the clock validation may take a tenth of the time at most.
        """
        every, config, state = self.config.validate_every, self.config, self.state
        if every is None and config.steps is not None and config.minutes is None and config.epochs is None:
            every = max(1, config.steps // 20)
        if every is not None:
            return state.step % every == 0
        affordable = config.minutes is None or state.minutes - state.validated_at >= 9 * state.validation_took
        return affordable and _looks(self._done()) > _looks(done)

    def _ends_cycle(self, done: float) -> bool:
        return any(done < end <= self._done() for end in cycle_ends(self.config))

    def _is_futile(self, ended: bool) -> bool:
        """Say whether validations, or a whole cycle of several, have brought nothing better."""
        state, config = self.state, self.config
        if config.patience is not None and state.since_best >= config.patience:
            return True
        barely_warm = state.step < 5 * config.warmup_steps
        if not ended or config.cycles == 1 or self.validation is None or barely_warm:
            return False
        before, state.cycle_best = state.cycle_best, state.best_nll
        return not state.best_nll < before

    def _go_on_from_best(self) -> None:
        """Begin a cycle with the best weights so far, lest it builds on what was fitted too closely."""
        if self.validation is not None:
            load_weights(self.model, self.state.best, "best weights")
            for name, p in self.model.named_parameters():
                if name in self.state.average:
                    self.state.average[name] = p.detach().clone()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the averaged weights in place for a while."""
        if not self.state.average:
            yield
            return
        own = {n: t.clone() for n, t in self.model.state_dict().items()}
        self.model.load_state_dict({**own, **self.state.average})
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def _validate(self) -> Point:
        state, score = self.state, None
        with self._averaged():
            self.model.eval()
            if self.validation is not None:
                score = self._first(self._score(self.validation) if self.fabric.is_global_zero else None)
                if not math.isfinite(score):
                    where = f"at step {state.step} is {score}; a value may lie too far out"
                    raise TrainingError(f"The NLL of the validation rows {where}.")
            self._keep_if_best(score)
        training = state.loss_sum / max(state.loss_count, 1)
        state.loss_sum, state.loss_count = 0.0, 0
        point = Point(state.step, state.minutes, state.rows_seen, training, score)
        state.points.append(point)
        return point

    def _score(self, validation: Rows) -> float:
        with self.loss.autocast():
            if self.config.orders == "raster":
                columns = range(len(validation.schema))
                return -log_prob(self.model, validation, sequence=columns).double().mean().item()
            draws = generator(self.config.seed, "validation")
            return nll(self.model, validation, n_orders=self.config.validation_orders, generator=draws).mean

    def _keep_if_best(self, score: float | None) -> None:
        state = self.state
        if score is not None and not score < state.best_nll:
            state.since_best += 1
            if self.config.recipe == "adam" and state.since_best % self.config.plateau_patience == 0:
                state.plateaus += 1
            return
        state.best_nll, state.since_best = math.inf if score is None else score, 0
        state.best = {n: t.detach().cpu().clone() for n, t in self.model.state_dict().items()}
        if self.directory is not None and self.fabric.is_global_zero:
            save(self.directory / "best.safetensors", self.model, {"step": state.step, "validation_nll": score})

    def _checkpoint(self) -> None:
        """Write the whole run: a resumed one cannot tell that it was interrupted."""
        assert self.directory is not None
        if not self.fabric.is_global_zero:
            return
        state = self.state
        tensors = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        tensors |= optimiser_tensors(self.optimisers)
        tensors |= {f"best.{n}": t for n, t in state.best.items()}
        tensors |= {f"training.average.{n}": t for n, t in state.average.items()}
        path = self.directory / f"last-{state.step:09d}.safetensors"
        header = {**describe(self.model), "run": state.counters(), "training": dataclasses.asdict(self.config)}
        write_tensors(path, tensors, {**header, "data": self.data})
        for old in sorted(self.directory.glob("last-*.safetensors"))[: -self.config.keep_last]:
            old.unlink()

    def _require_same(self, path: Path, header: dict[str, Any]) -> None:
        """Refuse the checkpoint of another run: weights of another network may fit as well.

        Raises:
            CheckpointError: It is.
        """
        if header["schema"] != self.model.schema.to_json():
            raise CheckpointError(f"{path} is of rows of another schema.")
        told = dataclasses.asdict(from_json(ModelConfig, header["config"])) | header["training"]
        own = dataclasses.asdict(self.model.config) | {n: getattr(self.config, n) for n in ("recipe", "seed", "orders")}
        for name, value in own.items():
            if told[name] != value:
                raise CheckpointError(f"{path} is of a run whose {name} is {told[name]!r}, not {value!r}.")
        for part, traits in header.get("data", {}).items():  # which checkpoints of earlier versions lack
            if traits is not None and (own_traits := self.data[part]) is not None:
                _require_alike(path, part, traits, own_traits)

    def _restore(self, path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        weights = _below(tensors, "model.")
        name, own = next(iter(self.model.named_parameters()))
        told = weights.get(name, own).dtype  # to which that of the model would give way
        if told != own.dtype:
            raise CheckpointError(f"{path} is of a run in {told}, not {own.dtype}; give the precision of that run.")
        load_weights(self.model, weights, path)
        restore_optimisers(self.optimisers, tensors)
        counters = dict(header["run"])
        if any(header["training"].get(n) != getattr(self.config, n) for n in LIMITS):
            counters["out_of_patience"] = False
        points = [Point(**p) for p in counters.pop("points")]
        kept = _below(tensors, "training.average.") if self.config.averaging is not None else {}
        average = {n: t.to(self.model.device) for n, t in kept.items()}
        self.state = Run(**counters, points=points, best=_below(tensors, "best."), average=average)


def _looks(done: float) -> int:
    """Count the validations that are due until a fraction of a run."""
    return math.floor(20 * done) + sum(done >= 0.05 * 0.5**k for k in range(1, 5))


def _traits(rows: Rows) -> dict[str, int | float]:
    """Give what tells rows from others, whatever type their numbers have."""
    return {"rows": len(rows), "mean": rows.values.mean(dtype=torch.float64).item()}


def _require_alike(path: Path, part: str, told: dict[str, int | float], own: dict[str, int | float]) -> None:
    if told["rows"] != own["rows"]:
        raise CheckpointError(f"{path} is of a run on {told['rows']} {part} rows, not {own['rows']}.")
    if not math.isclose(told["mean"], own["mean"], rel_tol=1e-6, abs_tol=1e-9):
        raise CheckpointError(f"{path} is of a run on other {part} rows: their values differ in the mean.")


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def newest(directory: Path | None) -> Path | None:
    """Find the latest checkpoint of a run."""
    return None if directory is None else max(directory.glob("last-*.safetensors"), default=None)

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deformer.config import ModelConfig, TrainConfig, paper_training
from deformer.data.schema import Binary, Continuous, Schema, image_schema, table_schema
from deformer.data.seeds import generator
from deformer.data.table import Rows, as_rows
from deformer.errors import CheckpointError, InputError, TrainingError
from deformer.nn.model import DEformer
from deformer.tasks.density import nll
from deformer.train import fit as fitting
from deformer.train.checkpoint import load, read_tensors, write_tensors
from deformer.train.fit import fit, newest

SCHEMA = image_schema(3, 3, Binary())
SMALL = ModelConfig(d_model=16, n_layers=1, n_heads=2)
STEPS = TrainConfig(steps=24, tokens_per_step=64, validate_every=6, checkpoint_steps=5, precision="float32", threads=1)


def stripes(n: int = 200) -> Rows:
    """Rows whose three columns of pixels are constant, so that there is something to learn."""
    columns = torch.randint(0, 2, (n, 1, 3), generator=generator(0, "stripes"))
    return as_rows(columns.expand(n, 3, 3).reshape(n, 9), SCHEMA)


def new_model(seed: int = 0, schema: Schema = SCHEMA) -> DEformer:
    torch.manual_seed(seed)
    return DEformer(schema, SMALL)


def weights_of(model: DEformer) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_it_learns_the_structure_of_the_data() -> None:
    rows = stripes()
    history = fit(new_model(), rows[:150], dataclasses.replace(STEPS, steps=300), validation=rows[150:])
    assert history.stopped == "done"
    scores = [p.validation_nll for p in history.points]
    assert min(s for s in scores if s is not None) < 0.6 * 9 * math.log(2)  # the truth is 3 ln 2


def test_a_run_is_a_function_of_its_config() -> None:
    rows, weights = stripes(), []
    for _ in range(2):
        model = new_model()
        fit(model, rows, STEPS)
        weights.append(weights_of(model))
    assert_same(*weights)


SCRIPT = """
import sys
from pathlib import Path
from test_fit import STEPS, fit, new_model, stripes
rows = stripes()
fit(new_model(), rows[:150], STEPS, validation=rows[150:], directory=Path(sys.argv[1]), resume=True)
"""


def numbers(n: int = 200) -> Rows:
    """Rows of two numbers and a label."""
    schema = table_schema([Continuous(), Binary(), Continuous(5.0, 2.0)])
    values = torch.randn(n, 3, generator=generator(0, "numbers"), dtype=torch.float64)
    values[:, 1] = (values[:, 0] > 0).double()
    return as_rows(values, schema)


@pytest.mark.parametrize(
    ("changes", "draw"),
    [
        ({}, stripes),
        ({"averaging": 0.9, "dropout": 0.2}, stripes),
        ({"recipe": "adam"}, stripes),
        ({"cycles": 2, "warmup_steps": 4}, stripes),
        ({"noise": 0.1}, numbers),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bits(
    tmp_path: Path, changes: dict[str, object], draw: Callable[[], Rows]
) -> None:
    config, rows = dataclasses.replace(STEPS, **changes), draw()  # type: ignore[arg-type]
    whole = new_model(schema=rows.schema)
    fit(whole, rows[:150], config, validation=rows[150:], directory=tmp_path / "whole")
    first = new_model(schema=rows.schema)
    fit(first, rows[:150], config, validation=rows[150:], directory=tmp_path / "first")
    checkpoints = sorted((tmp_path / "first").glob("last-*"))
    for late in checkpoints[1:]:  # as if killed before the last one was written
        late.unlink()
    pieces = new_model(seed=1, schema=rows.schema)
    fit(pieces, rows[:150], config, validation=rows[150:], directory=tmp_path / "first", resume=True)
    assert_same(weights_of(whole), weights_of(pieces))
    last = [read_tensors(newest(tmp_path / d) or tmp_path)[0] for d in ("whole", "first")]
    assert_same(*last)


def test_a_run_killed_by_sigkill_resumes_to_the_same_bits(tmp_path: Path) -> None:
    rows, whole = stripes(), new_model()
    fit(whole, rows[:150], STEPS, validation=rows[150:])
    where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, env=where)
    while newest(tmp_path) is None and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert newest(tmp_path) is not None
    subprocess.run(command, env=where, check=True)
    assert_same(weights_of(whole), weights_of(load(tmp_path / "best.safetensors")))


def test_a_signal_saves_and_leaves(tmp_path: Path) -> None:
    model, rows, before = new_model(), stripes(), signal.getsignal(signal.SIGTERM)
    first = iter([signal.SIGTERM])
    model.register_forward_pre_hook(lambda *_: [os.kill(os.getpid(), kind) for kind in first] and None)
    history = fit(model, rows, STEPS, directory=tmp_path)
    assert history.stopped == "interrupted"
    assert newest(tmp_path) is not None
    assert signal.getsignal(signal.SIGTERM) is before


def test_interrupted_without_validation_rows_it_keeps_its_last_weights(tmp_path: Path) -> None:
    model, steps = new_model(), iter(range(24))
    model.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT) if next(steps) == 8 else None)
    assert fit(model, stripes(), STEPS, directory=tmp_path).stopped == "interrupted"  # looks come every 6 steps
    path = newest(tmp_path)
    assert path is not None
    assert path.stem == "last-000000009"
    last = {n.removeprefix("model."): t for n, t in read_tensors(path)[0].items() if n.startswith("model.")}
    assert_same(weights_of(model), last)
    assert_same(weights_of(load(tmp_path / "best.safetensors")), last)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    fit(new_model(), stripes(), dataclasses.replace(STEPS, steps=1, threads=before + 1))
    assert torch.get_num_threads() == before


def test_a_second_signal_ends_at_once() -> None:
    model, before = new_model(), signal.signal(signal.SIGINT, signal.default_int_handler)

    def press_twice(*_: object) -> None:
        noting = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        while signal.getsignal(signal.SIGINT) is noting:  # two at once would be one
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    model.register_forward_pre_hook(press_twice)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(model, stripes(), STEPS)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_directory_in_use_is_not_taken_for_another_run(tmp_path: Path) -> None:
    fit(new_model(), stripes(), STEPS, directory=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    with pytest.raises(InputError, match="holds the checkpoints of a run"):
        fit(new_model(), stripes(), STEPS, directory=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == before
    with pytest.raises(CheckpointError, match="whose recipe is 'muon', not 'adam'"):
        fit(new_model(), stripes(), dataclasses.replace(STEPS, recipe="adam"), directory=tmp_path, resume=True)


def test_the_clock_decides_when_to_validate_though_steps_are_limited() -> None:
    config = dataclasses.replace(STEPS, steps=10**6, minutes=0.05, validate_every=None)
    rows = stripes()
    history = fit(new_model(), rows[:150], config, validation=rows[150:])
    assert len(history.points) > 1
    assert history.best is min(history.points, key=lambda p: p.validation_nll or 0.0)


def test_a_loss_that_is_not_finite_names_step_and_checkpoint(tmp_path: Path) -> None:
    model = new_model()
    model.beginning.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="step 0 is nan; the last good checkpoint is None"):
        fit(model, stripes(), STEPS, directory=tmp_path)


def test_validation_rows_out_of_reach_are_told_at_once() -> None:
    schema = table_schema([Continuous(), Continuous()])
    rows = as_rows(torch.randn(50, 2, generator=generator(0)), schema)
    far = as_rows(torch.full((2, 2), 1e40, dtype=torch.float64), schema)
    with pytest.raises(TrainingError, match=r"NLL of the validation rows at step \d+ is (inf|nan)"):
        fit(DEformer(schema, SMALL), rows, STEPS, validation=far)


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    rows = stripes()
    model, config = new_model(), dataclasses.replace(STEPS, steps=200, validate_every=1, patience=3, lr=1.0)
    history = fit(model, rows[:150], config, validation=rows[150:], directory=tmp_path)
    assert history.stopped == "patience"
    assert_same(weights_of(model), weights_of(load(tmp_path / "best.safetensors")))


def test_a_cycle_that_brings_nothing_is_the_last() -> None:
    rows = stripes()
    still = dataclasses.replace(STEPS, steps=70, cycles=3, lr=1e-30, muon_lr=1e-30, warmup_steps=2)
    history = fit(new_model(), rows[:150], still, validation=rows[150:])
    assert (history.stopped, history.points[-1].step) == ("patience", 30)
    moving = dataclasses.replace(still, lr=1e-3, muon_lr=1e-2, steps=28, warmup_steps=100)
    history = fit(new_model(), rows[:150], moving, validation=rows[150:])
    assert (history.stopped, history.points[-1].step) == ("done", 28)
    assert {4, 12, 28} <= {p.step for p in history.points}


def test_the_last_k_checkpoints_are_kept(tmp_path: Path) -> None:
    fit(new_model(), stripes(), dataclasses.replace(STEPS, keep_last=3), directory=tmp_path)
    assert [p.name for p in sorted(tmp_path.glob("last-*"))] == [f"last-{s:09d}.safetensors" for s in (15, 20, 24)]
    assert (tmp_path / "metrics.csv").read_text().startswith("step,minutes,rows_seen,training_nll,validation_nll\n")


def test_limits_by_epochs_and_minutes() -> None:
    rows = stripes(50)
    one_epoch = dataclasses.replace(STEPS, steps=None, epochs=1.0, curriculum=((1.0, 1.0),), rows_per_step=10)
    assert fit(new_model(), rows, one_epoch).points[-1].step == 5
    a_second = dataclasses.replace(STEPS, steps=None, minutes=1 / 60)
    assert fit(new_model(), rows, a_second).points[-1].minutes < 0.2


def test_the_papers_training_lowers_its_rate_on_a_plateau(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factors, set_rates = [], fitting.set_rates

    def note(optimisers: list[torch.optim.Optimizer], factor: float) -> None:
        factors.append(factor)
        set_rates(optimisers, factor)

    monkeypatch.setattr(fitting, "set_rates", note)
    rows = stripes()
    config = paper_training(epochs=1.0, validate_every=2, plateau_patience=2, lr=1e-12, threads=1)
    fit(new_model(), rows[:60], config, validation=rows[150:], directory=tmp_path)
    header = read_tensors(newest(tmp_path) or tmp_path)[1]
    plateaus = header["run"]["plateaus"]
    assert plateaus >= 1
    fallen = [b / a for a, b in zip(factors, factors[1:], strict=False) if b != a]
    assert factors[0] == 1
    assert fallen == pytest.approx([0.1] * len(fallen))
    assert plateaus - 1 <= len(fallen) <= plateaus  # the last one may have come with the last step
    assert fallen


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_every_precision_takes_every_option(precision: str) -> None:
    changes = {"precision": precision, "dropout": 0.1, "averaging": 0.9, "steps": 3}
    history = fit(new_model(), stripes()[:100], dataclasses.replace(STEPS, **changes), validation=stripes()[100:])
    assert math.isfinite(history.points[-1].training_nll)


def test_missing_and_continuous_values_train() -> None:
    schema = table_schema([Continuous(), Binary(), Continuous(5.0, 2.0)])
    values = torch.randn(64, 3, generator=generator(0))
    values[:, 1] = (values[:, 0] > 0).float()
    values[::3, 2] = math.nan
    history = fit(DEformer(schema, SMALL), as_rows(values, schema), STEPS)
    assert math.isfinite(history.points[-1].training_nll)


def test_absent_values_far_from_all_others_train() -> None:
    schema = table_schema([Continuous(1e20), Binary()])
    values = torch.tensor([[1e20, 0.0], [1e20, 1.0]], dtype=torch.float64).repeat(32, 1)
    values[::3, 0] = math.nan
    model = DEformer(schema, dataclasses.replace(SMALL, mixture="gaussian"))
    history = fit(model, as_rows(values, schema), STEPS)
    assert math.isfinite(history.points[-1].training_nll)


def test_rows_of_another_schema_are_refused() -> None:
    rows = as_rows(torch.zeros(4, 4), image_schema(2, 2, Binary()))
    with pytest.raises(InputError, match="another schema"):
        fit(new_model(), rows, STEPS)
    with pytest.raises(InputError, match="directory"):
        fit(new_model(), stripes(), STEPS, resume=True)


@pytest.mark.parametrize(
    ("network", "training", "says"),
    [
        ({"wiring": "single_stream"}, {}, "wiring is 'two_stream', not 'single_stream'"),
        ({"activation": "relu"}, {}, "activation is 'gelu', not 'relu'"),
        ({}, {"seed": 5}, "seed is 0, not 5"),
        ({}, {"orders": "raster"}, "orders is 'random', not 'raster'"),
    ],
)
def test_a_run_of_another_kind_is_not_resumed(
    tmp_path: Path, network: dict[str, str], training: dict[str, object], says: str
) -> None:
    fit(new_model(), stripes(), STEPS, directory=tmp_path)
    other = DEformer(SCHEMA, dataclasses.replace(SMALL, **network))
    with pytest.raises(CheckpointError, match=says):
        fit(other, stripes(), dataclasses.replace(STEPS, **training), directory=tmp_path, resume=True)


def test_a_run_in_another_precision_is_not_resumed(tmp_path: Path) -> None:
    fit(new_model(), stripes(), STEPS, directory=tmp_path)
    double = dataclasses.replace(STEPS, steps=30, precision="float64")
    with pytest.raises(CheckpointError, match=r"in torch.float32, not torch.float64; give the precision of that run"):
        fit(new_model(), stripes(), double, directory=tmp_path, resume=True)


def test_a_run_on_other_rows_is_not_resumed(tmp_path: Path) -> None:
    rows, onwards = stripes(), dataclasses.replace(STEPS, steps=26)
    fit(new_model(), rows[:150], STEPS, validation=rows[150:], directory=tmp_path)
    path = newest(tmp_path)
    assert path is not None
    tensors, header = read_tensors(path)
    inverted = as_rows(1 - rows.values, SCHEMA)
    for given, validation, says in [
        (rows[:140], rows[150:], "on 150 training rows, not 140"),
        (rows[:150], rows[160:], "on 50 validation rows, not 40"),
        (inverted[:150], rows[150:], "on other training rows"),
    ]:
        with pytest.raises(CheckpointError, match=says):
            fit(new_model(), given, onwards, validation=validation, directory=tmp_path, resume=True)
    del header["data"]  # as earlier versions wrote it
    write_tensors(path, tensors, header)
    history = fit(new_model(), rows[:150], onwards, validation=rows[150:], directory=tmp_path, resume=True)
    assert history.points[-1].step == 26


def test_no_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows"):
        fit(new_model(), stripes()[:0], STEPS)
    with pytest.raises(InputError, match="no rows"):
        nll(new_model(), stripes()[:0], n_orders=1, generator=generator(0))


def test_a_run_that_ends_its_average_forgets_it(tmp_path: Path) -> None:
    rows, averaged = stripes(), dataclasses.replace(STEPS, averaging=0.9, steps=12)
    fit(new_model(), rows[:150], averaged, validation=rows[150:], directory=str(tmp_path))
    model, plain = new_model(), dataclasses.replace(STEPS, averaging=None)
    history = fit(model, rows[:150], plain, validation=rows[150:], directory=tmp_path, resume=True)
    scores = [p.validation_nll for p in history.points if p.step > 12]
    assert len(set(scores)) == len(scores) > 1


def test_a_run_without_patience_left_stays_at_its_end(tmp_path: Path) -> None:
    rows = stripes()
    still = dataclasses.replace(STEPS, steps=70, cycles=3, lr=1e-30, muon_lr=1e-30, warmup_steps=2)
    for _ in range(2):
        history = fit(new_model(), rows[:150], still, validation=rows[150:], directory=tmp_path, resume=True)
        assert (history.stopped, history.points[-1].step) == ("patience", 30)
    onwards = dataclasses.replace(still, cycles=1)
    history = fit(new_model(), rows[:150], onwards, validation=rows[150:], directory=tmp_path, resume=True)
    assert (history.stopped, history.points[-1].step) == ("done", 70)


def test_the_training_figure_is_that_of_whole_rows_whatever_is_missing() -> None:
    whole = stripes()
    hidden = torch.rand(whole.values.shape, generator=generator(0, "holes")) < 0.7
    holes = whole.values.double().masked_fill(hidden, math.nan)
    config = dataclasses.replace(STEPS, steps=6, curriculum=((1.0, 1.0),), lr=1e-30, muon_lr=1e-30)
    point = fit(new_model(), as_rows(holes, SCHEMA), config, validation=as_rows(holes, SCHEMA)).points[-1]
    assert point.validation_nll is not None
    assert abs(point.training_nll / point.validation_nll - 1) < 0.1


def test_a_run_on_rows_of_another_schema_is_not_resumed(tmp_path: Path) -> None:
    fit(new_model(), stripes(), STEPS, directory=tmp_path)
    schema = table_schema([Binary()] * 9)
    rows = as_rows(stripes().values, schema)
    with pytest.raises(CheckpointError, match="of another schema"):
        fit(DEformer(schema, SMALL), rows, STEPS, directory=tmp_path, resume=True)


def test_a_run_that_passes_end_is_validated_early() -> None:
    rows = stripes()
    config = TrainConfig(epochs=40, rows_per_step=len(rows) // 16, validation_rows=10, threads=1)
    history = fit(new_model(), rows, config, validation=rows)
    n_steps = history.points[-1].step
    assert [round(320 * p.step / n_steps) for p in history.points[:7]] == [1, 2, 4, 8, 16, 32, 48]

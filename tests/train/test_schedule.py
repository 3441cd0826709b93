import dataclasses

import pytest

from deformer.config import ModelConfig, TrainConfig, from_json, paper_config, paper_training, to_json
from deformer.errors import InputError
from deformer.train.schedule import cycle_ends, fraction_done, n_features_now, n_rows_now, rate

CONFIG = TrainConfig(steps=1000)


def test_the_rate_warms_up_holds_and_falls() -> None:
    assert rate(CONFIG, 0.0, 0) == pytest.approx(0.01)
    assert rate(CONFIG, 0.1, 100) == rate(CONFIG, 0.4, 400) == 1.0
    assert rate(CONFIG, 1.0, 1000) == pytest.approx(0.02)
    assert rate(CONFIG, 0.7, 700) == pytest.approx(0.51)


def test_cycles_double_and_end_at_low_rates() -> None:
    config = dataclasses.replace(CONFIG, cycles=3, constant=0.0)
    assert cycle_ends(config) == [1 / 7, 3 / 7, 1.0]
    assert [rate(config, done, 700) for done in (0.0, 1 / 7, 3 / 7)] == pytest.approx([1.0, 1.0, 1.0])
    assert [rate(config, end - 1e-6, 700) for end in (1 / 7, 3 / 7, 1.0)] == pytest.approx([0.02] * 3, abs=1e-4)
    assert rate(config, 2 / 7, 700) == pytest.approx(0.51)
    assert rate(config, 1.2, 700) == pytest.approx(0.02)


def test_the_curriculum_grows_to_whole_rows_at_equal_cost() -> None:
    sizes = [n_features_now(CONFIG, done, 784) for done in (0.0, 0.3, 0.5, 0.9, 1.0)]
    assert sizes == [78, 157, 314, 510, 784]
    assert [n_rows_now(CONFIG, n, 50_000) for n in sizes] == [60, 29, 14, 9, 6]
    assert n_rows_now(CONFIG, 1, 10) == 10


def test_the_nearest_limit_counts() -> None:
    config = TrainConfig(steps=100, epochs=2.0, minutes=10.0)
    assert fraction_done(config, 50, 0, 10, 0.0) == 0.5
    assert fraction_done(config, 50, 15, 10, 0.0) == 0.75
    assert fraction_done(config, 50, 15, 10, 9.0) == 0.9


@pytest.mark.parametrize("config", [CONFIG, paper_training(), ModelConfig(), paper_config()])
def test_configs_travel_as_json(config: ModelConfig | TrainConfig) -> None:
    assert from_json(type(config), to_json(config)) == config


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "give steps, epochs or minutes"),
        ({"steps": 0}, "steps must be positive"),
        ({"minutes": -1.0}, "minutes must be positive"),
        ({"steps": 1.5}, "steps must be int"),
        ({"steps": 1, "recipe": "sgd"}, "'muon' or 'adam'"),
        ({"steps": 1, "averaging": 1.0}, "between 0 and 1"),
        ({"steps": 1, "curriculum": ((0.5, 0.5),)}, "rise to"),
        ({"steps": 1, "lr": float("nan")}, "lr must be positive"),
    ],
)
def test_absurd_training_configs_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        TrainConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"d_model": 0}, {"d_model": 6, "n_heads": 4}, {"n_layers": -1}, {"norm": "both"}])
def test_absurd_networks_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ModelConfig(**changes)  # type: ignore[arg-type]

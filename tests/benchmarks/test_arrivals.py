import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import early_alarm, load, stream

from deformer.api import tables
from deformer.data.schema import Binary, image_schema
from deformer.data.seeds import generator
from deformer.data.table import as_rows
from deformer.nn.model import new_model


def test_a_toy_size_gives_every_figure() -> None:
    results = stream.measure(quick=True)
    for by_length in results["growth_by_threads"].values():
        assert all(figures["ratio"] > 0 for figures in by_length.values())
    assert results["batched_ratio"] > 0


def test_a_service_under_load_answers_rightly_and_turns_away_what_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "WAITING", 20)
    monkeypatch.setattr(load, "SESSIONS", 20)
    frame = load.a_table(200)
    table, _ = tables.learn(frame, steps=2, epochs=None, minutes=None)
    tables.save_table(tmp_path / "table.deformer", table)
    server, url = load.start(tmp_path / "table.deformer")
    try:
        results = asyncio.run(load.run(url, table, frame.to_dict("records"), clients=4, seconds=1.0))
    finally:
        server.terminate()
        server.wait()
    assert results["requests"] > 0
    assert load.held(results), results


def test_what_is_wrong_is_seen() -> None:
    good = {
        **{"errors": {}, "wrong": 0, "wrong_afterwards": 0},
        "overload": {"impute": {"200": 1, "503": 1}, "sessions": {"201": 1, "429": 1}},
    }
    assert load.held(good)
    assert not load.held({**good, "wrong": 1})
    assert not load.held({**good, "overload": {**good["overload"], "impute": {"200": 2}}})


def test_alarms_keep_their_rate_and_find_what_the_model_never_saw() -> None:
    schema = image_schema(4, 4, Binary())
    model = new_model(schema)
    draws = generator(0)
    ordinary = [as_rows((torch.rand(400, 16, generator=draws) < 0.1).float(), schema) for _ in range(2)]
    model.fit_marginals(ordinary[0].values, ordinary[0].observed)
    strange = as_rows(torch.ones(50, 16), schema)
    results = early_alarm.detection(model, (ordinary[0], None), (ordinary[1], None), (strange, None))
    assert results["detected_at_0.05"][-1] == 1.0
    assert results["false_at_0.05"] == sorted(results["false_at_0.05"])  # who was flagged once stays so
    assert results["false_at_0.05"][-1] < 0.1
    assert np.mean(results["false_per_length_at_0.05"]) < 0.1

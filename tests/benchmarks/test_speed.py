from benchmarks.memory import run
from benchmarks.speed import measure


def test_a_toy_size_gives_every_figure() -> None:
    results = measure(quick=True)
    for task in ("training_interleaved", "training_two_stream", "drawing", "filling_100"):
        assert results[task]["ratio"] > 0
    assert 0 < results["peak"]["fraction_of_float32"] < 1.5
    assert results["step_seconds"]["1"] > 0
    assert results["machine"]["threads"] >= 1


def test_memory_of_a_small_image() -> None:
    assert all(run(task, side=2) > 0 for task in ("score", "train"))

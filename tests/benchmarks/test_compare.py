import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import compare, contenders, recipe

from deformer import generator, load_source
from deformer.api.training import with_parts
from deformer.baselines.baseline import Baseline, Curve
from deformer.baselines.nade import NADE
from deformer.data.table import Rows, subset
from deformer.train.history import History

TOY = ["--source", "digits-binary", "--rows", "20", "--orders", "2", "--minutes", "0.002"]
SOME = ["deformer", "masked Transformer", "deformer, fixed order", "NADE", "DeepNADE", "MADE, 32 orders", "TraDE"]


def test_models_are_compared_and_what_is_there_is_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TOY, "--output", str(tmp_path), "--models", *SOME]
    compare.main(words)
    table = (tmp_path / "digits-binary-0.002" / "table.md").read_text()
    assert all(f"| {name} |" in table for name in SOME)
    assert (tmp_path / "digits-binary-0.002" / "curves.png").stat().st_size > 1000
    capsys.readouterr()
    compare.main(words)
    assert capsys.readouterr().out.count("measured before") == len(SOME)
    result = json.loads((tmp_path / "digits-binary-0.002" / "NADE.json").read_text())
    assert result["wanted"]["orders"] == 1
    assert "ensemble" not in result


def test_differences_are_those_of_the_same_rows() -> None:
    ours, theirs = {"nll_by_row": [1.0, 20.0, 3.0]}, {"nll_by_row": [2.0, 21.5, 3.5]}
    assert compare.paired_difference(theirs, ours) == f"+1.00 +- {0.5 / 3**0.5:.2f}"
    assert compare.paired_difference(theirs, theirs) == compare.paired_difference(theirs, None) == ""


@pytest.mark.parametrize("name", contenders.MODELS)
def test_results_of_another_recipe_do_not_count(tmp_path: Path, name: str) -> None:
    source, path = with_parts(load_source("digits-binary"), 0), tmp_path / "r.json"
    required = compare.wanted(source, 1.0, 10, 2, contenders.MODELS[name](source, 1.0))
    compare.keep(path, {"wanted": required})
    assert compare.counted(path, required) is not None
    for other in ("deformer interleaved", "deformer, fixed order", "masked Transformer", "MADE, 32 orders", "Row LSTM"):
        if other != name:
            model = contenders.MODELS[other](source, 1.0)
            assert compare.counted(path, compare.wanted(source, 1.0, 10, 2, model)) is None


@pytest.mark.parametrize("key", ["minutes", "rows", "orders", "threads"])
def test_results_of_other_limits_do_not_count(tmp_path: Path, key: str) -> None:
    source, path = with_parts(load_source("digits-binary"), 0), tmp_path / "r.json"
    required = compare.wanted(source, 1.0, 10, 2, contenders.MODELS["NADE"](source, 1.0))
    compare.keep(path, {"wanted": {**required, key: required[key] + 1}})
    assert compare.counted(path, required) is None


def test_models_of_one_order_are_compared_with_the_deformer_of_one() -> None:
    def result(nll: float) -> dict[str, Any]:
        rows = {"nll_by_row": [nll, nll + 1.0], "nll": nll, "error": 0.5, "exact": True, "minutes": [1.0]}
        return {**rows, "parameters": 1, "rows_per_second": 1.0, "sampling_seconds_of_16": 1.0}

    results = {
        "deformer": result(5.0),
        "DeepNADE": result(6.0),
        "deformer, fixed order": result(3.0),
        "NADE": result(7.0),
    }
    lines = compare.table(results).splitlines()[2:]
    assert [line.split(" | ")[7] for line in lines] == ["", "+1.00 +- 0.00", "", "+4.00 +- 0.00"]


def test_validation_chooses_among_the_variants_that_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told, seen = iter([[3.0, 2.0], [4.0, 1.0], [1.5]]), []

    def fit_baseline(model: Baseline, *_: Any, minutes: float, weight_decay: float, **__: Any) -> Curve:
        seen.append((model, weight_decay))
        nll = next(told)
        return Curve([0.1 * minutes] * len(nll), nll, 7)

    monkeypatch.setattr(contenders, "fit_baseline", fit_baseline)
    source = with_parts(load_source("digits-binary"), 0)
    model = contenders.Theirs(source.schema, NADE, [{"hidden": 4}, {"hidden": 5}], [0.0, 0.1])
    monkeypatch.setattr(contenders.time, "monotonic", iter([0.0, 0.0, 30.0, 40.0, 59.5]).__next__)
    along, nll, rows_seen = model.train(source, 1.0, 500)
    assert nll == [3.0, 2.0, 4.0, 1.0, 1.5]
    assert compare.settled(along, nll)[1] == [3.0, 2.0, 2.0, 1.0, 1.0]
    np.testing.assert_allclose(along, [0.1, 0.1, 0.55, 0.55, 40 / 60 + 0.1 / 3])
    assert [decay for _, decay in seen] == [0.0, 0.0, 0.1]
    assert model.model is seen[1][0]
    assert model.chosen == [{"hidden": 5}, {"weight_decay": 0.0}]
    assert rows_seen == 21


def test_a_mean_over_orders_is_estimated_where_each_order_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    source = with_parts(load_source("digits-binary"), 0)
    rows = source.test[:3]
    exact = contenders.masked(source, 0.01)
    assert exact.exact
    for p in exact.model.parameters():
        p.data.add_(0.1 * torch.randn(p.shape, generator=generator(1)))
    monkeypatch.setattr(contenders, "EXACT_FEATURES", 0)
    estimating = contenders.masked(source, 0.01)
    assert not estimating.exact
    estimating.model.load_state_dict(exact.model.state_dict())
    estimated = torch.stack([estimating.log_prob(rows, k) for k in range(200)])
    known = torch.stack([exact.log_prob(rows, k) for k in range(10)])
    error = (estimated.var(0) / len(estimated) + known.var(0) / len(known)).sqrt()
    assert (known.std(0) > 0.1).all()  # orders differ, so that it matters what is known
    assert ((estimated.mean(0) - known.mean(0)).abs() < 4 * error).all()


def test_all_models_are_validated_on_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    source, seen = with_parts(load_source("digits-binary"), 0), []

    def record(*given: Any) -> Rows:
        seen.append(subset(*given))
        return seen[-1]

    monkeypatch.setattr("deformer.train.fit.subset", record)
    monkeypatch.setattr(contenders, "subset", record)
    for name in ("deformer", "NADE"):
        contenders.MODELS[name](source, 0.001).train(source, 0.001, 20)
    ours, theirs = seen
    assert len(ours) == 20
    assert torch.equal(ours.values, theirs.values)


def test_an_interrupted_training_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "fit", lambda *_, **__: History((), "interrupted"))
    with pytest.raises(KeyboardInterrupt):
        compare.main([*TOY, "--output", str(tmp_path), "--models", "deformer"])
    assert not list(tmp_path.rglob("*.json"))


def test_sources_of_one_name_in_two_folders_are_kept_apart() -> None:
    names = {recipe.label(path) for path in ("debd/dna.npz", "uci_binary/dna.npz", "digits-binary")}
    assert names == {"debd-dna", "uci_binary-dna", "digits-binary"}

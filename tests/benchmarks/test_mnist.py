import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import mnist, paper, recipe

from deformer.config import paper_config, paper_training
from deformer.data.schema import Binary, image_schema
from deformer.data.seeds import generator
from deformer.data.sources import Source
from deformer.data.table import Rows, as_rows
from deformer.nn.model import DEformer, new_model
from deformer.tasks.density import NLL
from deformer.train.checkpoint import load, read_notes, read_tensors, save
from deformer.train.fit import fit, newest

TINY = {"d_model": 16, "n_layers": 1, "steps": 12, "validation_rows": 10, "precision": "float32", "threads": 1}


def stripes(n: int, side: int) -> Rows:
    columns = torch.randint(0, 2, (n, 1, side), generator=generator(0, "stripes"))
    return as_rows(columns.expand(n, side, side).reshape(n, -1), image_schema(side, side, Binary()))


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Source:
    monkeypatch.setattr(mnist, "PIECE", tmp_path / "piece.safetensors")
    rows = stripes(300, 4)
    toy = Source("mnist-binarized", rows[:200], rows[200:250], rows[250:])
    for module in (mnist, paper):
        monkeypatch.setattr(module, "load_source", lambda *_: toy)
    return toy


def test_a_recipe_adds_a_line(source: Source, tmp_path: Path) -> None:
    for name in ("one", "two"):
        recipe.recipe(name, source, {**TINY, "lr": 0.01}, 5.0, tmp_path)
    with (tmp_path / "mnist_recipe.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == ["one", "two"]
    assert 0 < float(lines[0]["validation_nll"]) < 16
    assert lines[0]["validation_nll"] == lines[1]["validation_nll"]


def test_settings_are_json() -> None:
    assert recipe.parse(["lr=0.1", 'recipe="adam"', "curriculum=[[1.0, 0.5]]"]) == {
        **{"lr": 0.1, "recipe": "adam"},
        "curriculum": ((1.0, 0.5),),
    }


def test_the_paper_holds_out_a_fiftieth_and_no_test_rows(source: Source) -> None:
    rows, held_out = mnist.paper_split()
    assert (len(rows), len(held_out)) == (245, 5)


def test_training_goes_on_from_a_packed_piece(source: Source, tmp_path: Path) -> None:
    changes = {**TINY, "minutes": 5.0, "averaging": 0.5}
    mnist.train("shipped", tmp_path / "a", tmp_path / "whole.safetensors", {**changes, "steps": 16})
    mnist.train("shipped", tmp_path / "b", tmp_path / "half.safetensors", changes)
    mnist.pack(tmp_path / "b")
    assert (tmp_path / "piece.safetensors").stat().st_size < (newest(tmp_path / "b") or tmp_path).stat().st_size
    mnist.unpack(tmp_path / "c", minutes=1e-9)
    assert newest(tmp_path / "c") is None  # a run that is to be shorter begins anew
    mnist.unpack(tmp_path / "c")
    (there, _), (here, _) = (read_tensors(newest(tmp_path / name) or tmp_path) for name in ("b", "c"))
    for name, t in here.items():
        torch.testing.assert_close(t, there[name], rtol=0.004, atol=1e-3)
        assert t.equal(there[name]) or not name.startswith("model.")
    mnist.train("shipped", tmp_path / "c", tmp_path / "rest.safetensors", {**changes, "steps": 16})
    notes = [read_notes(tmp_path / f"{name}.safetensors") for name in ("whole", "rest")]
    assert [n["steps"] for n in notes] == [16, 16]
    assert all(n["rows_seen"] == notes[0]["rows_seen"] for n in notes)


def test_a_network_grows_without_forgetting(source: Source, tmp_path: Path) -> None:
    changes = {**TINY, "minutes": 5.0, "averaging": 0.5}
    mnist.train("shipped", tmp_path / "small", tmp_path / "s.safetensors", changes)
    mnist.grow(tmp_path / "small", tmp_path / "large", {"n_layers": 3, "content_layers": 0, "d_ff": 96})
    small, large = (load(newest(tmp_path / name) or tmp_path).eval() for name in ("small", "large"))
    assert large.config.n_layers == 3
    rows, order = source.train.values[:5], torch.arange(16).expand(5, 16)
    torch.testing.assert_close(*(m(order, rows).log_prob(rows) for m in (small, large)), rtol=0, atol=1e-5)
    training = {name: value for name, value in changes.items() if name not in ("d_model", "n_layers")}
    mnist.train("shipped", tmp_path / "large", tmp_path / "l.safetensors", {**training, "steps": 20})
    assert read_notes(tmp_path / "l.safetensors")["steps"] == 20


def test_the_curve_is_that_of_the_log(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "PIECE", tmp_path / "none")
    monkeypatch.setattr(mnist, "RESULTS", tmp_path)
    mnist.train("shipped", tmp_path / "run", tmp_path / "m.safetensors", {**TINY, "minutes": 5.0})
    mnist.curve(tmp_path / "run")
    curves = []
    for path in (tmp_path / "mnist_curve.csv", tmp_path / "run" / "metrics.csv"):
        with path.open(newline="") as file:
            curves.append([(p["step"], float(p["validation_nll"])) for p in csv.DictReader(file)])
    assert curves[0] == curves[1]
    assert curves[0]
    assert (tmp_path / "mnist_curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_ships_are_averaged_weights_with_a_card(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "PIECE", tmp_path / "none")
    mnist.train("shipped", tmp_path, tmp_path / "m.safetensors", {**TINY, "minutes": 5.0, "averaging": 0.5})
    mnist.ship(tmp_path, tmp_path / "weights")
    tensors, _ = read_tensors(newest(tmp_path) or tmp_path)
    shipped = load(tmp_path / "weights" / "mnist-binarized.safetensors")
    for name, p in shipped.named_parameters():
        assert torch.equal(p, tensors[f"training.average.{name}"])
    card = (tmp_path / "weights" / "mnist-binarized.md").read_text()
    assert "12 steps" in card
    assert "Unfinished: 5 minutes are planned" in card
    notes = read_notes(tmp_path / "weights" / "mnist-binarized.safetensors")
    assert f"{notes['validation_nll']:.2f} +- " in card


def test_earlier_weights_are_mixed_in_where_held_out_images_like_it(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "PIECE", tmp_path / "none")
    told = iter([5.0, 4.0, 3.0, 4.0, 5.0, 6.0, 3.0])

    def nll_of(model: DEformer, rows: Rows, n_orders: int, **_: Any) -> NLL:
        return NLL(torch.full((n_orders, len(rows)), next(told) if n_orders == 1 else 7.0))

    monkeypatch.setattr(mnist, "nll", nll_of)
    mnist.train("shipped", tmp_path, tmp_path / "m.safetensors", {**TINY, "minutes": 5.0, "averaging": 0.5})
    earlier = new_model(source.schema, load(tmp_path / "m.safetensors").config, seed=5)
    save(tmp_path / "e.safetensors", earlier)
    mnist.ship(tmp_path, tmp_path / "weights", tmp_path / "e.safetensors")
    tensors, _ = read_tensors(newest(tmp_path) or tmp_path)
    shipped = load(tmp_path / "weights" / "mnist-binarized.safetensors")
    for name, p in shipped.named_parameters():
        expected = 0.8 * tensors[f"training.average.{name}"] + 0.2 * earlier.state_dict()[name]
        torch.testing.assert_close(p, expected)
    assert read_notes(tmp_path / "weights" / "mnist-binarized.safetensors")["share_of_earlier_weights"] == 0.2


def test_the_table_and_the_figures(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "PIECE", tmp_path / "none")
    monkeypatch.setattr(paper, "SIDES", (4, 4))
    mnist.train("shipped", tmp_path, tmp_path / "m.safetensors", {**TINY, "minutes": 5.0})
    words = ["--model", str(tmp_path / "m.safetensors"), "--rows", "20", "--orders", "3", "--few", "5", "--many", "4"]
    words += ["--letters", "10"]
    paper.main([*words, "--keep", str(tmp_path / "kept"), "--output", str(tmp_path / "out")])
    table = (tmp_path / "out" / "table1.md").read_text()
    assert "DEformer of the paper, mean over 10 orders | 80.49" in table
    assert "measured, 20 rows" in table
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"figure2.png", "figure3.png", "figure4.png"}
    assert json.loads((tmp_path / "out" / "figures.json").read_text())["figure_4"]["notmnist"]["rows"] == 10
    (kept_in,) = (tmp_path / "kept").iterdir()
    assert len(list(kept_in.glob("test-*"))) == 3
    paper.main([*words, "--bfloat16", "--keep", str(tmp_path / "kept"), "--output", str(tmp_path / "rounded")])
    rounded, exact = (json.loads((tmp_path / d / "figures.json").read_text())["test"] for d in ("rounded", "out"))
    assert 0 < abs(rounded["mean_over_orders"] - exact["mean_over_orders"]) < 0.1
    model, again = load(tmp_path / "m.safetensors").eval(), tmp_path / "again"
    assert source.test is not None
    rows = paper.subset(source.test, 20, generator(0, "test rows"))
    fresh = paper.score(model, rows, 3, 0, None, "test")
    assert 0 < abs(paper.rounding(model, rows, 0)["mean"]) < 0.1
    again.mkdir()
    kept = [paper.score(model, rows, 3, 0, folder, "test") for folder in (kept_in, again, again)]
    assert all(torch.equal(k.per_order, fresh.per_order) for k in kept)


def test_an_auroc_has_a_standard_error() -> None:
    _, figures = paper.figure_4(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.5, 4.0, 5.0]))
    assert figures["auroc"] == pytest.approx(8 / 9)
    assert 0.05 < figures["standard_error"] < 0.3


def test_the_papers_network_takes_steps_and_its_loss_falls() -> None:
    left_half = (torch.arange(28) < 14).long().expand(2, 28, 28).reshape(2, 784)
    rows = as_rows(left_half, image_schema(28, 28, Binary()))
    model = new_model(rows.schema, paper_config())
    assert sum(p.numel() for p in model.parameters()) == 19_244_929
    config = paper_training(epochs=None, steps=8, lr=1e-4, validate_every=1)
    losses = [p.training_nll for p in fit(model, rows, config).points]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.95 * losses[0]

import json
from pathlib import Path

import pytest
from benchmarks import compare, recipe

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
    for than in (theirs, None, {}):
        assert compare.paired_difference(theirs, than) == ""


def test_an_interrupted_training_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "fit", lambda *_, **__: History((), "interrupted"))
    with pytest.raises(KeyboardInterrupt):
        compare.main([*TOY, "--output", str(tmp_path), "--models", "deformer"])
    assert not list(tmp_path.rglob("*.json"))


def test_sources_of_one_name_in_two_folders_are_kept_apart() -> None:
    names = {recipe.label(path) for path in ("debd/dna.npz", "uci_binary/dna.npz", "digits-binary")}
    assert names == {"debd-dna", "uci_binary-dna", "digits-binary"}

from pathlib import Path

import numpy as np
import pytest
from benchmarks import published


def test_baselines_stand_beside_what_was_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, draws = tmp_path / "uci_binary", np.random.default_rng(0)
    folder.mkdir()
    sizes = {"train": 60, "valid": 20, "test": 20}
    bits = {name: np.packbits(draws.integers(0, 2, (n, 5)), axis=1) for name, n in sizes.items()}
    np.savez(folder / "dna.npz", d=5, **bits)
    columns = [column for _, _, column in published.ROWS]
    (folder / "published.csv").write_text(f"file,{','.join(columns)}\ndna,{','.join(['4.0'] * len(columns))}\n")
    words = ["--data", str(tmp_path), "--only", "dna", "--minutes", "0.002", "--output", str(tmp_path / "out")]
    published.main(words)
    lines = (tmp_path / "out" / "0.002" / "table.md").read_text().splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == columns
    assert all("| 4.00 |" in line and "%" in line for line in lines)
    assert capsys.readouterr().out.count("dna, ") == 8
    published.main(words)
    assert "dna, " not in capsys.readouterr().out  # nothing is measured again


def test_validation_chooses_among_variants() -> None:
    cited = {"dna": dict.fromkeys((column for _, _, column in published.ROWS), "4.0")}
    one, other, *_ = published.DEEP
    found = {
        f"dna {one}": {"nll": 5.0, "error": 0.1, "ensemble": 4.5, "ensemble_error": 0.1, "validation_nll": [9.0, 3.0]},
        f"dna {other}": {"nll": 4.0, "error": 0.1, "ensemble": 3.5, "ensemble_error": 0.1, "validation_nll": [3.5]},
    }
    lines = published.table(found, cited).splitlines()[2:]
    assert [line.split(" | ")[3] for line in lines] == ["5.00 +- 0.10", "4.50 +- 0.10"]

"""The command as a user runs it: in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deformer.config import ModelConfig
from deformer.data.schema import Binary, Categorical, Continuous, image_schema, table_schema
from deformer.nn.model import new_model
from deformer.train.checkpoint import save

TINY = ModelConfig(d_model=8, n_layers=1, n_heads=1)


def deformer(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deformer", *map(str, words)]
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=where, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of images, a model of a table, and good and bad files of rows."""
    folder = tmp_path_factory.mktemp("cli")
    save(folder / "image.safetensors", new_model(image_schema(2, 3, Binary()), TINY))
    table = table_schema([Categorical(2, ("no", "yes")), Continuous(1.0, 2.0)], ["answer", "weight"])
    save(folder / "table.safetensors", new_model(table, TINY))
    files = {
        "good.csv": "answer,weight\nyes,1.5\nno,\n?,3\n",
        "swapped.csv": "weight,answer\n1.5,yes\n",
        "label.csv": "answer,weight\nmaybe,1.5\n",
        "infinite.csv": "answer,weight\nyes,inf\n",
        "narrow.csv": "answer\nyes\n",
        "stranger.csv": "answer,height\nyes,1\n",
        "ragged.csv": "answer,weight\nyes\n",
        "twice.csv": "answer,answer\nyes,no\n",
        "empty.csv": "",
        "header.csv": "answer,weight\n",
        "one.csv": "a,b\n0,1\n",
        "truncated.npz": "PK\x03\x04 cut off",
        "short.npy": "\x93NUMPY",
        "cut.safetensors": "x",
        "constant.csv": "a,b\n" + "1,7\n" * 30,
        "bad.toml": "temperatur = 1",
        "good.toml": "n = 3\nseed = 1",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    np.save(folder / "images.npy", np.array([[0, 1, np.nan, 1, np.nan, 0], [1, 1, 0, 0, 1, 1.0]]))
    np.save(folder / "outside.npy", np.full((2, 6), 2.0))
    return folder


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("score table.safetensors label.csv", "'answer' knows no label 'maybe'; it has no, yes"),
        ("score table.safetensors infinite.csv", "'weight' holds inf in row 0; expected a finite number"),
        ("score table.safetensors narrow.csv", "1 columns; the model has 2"),
        ("score table.safetensors stranger.csv", "no feature 'height'"),
        ("score table.safetensors ragged.csv", "1 cells in line 2, but 2"),
        ("score table.safetensors twice.csv", "'answer' stands more than once"),
        ("score table.safetensors empty.csv", "no rows"),
        ("score table.safetensors header.csv", "no rows"),
        ("score table.safetensors absent.csv", "absent.csv does not exist"),
        ("score table.safetensors bad.toml", "none of .csv, .parquet, .npy, .npz"),
        ("score table.safetensors truncated.npz", "Cannot read truncated.npz"),
        ("score table.safetensors short.npy", "Cannot read short.npy"),
        ("score image.safetensors outside.npy", "'r0c0' holds 2 in row 0; expected a whole number from 0 to 1"),
        ("score image.safetensors digits", "another schema than digits"),
        ("score cut.safetensors good.csv", "cut.safetensors is not a readable safetensors file"),
        ("score absent.safetensors good.csv", "absent.safetensors"),
        ("score table.safetensors good.csv --device cuda", "'cuda' is not available"),
        ("sample table.safetensors -o out.png", "Only images can be drawn"),
        ("sample table.safetensors -o out.docx", "must end in .csv or .npz or .png"),
        ("sample table.safetensors -o empty.csv/out.csv", "Cannot write empty.csv/out.csv"),
        ("sample table.safetensors --temperature 0", "temperature must be positive"),
        ("sample table.safetensors --config bad.toml", "'temperatur', which this command does not know"),
        ("impute table.safetensors good.csv --strategy guess", "'draw', 'mean' or 'mode'"),
        ("train --source one.csv --steps 1 -o m.safetensors", "One row cannot be split"),
        ("train --source nonsense --steps 1", "No source is called 'nonsense'"),
        ("train --source digits", "give steps, epochs or minutes"),
        ("train --source digits --steps -3", "steps must be positive"),
        ("train --source digits --steps 1 --d-model 0", "d_model must be positive"),
        ("train --source digits --steps 1 --d-model 10 --n-heads 4", "n_heads must divide d_model"),
        ("train --source digits --steps 1 --preset huge", "preset must be default or paper"),
        ("train --source digits --steps 1 -o empty.csv/m.safetensors", "Cannot write"),
        ("train --source digits --steps 1 --resume", "Resuming needs the directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder: Path, words: str, text: str) -> None:
    before = sorted(folder.iterdir())
    done = deformer(*words.split(), cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert sorted(folder.iterdir()) == before


def test_unknown_options_and_absurd_numbers_are_refused(folder: Path) -> None:
    for words in ("sample table.safetensors -n 0", "score", "sample table.safetensors --colour red", "fly"):
        assert deformer(*words.split(), cwd=folder).returncode == 2


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['deformer', '--help']\nfrom deformer.api.cli import main\n"
    code += (
        "try: main()\nexcept SystemExit: pass\nprint([m for m in ('torch', 'numpy', 'sklearn') if m in sys.modules])"
    )
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=where, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "quickstart" in done.stdout


def test_scores_samples_and_imputations_of_a_table(folder: Path) -> None:
    scored = deformer("score", "table.safetensors", "good.csv", cwd=folder)
    assert scored.stdout.splitlines()[0] == "mean_over_orders,ensemble_over_orders,order_spread"
    assert len(scored.stdout.splitlines()) == 4
    drawn = deformer("sample", "table.safetensors", "--config", "good.toml", cwd=folder)
    assert len(drawn.stdout.splitlines()) == 4
    assert drawn.stdout == deformer("sample", "table.safetensors", "-n", 3, "--seed", 1, cwd=folder).stdout
    filled = deformer("impute", "table.safetensors", "good.csv", cwd=folder).stdout.splitlines()
    assert filled[:2] == ["answer,weight", "yes,1.5"]
    assert filled[2].startswith("no,")
    assert filled[3].split(",")[0] in ("no", "yes")
    assert all("nan" not in line for line in filled)
    assert deformer("score", "table.safetensors", "swapped.csv", cwd=folder).returncode == 0


def test_images_become_pictures(folder: Path) -> None:
    for words in ("sample image.safetensors -n 3 -o s.png", "impute image.safetensors images.npy -o i.png"):
        assert deformer(*words.split(), cwd=folder).returncode == 0
    assert (folder / "s.png").read_bytes().startswith(b"\x89PNG")
    assert deformer("impute", "image.safetensors", "images.npy", "-o", "i.npz", cwd=folder).returncode == 0
    filled = np.load(folder / "i.npz")["X"]
    assert filled.shape == (2, 6)
    assert filled[1].tolist() == [1, 1, 0, 0, 1, 1]


def test_train_then_evaluate_and_describe(tmp_path: Path) -> None:
    words = "train --source digits-binary --steps 3 --d-model 8 --n-layers 1 --n-heads 1 --rows 20 -o m.safetensors"
    trained = deformer(*words.split(), "--directory", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "mean over orders" in trained.stdout
    done = deformer("evaluate", "m.safetensors", "digits-binary", "--rows", 20, "--orders", 2, "--json", cwd=tmp_path)
    figures = json.loads(done.stdout)
    assert figures["rows"] == 20
    assert figures["nll_ensemble_over_orders"] <= figures["nll_mean_over_orders"]
    described = json.loads(deformer("info", "m.safetensors", cwd=tmp_path).stdout)
    assert described["notes"]["source"] == "digits-binary"
    resumed = deformer(*words.replace("--steps 3", "--steps 5").split(), "--directory", "run", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


def test_constant_columns_are_no_obstacle(folder: Path, tmp_path: Path) -> None:
    words = ["train", "--source", folder / "constant.csv", "--steps", 2, "--d-model", 8, "--n-heads", 1]
    done = deformer(*words, "-o", "m.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

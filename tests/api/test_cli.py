"""The command line: what it writes, and the one line it says when something cannot be done."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from deformer.api import cli
from deformer.api.defaults import suited
from deformer.api.training import configure, read_configs
from deformer.api.training import train as train_on_files
from deformer.config import TrainConfig
from deformer.data.sources import load_source
from deformer.train.checkpoint import load, save
from deformer.train.fit import newest
from deformer.train.schedule import n_rows_now

Run = Callable[..., tuple[int, str, str]]
TINY = ["--steps", "3", "--d-model", "16", "--n-layers", "1"]
NAMES = [f"r{r}c{c}" for r in range(8) for c in range(8)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; give its exit code, standard output and standard error."""

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["deformer", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return command


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Run a command that must fail; give its one line."""

    def command(*words: object) -> str:
        code, out, error = run(*words)
        assert (code, out) == (2, "")
        assert error.startswith("deformer: error: ")
        assert error.count("\n") == 1
        return error

    return command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 8 x 8 binary images that has hardly learned anything."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    network = {"d_model": 16, "n_layers": 1}
    train_on_files("digits-binary", path, None, False, "default", network, {"steps": 3}, 20, None, "cpu")
    return path


def table(path: Path, lines: Sequence[Sequence[object]], header: Sequence[str] | None = None) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([*([] if header is None else [header]), *lines])
    return path


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['deformer', '--help']\n"
        "from deformer.api.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "quickstart" in done.stdout


def test_help_is_fast() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "deformer", "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.3 * (1 + os.getloadavg()[0])


def test_no_words_at_all_give_help(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    assert "impute" in out


def test_train_writes_a_model_with_notes_and_prints_both_numbers(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    code, out, _ = run("train", "--source", "digits-binary", "-o", path, "--directory", tmp_path / "run", *TINY)
    assert code == 0
    assert "test rows" in out
    assert "mean over orders" in out
    assert "ensemble over orders" in out
    assert load(path).config.d_model == 16
    assert (tmp_path / "run" / "metrics.csv").exists()
    code, out, _ = run("info", "-m", path)
    described = json.loads(out)
    assert described["n_features"] == 64
    assert described["notes"]["steps"] == 3
    assert described["parameters"] == sum(p.numel() for p in load(path).parameters())


def test_a_run_is_resumed(run: Run, tmp_path: Path) -> None:
    words = ["train", "--source", "digits-binary", "-o", tmp_path / "m.safetensors", "--directory", tmp_path / "run"]
    assert run(*words, *TINY)[0] == 0
    assert run(*words, *TINY, "--resume", "--steps", 5)[0] == 0
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1].startswith("5,")


def test_a_run_keeps_its_network_and_recipe_whatever_its_time(run: Run, tmp_path: Path) -> None:
    directory, path = tmp_path / "run", tmp_path / "m.safetensors"
    words = ["train", "--source", "digits-binary", "-o", path, "--directory", directory, "--threads", 1]
    assert run(*words, "--steps", 1)[0] == 0
    first = newest(directory)
    assert first is not None
    network, training = read_configs(first)
    assert (network.n_layers, network.neighbourhood, training.cycles) == (3, 2, 3)
    assert run(*words, "--resume", "--minutes", 1e-3)[0] == 0
    assert run(*words, "--resume", "--steps", 2)[0] == 0
    last = newest(directory)
    assert last is not None
    assert read_configs(last) == (network, dataclasses.replace(training, steps=2))
    code, _, error = run(*words, "--resume", "--preset", "paper", "--steps", 3)
    assert code != 0
    assert "is of a run whose" in error


def test_the_papers_run_keeps_its_settings_when_it_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, network = tmp_path / "run", {"d_model": 16, "n_layers": 1}
    words = ("digits-binary", tmp_path / "m.safetensors", directory)
    rest = (20, None, "cpu")
    train_on_files(*words, False, "paper", network, {"steps": 2, "lr": 1e-3, "rows_per_step": 4, "threads": 1}, *rest)
    first = newest(directory)
    assert first is not None
    network_config, training = read_configs(first)
    assert (training.lr, training.rows_per_step) == (1e-3, 4)
    train_on_files(*words, True, "paper", {}, {"steps": 3}, *rest)
    last = newest(directory)
    assert last is not None
    assert read_configs(last) == (network_config, dataclasses.replace(training, steps=3))


def test_tokens_or_rows_make_a_batch() -> None:
    defaults, limits = suited(load_source("digits").train, TrainConfig(steps=1)), TrainConfig(steps=1)
    assert n_rows_now(configure(defaults, {}, {"tokens_per_step": 640}, limits)[1], 64, 1000) == 10
    assert n_rows_now(configure(defaults, {}, {"rows_per_step": 7}, limits)[1], 64, 1000) == 7


def test_mistakes_are_found_before_data_are_read(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deformer.api.training.load_source", lambda *_: pytest.fail("read"))
    assert "preset" in refused("train", "--source", "digits", *TINY, "--preset", "bogus")
    assert "Say how long" in refused("train", "--source", "digits")
    assert "lr must be positive" in refused("train", "--source", "digits", *TINY, "--lr", -1)


def test_the_quickstart(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("quickstart", "-o", tmp_path / "q", "--minutes", 0.02, "--source", "digits-binary")
    assert code == 0
    figures = json.loads((tmp_path / "q" / "results.json").read_text())
    assert list(figures) == [
        *("DEformer, mean over orders", "DEformer, ensemble over orders", "same size, fixed order"),
        "independent features",
    ]
    assert all(name in out for name in figures)
    assert len(list((tmp_path / "q").glob("*.png"))) == 4
    assert load(tmp_path / "q" / "model.safetensors").config.neighbourhood == 2


def test_train_on_a_table_with_a_constant_column(run: Run, tmp_path: Path) -> None:
    lines = [[i % 2, "red" if i % 3 else "blue", 1.5, 0.1 * i] for i in range(40)]
    source = table(tmp_path / "t.csv", lines, ["flag", "colour", "constant", "x"])
    path = tmp_path / "m.safetensors"
    code, out, _ = run("train", "--source", source, "-o", path, *TINY)
    assert code == 0
    assert "validation rows" in out
    code, out, _ = run("sample", "-m", path, "--n", 5)
    header, *drawn = csv.reader(out.splitlines())
    assert header == ["flag", "colour", "constant", "x"]
    assert {row[1] for row in drawn} <= {"red", "blue"}
    holes = table(tmp_path / "holes.csv", [[1, "", 1.5, 0.3], ["", "blue", "", 0.2]], header)
    code, out, _ = run("impute", "-m", path, holes)
    _, first, second = csv.reader(out.splitlines())
    assert (first[0], first[3], second[1], second[3]) == ("1", "0.3", "blue", "0.2")
    assert first[1] in ("red", "blue")


def test_score_gives_one_line_per_row(run: Run, model: Path, tmp_path: Path) -> None:
    code, out, _ = run("score", "-m", model, "digits-binary", "--orders", 2)
    header, *lines = csv.reader(out.splitlines())
    assert code == 0
    assert header == ["mean_over_orders", "ensemble_over_orders", "order_spread"]
    assert len(lines) == 180
    assert all(float(mean) <= float(ensemble) + 1e-5 for mean, ensemble, _ in lines)
    assert run("score", "-m", model, "digits-binary", "--orders", 2, "-o", tmp_path / "s.csv")[1] == ""
    assert read(tmp_path / "s.csv") == [header, *lines]


def test_one_row_is_enough_to_score(run: Run, model: Path, tmp_path: Path) -> None:
    one = table(tmp_path / "one.csv", [[0] * 64])
    assert len(run("score", "-m", model, one)[1].splitlines()) == 2
    code, out, _ = run("evaluate", "-m", model, one, "--orders", 2, "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 1


def test_sample_keeps_what_is_given_and_follows_the_seed(run: Run, model: Path, tmp_path: Path) -> None:
    given = table(tmp_path / "given.csv", [[1, 0, 1, *[""] * 61]], NAMES)
    words = ["sample", "-m", model, "--n", 4, "--given", given]
    outputs = [run(*words, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert outputs[0] == outputs[1] != outputs[2]
    assert all(line.startswith("1,0,1,") for line in outputs[0].splitlines()[1:])


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".png"])
def test_samples_in_every_format(run: Run, model: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"samples{suffix}"
    assert run("sample", "-m", model, "--n", 3, "-o", path) == (0, "", "")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix == ".csv":
        assert len(read(path)) == 4
    elif suffix == ".npz":
        assert np.load(path)["X"].shape == (3, 64)
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("strategy", ["draw", "mean", "mode"])
def test_impute_keeps_what_was_observed(run: Run, model: Path, tmp_path: Path, strategy: str) -> None:
    holes = table(tmp_path / "holes.csv", [["", *[1] * 63], [0, "", *[1] * 62]], NAMES)
    assert run("impute", "-m", model, holes, "--strategy", strategy, "-o", tmp_path / "full.csv")[0] == 0
    header, first, second = read(tmp_path / "full.csv")
    assert header == NAMES
    assert first[1:] == ["1"] * 63
    assert second[0] == "0"
    assert all(first + second)


def test_a_table_from_file_to_file(run: Run, refused: Callable[..., str], tmp_path: Path) -> None:
    lines = [[i % 7 + 0.5 * (i % 2), "ab"[i % 2], "" if i % 5 == 0 else i % 3] for i in range(60)]
    source, model = table(tmp_path / "t.csv", lines, ["x", "l", "n"]), tmp_path / "m.deformer"
    code, out, _ = run("fit", source, "-o", model, "--steps", 3, "--label", "n")
    assert code == 0
    assert "labels" in out
    columns = json.loads(run("info", "-m", model)[1])["columns"]
    assert [(c["name"], c["coded as"]) for c in columns] == [("x", "numbers"), ("l", "labels"), ("n", "labels")]
    assert len(run("score", "-m", model, source)[1].splitlines()) == 61
    assert run("impute", "-m", model, source, "--strategy", "mode", "-o", tmp_path / "f.csv") == (0, "", "")
    assert all("" not in line for line in read(tmp_path / "f.csv"))
    assert run("sample", "-m", model, "-n", 3)[1].startswith("x,l,n\n")
    assert run("explain", "-m", model, source)[1].startswith("row,column,value,expected,surprise,excess,share\n")
    assert run("conditional", "-m", model, source, "--target", "l")[1].startswith("a,b,(other)\n")
    figures = json.loads(run("evaluate", "-m", model, source, "--rows", 20, "--json")[1])
    assert figures["rows"] == 20
    assert np.isfinite(figures["nll_ensemble_over_orders"])
    assert "No feature is called 'bogus'" in refused("conditional", "-m", model, source, "--target", "bogus")
    assert "No column is called 'bogus'" in refused("fit", source, "-o", model, "--steps", 3, "--number", "bogus")
    assert "must end in" in refused("fit", source, "-o", tmp_path / "m.bin", "--steps", 3)


def test_columns_are_found_by_name(run: Run, model: Path, tmp_path: Path) -> None:
    row = [int(i % 5 == 0) for i in range(64)]
    forth, back = table(tmp_path / "a.csv", [row], NAMES), table(tmp_path / "b.csv", [row[::-1]], NAMES[::-1])
    assert run("score", "-m", model, forth)[1] == run("score", "-m", model, back)[1]


def test_evaluate_names_both_order_agnostic_numbers(run: Run, model: Path) -> None:
    words = ["evaluate", "-m", model, "digits-binary", "--orders", 2, "--rows", 30]
    _, out, _ = run(*words, "--json")
    figures = json.loads(out)
    assert figures["rows"] == 30
    assert figures["nll_ensemble_over_orders"] <= figures["nll_mean_over_orders"]
    assert figures["bits_per_dim"] == pytest.approx(figures["nll_mean_over_orders"] / 64 / np.log(2))
    assert "bits per dimension" in run(*words)[1]


@pytest.mark.parametrize(("suffix", "text"), [(".toml", 'n = 2\nseed = 7\n"temperature" = 0.5'), (".json", '{"n": 2}')])
def test_a_config_gives_defaults_that_words_override(
    run: Run, model: Path, tmp_path: Path, suffix: str, text: str
) -> None:
    config = tmp_path / f"c{suffix}"
    config.write_text(text)
    assert len(run("sample", "-m", model, "--config", config)[1].splitlines()) == 3
    assert len(run("sample", "-m", model, "--config", config, "--n", 1)[1].splitlines()) == 2


def test_a_config_calls_options_as_the_command_does(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("json = true\ndata-dir = '.'\n")
    printed = run("evaluate", "-m", model, "digits-binary", "--rows", 2, "--config", tmp_path / "c.toml")[1]
    assert "nll_mean_over_orders" in json.loads(printed)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("c.toml", "bogus = 1", "sets 'bogus'"),
        ("c.toml", "n = ", "Cannot read"),
        ("c.json", "[1]", "names of options"),
        ("c.json", '{"n": "many"}', "--n"),
        ("c.json", '{"n": -2}', "--n"),
    ],
)
def test_bad_configs(refused: Callable[..., str], model: Path, tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    assert says in refused("sample", "-m", model, "--config", tmp_path / name)
    assert "Cannot read" in refused("sample", "-m", model, "--config", tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("cells", "header", "says"),
    [
        ([[2, *[0] * 63]], None, "r0c0"),
        ([["inf", *[0] * 63]], None, "r0c0"),
        ([["-inf", *[0] * 63]], None, "r0c0"),
        ([[0.5, *[0] * 63]], None, "r0c0"),
        ([["red", *[0] * 63]], None, "'red'"),
        ([[0] * 63], None, "63 columns; the model has 64"),
        ([[0] * 65], None, "65 columns; the model has 64"),
        ([[0] * 64], ["bogus", *NAMES[1:]], "no feature 'bogus'"),
        ([[0] * 64], [NAMES[1], *NAMES[1:]], "'r0c1' stands more than once"),
        ([[0] * 64, [0] * 65], None, "65 cells in its second line, but 64 in its first"),
        ([], None, "holds no rows"),
        ([], NAMES, "holds no rows"),
    ],
)
def test_bad_tables(
    refused: Callable[..., str],
    model: Path,
    tmp_path: Path,
    cells: list[list[object]],
    header: list[str] | None,
    says: str,
) -> None:
    path = table(tmp_path / "bad.csv", cells, header)
    for command in ("score", "impute", "evaluate"):
        assert says in refused(command, "-m", model, path)
    assert says in refused("sample", "-m", model, "--given", path)


def test_bad_arrays(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    for array, says in [
        (np.zeros((0, 64)), "no rows"),
        (np.zeros(64), "rows x columns"),
        (np.full((2, 64), "a"), "numbers"),
        (np.full((2, 64), 1e300), "r0c0"),
    ]:
        np.save(path, array)
        assert says in refused("score", "-m", model, path)
    np.save(path, np.zeros((2, 64)))
    path.write_bytes(path.read_bytes()[:-100])
    assert "Cannot read" in refused("score", "-m", model, path)
    truncated = tmp_path / "rows.npz"
    np.savez(truncated, X=np.zeros((2, 64)))
    truncated.write_bytes(truncated.read_bytes()[:-30])
    assert "Cannot read" in refused("score", "-m", model, truncated)
    (tmp_path / "rows.csv").write_bytes(b"\xff\xfe\x00\x01")
    assert "is not UTF-8" in refused("score", "-m", model, tmp_path / "rows.csv")


def test_unknown_names(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    assert "No source is called 'bogus'" in refused("score", "-m", model, "bogus")
    assert "does not exist" in refused("score", "-m", model, tmp_path / "missing.csv")
    assert "none of .csv" in refused("score", "-m", model, tmp_path / "rows.xlsx")
    assert "no part 'bogus'; it has train" in refused("score", "-m", model, "digits-binary", "--part", "bogus")
    assert "No such command" in refused("bogus")
    assert "--bogus" in refused("score", "-m", model, "digits-binary", "--bogus")
    assert "--device" in refused("score", "-m", model, "digits-binary", "--device", "abacus")
    assert "strategy" in refused("impute", "-m", model, "digits-binary", "--strategy", "guess")
    assert "--source" in refused("train")
    assert "preset" in refused(
        "train", "--source", "digits", *TINY, "--preset", "bogus", "-o", tmp_path / "m.safetensors"
    )


def test_a_model_of_another_schema_says_where_they_part(refused: Callable[..., str], model: Path) -> None:
    line = refused("evaluate", "-m", model, "digits")
    assert "another schema" in line
    assert "Ordinal" in line
    assert "Binary" in line


def test_bad_models(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    assert str(path) in refused("info", "-m", path)
    whole = model.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        assert "not a readable safetensors file" in refused("sample", "-m", path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--d-model", "-1"], "--d-model"),
        (["--d-model", "0"], "--d-model"),
        (["--d-model", "1000000000"], "--d-model"),
        (["--d-model", "16384", "--n-layers", "1000"], "GB"),
        (["--d-model", "16", "--n-heads", "3"], "does not divide 16"),
        (["--n-layers", "-3"], "--n-layers"),
        (["--steps", "-1"], "steps must be positive"),
        (["--steps", "1.5"], "--steps"),
        (["--lr", "nan"], "lr must be positive"),
        (["--seed", "-1"], "--seed"),
        (["--wiring", "bogus"], "'two_stream' or 'interleaved'"),
        (["--recipe", "sgd"], "'muon' or 'adam'"),
    ],
)
def test_absurd_trainings(refused: Callable[..., str], tmp_path: Path, words: list[str], says: str) -> None:
    path = tmp_path / "m.safetensors"
    assert says in refused("train", "--source", "digits", "-o", path, *TINY, *words)
    assert not path.exists()


def test_a_training_needs_a_limit_and_rows(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    assert "give steps, epochs or minutes" in refused("train", "--source", "digits", "-o", path)
    one = table(tmp_path / "one.csv", [[0, 1.5, 2]])
    assert "give at least two" in refused("train", "--source", one, "-o", path, *TINY)


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--n", "-1"],
        ["sample", "--n", "0"],
        ["sample", "--n", "1000000000000"],
        ["sample", "--temperature", "-1"],
        ["sample", "--temperature", "nan"],
        ["score", "digits-binary", "--orders", "0"],
        ["impute", "digits-binary", "--n-imputations", "0"],
        ["evaluate", "digits-binary", "--rows", "-5"],
    ],
)
def test_absurd_requests(refused: Callable[..., str], model: Path, words: list[str]) -> None:
    refused(words[0], "-m", model, *words[1:])


def test_outputs_are_tried_before_any_work(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert "there is no folder" in refused("sample", "-m", model, "-o", missing / "s.csv")
    assert "must end in" in refused("sample", "-m", model, "-o", tmp_path / "s.xlsx")
    assert "must end in" in refused("score", "-m", model, "digits-binary", "-o", tmp_path / "s.png")
    (tmp_path / "folder.csv").mkdir()
    assert "it is a folder" in refused("sample", "-m", model, "-o", tmp_path / "folder.csv")
    assert "there is no folder" in refused(
        "train", "--source", "digits", "--steps", 9999, "-o", missing / "m.safetensors"
    )
    (tmp_path / "file").touch()
    words = ["train", "--source", "digits", "--steps", 9999, "-o", tmp_path / "m.safetensors"]
    assert "Cannot make the folder" in refused(*words, "--directory", tmp_path / "file" / "run")
    assert "Cannot make the folder" in refused("quickstart", "-o", tmp_path / "file" / "quickstart")
    assert not missing.exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files even from root")
def test_a_folder_that_takes_no_files(refused: Callable[..., str], model: Path) -> None:
    assert "Cannot write /proc/self/s.csv" in refused("sample", "-m", model, "-o", "/proc/self/s.csv")


def test_pictures_only_of_images(refused: Callable[..., str], run: Run, tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv", [[i % 2, i % 7] for i in range(20)])
    assert run("train", "--source", source, "-o", tmp_path / "m.safetensors", *TINY)[0] == 0
    assert "Only images" in refused("sample", "-m", tmp_path / "m.safetensors", "-o", tmp_path / "s.png")


def test_too_little_memory_is_one_line(
    refused: Callable[..., str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr("deformer.tasks.sampling.sample", fail)
    assert "not enough memory" in refused("sample", "-m", model)


def test_what_the_system_refuses_is_one_line(
    refused: Callable[..., str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", deny)
    assert refused("score", "-m", model, "closed/t.csv") == "deformer: error: closed/t.csv: Permission denied.\n"


def test_numbers_that_are_not_finite_are_null_in_json(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bare(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    one = table(tmp_path / "one.csv", [[0] * 64])
    _, out, _ = run("evaluate", "-m", model, one, "--orders", 2, "--json")
    assert json.loads(out, parse_constant=bare)["nll_mean_over_orders_standard_error"] is None
    noted = tmp_path / "noted.safetensors"
    save(noted, load(model), {"training": {"clip": np.inf}, "curve": [np.nan, 1.5]})
    notes = json.loads(run("info", "-m", noted)[1], parse_constant=bare)["notes"]
    assert notes == {"training": {"clip": None}, "curve": [None, 1.5]}


def test_options_that_make_no_sense_are_refused_also_where_they_do_nothing(
    refused: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    one = table(tmp_path / "one.csv", [[0] * 64])
    for command in ("score", "impute"):
        assert "'spark' is not one of" in refused(command, "-m", model, one, "--engine", "spark")
        assert "works on a folder of Parquet files" in refused(command, "-m", model, one, "--engine", "ray")
    for command in ("score", "impute", "evaluate"):
        assert "no part 'bogus'" in refused(command, "-m", model, one, "--part", "bogus")


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_the_version_is_told(run: Run) -> None:
    code, out, _ = run("--version")
    assert (code, out.split()[0]) == (0, "deformer")
    assert run("score", "-h")[0] == 0


def test_an_interrupted_training_keeps_its_model_and_exits_with_130(tmp_path: Path) -> None:
    path, directory = tmp_path / "m.safetensors", tmp_path / "run"
    words = ["--source", "digits-binary", "--directory", str(directory), "-o", str(path), *TINY, "--steps", "200000"]
    words += ["--config", str(tmp_path / "c.json")]
    (tmp_path / "c.json").write_text('{"rows_per_step": 2}')
    process = subprocess.Popen(
        [sys.executable, "-m", "deformer", "train", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not list(directory.glob("tensorboard/*")) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert out == ""
    assert load(path).config.d_model == 16

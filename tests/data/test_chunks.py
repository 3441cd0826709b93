from pathlib import Path

import pandas as pd

from deformer.data.chunks import read_all, read_chunks


def test_days_and_moments_are_known_by_their_spelling(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("day,moment,code,mixed\n2024-01-31,2024-01-31T10:00,2024-01,2024-01-31\n,,,soon\n")
    frame = read_all(path)
    assert [pd.api.types.is_datetime64_any_dtype(frame[n]) for n in frame] == [True, True, False, False]


def test_the_type_of_a_label_does_not_depend_on_its_chunk(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("code,n\nA1,1\n12,2\n13,3\n,4\n")
    chunks = list(read_chunks(path, 2, ["code"]))
    assert [list(chunk["code"].dropna()) for chunk in chunks] == [["A1", "12"], ["13"]]
    assert chunks[1]["n"].tolist() == [3, 4]

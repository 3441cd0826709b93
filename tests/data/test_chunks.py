from pathlib import Path

import pandas as pd

from deformer.data.chunks import read_all


def test_days_and_moments_are_known_by_their_spelling(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("day,moment,code,mixed\n2024-01-31,2024-01-31T10:00,2024-01,2024-01-31\n,,,soon\n")
    frame = read_all(path)
    assert [pd.api.types.is_datetime64_any_dtype(frame[n]) for n in frame] == [True, True, False, False]

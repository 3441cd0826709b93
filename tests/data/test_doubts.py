import numpy as np
import pandas as pd
import pytest

from deformer.data.doubts import doubts

N = 60
COLUMNS = {
    "a number for each row": (range(1, N + 1), "Every value of 'x' differs"),
    "a name for each row": ([f"r{i}" for i in range(N)], "Every value of 'x' differs"),
    "numbers but one": ([*map(str, range(N - 1)), "n.a."], "would be numbers, though not 'n.a.'"),
    "days": ([f"{1 + i % 28}/{1 + i % 12}/2024" for i in range(N)] * 2, "looks like dates"),
    "days with names": ([f"{1 + i % 28} May 2024" for i in range(N)] * 2, "looks like dates"),
    "prices": ([f"${i}.50" for i in range(N)] * 2, "looks like numbers"),
    "shares": ([f"{i} %" for i in range(N)] * 2, "looks like numbers"),
    "numbers as text": ([f"{i}.5" for i in range(N)] * 2, "looks like numbers"),
    "labels": (["a", "b", "3"] * 40, None),
    "few sizes": (["2XL", "3XL"] * 60, None),
    "postal codes": ([f"0{1000 + i}" for i in range(N)] * 2, None),
    "real numbers": (np.random.default_rng(0).normal(size=N), None),
    "what stands for missing": ([*np.linspace(5, 30, N), *[-999] * 5], "'x' is often -999"),
    "years, some far ahead": ([*range(1960, 1960 + N), *[9999] * 9], "'x' is often 9999"),
    "two that stand for missing": ([*np.linspace(5, 30, N), *[-999] * 5, *[-9999] * 3], "'x' is often -999"),
    "dark pixels": (np.array([*range(1, 200), *[0] * 50], np.uint8), None),
    "no rain": ([*np.linspace(0.1, 30, N), *[0.0] * 40], None),
    "one far out": ([*np.linspace(5, 30, N), -999.0], None),
    "codes far apart": ([1, 2, 3, 99] * 40, None),
    "nothing": ([None] * N, None),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_what_may_be_something_else_is_said(name: str) -> None:
    values, says = COLUMNS[name]
    frame = pd.DataFrame({"x": values if isinstance(values, np.ndarray) else list(values)})
    told = list(doubts(frame))
    if says is None:
        assert not told
    else:
        assert len(told) == 1
        assert says in told[0]
    assert not list(doubts(frame, {"x"}))


def test_of_a_handful_of_rows_nothing_is_said() -> None:
    assert not list(doubts(pd.DataFrame({"x": ["a", "b"], "i": [1, 2]})))

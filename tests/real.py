"""Where real data lies, for the tests that need it."""

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[2] / "shared" / "data"
REAL = os.environ.get("DEFORMER_DATA") or (str(BESIDE) if BESIDE.is_dir() else None)
needs_real_data = pytest.mark.skipif(
    REAL is None, reason="real data: DEFORMER_DATA is not set and ../shared/data is absent"
)

"""Where real data lies, for the tests that need it."""

import os

import pytest

REAL = os.environ.get("DEFORMER_DATA") or None
needs_real_data = pytest.mark.skipif(REAL is None, reason="real data: DEFORMER_DATA is not set")

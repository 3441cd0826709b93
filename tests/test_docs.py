"""The examples of README and docs run as they stand, but for their minutes."""

import re
from pathlib import Path

import pytest

import deformer

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/networks.md", "docs/streaming.md", "docs/tables.md")  # docs/service.md needs a server


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    monkeypatch.chdir(tmp_path)
    exec(re.sub(r"minutes=[\d.]+", "minutes=0.01", "\n".join(blocks)), {})


def test_the_reference_has_every_public_name() -> None:
    named = re.findall(r"^::: deformer\.(\w+)$", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
    assert sorted(["__version__", *named]) == sorted(deformer.__all__)

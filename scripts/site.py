"""Let the pages of docs stand on a site of their own: README is its first page, and pictures of results come along."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PICTURES = re.compile(r"\.\./(benchmarks/results/[\w/.-]+\.png)")


def on_files(files: Files, config: Any) -> Files:
    """Add README, whose links start from the project's folder, and the pictures that pages show."""
    readme = (ROOT / "README.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    pages = [page.content_string for page in files.documentation_pages()]
    for picture in sorted({path for page in pages for path in PICTURES.findall(page)}):
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Look for the pictures where `on_files` put them."""
    return PICTURES.sub(r"\1", markdown)

"""Imports go one way: data, nn, tasks, train, api; baselines stand beside tasks."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "deformer"
RANK = {"errors": 0, "config": 0, "data": 1, "nn": 2, "tasks": 3, "baselines": 3, "train": 4, "api": 5}
FILES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.stem in RANK)


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    own = RANK[room(path.relative_to(SOURCE).parts)]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deformer."):
            assert RANK[room(tuple((node.module or "").split(".")[1:]))] <= own, f"{path} imports {node.module}"


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*/__init__.py")), ids=lambda p: p.parent.name)
def test_every_room_says_what_it_knows(path: Path) -> None:
    assert "must not" in (ast.get_docstring(ast.parse(path.read_text())) or "")

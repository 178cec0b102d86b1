"""Imports point one way: jobs -> cluster -> pipeline, jobs and cluster -> models, and nothing else of ours."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "jobs": {"jobs", "cluster", "pipeline", "models"},
    "cluster": {"cluster", "pipeline", "models"},
    "pipeline": {"pipeline"},
    "models": {"models"},
}
MODELS_MAY_USE = {"torch", "safetensors", "numpy"}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_follow_the_arrows(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): bad for f in files if (bad := (imported(f) & set(ALLOWED)) - ALLOWED[room])}
    assert not wrong


def test_models_use_the_core_install_only() -> None:
    import sys

    standard = set(sys.stdlib_module_names) | {"models"} | MODELS_MAY_USE
    wrong = {str(f): bad for f in (ROOT / "models").rglob("*.py") if (bad := imported(f) - standard)}
    assert not wrong

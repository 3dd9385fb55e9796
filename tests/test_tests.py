"""The tests themselves: they lie as the source does, and none needs another; what several use is ``support``."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = [
    file for folder in ("tests", "benchmarks", "tools") for file in (HERE.parent / folder).rglob("*.py")
]


def imported(source: str) -> Iterator[str]:
    """The dotted names of all that ``source`` imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def of_test_modules(source: str) -> list[str]:
    """What ``source`` imports from test modules."""
    return [name for name in imported(source) if any(part.startswith("test_") for part in name.split("."))]


def test_no_test_is_imported() -> None:
    found = {str(file.relative_to(HERE.parent)): of_test_modules(file.read_text()) for file in SOURCES}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import tests.cache.test_writer",
        "from tests.cache.test_writer import SPEC as HONEST",
        "from tests.cache import test_writer",
        "from . import test_writer",
        "def later():\n    from .test_writer import SPEC",
    ],
)
def test_every_way_to_import_one_is_seen(line: str) -> None:
    assert len(of_test_modules(line)) == 1
    assert of_test_modules(line.replace("test_", "")) == []


def test_tests_lie_where_the_source_does() -> None:
    folders = {file.parent.relative_to(HERE) for file in HERE.rglob("test_*.py")}
    assert [str(folder) for folder in folders if not any((HERE.parent / folder).glob("*.py"))] == []

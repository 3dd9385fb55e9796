"""The rooms of the package and their order: a module imports from its own room and those above it in the table."""

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: from the ground up; a room is a folder, or modules of one folder. Rooms of one line never import each other.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("errors", "terminal"),
    ("settings options progress tables interrupts devices hub",),  # what all of the package uses
    ("engines",),  # where work is done: here, on several devices, by Slurm, by Ray
    ("cache",),  # what the two stages share: features and texts on disk
    ("extract", "train_heads/episodes"),  # stage one; what is drawn from a cache, and its features
    ("train_heads/heads/parts",),  # what several heads are built of
    (
        "train_heads/heads/protocol train_heads/heads/episode train_heads/heads/evidence train_heads/heads/checks train_heads/heads/base",
    ),
    ("train_heads/heads/clipspm", "train_heads/heads/peers"),
    ("train_heads/heads/pool",),  # evidence that needs no training, and what CLIP-SPM learns on top
    ("train_heads/heads/registry",),
    ("testing",),  # what a head promises, for tests of your own
    ("train_heads/config train_heads/places train_heads/request train_heads/runs train_heads/resume",),
    ("train_heads/evaluation",),  # predictions, scores, intervals, leaks
    ("train_heads/training",),  # the loop, and what chooses its weights
    ("train_heads/experiments",),  # ablations, comparisons, tables of runs
    (
        "train_heads/demo",
        "train_heads/doctor",
        "train_heads/import_checkpoint",
        "recognise",
        "look",
        "machine",
    ),
    ("commands",),  # groups of commands
    ("cli",),
    ("__main__",),
)


def modules() -> dict[str, Path]:
    """The modules of the package, by their path without suffix; ``__init__`` stands for its folder."""
    found = {}
    for file in ROOT.rglob("*.py"):
        path = file.relative_to(ROOT)
        if path.parts[0] not in {"tests", "benchmarks", "tools", "examples", "docs", "build"} and not any(
            part.startswith(".") for part in path.parts
        ):
            name = path.with_suffix("").as_posix()
            found[name.removesuffix("/__init__")] = file
    return {name: file for name, file in found.items() if name != "__init__"}


MODULES = modules()


def imports(module: str) -> Iterator[str]:
    """The package's modules that ``module`` imports, wherever in its text."""
    file = MODULES[module]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                folder = file.relative_to(ROOT).parent.parts
                base = ".".join(("clipspm", *folder[: len(folder) - node.level + 1], *filter(None, [base])))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            path = name.replace(".", "/").removeprefix("clipspm/")
            if name.startswith("clipspm.") and path in MODULES and path != module:
                yield path


def room(module: str) -> tuple[int, str]:
    """The line of the table that ``module`` is in, and its room there."""
    for level, line in enumerate(ROOMS):
        for rooms in line:
            if any(module == place or module.startswith(f"{place}/") for place in rooms.split()):
                return level, rooms
    raise AssertionError(f"{module} is in no room: put it into one, or add a room to the table")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_is_imported_upwards(module: str) -> None:
    packages = {"train_heads", "train_heads/heads"}
    if module in packages:  # says which names there are, in the stub beside it
        return
    level, own = room(module)
    for other in set(imports(module)) - packages:
        there, theirs = room(other)
        assert there < level or theirs == own, f"{module} imports {other}, of a room beside or above"


def test_there_is_no_circle() -> None:
    graph = {module: set(imports(module)) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_map_for_people_has_every_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    table = text[text.index("## The rooms") : text.index("## Where is it?")]
    named = {name.strip("/").rpartition("/")[2] for name in re.findall(r"`([\w/]+)`", table)}
    rooms = (place for line in ROOMS for several in line for place in several.split())
    assert {place.rpartition("/")[2] for place in rooms} - named - {"protocol"} == set()


def test_what_is_installed_is_all_of_it() -> None:
    """Installed from a wheel, the package has every folder and every file that is not Python, as it has here."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {"/".join(package.split(".")[1:]) or "." for package in setuptools["packages"]}
    assert folders == {file.relative_to(ROOT).parent.as_posix() for file in MODULES.values()} | {"."}
    installed = {
        file
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for file in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
    }
    beside = {
        file
        for top in {folder.partition("/")[0] for folder in folders - {"."}}
        for file in (ROOT / top).rglob("*")
        if file.is_file() and file.suffix not in {".py", ".pyc", ".pyi"}
    }
    assert beside - installed == set()

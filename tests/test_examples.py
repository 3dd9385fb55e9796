"""``examples/``: a package with a head is installed, and the command line takes it as one of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from clipspm.train_heads.heads import CLIPSPMConfig
from tests.support.synthetic import fake_cache, real_cache

SOURCE = Path(__file__).parents[1] / "examples" / "change_head"
SMALL = ("--way", 3, "--queries", 2, "--episodes", 32, "--device", "cpu", "--threads", 1)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example's package, as pip installs it."""
    try:
        able = find_spec("pip") is not None and Version(version("setuptools")) >= Version("70.1")
    except PackageNotFoundError:
        able = False
    if not able:
        pytest.skip("this environment has no pip, or no setuptools from 70.1, to install a package with")
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "installed"))
    shutil.copytree(SOURCE, source, dirs_exist_ok=True)
    command = [
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        target,
    ]
    done = subprocess.run(
        [sys.executable, "-m", *command, source], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a small cache in it, ``c.zarr``."""
    home = tmp_path_factory.mktemp("home")
    real_cache(home / "c.zarr", fake_cache(per_class=6, noise=3.0))
    return home


#: runs one command line after another in a process of its own
COMMANDS = """
import json, sys
from clipspm.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["clipspm", *arguments, "--json"]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise
    print("---")
"""


class Shell:
    """Processes of an environment that has the package."""

    def __init__(self, installed: Path, home: Path) -> None:
        paths = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.home = home
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CLIPSPM_HOME": str(home)}

    def python(self, code: str, *args: str) -> str:
        command = [sys.executable, "-c", code, *args]
        done = subprocess.run(
            command, env=self.env, cwd=self.home, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def clipspm(self, *commands: tuple[object, ...]) -> list[Any]:
        """What each command says."""
        said = self.python(COMMANDS, json.dumps([[str(part) for part in command] for command in commands]))
        return [json.loads(part) for part in said.split("---\n")[:-1]]


@pytest.fixture
def shell(installed: Path, home: Path) -> Shell:
    return Shell(installed, home)


def test_it_is_listed_and_keeps_what_heads_promise(shell: Shell) -> None:
    (found,) = shell.clipspm(("heads",))
    assert {"name": "change", "about": "of the package change-head", "trained": True} in found["heads"]
    shell.python("from clipspm.testing import check_head; check_head('change', settings={'scale': 3})")


def test_it_is_trained_scored_and_compared(shell: Shell) -> None:
    narrow = ("--set", "heads=1", "--set", "head_width=8", "--set", "ffn_width=16")
    by_path = "change_head:ChangeHead"
    both = "--against", "change", "--against", by_path
    score = "--test-episodes", 50
    train = "train-heads", "--cache", "c.zarr", "--run-dir"
    trained, scored, again, table = shell.clipspm(
        (*train, "named", "--head", "change", "--set", "scale=20", *SMALL),
        ("eval", "named", *score, "--device", "cpu"),
        (*train, "at its path", "--head", by_path, "--set", "scale=20", *SMALL),
        ("ablate", "--cache", "c.zarr", "--out", "table", *both, *score, *narrow, *SMALL),
    )
    assert trained["config"]["head"] == "change"
    assert trained["config"]["head_config"] == {"scale": 20.0}
    assert (trained["steps"] > 0, trained["selection"], [*trained["tuned"]]) == (True, "val", ["share"])
    assert (scored["head"], scored["selection"]) == ("change", "val")
    assert 1 / 3 < scored["protocols"]["inductive"]["accuracy"] < 1
    assert again["config"]["head"] == by_path
    assert again["val_accuracy"] == trained["val_accuracy"]
    rows = {row["name"]: row for row in table["rows"]}
    assert [*rows] == ["full", "change", by_path]
    named, at_path = (rows[name]["protocols"] for name in ("change", by_path))
    assert named == at_path != rows["full"]["protocols"]


def test_the_call_in_the_documentation() -> None:
    text = (SOURCE.parents[1] / "docs" / "heads.md").read_text("utf-8")
    (call,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    names: dict[str, Any] = {}
    exec(call, names)
    out = names["out"]
    assert out.logits.shape == (2, 3, 5)
    assert all(name in text for name in out.evidence)
    assert out.losses == {}


def test_every_setting_in_the_documentation_is_one_and_the_other_way_round() -> None:
    known = [field.name for field in fields(CLIPSPMConfig)]
    text = (SOURCE.parents[1] / "docs" / "heads.md").read_text("utf-8")
    clipspm = text[text.index("## CLIP-SPM: modules and variants") : text.index("## Recipes")]
    assert {name for name in known if f"`{name}" not in clipspm and f"{name}=" not in clipspm} == set()
    assert set(re.findall(r"`(\w+)=", clipspm)) <= set(known)

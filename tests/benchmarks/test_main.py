"""``python -m benchmarks`` lists every benchmark, and where what it found is written."""

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.__main__ import claims

ROOT = Path(__file__).parents[2]


def test_every_benchmark_claims_something_and_a_page_has_its_numbers() -> None:
    runnable = {
        file.stem for file in (ROOT / "benchmarks").glob("*.py") if "\ndef main(" in file.read_text("utf-8")
    }
    assert set(claims()) == runnable >= {"extract", "heads"}
    for name, claim in claims().items():
        (page,) = re.findall(r"\((docs/\w+\.md)\)\.$", claim)
        assert f"benchmarks.{name}" in (ROOT / page).read_text("utf-8"), name


def test_they_are_listed_a_line_each() -> None:
    command = [sys.executable, "-m", "benchmarks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    expected = [f"python -m benchmarks.{name}" for name in claims()]
    assert [
        line.split("  ")[0].rstrip()[: len(e)]
        for line, e in zip(done.stdout.splitlines(), expected, strict=True)
    ] == expected

"""List the benchmarks: how to run each, and what it claims. Nothing of them is imported."""

import ast
from pathlib import Path


def claims(folder: Path = Path(__file__).parent) -> dict[str, str]:
    """By name of a benchmark, its ``CLAIM``."""
    found = {}
    for file in sorted(folder.glob("*.py")):
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CLAIM":
                found[file.stem] = ast.literal_eval(node.value)
    return found


if __name__ == "__main__":
    for name, claim in claims().items():
        print(f"python -m benchmarks.{name:<9} {claim}")

"""Print the lowest version that pyproject.toml allows of each direct dependency, as constraints for pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for line in [
    *project["dependencies"],
    *(line for extra in ("slurm", "ray", "transformers") for line in project["optional-dependencies"][extra]),
]:
    name, lowest = re.match(r"([\w.-]+)\s*>=\s*([\w.]+)", line).groups()
    print(f"{name}=={lowest}" + (f"; {line.split(';', 1)[1].strip()}" if ";" in line else ""))

"""Run directories changed by hand in tests: as an earlier version would have left them, or with right digests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clipspm.cache.checked import SHA256, load_arrays, save_arrays, save_json


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any], *, digest: bool = False) -> None:
    """Change the content of a JSON file of a run; without ``digest`` it has none, as before 0.3."""
    content = json.loads(file.read_text())
    content.pop(SHA256, None)
    change(content)
    if digest:
        save_json(file, content)
    else:
        file.write_text(json.dumps(content))


def edit_facts(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the facts of every evaluation of a run, with a right digest."""
    for file in run.glob("eval-*.npz"):
        arrays, _ = load_arrays(file)
        facts = json.loads(str(arrays["facts"]))
        change(facts)
        save_arrays(file, {**arrays, "facts": np.array(json.dumps(facts))})


def as_before(run: Path) -> None:
    """Make a run what version 0.2 would have left: no digest in any file, facts in ``results.json`` alone."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    for file in run.glob("*.safetensors"):
        with safe_open(file, "np") as content:
            facts = json.loads(content.metadata()["facts"])
        facts.pop(SHA256, None)
        save_file(load_file(file), file, {"facts": json.dumps(facts)})
    for file in run.glob("eval-*.npz"):
        arrays, _ = load_arrays(file)
        arrays.pop("facts")
        np.savez_compressed(file, **arrays)

    def older(content: dict[str, Any]) -> None:
        for name in ("files", "dropped"):
            content.pop(name, None)
        for facts in content.get("evaluations", {}).values():
            facts.pop("weights_sha256", None)

    for name in ("config.json", "results.json"):
        if (run / name).exists():
            edit_json(run / name, older)

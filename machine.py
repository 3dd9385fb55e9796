"""What of this machine the package can use, what is missing, and how to get it."""

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipspm import __version__
from clipspm.cache.disk import size_text
from clipspm.cache.home import home
from clipspm.tables import Table

#: names of packages and of what they are imported as, where these differ
_IMPORTED_AS = {
    "open_clip_torch": "open_clip",
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "mlflow-skinny": "mlflow",
}
#: what reads videos, and what to install for it
_DECODERS = {"av": "av", "decord": "decord"}
_HUB = "models--"


def described() -> dict[str, Any]:
    """Return all that is found, in plain JSON types."""
    return {
        "clipspm": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": _packages(),
        "devices": _devices(),
        "decoders": {name: _version(package) for name, package in _DECODERS.items()},
        "encoders": _encoders(),
        "home": {"path": str(home().absolute()), "free": _free(home())},
    }


def tables(found: dict[str, Any]) -> list[Table]:
    """Make tables of :func:`described`, for people."""
    about = [
        ("clipspm", found["clipspm"]),
        ("Python", f"{found['python']}, {found['system']}"),
        *((device["name"], device["what"]) for device in found["devices"]),
        *((f"decoder {name}", have or "not installed") for name, have in found["decoders"].items()),
        ("$CLIPSPM_HOME", f"{found['home']['path']} ({size_text(found['home']['free'])} free)"),
    ]
    packages = [
        (one["name"], one["version"] or "missing", "" if one["version"] else f"pip install {one['get']}")
        for one in found["packages"]
    ]
    encoders = [(one["name"], one["where"]) for one in found["encoders"]]
    return [
        Table(("here", ""), about),
        Table(("package", "version", "how to get it"), packages, text=("version", "how to get it")),
        Table(("encoder at hand", "where"), encoders, text=("where",)),
    ]


def _packages() -> list[dict[str, str | None]]:
    """The packages that this one needs or can use, with the extra that brings each."""
    try:
        lines = requires("clipspm") or []
    except PackageNotFoundError:
        lines = []
    found: dict[str, dict[str, str | None]] = {}
    for line in lines:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        if name is None or name[0] == "clipspm" or (extra and extra[1] in ("test", "dev")):
            continue
        have = _version(name[0])
        if have is None and "sys_platform" in line:
            continue  # for another system
        get = f"'clipspm[{extra[1]}]'" if extra else f"'{name[0]}'"
        found.setdefault(name[0], {"name": name[0], "version": have, "get": get})
    return list(found.values())


def _version(package: str) -> str | None:
    if find_spec(_IMPORTED_AS.get(package, package.replace("-", "_"))) is None:
        return None
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown version"


def _devices() -> list[dict[str, str]]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [{"name": "cpu", "what": f"{cores} cores, torch uses {torch.get_num_threads()} threads"}]
    for k in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(k)
        found.append({"name": f"cuda:{k}", "what": f"{about.name}, {size_text(about.total_memory)}"})
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "what": "Apple's GPU"})
    if len(found) == 1:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        found.append({"name": "GPU", "what": f"none found (torch is {built})"})
    return found


def _encoders() -> list[dict[str, str]]:
    """The encoder of the demo, and the models that the hub's library and OpenAI's code have downloaded."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from clipspm.extract.demo import tiny_clip_source

    found = [{"name": "the demo's (--dataset demo)", "where": tiny_clip_source()}]
    found += [
        {"name": folder.name.removeprefix(_HUB).replace("--", "/"), "where": str(folder)}
        for folder in sorted(Path(HF_HUB_CACHE).glob(f"{_HUB}*"))
        if any(folder.glob("snapshots/*/*"))
    ]
    found += [
        {"name": file.name, "where": str(file)}
        for file in sorted(Path("~/.cache/clip").expanduser().glob("*.pt"))
    ]
    return found


def _free(place: Path) -> int:
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free

"""Small caches whose every feature says which row it is of, and what can happen to their files."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from clipspm.cache import CacheSpec, CacheWriter, Plan, VideoRecord
from clipspm.cache.seal import seal_path

SPEC = CacheSpec(
    dataset="folder",
    model="tiny",
    pretrained="",
    architecture_sha256="a" * 64,
    weights_sha256="b" * 64,
    activation="gelu",
    precision="fp32",
    layers=("1", "final"),
    dims={"1": 3, "final": 5},
    frames=4,
    views=2,
    flip=False,
    resize=37,
    crop=32,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    prompts=("a photo of {}", "{}"),
)


def plan_of(ids: list[str]) -> Plan:
    classes = ("wave", "run")
    videos = tuple(VideoRecord(i, f"{i}.mp4", classes[n % 2], "train") for n, i in enumerate(ids))
    return Plan(videos, classes, {"wave": "train", "run": "train"})


def values(row: int, layer: str) -> np.ndarray:
    """Features that identify their row."""
    return np.random.default_rng([row, len(layer)]).normal(size=(2, 4, SPEC.dims[layer])).astype(np.float16)


TEXT = np.random.default_rng(0).normal(size=(2, 2, 5)).astype(np.float32)


def fill(
    writer: CacheWriter, *, number: dict[str, int], failing: set[str] = frozenset(), shards: int = 99
) -> None:  # type: ignore[assignment]
    for shard, rows in writer.pending_shards()[:shards]:
        outcomes, good = {}, []
        for row in rows:
            record = writer.records[row]
            if record.id in failing:
                outcomes[row] = replace(record, status="failed", category="unreadable", error="bad")
            else:
                taken = {"frames": 9, "indices": (0, 1, 2, 3), "pts_seconds": (0.0, None, 0.5, 1.0)}
                outcomes[row] = replace(record, status="ok", category="", error="", **taken)
                good.append(number[record.id])
        features = {layer: np.stack([values(n, layer) for n in good]) for layer in SPEC.layers if good}
        writer.commit(shard, outcomes, features)


def suffix(format: str) -> str:
    return {"zarr": "c.zarr", "hdf5": "c.h5"}[format]


FORMATS = ("zarr", "hdf5")
IDS = [f"v{i:02d}" for i in range(11)]
NUMBER = {name: i for i, name in enumerate(IDS)}
#: what version 0.2 wrote for :func:`make`, in both formats
OF_0_2 = Path(__file__).with_name("caches-0.2.zip")


def make(
    path: Path, format: str = "zarr", ids: list[str] = IDS, failing: set[str] = frozenset({"v03"})
) -> Path:  # type: ignore[assignment]
    writer = CacheWriter(path, SPEC, plan_of(ids), TEXT, format=format, shard_size=4)  # type: ignore[arg-type]
    fill(writer, number=NUMBER, failing=failing)
    return writer.finish()


def everything(path: Path) -> list[Path]:
    """Every file of a cache, its seal included."""
    inside = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sorted({*inside, seal_path(path)})


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(data))

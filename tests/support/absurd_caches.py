"""Caches that are whole by their digests and make no sense."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from clipspm.cache.ledger import OUTCOME_FIELDS, Entry, read_ledger
from clipspm.cache.seal import write_seal
from clipspm.cache.spec import CLASSES, LEDGER, SPEC, VIDEOS, CacheSpec
from clipspm.cache.store import Hdf5Store

Change = Callable[[Any], Any]


def spec(**values: Any) -> tuple[str, Change]:
    """The spec with other values, and the fingerprint that goes with them."""

    def change(data: bytes) -> bytes:
        raw = {**json.loads(data), **values}
        try:
            made = CacheSpec(**{f.name: raw[f.name] for f in fields(CacheSpec) if f.name in raw})
            raw["fingerprint"] = made.fingerprint
        except (TypeError, ValueError):
            pass
        return json.dumps(raw).encode()

    return SPEC, change


def classes(change: Callable[[list[Any]], Any]) -> tuple[str, Change]:
    return CLASSES, lambda data: json.dumps(change(json.loads(data))).encode()


def videos(**values: Any) -> tuple[str, Change]:
    """The third video with other values."""

    def change(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        lines[2] = (json.dumps({**json.loads(lines[2]), **values}) + "\n").encode()
        return b"".join(lines)

    return VIDEOS, change


def outcome(**values: Any) -> tuple[str, Change]:
    """The third video's outcome with other values."""

    def change(data: bytes) -> bytes:
        entries, _ = read_ledger(data)
        lines = []
        for entry in entries:
            if 2 in entry.rows:
                at = list(entry.rows).index(2)
                found = list(entry.outcomes)
                known = dict(zip(OUTCOME_FIELDS, found[at], strict=True))
                found[at] = tuple({**known, **values}.values())
                entry = replace(entry, outcomes=found)
            lines.append(entry.to_line())
        return b"".join(lines)

    return LEDGER, change


def rows(change: Callable[[Entry], Entry]) -> tuple[str, Change]:
    return LEDGER, lambda data: b"".join(change(e).to_line() for e in read_ledger(data)[0])


ABSURD: list[tuple[str, Change]] = [
    spec(frames=0),
    spec(frames=-4),
    spec(frames=10**12),
    spec(frames="many"),
    spec(frames=True),
    spec(views=10**9),
    spec(dims={"1": 3, "final": 10**12}),
    spec(dims={"1": 3}),
    spec(dims={"1": 3, "final": -5}),
    spec(dims={"1": 3, "final": "5"}),
    spec(dims=[3, 5]),
    spec(layers=["1", "1", "final"]),
    spec(layers=["1"]),
    spec(layers=["1", "../../final"]),
    spec(layers=["1:mean", "1.mean", "final"], dims={"1:mean": 3, "1.mean": 3, "final": 5}),
    spec(layers=["1:../x", "final"], dims={"1:../x": 3, "final": 5}),
    spec(layers="final"),
    spec(layers=[]),
    spec(mean=[float("nan"), 0.5, 0.5]),
    spec(mean=[0.5]),
    spec(std=None),
    spec(prompts=None),
    spec(prompts=[1, 2]),
    spec(names="shouted"),
    spec(descriptions={"wave": []}),
    spec(descriptions={"wave": "a hand"}),
    spec(descriptions={"wave": [7]}),
    spec(descriptions=["a hand"]),
    spec(store_dtype="float64"),
    spec(store_dtype="fp32"),
    spec(resized_by="magic"),
    spec(logit_scale=float("nan")),
    spec(logit_bias="low"),
    spec(resize_mode="widest"),
    spec(crop_width=0),
    spec(crop_width="wide"),
    spec(fill=[0, 0]),
    spec(fill=[0, 0, 256]),
    spec(format_version=99),
    spec(dataset=None),
    (SPEC, lambda data: b"[" * 100_000),
    (SPEC, lambda data: b"\xff\xfe"),
    (SPEC, lambda data: b"[]"),
    (SPEC, lambda data: b'{"format_version": 3}'),
    classes(lambda found: [["wave", "exec", 6], found[1]]),
    classes(lambda found: [["wave", "train", -6], found[1]]),
    classes(lambda found: [["wave", "train", "x"], found[1]]),
    classes(lambda found: [["wave", "train", 6], ["wave", "train", 5]]),
    classes(lambda found: [["", "train", 6], found[1]]),
    classes(lambda found: [[7, "train", 6], found[1]]),
    classes(lambda found: [["waves", "train", 6], found[1]]),
    classes(lambda found: [["wave", "test", 6], found[1]]),
    classes(lambda found: found[:1]),
    classes(lambda found: []),
    classes(lambda found: {"wave": "train"}),
    classes(lambda found: None),
    videos(id="v01"),
    videos(id=None),
    videos(id=["v02"]),
    videos(class_name="fly"),
    videos(class_name={}),
    videos(split="exec"),
    videos(split="test"),
    videos(split=["train"]),
    videos(path=3),
    (VIDEOS, lambda data: data + data),
    (VIDEOS, lambda data: b""),
    (VIDEOS, lambda data: b"{}\n" * 11),
    (VIDEOS, lambda data: b"[" * 100_000 + b"\n"),
    outcome(status="weird"),
    outcome(status=["ok"]),
    outcome(status=None),
    outcome(category=5),
    outcome(error={"a": 1}),
    outcome(frames=-1),
    outcome(frames=1.5),
    outcome(frames=10**30),
    outcome(fps=float("nan")),
    outcome(fps=-25.0),
    outcome(fps="fast"),
    outcome(indices=(0, 1)),
    outcome(indices=(0, 1, 2, "3")),
    outcome(indices=(-1, 0, 1, 2)),
    outcome(frames=3, indices=(0, 1, 2, 3)),
    outcome(indices=(0, 1, 2, 3), pts_seconds=(0.0,)),
    outcome(indices=(0, 1, 2, 3), pts_seconds=(0.0, 1.0, 2.0, float("inf"))),
    outcome(backend=0),
    rows(lambda entry: replace(entry, rows=[row + 1000 for row in entry.rows])),
    rows(lambda entry: replace(entry, rows=[-1 - row for row in entry.rows])),
    rows(lambda entry: replace(entry, rows=[str(row) for row in entry.rows])),
]


def absurd(path: Path, blob: str, change: Change) -> Path:
    """The cache with one of its blobs changed, sealed again."""
    if path.is_dir():
        (path / blob).write_bytes(change((path / blob).read_bytes()))
    else:
        data = np.frombuffer(change(Hdf5Store(path).blob(blob)), np.uint8)
        with h5py.File(path, "r+") as file:
            del file[blob]
            chunked = {"chunks": data.shape, "fletcher32": True} if data.size else {}
            file.create_dataset(blob, data=data, **chunked)
    write_seal(path)
    return path

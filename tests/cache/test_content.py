"""Caches that are whole by their digests and make no sense are refused, whoever reads them."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipspm.cache import open_cache
from clipspm.cache.disk import remove
from clipspm.cache.seal import write_seal
from clipspm.cache.spec import CLASSES
from clipspm.cache.store import find_store
from clipspm.cache.transform import convert
from clipspm.cache.verify import repair, verify
from clipspm.cache.writer import CacheWriter
from clipspm.errors import ClipspmError
from tests.support.absurd_caches import ABSURD, absurd, spec
from tests.support.caches import FORMATS, IDS, TEXT, make, plan_of, suffix
from tests.support.caches import SPEC as HONEST


@pytest.mark.parametrize("case", range(len(ABSURD)))
def test_absurd_caches_are_refused_by_all_who_read_them(tmp_path: Path, case: int) -> None:
    blob, change = ABSURD[case]
    path = absurd(make(tmp_path / "c.zarr"), blob, change)
    report = verify(path)
    assert report.sealed and not report.ok and not report.readable
    with pytest.raises(ClipspmError) as caught:
        open_cache(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + 3 * len(str(path))
    with pytest.raises(ClipspmError, match="extract again with --overwrite"):
        repair(report)
    with pytest.raises(ClipspmError):
        convert(path, tmp_path / "d.h5")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", range(0, len(ABSURD), 7))
def test_absurd_records_are_not_extended(tmp_path: Path, case: int, format: str) -> None:
    blob, change = ABSURD[case]
    path = absurd(make(tmp_path / suffix(format), format), blob, change)
    assert not verify(path).ok
    with pytest.raises(ClipspmError):
        open_cache(path)
    if blob != CLASSES:  # those are written again from the plan
        with pytest.raises(ClipspmError):
            CacheWriter(path, HONEST, plan_of([*IDS, "v11"]), TEXT, format=format)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "about"),
    [
        ("layers/final", {"shape": [10**12, 2, 4, 5]}),
        ("layers/final", {"shape": [11, 2, 4, 10**12]}),
        (
            "layers/final",
            {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**9, 2, 4, 5]}}},
        ),
        ("layers/final", {"data_type": "float32", "fill_value": 0.0}),
        ("text", {"shape": [10**12, 2, 5]}),
        ("text", {"shape": [2, 2, 10**12]}),
    ],
)
def test_arrays_of_absurd_shapes_are_refused_before_memory_is_taken(
    tmp_path: Path, key: str, about: dict[str, Any]
) -> None:
    path = make(tmp_path / "c.zarr")
    file = path / key / "zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **about}))
    write_seal(path)
    assert not verify(path).ok
    with pytest.raises(ClipspmError, match=f"{key}: its (shape|type|chunks)"):
        open_cache(path)


@pytest.mark.parametrize("held", [0, 10, 330, 100_000])
def test_a_chunk_of_another_size_than_promised_is_damage(tmp_path: Path, held: int) -> None:
    path = make(tmp_path / "c.zarr")
    chunk = next(file for file in (path / "layers/final/c/0").rglob("*") if file.is_file())
    chunk.write_bytes(bytes(held))
    write_seal(path)
    report = verify(path)
    assert not report.ok and report.shards == (0,)
    with pytest.raises(ClipspmError, match="shard 0 of layer final is damaged"):
        open_cache(path).features("final")


def test_a_large_chunk_that_is_not_there_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "c.zarr")
    remove(path / "layers/final/c/0")
    monkeypatch.setattr("clipspm.cache.store._MOST_ZEROS", 100)
    with pytest.raises(ValueError, match="0 bytes of 324"):
        find_store(path).chunk("layers/final", 0, range(4))


def test_a_cache_without_prompts_that_holds_texts_is_not_whole(tmp_path: Path) -> None:
    path = absurd(make(tmp_path / "c.zarr"), *spec(prompts=[]))
    (finding,) = verify(path).findings
    assert finding.where.startswith("te") and "its shape is (2, 2, 5), not (2, 0, 5)" in finding.problem

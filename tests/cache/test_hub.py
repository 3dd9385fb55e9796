"""Sharing caches: a hub that is a folder, and what it must not be given or taken from."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from clipspm.cache import open_cache
from clipspm.cache.hub import pull, push
from clipspm.cache.seal import seal_path
from clipspm.errors import ClipspmError, UsageError
from tests.support.caches import flip, make, suffix
from tests.support.cli import assert_one_clear_line, clipspm

FORMATS = ("zarr", "hdf5")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set me/clips as a folder."""
    place = tmp_path / "hub"

    class Api:
        def create_repo(self, repo_id: str, **how: Any) -> None:
            assert (repo_id, how) == (
                "me/clips",
                {"repo_type": "dataset", "private": False, "exist_ok": True},
            )
            place.mkdir(exist_ok=True)

        def upload_folder(self, *, folder_path: Path, path_in_repo: str, **_: Any) -> str:
            shutil.copytree(folder_path, place / path_in_repo)
            return "https://hub/me/clips"

        def upload_file(self, *, path_or_fileobj: Path, path_in_repo: str, **_: Any) -> str:
            (place / path_in_repo).parent.mkdir(exist_ok=True)
            shutil.copy(path_or_fileobj, place / path_in_repo)
            return "https://hub/me/clips"

    def fetch(repo_id: str, *, local_dir: str, allow_patterns: list[str], **_: Any) -> str:
        assert (repo_id, allow_patterns) == ("me/clips", ["cache/*"])
        shutil.copytree(place / "cache", Path(local_dir, "cache"))
        Path(local_dir, ".cache").mkdir()
        return local_dir

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return place


@pytest.mark.parametrize("format", FORMATS)
def test_a_cache_goes_there_and_back(format: str, hub: Path, tmp_path: Path) -> None:
    cache = make(tmp_path / f"a{suffix(format)}", format)
    assert push(cache, "me/clips") == "https://hub/me/clips"
    card = (hub / "README.md").read_text()
    assert open_cache(cache).spec.fingerprint in card and str(tmp_path) not in card
    back = pull("me/clips", tmp_path / f"b{suffix(format)}")
    assert seal_path(back).read_bytes() == seal_path(cache).read_bytes()
    assert (open_cache(back).features("final") == open_cache(cache).features("final")).all()
    assert not list(tmp_path.glob(".pull-*"))


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_damaged_is_neither_shared_nor_taken(format: str, hub: Path, tmp_path: Path) -> None:
    cache = make(tmp_path / f"a{suffix(format)}", format)
    push(cache, "me/clips")
    for place in (cache, hub / "cache" / cache.name):
        file = next(f for f in place.glob("layers/final/c/**/*") if f.is_file()) if place.is_dir() else place
        flip(file, 4 * file.stat().st_size)
    with pytest.raises(ClipspmError, match="is not finished and whole"):
        push(cache, "me/clips")
    with pytest.raises(ClipspmError, match="the cache of me/clips is not finished and whole"):
        pull("me/clips", tmp_path / f"b{suffix(format)}")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith((".pull", "b"))) == []


def test_unsealed_caches_are_not_shared(hub: Path, tmp_path: Path) -> None:
    cache = make(tmp_path / "a.zarr", "zarr")
    seal_path(cache).unlink()
    result = clipspm("cache", "push", cache, "me/clips", home=tmp_path)
    assert_one_clear_line(result, "is not finished and whole", "SHA256SUMS is missing")
    assert not hub.exists()


def test_nothing_is_overwritten(hub: Path, tmp_path: Path) -> None:
    cache = make(tmp_path / "a.zarr", "zarr")
    push(cache, "me/clips")
    with pytest.raises(UsageError, match="is there already"):
        pull("me/clips", cache)
    with pytest.raises(UsageError, match="give it the same ending"):
        pull("me/clips", tmp_path / "b.h5")


def test_a_name_that_is_none_and_a_hub_out_of_reach_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_clear_line(clipspm("cache", "pull", "a/b/c/d", home=tmp_path), "ORGANISATION/NAME", code=2)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert_one_clear_line(
        clipspm("cache", "pull", "me/none", home=tmp_path), "me/none: the hub cannot be reached"
    )

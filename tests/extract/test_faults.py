"""Hostile files and sudden death: the campaigns in their short form (``python -m benchmarks.faults``: the long one)."""

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from clipspm.cache import open_cache
from clipspm.errors import ClipspmError, UsageError
from clipspm.extract import DecodeError, ExtractConfig, extract, read_frames
from tests.support.campaigns import fault_campaign, kill_campaign, tiny_config
from tests.support.media import numbered_frames, write_video


def test_hostile_files_cost_themselves_and_nothing_else(tmp_path: Path) -> None:
    report = fault_campaign(tmp_path)
    assert report.wrong == ()
    assert report.hostile >= 100
    assert os.sched_getscheduler(0) == os.SCHED_OTHER  # no encoder has made this a real-time process


@pytest.mark.timeout(600)
@pytest.mark.parametrize("format", ["zarr", pytest.param("hdf5", marks=pytest.mark.slow)])
def test_a_killed_extraction_ends_with_the_same_bytes(tmp_path: Path, format: str) -> None:
    report = kill_campaign(tmp_path, kills=1, videos=12, format=format)
    assert report.kills == 1 and report.wrong == ()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_twenty_kills(tmp_path: Path, format: str) -> None:
    report = kill_campaign(tmp_path, kills=20, format=format)
    assert report.kills == 20 and report.wrong == ()


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "secret.mp4", numbered_frames(5))
    path.chmod(0)
    tmp_path.chmod(0o755)
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()

    def look() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)  # root may read everything
        try:
            read_frames(path)
            found.put("ok")
        except DecodeError as error:
            found.put((error.category, error.detail))

    child = context.Process(target=look)
    child.start()
    child.join()
    category, detail = found.get()
    assert category == "unreadable" and "ermission denied" in detail


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> ExtractConfig:
    folder = tmp_path_factory.mktemp("some")
    for i in range(6):
        write_video(folder / "videos" / ("a", "b")[i % 2] / f"{i}.mp4", numbered_frames(9 + i))
    for i in range(3):
        (folder / "videos" / "a" / f"bad {i}.mp4").write_bytes(b"nothing")
    return tiny_config(folder, folder / "videos", shard_size=4)


def test_too_many_failures_stop_the_run(some: ExtractConfig, tmp_path: Path) -> None:
    config = replace(some, out=tmp_path / "c.zarr")
    for limit in ("2", "30%"):
        with pytest.raises(ClipspmError, match=f"3 of 9 videos failed, more than --max-failures {limit}"):
            extract(replace(config, max_failures=limit, overwrite=True))
    result = extract(replace(config, max_failures="3"))
    assert len(result.failures) == 3
    assert extract(replace(config, max_failures="34%")).done == 0
    for wrong in ("x", "-1", "101%", "2.5"):
        with pytest.raises(UsageError, match="expected a number of videos, or a share"):
            replace(config, max_failures=wrong)


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_failed_videos_are_tried_again_when_asked(some: ExtractConfig, tmp_path: Path, format: str) -> None:
    assert some.videos is not None
    videos = tmp_path / "videos"
    for source in some.videos.rglob("*.mp4"):
        target = videos / source.relative_to(some.videos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    config = replace(some, videos=videos, out=tmp_path / "cache", format=format)  # type: ignore[arg-type]
    assert (extract(config).done, len(extract(config).failures)) == (6, 3)
    before, opened = open_cache(tmp_path / "cache"), open_cache(tmp_path / "cache")
    features = before.features("final")
    write_video(videos / "a" / "bad 1.mp4", numbered_frames(12))
    assert extract(config).done == 0
    result = extract(replace(config, retry_failed=True))
    assert (result.done, len(result.failures), result.already) == (1, 2, 6)
    after = open_cache(tmp_path / "cache")
    rows = {video.id: row for row, video in enumerate(after.good)}
    for row, video in enumerate(before.good):
        assert (after.features("final")[rows[video.id]] == features[row]).all()
    assert "a/bad 1.mp4" in {video.path for video in after.good}
    with pytest.raises(ClipspmError, match="has changed since it was opened"):
        opened.features("final")


def test_short_videos_are_marked_or_refused(some: ExtractConfig, tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "a" / "short.mp4", numbered_frames(2))
    write_video(tmp_path / "videos" / "a" / "long.mp4", numbered_frames(20))
    config = replace(some, videos=tmp_path / "videos", out=tmp_path / "c.zarr")
    cache = open_cache(extract(config).path)
    assert {video.path: video.repeats for video in cache.good} == {"a/short.mp4": True, "a/long.mp4": False}
    assert cache.summary()["shorter_than_asked"] == 1
    refused = extract(replace(config, out=tmp_path / "d.zarr", min_frames=4)).failures
    assert [(path, category) for path, category, _ in refused] == [("a/short.mp4", "too short")]

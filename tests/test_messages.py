"""What is said, where: less, more, and into a file."""

import logging
from pathlib import Path

import pytest

from clipspm.progress import Reporter, hush, logger, track
from tests.support.caches import make
from tests.support.cli import assert_one_clear_line, clipspm


@pytest.fixture(autouse=True)
def as_before() -> None:
    yield
    hush(False)
    logger.handlers = [handler for handler in logger.handlers if isinstance(handler, logging.NullHandler)]


def test_quiet_keeps_results_and_errors(tmp_path: Path) -> None:
    cache = make(tmp_path / "a.zarr")
    loud = clipspm("cache", "convert", cache, tmp_path / "b.h5", home=tmp_path)
    assert "cache: " in loud.stderr
    quiet = clipspm("--quiet", "cache", "convert", cache, tmp_path / "c.h5", home=tmp_path)
    assert (quiet.returncode, quiet.stderr, quiet.stdout) == (0, "", "")
    assert clipspm("-q", "cache", "verify", cache, home=tmp_path).stdout
    assert_one_clear_line(clipspm("-q", "cache", "info", "none", home=tmp_path), "no cache at none")


def test_warnings_are_heard_in_the_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    hush()
    reporter = Reporter()
    reporter.say("news")
    reporter.say("warning: mind this")
    assert list(track([1, 2, 3], "counting", 3, "numbers")) == [1, 2, 3]
    with reporter.task("counting", 2, "numbers") as advance:
        advance(2, "")
    assert capsys.readouterr().err == "warning: mind this\n"


def test_a_log_file_has_everything_with_the_time(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    cache = make(tmp_path / "a.zarr")
    clipspm("--log-file", log, "--quiet", "cache", "convert", cache, tmp_path / "b.h5", home=tmp_path)
    clipspm("--log-file", log, "cache", "info", "none\x1b", home=tmp_path)
    text = log.read_text()
    first, *_ = text.splitlines()
    assert first.endswith(f"cache convert {cache} {tmp_path / 'b.h5'}")
    assert f"INFO cache: {tmp_path / 'b.h5'}" in text
    assert "ERROR no cache at none" in text and "Traceback" in text and "\x1b" not in text.splitlines()[-1]
    assert all(line[:4].isdigit() for line in text.splitlines()[:3])


def test_verbose_says_where_an_error_came_from(tmp_path: Path) -> None:
    result = clipspm("--verbose", "cache", "info", "none", home=tmp_path)
    assert "open_cache" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: no cache at none")
    assert "Traceback" not in clipspm("cache", "info", "none", home=tmp_path).stderr


def test_a_log_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    result = clipspm("--log-file", tmp_path, "cache", "list", home=tmp_path)
    assert_one_clear_line(result, "--log-file", "cannot be written", code=2)


def test_a_cache_is_examined_too(tmp_path: Path) -> None:
    cache = make(tmp_path / "a.zarr")
    assert "complete and undamaged" in clipspm("doctor", cache, home=tmp_path).stdout
    next(file for file in cache.glob("layers/final/c/**/*") if file.is_file()).unlink()
    result = clipspm("doctor", cache, home=tmp_path)
    assert result.returncode == 1 and "is missing" in result.stdout

"""The seal of a finished cache: a SHA-256 of every byte, in the format that ``sha256sum -c`` reads.

A Zarr cache holds it as ``SHA256SUMS``, one line per file. The seal of an HDF5 cache is ``PATH.sha256``
beside it; the file name in its line is ignored, so the two may be renamed together.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from clipspm.cache.disk import check_size, write_atomically
from clipspm.errors import ClipspmError

SUMS = "SHA256SUMS"
IRREGULAR = "not a regular file"
#: the names of the files of a Zarr cache
_BELONGS = re.compile(
    r"(spec|classes|zarr)\.json|(videos|ledger)\.jsonl|layers/zarr\.json|(layers/[^/]+|text)/(zarr\.json|c/[0-9/]+)"
)


def seal_path(cache: Path) -> Path:
    """The path of the cache's seal."""
    return cache / SUMS if cache.is_dir() else cache.with_name(cache.name + ".sha256")


def write_seal(cache: Path) -> None:
    """Seal the cache as it is now; raises :class:`ClipspmError` for a file that does not belong there."""
    lines = []
    for name, file in _files(cache):
        digest = _digest(file)
        if digest == IRREGULAR or (cache.is_dir() and not _BELONGS.fullmatch(name)):
            what = f"is {IRREGULAR} and " if digest == IRREGULAR else ""
            raise ClipspmError(f"{cache}: {name} {what}does not belong there: move it away")
        lines.append(_line(digest, name))
    write_atomically(seal_path(cache), os.fsencode("".join(lines)))


def broken(cache: Path, *, metadata_only: bool = False) -> list[tuple[str, str]]:
    """(file, what is wrong) for every file that differs from the seal, sorted by name; [] without a seal.

    ``metadata_only``: skip the features, which take long to read.
    """
    seal = seal_path(cache)
    if seal.is_symlink():
        return [(seal.name, f"is {IRREGULAR}")]
    if not seal.is_file():
        return []
    check_size(seal)
    expected = {}
    wrong = []
    for line in seal.read_bytes().split(b"\n"):
        digest, _, name = os.fsdecode(line).partition("  ")
        if name:
            expected[name] = digest
        elif line:
            wrong.append((seal.name, "holds a line that is not a file's digest"))
    if not cache.is_dir() and len(expected) == 1:
        (sealed_as,) = expected
        expected = {cache.name: expected[sealed_as]}
    else:
        sealed_as = ""
    files = dict(_files(cache, metadata_only))
    if metadata_only:
        expected = {name: digest for name, digest in expected.items() if _is_metadata(name)}
    for name in sorted(expected.keys() | files.keys()):
        found = _digest(files[name]) if name in files else None
        if found == IRREGULAR:
            wrong.append((name, f"is {IRREGULAR}: remove it from the cache"))
        elif name not in files:
            wrong.append((name, "is missing"))
        elif name not in expected:
            wrong.append((name, "was added after the cache was finished, or its line in the seal is damaged"))
        elif expected[name] != found:
            wrong.append((name, "has changed since the cache was finished"))
    if not wrong and not metadata_only:
        whole = os.fsencode("".join(_line(expected[name], sealed_as or name) for name, _ in _files(cache)))
        if whole != seal.read_bytes():
            wrong.append((seal.name, "is damaged"))
    return wrong


def irregular(cache: Path) -> list[tuple[str, Path]]:
    """(name, path) of the links, pipes, devices and empty folders in a cache, which never belong there."""
    return [(name, file) for name, file in _files(cache) if not _is_regular(file)]


def check_metadata(cache: Path) -> None:
    """Raise :class:`ClipspmError` if the metadata of a Zarr cache differs from its seal."""
    for name, problem in broken(cache, metadata_only=True):
        raise ClipspmError(f"{cache}: {name} {problem}; `clipspm cache verify {cache}` says what is damaged")


def _files(cache: Path, metadata_only: bool = False) -> Iterator[tuple[str, Path]]:
    """(name in the seal, path) of every file and empty folder of the cache, sorted."""
    if not cache.is_dir():
        yield cache.name, cache
        return
    found = []
    for folder, folders, files in os.walk(cache):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        empty = [] if folders or files else [Path(folder)]
        if metadata_only:
            folders[:] = [name for name in folders if name != "c"]  # where Zarr keeps the chunks
        found += [*empty, *(Path(folder, name) for name in files + links)]
    for name, path in sorted((p.relative_to(cache).as_posix(), p) for p in found):
        if name != SUMS and (not metadata_only or _is_metadata(name)):
            yield name, path


def _is_metadata(name: str) -> bool:
    """Whether the file is metadata: not features, texts or staged shards (which are not in the cache yet)."""
    return not name.startswith(("layers/", "text/", "staged/")) or name.endswith("zarr.json")


def _line(digest: str, name: str) -> str:
    return f"{digest}  {name}\n"


def _is_regular(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


def _digest(file: Path) -> str:
    if not _is_regular(file):
        return IRREGULAR
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()

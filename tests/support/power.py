"""What of a folder would be there after a loss of power: what was flushed, and of the rest who knows what.

The model is that of POSIX, which promises little: a file's content survives as it was at its last ``fsync``, a
folder's entries (new files, renames, removals) as they were at the folder's. Of what was not flushed anything may
have reached the disk. (File systems promise more: ext4 in its usual mode writes renames in order.)
"""

import os
import random
import stat
from dataclasses import dataclass, field
from pathlib import Path

import pytest


class PowerLoss(BaseException):
    """Nothing after this happened."""


@dataclass
class Disk:
    """Follows every ``fsync`` from now on; the ``until``-th does not happen any more."""

    root: Path
    until: int = 10**9
    flushes: int = 0
    _files: dict[int, bytes] = field(default_factory=dict)
    _folders: dict[int, dict[str, int]] = field(default_factory=dict)
    _open: dict[int, int] = field(default_factory=dict)  # so that no number of a file is given twice

    def follow(self, patch: pytest.MonkeyPatch) -> "Disk":
        """Start with what is there now."""
        for place, _, files in os.walk(self.root, topdown=False):
            for path in [*(Path(place, name) for name in files), Path(place)]:
                handle = os.open(path, os.O_RDONLY)
                self._flush(handle)
                os.close(handle)
        patch.setattr(os, "fsync", self._fsync)
        return self

    def _fsync(self, handle: int) -> None:
        self.flushes += 1
        if self.flushes > self.until:
            raise PowerLoss
        self._flush(handle)

    def _flush(self, handle: int) -> None:
        about = os.fstat(handle)
        if about.st_ino not in self._open:
            self._open[about.st_ino] = os.dup(handle)
        if stat.S_ISDIR(about.st_mode):
            self._folders[about.st_ino] = {
                name: os.lstat(name, dir_fd=handle).st_ino for name in os.listdir(handle)
            }
        else:
            self._files[about.st_ino] = Path(f"/proc/self/fd/{handle}").read_bytes()

    def survivors(self, target: Path, rng: random.Random | None = None) -> Path:
        """Write into the new folder ``target`` what is left: only what was flushed, or with ``rng`` more."""
        now: dict[int, Path] = {}
        for place, folders, files in os.walk(self.root):
            now.update(
                {os.lstat(path).st_ino: path for path in (Path(place, name) for name in folders + files)}
            )
        now[os.stat(self.root).st_ino] = self.root
        self._restore(os.stat(self.root).st_ino, target, now, rng)
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()
        return target

    def _restore(self, number: int, target: Path, now: dict[int, Path], rng: random.Random | None) -> None:
        here = now.get(number)
        is_folder = number in self._folders or (here is not None and here.is_dir())
        if is_folder:
            target.mkdir()
            entries = dict(self._folders.get(number, {}))
            if rng is not None and here is not None:
                current = {path.name: os.lstat(path).st_ino for path in here.iterdir()}
                for name in sorted(entries.keys() | current.keys()):
                    if rng.random() < 0.5:
                        entries.pop(name, None)
                        if name in current:
                            entries[name] = current[name]
            for name, inner in sorted(entries.items()):
                self._restore(inner, target / name, now, rng)
            return
        content = self._files.get(number, b"")
        if rng is not None and here is not None and content != here.read_bytes():
            whole = here.read_bytes()
            # what was appended may be cut off or zero; what was flushed before it stays
            kept = content if whole.startswith(content) else b""
            torn = whole[: rng.randint(len(kept), len(whole))]
            content = rng.choice([content, whole, torn, kept + bytes(len(whole) - len(kept))])
        target.write_bytes(content)

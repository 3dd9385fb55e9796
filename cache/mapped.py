"""Read the features of a cache from memory maps of its files: only the rows in use are read.

Both containers store a shard's values uncompressed and contiguous, before the checksum, so the file can be
mapped as the array. The memory is the system's page cache, which gives it back when needed.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from clipspm.cache.ledger import values_digest
from clipspm.cache.store import Store, layer_key


class MappedFeatures:
    """Rows of one layer, [N, V, T, D]; ``mapped[a:b]`` and :meth:`take` return copies of some.

    A shard is checked against its digest on first use. ``rows``: the store's row for each of the N;
    ``read(layer, shard)``: reads a shard that cannot be mapped, or raises an error that says why.
    """

    def __init__(
        self,
        store: Store,
        layer: str,
        rows: Sequence[int],
        shards: Sequence[range],
        digests: Mapping[int, Mapping[str, str]],
        read: Callable[[str, int], np.ndarray],
    ) -> None:
        self._store, self._layer, self._read = store, layer, read
        self._rows = np.asarray(rows, dtype=np.int64)
        self._shards, self._digests = shards, digests
        self._whole: set[int] = set()
        self._open: dict[int, np.ndarray] = {}
        key = layer_key(layer)
        self.shape: tuple[int, ...] = (len(self._rows), *store.shape(key)[1:])
        self.dtype = store.dtype(key)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __getitem__(self, part: slice) -> np.ndarray:
        return self._gather(self._rows[part], keep=False)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copy ``rows`` [M] -> [M, V, T, D], in any order; the maps stay open for later calls."""
        return self._gather(self._rows[rows], keep=True)

    def _gather(self, rows: np.ndarray, *, keep: bool) -> np.ndarray:
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if len(rows):
            numbers = rows // len(self._shards[0])
            order = np.argsort(numbers, kind="stable")
            for where in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
                number = int(numbers[where[0]])
                out[where] = self._shard(number, keep=keep)[rows[where] - self._shards[number].start]
        return out

    def _shard(self, number: int, *, keep: bool) -> np.ndarray:
        if number in self._open:
            return self._open[number]
        rows = self._shards[number]
        try:
            block = self._store.map_rows(layer_key(self._layer), number, len(rows))
            if number not in self._whole and values_digest(block) != self._digests[number][self._layer]:
                raise ValueError("it does not match its digest")
        except (OSError, ValueError, KeyError, RuntimeError):
            return self._read(self._layer, number)
        self._whole.add(number)
        if keep:
            self._open[number] = block
        return block

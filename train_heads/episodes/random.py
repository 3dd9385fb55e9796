"""Random numbers that are the same on every platform, numpy version and batch size.

A stream is the raw 64-bit output of the Philox-4x64-10 counter generator under a 128-bit key; numpy
guarantees that raw stream (and only that: ``Generator.choice`` may change between versions). Everything else
is derived from it here, with integers. Because Philox is a counter generator, word ``i`` of a stream does not
need the words before it.
"""

import hashlib
import json
from typing import Any

import numpy as np
import numpy.typing as npt

UInts = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

_WORDS_PER_BLOCK = 4  # Philox-4x64 makes four words from each value of its counter


def digest(*parts: Any) -> bytes:
    """Return 32 bytes (SHA-256) that identify JSON-like ``parts``; key order in mappings does not matter."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).digest()


def derive_seed(*parts: Any) -> int:
    """Return a 63-bit seed (for ``torch.Generator``) made of ``parts``."""
    return int.from_bytes(digest(*parts)[:8], "little") >> 1


def blocks(key: bytes, start: int, count: int, width: int) -> UInts:
    """Return rows ``start .. start+count-1`` of ``width`` words of the stream ``key``, [count, width].

    A row starts on a block boundary, so that it does not depend on how many rows are asked for.
    """
    per_row = -(-width // _WORDS_PER_BLOCK)
    generator = np.random.Philox(key=int.from_bytes(key[:16], "little"), counter=start * per_row)
    words = generator.random_raw(count * per_row * _WORDS_PER_BLOCK)
    return np.asarray(words, dtype=np.uint64).reshape(count, -1)[:, :width]


def below(raw: UInts, size: npt.ArrayLike) -> Ints:
    """Map 64-bit words to integers in ``[0, size)``: high 32 bits times ``size``, divided by 2**32.

    ``size`` broadcasts against ``raw`` and is at most 2**31; probabilities are off by less than 2**-32.
    """
    scaled = (raw >> np.uint64(32)) * np.asarray(size).astype(np.uint64)
    return (scaled >> np.uint64(32)).astype(np.int64)


def sample_distinct(raw: UInts, size: npt.ArrayLike) -> Ints:
    """Draw ordered samples without replacement: in row r, k different integers below ``size[r]``.

    ``raw`` [R, k] and ``size`` [R] (or one number) -> [R, k]. Word i of a row picks one of the ``size - i``
    integers that are left, counted in ascending order; every ordered sample is equally likely. (The plain
    form: ``left = list(range(size)); left.pop(below(word, len(left)))``.)
    """
    count, k = raw.shape
    sizes = np.broadcast_to(np.asarray(size, dtype=np.int64), (count,))
    if count and k > int(sizes.min()):
        raise ValueError(f"cannot pick {k} different items out of {int(sizes.min())}")
    taken = np.empty((count, k), dtype=np.int64)
    ascending = np.empty((count, 0), dtype=np.int64)
    for i in range(k):
        pick = below(raw[:, i], sizes - i)
        for smaller in ascending.T:  # skip what is taken, lowest first
            pick += pick >= smaller
        taken[:, i] = pick
        ascending = np.sort(taken[:, : i + 1], axis=1)
    return taken


def urn(raw: UInts, room: Ints, alpha: int) -> Ints:
    """Put ``raw.shape[1]`` balls into the boxes of Polya's urn: ``room`` [R, C] -> counts [R, C].

    A ball goes to box c with a weight of ``alpha`` plus the balls it has, 0 once it holds ``room[r, c]``. If
    no box fills up, that is a multinomial draw with proportions from Dirichlet(alpha, ..., alpha), with
    integers only.
    """
    if raw.size and int(room.sum(1).min()) < raw.shape[1]:
        raise ValueError(f"cannot put {raw.shape[1]} balls into boxes for {int(room.sum(1).min())}")
    counts = np.zeros_like(room)
    for word in raw.T:
        edges = np.where(counts < room, alpha + counts, 0).cumsum(1)
        box = (below(word, edges[:, -1])[:, None] >= edges).sum(1)
        counts[np.arange(len(counts)), box] += 1
    return counts

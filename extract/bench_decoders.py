"""How fast each decoder reads someone's own clips, and whether it gives the frames of a sequential decode."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

from clipspm.errors import ClipspmError, UsageError
from clipspm.extract.config import Decoder
from clipspm.extract.decode import check_backend
from clipspm.extract.decode_pool import DecodePool
from clipspm.extract.failures import DecodeError
from clipspm.extract.suffixes import is_video_name
from clipspm.extract.views import Clip, ClipSettings
from clipspm.progress import track
from clipspm.tables import Table

#: frames up to this many pixels are compared as decoded; there are none larger
_ANY = 2**27
#: the decoder whose frames are the reference
_REFERENCE: Decoder = "pyav"


@dataclass(frozen=True)
class DecoderResult:
    """What one decoder did with the clips, or why it could not be tried (``missing``).

    ``used``: clips by what they were read with in the end (PyAV where a file's index cannot be trusted).
    ``failed``: clips that could not be read. ``wrong``: clips with frames other than a sequential decode
    gives. ``seconds``: per clip that was read, the median of the repeats, averaged over the clips.
    """

    decoder: str
    used: dict[str, int]
    failed: int = 0
    wrong: tuple[str, ...] = ()
    seconds: float | None = None
    missing: str = ""


def bench_decoders(
    videos: Sequence[Path], *, frames: int = 8, repeats: int = 3, timeout: float = 60.0
) -> list[DecoderResult]:
    """Read ``frames`` frames of each of ``videos`` (files, or folders of them) with every decoder.

    Each video is read ``repeats`` times in another process, for at most ``timeout`` seconds each time.
    Raises :class:`UsageError` where there is no video.
    """
    paths = _files(videos)
    references: dict[Path, tuple[str, ...]] = {}
    results = []
    decoders = sorted(get_args(Decoder), key=lambda name: name != _REFERENCE)
    for decoder in track(decoders, "reading clips", len(decoders), "decoders"):
        try:
            check_backend(decoder)
        except ClipspmError as error:
            results.append(DecoderResult(decoder, {}, missing=str(error)))
            continue
        results.append(_bench(decoder, paths, frames, repeats, timeout, references))
    return results


def _bench(
    decoder: Decoder,
    paths: Sequence[Path],
    frames: int,
    repeats: int,
    timeout: float,
    references: dict[Path, tuple[str, ...]],
) -> DecoderResult:
    """Time one decoder; the reference's frames are put into ``references``, of others they are compared."""
    settings = ClipSettings(frames, 1, 1, 1, "bicubic", False, 1, native=_ANY, decoder=decoder)
    used: Counter[str] = Counter()
    times: list[float] = []
    wrong, failed = [], 0
    jobs = [(path, str(turn)) for path in paths for turn in range(repeats)]
    with DecodePool(settings, workers=1, timeout=timeout) as pool:
        list(pool.stream(jobs[:1]))  # starting a process and loading a decoder is not timed
        clips = pool.stream(jobs)
        for path in paths:
            found = [_kept(next(clips)) for _ in range(repeats)]
            seen = found[0]
            if seen is None:
                failed += 1
                continue
            backend, digests, _ = seen
            used[backend] += 1
            times.append(median(one[2] for one in found if one is not None))
            if decoder == _REFERENCE:
                references[path] = digests
            elif references.get(path) != digests:
                wrong.append(path.name)
    seconds = sum(times) / len(times) if times else None
    return DecoderResult(decoder, dict(used), failed, tuple(wrong), seconds)


def _kept(clip: Clip | DecodeError) -> tuple[str, tuple[str, ...], float] | None:
    """What a clip was read with, the digest of each frame, and the seconds; None if it was not read."""
    if isinstance(clip, DecodeError):
        return None
    digests = tuple(hashlib.sha256(frame.tobytes()).hexdigest() for frame in clip.pixels)
    return clip.backend, digests, clip.seconds


def _files(videos: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for place in videos:
        if place.is_dir():
            found += sorted(path for path in place.rglob("*") if path.is_file() and is_video_name(path.name))
        elif place.exists():
            found.append(place)
        else:
            raise UsageError(f"{place}: no such file or folder")
    if not found:
        raise UsageError(f"{', '.join(map(str, videos))}: no video files there")
    return found


def decoders_table(results: Sequence[DecoderResult]) -> Table:
    """The results as a table."""
    clips = results[0].failed + sum(results[0].used.values())
    rows, notes = [], []
    for one in results:
        if one.missing:
            notes.append(one.missing)
            continue
        own = one.used.get(one.decoder, 0)
        read = ", ".join(f"{count} {backend}" for backend, count in sorted(one.used.items()))
        exact = clips - one.failed - len(one.wrong)
        ms = "" if one.seconds is None else f"{1000 * one.seconds:.1f}"
        refused = str(clips - one.failed - own) if one.decoder in ("decord", "torchcodec") else ""
        rows.append((one.decoder, read, refused, f"{exact} of {clips}", str(one.failed or ""), ms))
        if one.wrong:
            notes.append(f"{one.decoder}: other frames, or damage unseen, in {', '.join(one.wrong[:5])}")
    notes.append("refused: clips whose index cannot be trusted, read by PyAV; exact: as a sequential decode")
    columns = ("--decoder", "read with", "refused", "exact", "failed", "ms per clip")
    return Table(columns, rows, f"{clips} clips", notes, text=("read with",))


def describe_decoders(results: Sequence[DecoderResult]) -> list[dict[str, Any]]:
    """The results as plain JSON types."""
    return [asdict(one) for one in results]

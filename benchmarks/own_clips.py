"""A newcomer's first hour, measured: three clips of each action, and the others to recognise.

``python -m benchmarks.own_clips --encoder mobilenetv2-in1k`` (or ``dinov2-s14``) takes UT-Interaction
(``$CLIPSPM_SHARED``, default ``../shared``): 20 sequences with the same six actions, three to go by, the
others to recognise, drawn ``--draws`` times. Accuracy, and the expected calibration error (ten bins); what
is said of clips of actions that are left out, against what was expected; four clips in one video, and how far
the found boundaries are off; and the seconds of ``clipspm predict``, a process of its own, when nothing is
kept and again (``--times``; needs idle cores).
"""

import argparse
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from benchmarks.report import machine
from clipspm import ClipEncoder, FewShotRecognizer
from clipspm.cache.disk import write_json
from clipspm.cache.home import home
from clipspm.recognise.recognizer import UNKNOWN
from clipspm.recognise.timeline import timeline
from clipspm.recognise.unknown import standing_out
from tests.support.media import write_video

CLAIM = "Three clips per action, and others are recognised within seconds (docs/recognise.md)."

Clips = dict[tuple[str, str], Path]  #: by sequence and action
Numbers = npt.NDArray[np.float64]


def ut_clips() -> Clips:
    """The 120 clips: ``set1_17_3_0.avi`` is of sequence 3."""
    root = Path(os.environ.get("CLIPSPM_SHARED", "../shared")).resolve() / "videos" / "ut_interaction"
    return {(path.stem.split("_")[2], path.parent.name): path for path in sorted(root.glob("*/*.avi"))}


def drawn(clips: Clips, draws: int) -> list[tuple[list[Path], list[Path]]]:
    """Clips of three sequences, and those of all others, ``draws`` times."""
    chance, sequences = random.Random(0), sorted({sequence for sequence, _ in clips})
    found = []
    for _ in range(draws):
        known = chance.sample(sequences, 3)
        found.append(
            (
                [path for (sequence, _), path in clips.items() if sequence in known],
                [path for (sequence, _), path in clips.items() if sequence not in known],
            )
        )
    return found


def actions(paths: Sequence[Path]) -> list[str]:
    return [path.parent.name for path in paths]


def accuracy(encoder: ClipEncoder, draws: Sequence[tuple[list[Path], list[Path]]]) -> dict[str, float]:
    """Mean accuracy of two heads, six actions, three clips of each; their calibration errors."""
    found: dict[str, list[float]] = {}
    for known, others in draws:
        for head in ("evidence", "frame-cosine"):
            made = FewShotRecognizer(encoder, head=head, unknown="off").fit(known, actions(known))
            sure = made.predict_proba(others)
            right = np.asarray(made.classes_)[sure.argmax(1)] == np.asarray(actions(others))
            found.setdefault(head, []).append(float(right.mean()))
            found.setdefault(f"{head}, ECE", []).append(_ece(sure.max(1), right))
    return {name: statistics.mean(values) for name, values in found.items()}


def _ece(sure: Numbers, right: npt.NDArray[np.bool_]) -> float:
    bins = np.ceil(10 * sure).astype(int)
    return sum(
        float((bins == b).mean() * abs(sure[bins == b].mean() - right[bins == b].mean())) for b in set(bins)
    )


def strangers(encoder: ClipEncoder, draws: Sequence[tuple[list[Path], list[Path]]]) -> dict[str, float]:
    """Four actions to go by, each pair left out: AUROC; false alarms and misses, expected and seen."""
    found: dict[str, list[float]] = {}
    for known, others in draws:
        for left in itertools.combinations(sorted(set(actions(known))), 2):
            inside = [path for path in known if path.parent.name not in left]
            made = FewShotRecognizer(encoder).fit(inside, actions(inside))
            strange = np.array([name in left for name in actions(others)])
            out = standing_out(made.classifier_.logits(encoder.transform(others)))
            said = made.predict(others) == UNKNOWN
            row = {
                "auroc": _auroc(out[~strange], out[strange]),
                "false alarms, expected": made.threshold_.false_alarms,
                "false alarms, seen": float(said[~strange].mean()),
                "misses, expected": made.threshold_.misses,
                "misses, seen": float((~said[strange]).mean()),
            }
            for name, value in row.items():
                found.setdefault(name, []).append(value)
    return {name: statistics.mean(values) for name, values in found.items()}


def _auroc(above: Numbers, below: Numbers) -> float:
    pairs = above[:, np.newaxis] - below
    return float((pairs > 0).mean() + (pairs == 0).mean() / 2)


def joined(
    encoder: ClipEncoder, draws: Sequence[tuple[list[Path], list[Path]]], folder: Path
) -> dict[str, float]:
    """Four clips of different actions end to end: the share of time named rightly, boundary errors."""
    chance = random.Random(1)
    right, errors, extra = [], [], []
    for number, (known, others) in enumerate(draws):
        chosen = [
            chance.choice([p for p in others if p.parent.name == name])
            for name in chance.sample(sorted(set(actions(others))), 4)
        ]
        video, ends = _join(chosen, folder / f"{number}.mp4")
        made = FewShotRecognizer(encoder, unknown="off").fit(known, actions(known))
        segments = timeline(made, video).segments
        times = np.arange(0.05, ends[-1], 0.1)
        truth = np.array(actions(chosen))[np.searchsorted(ends, times).clip(max=3)]
        said = np.array([next((s.label for s in segments if s.start <= t < s.end), "") for t in times])
        right.append(float((truth == said).mean()))
        starts = np.array([s.start for s in segments[1:]] or [np.inf])
        errors += [float(np.abs(starts - end).min()) for end in ends[:-1]]
        extra.append(len(segments))
    return {
        "share of time": statistics.mean(right),
        "boundary error, median, s": statistics.median(errors),
        "boundaries within 1 s": float(np.mean(np.array(errors) <= 1)),
        "segments (of 4)": statistics.mean(extra),
    }


def _join(paths: Sequence[Path], target: Path) -> tuple[Path, Numbers]:
    """Write one video of 25 frames per second; return when each clip ends, in seconds."""
    parts, ends = [], [0.0]
    for path in paths:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 25)
            frames = [f.to_ndarray(width=320, height=240, format="rgb24") for f in container.decode(stream)]
        seconds = len(frames) / rate
        rows = (np.arange(round(seconds * 25)) * rate / 25).astype(int).clip(max=len(frames) - 1)
        parts.append(np.stack([frames[row] for row in rows]))
        ends.append(ends[-1] + len(rows) / 25)
    return write_video(target, np.concatenate(parts), fps=25), np.array(ends[1:])


def seconds(model: str, known: Sequence[Path], clip: Path, repeats: int) -> dict[str, float]:
    """Seconds of ``clipspm predict`` for one clip: the call that reads the supports too, and the next."""
    first, second = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for path in known:
                place = Path(folder) / "support" / path.parent.name
                place.mkdir(parents=True, exist_ok=True)
                (place / path.name).symlink_to(path)
            asked = ["predict", str(clip), "--support", f"{folder}/support", "--model", model]
            for times in (first, second):
                began = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "clipspm", *asked],
                    env={**os.environ, "CLIPSPM_HOME": f"{folder}/home"},
                    check=True,
                    capture_output=True,
                )
                times.append(time.perf_counter() - began)
    return {"first": statistics.median(first), "second": statistics.median(second)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="mobilenetv2-in1k")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--times", action="store_true", help="the seconds of predict, and nothing else")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    options = parser.parse_args()
    clips = ut_clips()
    draws = drawn(clips, options.draws)
    shared = Path(os.environ.get("CLIPSPM_SHARED", "../shared")).resolve()
    model = f"local-dir:{shared / 'weights' / options.encoder}"
    found: dict[str, Any] = {}
    if options.times:
        found["seconds"] = seconds(model, draws[0][0], draws[0][1][0], 5)
    else:
        encoder = ClipEncoder(model, store=home() / "features").fit()
        encoder.transform(clips.values())
        found["accuracy"] = accuracy(encoder, draws)
        found["strangers"] = strangers(encoder, draws[:3])
        with tempfile.TemporaryDirectory() as folder:
            found["joined"] = joined(encoder, draws, Path(folder))
    for kind, values in found.items():
        for name, value in values.items():
            print(f"{kind}, {name}: {value:.3f}")
    if options.json:
        write_json(options.json, {"machine": machine(), "encoder": options.encoder, **found})


if __name__ == "__main__":
    main()

"""Clips of three classes that a random encoder tells apart, and what recognises them."""

from pathlib import Path

import numpy as np
import pytest

from clipspm import ClipEncoder, FewShotRecognizer
from tests.support.media import tiny_local_dir, write_video

#: the colours that clips of a class go through
COLOURS = {
    "dawn": ((0, 0, 60), (250, 200, 60)),
    "dusk": ((250, 200, 60), (0, 0, 60)),
    "grow": ((20, 160, 30), (20, 160, 30)),
}


def picture(name: str, seed: int, count: int = 16) -> np.ndarray:
    """Frames [count, 32, 48, 3] of a clip of the class ``name``: its colours, and a square that grows."""
    rng = np.random.default_rng(seed)
    first, last = (np.array(colour, float) for colour in COLOURS[name])
    mix = np.linspace(0, 1, count)[:, None, None, None]
    frames = np.broadcast_to(first * (1 - mix) + last * mix, (count, 32, 48, 3)).copy()
    if name == "grow":
        for i in range(count):
            frames[i, 8 : 10 + i, 8 : 10 + i] = 250
    return np.clip(frames + rng.normal(0, 6, frames.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_local_dir(tmp_path_factory.mktemp("recognise") / "tiny")


@pytest.fixture(scope="session")
def support(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("support")
    for k, name in enumerate(COLOURS):
        for i in range(3):
            write_video(root / name / f"{i}.mp4", picture(name, 10 * k + i))
    return root


@pytest.fixture(scope="session")
def queries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("queries")
    return {name: write_video(root / f"{name}.mp4", picture(name, 99)) for name in COLOURS}


@pytest.fixture(scope="session")
def encoder(model: str, tmp_path_factory: pytest.TempPathFactory) -> ClipEncoder:
    return ClipEncoder(model, layers="1,final", frames=4, store=tmp_path_factory.mktemp("store")).fit()


@pytest.fixture(scope="session")
def recognizer(encoder: ClipEncoder, support: Path) -> FewShotRecognizer:
    paths = sorted(support.rglob("*.mp4"))
    return FewShotRecognizer(encoder).fit(paths, [path.parent.name for path in paths])

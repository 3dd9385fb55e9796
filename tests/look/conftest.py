"""A small ablation of classes with hostile names, and the report about it."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from clipspm.look.page import as_html
from clipspm.look.report import Report, make_report
from clipspm.train_heads.experiments.ablate import ablate
from tests.support.media import write_video
from tests.support.synthetic import fake_cache, real_cache, silent, tiny_config

#: what test classes are called: markup, formulas, quotes, a change of direction, a long name
HOSTILE = (
    "<script>alert(1)</script>",
    "$\\frac{1}{0}$ & \"quotes'",
    "</style><img src=x onerror=alert(2)>",
    "right\u202eleft\n{{ 7*7 }}",
    "手を振る " + "very long " * 12,
)


@dataclass(frozen=True)
class Made:
    """An ablation's ``folder`` and ``cells``, full first; the cache; the report on it, and its page."""

    folder: Path
    cells: tuple[Path, ...]
    cache: Path
    report: Report
    page: str


def hostile_cache(path: Path) -> None:
    """Write a cache whose test classes are called :data:`HOSTILE`, with a film of each of their videos."""
    fake = fake_cache(noise=1.5, extra_layers={"1": 8})
    plain = [name for name, split in fake.class_splits.items() if split == "test"]
    called = {**{name: name for name in fake.class_names}, **dict(zip(plain, HOSTILE, strict=True))}
    fake = replace(
        fake,
        good=tuple(replace(v, class_name=called[v.class_name]) for v in fake.good),
        class_names=tuple(called[name] for name in fake.class_names),
        class_splits={called[name]: split for name, split in fake.class_splits.items()},
    )
    real_cache(path, fake)
    rng = np.random.default_rng(0)
    film = write_video(path.parent / "film.mp4", rng.integers(0, 255, (12, 48, 64, 3), dtype=np.uint8))
    for video in fake.good:
        if video.split == "test":
            place = path.parent / "videos" / video.id
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(film.read_bytes())


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    from clipspm.cache import open_cache

    folder = tmp_path_factory.mktemp("look")
    cache = folder / "cache.zarr"
    hostile_cache(cache)
    config = tiny_config(episodes=16, val_every=8, head_config={"pool": False})
    result = ablate(
        open_cache(cache), config, out_dir=folder / "ablation", drops=["padm"], heads=["prototype"],
        episodes=25, log=silent,
    )  # fmt: skip
    cells = tuple(row.cells[0] for row in result.rows)
    report = make_report(cells, episodes=6, device="cpu")
    return Made(folder / "ablation", cells, cache, report, as_html(report))


@pytest.fixture(scope="session")
def peer(made: Made) -> Report:
    """The report about a head without modules or training, with each figure as PNG too."""
    return make_report([made.cells[2]], episodes=4, device="cpu", png=True)

"""Features of clips: those of extraction, kept by content, and what cannot be read."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from clipspm import ClipEncoder, FewShotClassifier
from clipspm.cache import open_cache
from clipspm.extract import ExtractConfig, extract
from clipspm.extract.failures import DecodeError
from clipspm.recognise.clips import content_digest
from tests.recognise.conftest import picture
from tests.support.media import write_video


def test_features_are_those_that_extract_caches(
    encoder: ClipEncoder, model: str, support: Path, tmp_path: Path
) -> None:
    """But for the last digit of half precision: batches of other sizes are rounded otherwise."""
    config = ExtractConfig(
        dataset="folder",
        videos=support,
        model=model,
        layers="1,final",
        frames=4,
        precision="fp32",
        out=tmp_path / "cache.zarr",
    )
    cache = open_cache(extract(config).path)
    found = encoder.transform([support / video.path for video in cache.good])
    assert encoder.layers_ == cache.spec.dims
    layers = np.split(found, np.cumsum([*encoder.layers_.values()])[:-1], axis=-1)
    for name, features in zip(encoder.layers_, layers, strict=True):
        np.testing.assert_allclose(features, cache.features(name)[:, 0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(encoder.encode_text(cache.class_names), cache.text(), rtol=1e-4, atol=1e-5)


def test_features_are_kept_by_what_is_in_the_file(
    model: str, queries: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ClipEncoder(model, layers="final", frames=4, store=tmp_path / "store").fit()
    first = encoder.transform(queries.values())
    assert len(list((tmp_path / "store").rglob("*.safetensors"))) == len(queries)
    moved = tmp_path / "another name.mp4"
    moved.write_bytes(queries["dawn"].read_bytes())
    monkeypatch.setattr(
        encoder, "_read", lambda places: iter([]) if not places else pytest.fail("read again")
    )
    assert (encoder.transform([moved]) == first[list(queries).index("dawn")]).all()
    other = ClipEncoder(model, layers="final", frames=5, store=tmp_path / "store").fit()
    assert other.transform([moved]).shape == (1, 5, 16)


def test_damaged_features_are_refused_by_name(model: str, queries: dict[str, Path], tmp_path: Path) -> None:
    encoder = ClipEncoder(model, layers="final", frames=4, store=tmp_path).fit()
    encoder.transform([queries["dawn"]])
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"{}")
    with pytest.raises(Exception, match="is not a file of features"):
        encoder.transform([queries["dawn"]])


def test_nothing_is_kept_where_that_is_wished(
    model: str, queries: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSPM_HOME", str(tmp_path / "home"))
    ClipEncoder(model, layers="final", frames=4, store=False).fit().transform([queries["dawn"]])
    assert not (tmp_path / "home" / "features").exists()
    ClipEncoder(model, layers="final", frames=4).fit().transform([queries["dawn"]])
    assert len(list((tmp_path / "home" / "features").rglob("*.safetensors"))) == 1


def test_what_cannot_be_read_is_said_in_its_place(
    encoder: ClipEncoder, queries: dict[str, Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    found = encoder.encode([queries["dawn"], text, tmp_path / "none.mp4", queries["dusk"]])
    assert [isinstance(clip, DecodeError) for clip in found] == [False, True, True, False]
    assert isinstance(found[2], DecodeError) and found[2].category == "missing"
    with pytest.raises(DecodeError, match="text.mp4"):
        encoder.transform([queries["dawn"], text])


def test_a_folder_of_frames_is_a_clip_too(encoder: ClipEncoder, tmp_path: Path) -> None:
    for i, frame in enumerate(picture("dawn", 5)):
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "frames" / f"{i}.png")
    digest = content_digest(tmp_path / "frames")
    assert encoder.transform([tmp_path / "frames"]).shape == (1, 4, sum(encoder.layers_.values()))
    os.rename(tmp_path / "frames" / "3.png", tmp_path / "frames" / "30.png")
    assert content_digest(tmp_path / "frames") != digest


def test_steady_frames_are_those_on_the_screen(encoder: ClipEncoder, tmp_path: Path) -> None:
    """16 frames at 8 a second: a frame every half second is the third, seventh, ... of them."""
    clip = write_video(tmp_path / "a.mp4", picture("grow", 3), fps=8)
    found = encoder.encode_steadily(clip, 0.5)
    assert found.shape == (4, sum(encoder.layers_.values()))
    np.testing.assert_allclose(found, encoder.transform([clip])[0], rtol=1e-2, atol=1e-2)
    assert len(encoder.encode_steadily(clip, 0.25)) == 8
    assert len(encoder.encode_steadily(clip, 1 / 16)) == 32  # each twice


def test_it_is_a_step_of_a_pipeline(encoder: ClipEncoder, support: Path, queries: dict[str, Path]) -> None:
    paths = sorted(support.rglob("*.mp4"))
    steps = make_pipeline(encoder, FewShotClassifier(layers=encoder.layers_))
    steps.fit(paths, [path.parent.name for path in paths])
    assert list(steps.predict(list(queries.values()))) == list(queries)


def test_it_is_loaded_before_use(model: str) -> None:
    with pytest.raises(NotFittedError):
        ClipEncoder(model).transform([])
